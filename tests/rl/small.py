"""A small learner of each algorithm, for the corridor."""

from dataclasses import replace

from pipeline.agents.device import Compute
from pipeline.rl.dqn import DqnLearner
from pipeline.rl.pqn import PqnLearner
from tests.fakes import SMALL, SMALL_NORM
from tests.rl import test_dqn, test_pqn


def small_pqn(compute: Compute, steps: int) -> PqnLearner:
    return PqnLearner(replace(test_pqn.CONFIG, target_epsilon=0.05), steps, SMALL_NORM, {"Corridor": 2}, compute, 0)


def small_dqn(compute: Compute, steps: int) -> DqnLearner:
    return DqnLearner(replace(test_dqn.CONFIG, replay_start=64), steps, SMALL, {"Corridor": 2}, compute, 0)
