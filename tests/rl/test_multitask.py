"""One network learns the corridor and its mirror image, where the other action is right, from reward alone."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.agents.device import Compute
from pipeline.agents.networks import NetworkSpec
from pipeline.rl.dqn import DqnLearner, DqnWeights
from pipeline.rl.learner import Learner
from pipeline.rl.multitask import MultitaskLearner, train
from pipeline.rl.pqn import PqnLearner, PqnWeights
from tests.fakes import LENGTH, Corridor, draw
from tests.rl import test_dqn, test_pqn

CPU = Compute(torch.device("cpu"), "float32")
HEADS = {"Corridor": 2, "Mirror": 2}
SPEC = NetworkSpec(channels=(4, 4, 4), hidden=16, controller=8)
NORM = replace(SPEC, layer_norm=True)
DQN = replace(test_dqn.CONFIG, steps_per_update=8, replay_start=200, epsilon_steps=1000, target_every=50)


class Mirror(Corridor):
    """The corridor, where action 0 does what 1 did."""

    def step(self, action_B: Any, playing_B: Any) -> Any:
        return super().step(1 - action_B, playing_B)


def learner(algorithm: str, steps: int, minibatch: int = 32) -> MultitaskLearner:
    learners: dict[str, Learner]
    if algorithm == "pqn":
        weights = PqnWeights(test_pqn.CONFIG, NORM, HEADS, CPU, 0)
        learners = {g: PqnLearner(test_pqn.CONFIG, steps, NORM, HEADS, CPU, 0, weights=weights, game=g) for g in HEADS}
    else:
        config = replace(DQN, minibatch=minibatch)
        shared = DqnWeights(config, SPEC, HEADS, CPU, 0)
        learners = {g: DqnLearner(config, steps, SPEC, HEADS, CPU, 0, weights=shared, game=g) for g in HEADS}
    return MultitaskLearner(learners)


def worlds() -> dict[str, Corridor]:
    return {"Corridor": Corridor(8), "Mirror": Mirror(8)}


def flat(state: Any) -> list[Any]:
    """All values of nested containers, in order, but the learning rate, which is set anew at every update."""
    if isinstance(state, dict):
        return [value for key in state if key != "lr" for value in flat(state[key])]
    return [value for part in state for value in flat(part)] if isinstance(state, list) else [state]


@pytest.mark.parametrize("algorithm", ["pqn", pytest.param("dqn", marks=pytest.mark.slow)])
def test_it_learns_both_games_with_equal_steps(algorithm: str) -> None:
    agent = learner(algorithm, 2048)
    *_, last = train(agent, worlds())
    assert [one.tally.steps for one in agent.learners.values()] == [2048, 2048]
    assert last.done == 2048
    assert last.metrics["share_Corridor"] + last.metrics["share_Mirror"] == pytest.approx(1.0)
    states = np.stack([np.concatenate([np.zeros((3, 84, 84), np.uint8), draw(c)[None]]) for c in range(LENGTH)])
    for game, right in (("Corridor", 1), ("Mirror", 0)):
        with torch.inference_mode():
            q = agent.result(torch.from_numpy(states), game)
        assert (q.argmax(1) == right).all()
    assert -1.0 <= agent.cosines()["cosine_Corridor_Mirror"] <= 1.0


@pytest.mark.parametrize("algorithm", ["pqn", "dqn"])
def test_it_goes_on_where_it_was(algorithm: str) -> None:
    agent = learner(algorithm, 10**6, minibatch=2)
    for _ in itertools.islice(train(agent, worlds()), 1):
        pass
    again = learner(algorithm, 10**6, minibatch=2)
    again.load_state_dict(agent.state_dict())
    assert again.steps == agent.steps > 0
    before, after = agent.state_dict(), again.state_dict()
    for game in before["games"]:
        replays = [state["games"][game].pop("replay", {"added": 0}) for state in (before, after)]
        assert replays[0]["added"] == replays[1]["added"]  # what it holds: test_replay.py
    for one, other in zip(flat(before), flat(after), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    turns = train(again, worlds())
    steps, again.learners["Mirror"].tally.steps = again.steps, again.steps - 64  # as if it had been killed before its turn
    p = next(turns)
    while p.done <= steps:
        p = next(turns)
    assert again.learners["Corridor"].tally.steps - p.done < 2048  # it waited for the other


def test_learners_must_share_and_agree() -> None:
    one, other = learner("pqn", 100), learner("pqn", 100)
    with pytest.raises(ValueError, match="must share their weights"):
        MultitaskLearner({"Corridor": one.learners["Corridor"], "Mirror": other.learners["Mirror"]})
    with pytest.raises(ValueError, match="one budget of steps and a head for each"):
        MultitaskLearner({"Corridor": one.learners["Corridor"], "Pong": one.learners["Mirror"]})
