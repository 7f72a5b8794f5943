"""Epsilon-greedy: exact at its ends, seeded, and independent of the company a state keeps."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.agents.device import exact
from pipeline.agents.networks import NETWORKS, QNetwork, place
from pipeline.agents.policies import EpsilonGreedy, EzGreedy, explore, q_function


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


@pytest.mark.parametrize("name", ["net3", "pqn"])
def test_a_states_values_do_not_depend_on_its_batch(name: str) -> None:
    cpu = torch.device("cpu")
    q_values = q_function(place(QNetwork(NETWORKS[name], {"any": 6}), cpu).eval(), exact(cpu))
    obs = states(21)
    whole = q_values(obs)
    assert whole.shape == (21, 6)
    assert all(np.array_equal(q_values(obs[i : i + 1])[0], whole[i]) for i in range(21))


@pytest.mark.parametrize("name", ["dqn", "pqn"])
def test_a_states_values_do_not_depend_on_the_number_of_threads(name: str) -> None:
    cpu, obs = torch.device("cpu"), states(32)
    q_values = q_function(place(QNetwork(NETWORKS[name], {"any": 6}), cpu).eval(), exact(cpu))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(q_values(obs))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_ez_greedy_holds_its_random_actions_for_a_zeta_time() -> None:
    width = 4000
    q_BA = np.zeros((width, 4), dtype=np.float32)
    policy = EzGreedy(lambda _: q_BA, 1.0, 2.0, width)
    seed_B = np.arange(width)
    first = policy(states(1), seed_B, np.zeros(width, dtype=np.int64))
    assert first.random_B.all()
    policy.epsilon = 0.0  # nothing new begins: what is still random is held
    held_TB = []
    for t in range(1, 6):
        later = policy(states(1), seed_B, np.full(width, t))
        assert np.array_equal(later.action_B[later.random_B], first.action_B[later.random_B])
        held_TB.append(later.random_B)
    survival = np.mean(held_TB, axis=1)  # P(n > t) of the zeta distribution: 1 - sum of 6 / (pi k)^2, k <= t
    expected = 1.0 - np.cumsum(6.0 / (np.pi * np.arange(1, 6)) ** 2)
    np.testing.assert_allclose(survival, expected, atol=0.025)


def test_ez_greedy_without_chance_is_greedy_and_a_new_episode_starts_free() -> None:
    q_BA = np.random.default_rng(0).random((64, 4)).astype(np.float32)
    seed_B = np.arange(64)
    never = EzGreedy(lambda _: q_BA, 0.0, 2.0, 64)(states(1), seed_B, np.zeros(64, dtype=np.int64))
    assert not never.random_B.any()
    assert np.array_equal(never.action_B, q_BA.argmax(1))
    policy = EzGreedy(lambda _: q_BA, 1.0, 1.01, 64)
    assert policy(states(1), seed_B, np.zeros(64, dtype=np.int64)).random_B.all()
    policy.epsilon = 0.0
    assert policy(states(1), seed_B, np.ones(64, dtype=np.int64)).random_B.any()  # still held
    assert not policy(states(1), seed_B, np.zeros(64, dtype=np.int64)).random_B.any()


def test_ez_greedy_that_no_longer_holds_is_epsilon_greedy() -> None:
    q_BA = np.random.default_rng(0).random((64, 4)).astype(np.float32)
    held, plain = EzGreedy(lambda _: q_BA, 0.3, 2.0, 64), EpsilonGreedy(lambda _: q_BA, 0.3)
    held.holding = False
    for t in range(5):
        one, other = (policy(states(1), np.arange(64), np.full(64, t)) for policy in (held, plain))
        assert np.array_equal(one.action_B, other.action_B)
        assert np.array_equal(one.random_B, other.random_B)
