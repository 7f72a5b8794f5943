"""Epsilon-greedy: exact at its ends, seeded, and independent of the company a state keeps."""

from typing import Any

import numpy as np
import torch

from pipeline.agents.device import exact
from pipeline.agents.networks import NETWORKS, QNetwork
from pipeline.agents.policies import EpsilonGreedy, explore, q_function


def states(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 84, 84), dtype=np.uint8)


def test_epsilon_zero_is_greedy_and_one_is_chance() -> None:
    q_BA = np.random.default_rng(0).random((2000, 5)).astype(np.float32)
    seed_B, step_B = np.arange(2000), np.zeros(2000, dtype=np.int64)
    greedy = EpsilonGreedy(lambda _: q_BA, 0.0)(states(1), seed_B, step_B)
    assert np.array_equal(greedy.action_B, q_BA.argmax(1))
    assert not greedy.random_B.any()
    chance = EpsilonGreedy(lambda _: q_BA, 1.0)(states(1), seed_B, step_B)
    assert chance.random_B.all()
    assert np.abs(np.bincount(chance.action_B, minlength=5) / 2000 - 0.2).max() < 0.04


def test_exploration_is_a_function_of_seed_and_step() -> None:
    seed_B, step_B = np.repeat(np.arange(100), 100), np.tile(np.arange(100), 100)
    random_B, action_B = explore(0.05, 6, seed_B, step_B)
    assert 0.04 < random_B.mean() < 0.06
    again_B, chosen_B = explore(0.05, 6, seed_B[4321:4330], step_B[4321:4330])
    assert np.array_equal(again_B, random_B[4321:4330])
    assert np.array_equal(chosen_B, action_B[4321:4330])


def test_padding_hides_the_batch_width() -> None:
    q_values = q_function(QNetwork(NETWORKS["net3"], {"any": 6}).eval(), exact(torch.device("cpu")))
    obs = states(21)
    whole = q_values(obs)
    assert whole.shape == (21, 6)
    assert all(np.array_equal(q_values(obs[i : i + 1])[0], whole[i]) for i in range(21))
