"""On a GPU both algorithms take the CPU's first steps: equal losses and Q-values within tolerance, states kept there."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from pipeline.agents.device import exact
from pipeline.rl.dqn import DqnLearner
from pipeline.rl.learner import Learner
from pipeline.rl.pqn import PqnLearner
from tests.fakes import SMALL, SMALL_NORM, Corridor
from tests.rl import test_dqn, test_pqn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


def learner(algorithm: str, device: str) -> Learner:
    compute = exact(torch.device(device))
    if algorithm == "pqn":
        return PqnLearner(test_pqn.CONFIG, 6400, SMALL_NORM, {"Corridor": 2}, compute, 0)
    return DqnLearner(dataclasses.replace(test_dqn.CONFIG, replay_start=64), 6144, SMALL, {"Corridor": 2}, compute, 0)


def first_metrics(algorithm: str, device: str) -> list[list[float]]:
    """Loss and mean Q of five iterations, in which epsilon is still so near 1 that both devices play the same."""
    iterations = itertools.islice(learner(algorithm, device).train(Corridor(8)), 5)
    return [[p.metrics["loss"], p.metrics["q"]] for p in iterations]


@pytest.mark.parametrize("algorithm", ["pqn", "dqn"])
def test_a_gpu_learns_what_a_cpu_learns(algorithm: str) -> None:
    np.testing.assert_allclose(first_metrics(algorithm, "cuda"), first_metrics(algorithm, "cpu"), rtol=1e-3, atol=1e-5)


def test_the_rollout_stays_on_the_device() -> None:
    agent = PqnLearner(test_pqn.CONFIG, 6400, SMALL_NORM, {"Corridor": 2}, exact(torch.device("cuda")), 0)
    assert agent.q_values(np.zeros((8, 4, 84, 84), dtype=np.uint8), 0).device.type == "cuda"
    assert agent._obs_TBHWC.device.type == "cuda"
