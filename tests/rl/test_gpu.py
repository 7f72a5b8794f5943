"""On a GPU both algorithms take the CPU's first steps: equal losses and Q-values within tolerance, states kept there."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.agents.device import Compute, exact
from pipeline.rl.dqn import DqnLearner
from pipeline.rl.learner import Learner
from tests.fakes import SMALL, Corridor
from tests.rl import test_dqn
from tests.rl.small import small_pqn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


def first_metrics(learner: Callable[[Compute, int], Learner], device: str) -> list[list[float]]:
    """Loss and mean Q of the first yields, up to five in which both devices play the same: epsilon is still near 1."""
    agent = learner(exact(torch.device(device)), 6400)
    yields = itertools.takewhile(lambda p: p.metrics["epsilon"] > 0.95, agent.train(Corridor(8)))
    found = [[p.metrics["loss"], p.metrics["q"]] for p in itertools.islice(yields, 5)]
    assert found
    return found


def exploring_dqn(compute: Compute, steps: int) -> DqnLearner:
    config = replace(test_dqn.CONFIG, replay_start=64, epsilon_steps=1_000_000)
    return DqnLearner(config, steps, SMALL, {"Corridor": 2}, compute, 0)


@pytest.mark.parametrize("learner", [small_pqn, exploring_dqn])
def test_a_gpu_learns_what_a_cpu_learns(learner: Callable[[Compute, int], Learner]) -> None:
    np.testing.assert_allclose(first_metrics(learner, "cuda"), first_metrics(learner, "cpu"), rtol=1e-3, atol=1e-5)


def test_the_rollout_stays_on_the_device() -> None:
    agent = small_pqn(exact(torch.device("cuda")), 6400)
    assert agent.q_values(np.zeros((8, 4, 84, 84), dtype=np.uint8), 0).device.type == "cuda"
    assert agent._obs_TBCHW.device.type == "cuda"
