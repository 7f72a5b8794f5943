"""DQN: optimiser and targets by hand, and that it learns a world whose optimal Q-values are known."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.agents.device import Compute
from pipeline.rl.dqn import DqnConfig, DqnLearner, train
from pipeline.rl.replay import Transitions
from tests.fakes import LENGTH, SMALL, Corridor, draw, optimal_q

CONFIG = DqnConfig(
    envs=8,
    replay=4000,
    replay_start=400,
    minibatch=32,
    steps_per_update=4,
    target_every=100,
    learning_rate=1e-3,
    squared_decay=0.95,
    gradient_decay=0.95,
    squared_minimum=1e-4,
    gamma=0.9,
    epsilon_final=0.2,
    epsilon_steps=2000,
    double=False,
    clip_rewards=True,
    life_loss_ends=True,
)


def learner(steps: int, **changes: Any) -> DqnLearner:
    compute = Compute(torch.device("cpu"), "float32")
    return DqnLearner(replace(CONFIG, **changes), steps, SMALL, {"Corridor": 2}, compute, 0)


@pytest.mark.parametrize(("double", "slip"), [(False, None), (True, None), (False, 0.25), (True, 0.25)])
def test_targets_by_hand(double: bool, slip: float | None) -> None:
    agent = learner(100, double=double, target_epsilon=slip)
    with torch.no_grad():
        for p in agent.weights.target.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    obs = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), dtype=np.uint8)
    done = np.array([0, 0, 1, 0, 0], dtype=np.float32)
    batch = Transitions(obs, np.zeros(5, np.int64), np.arange(5, dtype=np.float32), done, obs)
    with torch.no_grad():
        online, target = agent.network(torch.from_numpy(obs)), agent.weights.target(torch.from_numpy(obs))
    for i, value in enumerate(agent.targets(batch).tolist()):
        best = target[i, int((online if double else target)[i].argmax())].item()
        following = best if slip is None else 0.75 * best + 0.25 * target[i].mean().item()
        assert value == pytest.approx(i + 0.9 * (1 - done[i]) * following, rel=1e-5)


def test_the_learning_rate_falls_to_its_end() -> None:
    agent = learner(800, learning_rate_end=1e-5)
    told = [progress.metrics["learning_rate"] for progress in train(agent, Corridor(8))]
    assert told == [pytest.approx(1e-5)]  # at the end of the budget
    last = agent.weights.optimizer.param_groups[0]["lr"]  # of the last update, a vector step before
    assert last == pytest.approx(1e-5 + 0.99e-3 * 8 / 800, rel=1e-3)
    agent.tally.steps = 400
    assert agent.learning_rate() == pytest.approx((1e-3 + 1e-5) / 2)


@pytest.mark.slow  # its targets are checked by hand above
@pytest.mark.parametrize("double", [False, True])
def test_it_learns_the_optimal_q_values(double: bool) -> None:
    agent = learner(4000, double=double, learning_rate_end=1e-5, epsilon_final=0.5, target_every=25)
    *_, last = train(agent, Corridor(8))
    assert last.done == 4000
    states = np.stack([np.concatenate([np.zeros((3, 84, 84), np.uint8), draw(c)[None]]) for c in range(LENGTH)])
    with torch.inference_mode():
        q = agent.network(torch.from_numpy(states)).numpy()
    wrong, right = (np.stack([optimal_q(c, gamma) for c in range(LENGTH)]) for gamma in (0.95, 0.9))
    assert np.abs(wrong - right).max() > 0.15
    assert np.abs(q - right).max() < 0.075


def test_updates_keep_their_ratio_to_steps() -> None:
    agent = learner(2000, minibatch=2)
    list(train(agent, Corridor(8)))
    assert agent.tally.updates == (2000 - CONFIG.replay_start + CONFIG.envs) // CONFIG.steps_per_update


def test_a_resumed_run_learns_on_from_the_replay_that_it_had() -> None:
    agent = learner(1200, minibatch=2)
    list(train(agent, Corridor(8)))
    again = learner(4000, minibatch=2)
    again.load_state_dict(agent.state_dict())
    assert len(again.replay) == len(agent.replay) == 1200
    first = next(train(again, Corridor(8)))
    assert "loss" in first.metrics
    assert (again.tally.steps, len(again.replay), again.tally.refills) == (1200 + 2048, 1200 + 2048, 0)


def test_a_run_without_its_replay_fills_it_again_without_counting() -> None:
    agent = learner(1200, minibatch=2)
    list(train(agent, Corridor(8)))
    state = {key: value for key, value in agent.state_dict().items() if key != "replay"}
    for replay, refilled in ((4000, 1200), (404, 400)):  # as far as it had been, or all there is room for
        again = learner(4000, minibatch=2, replay=replay)
        again.load_state_dict(state)
        before = (again.tally.steps, again.tally.updates, again.tally.episodes)
        assert before[0] == 1200
        first = next(train(again, Corridor(8)))  # 2,048 steps
        assert "return" in first.metrics
        assert len(again.replay) == min(2048, refilled if replay < 2048 else 2048)
        assert again.tally.steps - before[0] == pytest.approx(2048 - refilled, abs=CONFIG.envs)
        assert again.tally.updates - before[1] == (again.tally.steps - before[0]) // CONFIG.steps_per_update
        episodes = again.tally.episodes - before[2]
        assert len(again.tally.recent_returns) == min(100, len(agent.tally.recent_returns) + episodes)
        assert again.tally.refills > 0
        assert episodes / (episodes + again.tally.refills) == pytest.approx((2048 - refilled) / 2048, abs=0.1)


def test_a_run_that_refills_tells_how_far_it_is() -> None:
    agent = learner(8000, minibatch=2)
    agent.tally.steps = 3000
    told = [p.metrics for p in itertools.islice(train(agent, Corridor(8)), 2)]
    assert told[0] == {"refilled": pytest.approx(2048 / 3000)}
    assert "loss" in told[1]


def test_the_average_is_what_is_published() -> None:
    agent = learner(800, average_decay=0.9, minibatch=2)
    assert agent.result is not agent.network
    for _ in train(agent, Corridor(8)):
        pass
    name, averaged = next(iter(agent.result.named_parameters()))
    before, last = averaged.detach().clone(), dict(agent.network.named_parameters())[name].detach().clone()
    agent.update(agent.replay.sample(2, agent.random()))
    after = dict(agent.network.named_parameters())[name].detach()
    assert not torch.equal(after, last)
    assert torch.allclose(averaged, 0.9 * before + 0.1 * after)

    again = learner(800, average_decay=0.9, minibatch=2)
    again.load_state_dict(agent.state_dict())
    assert torch.equal(dict(again.result.named_parameters())[name], averaged)

    plain = learner(800, minibatch=2)
    assert plain.result is plain.network
    again.load_state_dict(plain.state_dict())  # begun without an average: that starts at the weights
    assert torch.equal(dict(again.result.named_parameters())[name], dict(plain.network.named_parameters())[name])


def test_a_checkpoint_brings_no_settings_along() -> None:
    agent, again = learner(800, minibatch=2), learner(800, minibatch=2, squared_minimum=1e-9, squared_decay=0.5)
    for _ in train(agent, Corridor(8)):
        pass
    again.load_state_dict(agent.state_dict())
    (group,) = again.weights.optimizer.param_groups
    assert (group["minimum"], group["squared_decay"], group["gradient_decay"]) == (1e-9, 0.5, 0.95)
    (theirs,), (ours,) = ([p for p in x.weights.optimizer.state.values() if p["squared"].shape == (2,)] for x in (agent, again))
    assert torch.equal(theirs["squared"], ours["squared"])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="whole number of updates"):
        replace(CONFIG, envs=6)
    for beyond in (5000, CONFIG.envs):  # of one step of each no successor is known
        with pytest.raises(ValueError, match=rf"replay_start {beyond:,} is not between {2 * CONFIG.envs}"):
            replace(CONFIG, replay_start=beyond)
    with pytest.raises(
        ValueError, match=r"replay_start 4,004 is not between 16, .* and 4,000, as many of each as replay, 4,004,"
    ):
        replace(CONFIG, replay=4004, replay_start=4004)  # it would never be full
    with pytest.raises(ValueError, match="target_epsilon is 1"):
        replace(CONFIG, target_epsilon=1.0)
    with pytest.raises(ValueError, match="average_decay is 1"):
        replace(CONFIG, average_decay=1.0)
