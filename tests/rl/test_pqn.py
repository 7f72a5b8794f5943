"""PQN: its targets by hand, and that it learns a world whose optimal Q-values are known."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.agents.device import Compute
from pipeline.rl.pqn import PqnConfig, PqnLearner, epsilon_greedy_value, lambda_targets, train
from tests.fakes import LENGTH, SMALL_NORM, Corridor, draw, optimal_q

CONFIG = PqnConfig(
    envs=8,
    horizon=8,
    epochs=2,
    minibatch=32,
    learning_rate=2e-3,
    learning_rate_end=2e-4,
    gamma=0.9,
    trace_lambda=0.65,
    max_grad_norm=10.0,
    epsilon_low=0.1,
    epsilon_high=0.5,
    exploration_fraction=0.2,
    target_epsilon=0.0,
    average_decay=0.9,
    clip_rewards=True,
    life_loss_ends=True,
)


def learner(steps: int, **changes: Any) -> PqnLearner:
    return PqnLearner(
        replace(CONFIG, **changes), steps, SMALL_NORM, {"Corridor": 2}, Compute(torch.device("cpu"), "float32"), 0
    )


def test_lambda_targets_by_hand() -> None:
    reward = torch.tensor([[1.0], [0.0], [2.0]])
    done = torch.tensor([[0.0], [1.0], [0.0]])
    value = torch.tensor([[5.0], [7.0], [3.0]])
    last = 2.0 + 0.9 * 3.0
    middle = 0.0
    first = 1.0 + 0.9 * (0.5 * middle + 0.5 * 5.0)
    assert lambda_targets(reward, done, value, 0.9, 0.5).flatten().tolist() == pytest.approx([first, middle, last])


def test_lambda_zero_is_one_step_q_learning_and_one_is_monte_carlo() -> None:
    reward, done, value = torch.ones(4, 1), torch.zeros(4, 1), torch.full((4, 1), 10.0)
    assert lambda_targets(reward, done, value, 0.5, 0.0).flatten().tolist() == pytest.approx([6.0] * 4)
    assert lambda_targets(reward, done, value, 0.5, 1.0)[0].item() == pytest.approx(1 + 0.5 + 0.25 + 0.125 + 10 / 16)


def test_the_value_of_an_epsilon_greedy_policy_by_hand() -> None:
    q_BA = np.array([[1.0, 2.0, 6.0]], dtype=np.float32)
    assert epsilon_greedy_value(q_BA, 0.0).tolist() == [6.0]
    assert epsilon_greedy_value(q_BA, 1.0).tolist() == [3.0]
    assert epsilon_greedy_value(q_BA, 0.1).tolist() == pytest.approx([0.9 * 6 + 0.1 * 3])


@pytest.mark.slow
def test_it_learns_the_optimal_q_values() -> None:
    agent = learner(9600, learning_rate_end=1e-5, epsilon_low=0.3, epsilon_high=1.0, trace_lambda=0.0)
    *_, last = train(agent, Corridor(8))
    assert last.done == 9600
    states = np.stack([np.concatenate([np.zeros((3, 84, 84), np.uint8), draw(c)[None]]) for c in range(LENGTH)])
    with torch.inference_mode():
        q = agent.network(torch.from_numpy(states)).numpy()
    assert np.abs(q - np.stack([optimal_q(c, 0.9) for c in range(LENGTH)])).max() < 0.04


def test_state_survives_and_training_goes_on() -> None:
    agent = learner(1280)
    for _ in itertools.islice(train(agent, Corridor(8)), 5):
        pass
    again = learner(1280)
    again.load_state_dict(agent.state_dict())
    assert (again.tally.steps, again.tally.updates, again.tally.episodes) == (320, 20, agent.tally.episodes)
    assert agent.tally.episodes > 0
    *_, last = train(again, Corridor(8))
    assert last.done == 1280


def test_the_result_is_the_moving_average_of_the_weights() -> None:
    agent = learner(320)
    action = torch.zeros(8, 8, dtype=torch.int64)
    agent.update(action, torch.ones(8, 8))  # 2 epochs x 2 minibatches: 4 updates
    first = [p.clone() for p in agent.result.parameters()]
    assert any((a - b).abs().max() > 0 for a, b in zip(first, agent.network.parameters(), strict=True))
    agent.weights.step()
    for was, weight, now in zip(first, agent.network.parameters(), agent.result.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * weight)


def test_epsilon_falls_to_a_ladder() -> None:
    agent = learner(1000)
    assert np.allclose(agent.epsilon_B(), 1.0)
    agent.tally.steps = 200
    assert agent.epsilon_B()[0] == pytest.approx(0.1)
    assert agent.epsilon_B()[-1] == pytest.approx(0.5)


def test_holding_ends_with_its_share_of_the_steps() -> None:
    agent = learner(1000, hold_exponent=2.0, hold_until=0.5)
    assert agent.holding()
    agent.tally.steps = 500
    assert not agent.holding()
    with pytest.raises(ValueError, match="of a preset with a hold_exponent"):
        replace(CONFIG, hold_until=0.5)


def test_a_minibatch_must_divide_the_horizon() -> None:
    with pytest.raises(ValueError, match="choose a divisor"):
        replace(CONFIG, minibatch=48)
