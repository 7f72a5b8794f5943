"""One network that learns several games from reward: the baseline without teachers (Rusu et al. 2015, Section 5).

Each game has experience, environments, schedules and a head of its own; trunk and optimiser are shared. Games have their
turns one after another: a turn is what a learner does between two yields, 2,048 steps or so, about an episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pipeline.agents.gradients import trunk_cosines
from pipeline.agents.networks import QNetwork
from pipeline.atari.rollout import World
from pipeline.progress import Progress
from pipeline.rl.learner import Learner


class MultitaskLearner:
    """Learners of one game each that share their weights. `steps` are those that every game has had: after a round, its own."""

    def __init__(self, learners: Mapping[str, Learner]) -> None:
        first, *others = learners.values()
        for other in others:
            if other.weights is not first.weights:
                raise ValueError("learners of several games must share their weights")
            if (other.budget, other.result.actions.keys()) != (first.budget, learners.keys()):
                raise ValueError("learners of several games have one budget of steps and a head for each game")
        self.learners = dict(learners)
        self._first = first

    @property
    def steps(self) -> int:
        """Steps that each game has had."""
        return min(learner.tally.steps for learner in self.learners.values())

    @property
    def budget(self) -> int:
        """Steps that each game is to have."""
        return self._first.budget

    @property
    def beyond(self) -> bool:
        """Whether a game has had more steps than the budget would have let it have."""
        return any(learner.beyond for learner in self.learners.values())

    @property
    def result(self) -> QNetwork:
        """The network to evaluate and publish."""
        return self._first.result

    def begin_with(self, weights: Mapping[str, Tensor], *, steps: int, tallies: Mapping[str, tuple[int, int]]) -> None:
        """Go on from an agent's weights, which took so many steps of each game, and updates and episodes of each (`tallies`);
        all else begins anew.
        """
        for game, learner in self.learners.items():
            updates, episodes = tallies[game]
            learner.begin_with(weights, steps=steps, updates=updates, episodes=episodes)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; plain tensors and numbers."""
        own = {game: learner.own_state() for game, learner in self.learners.items()}
        return {"weights": self._first.weights.state_dict(), "games": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first.weights.load_state_dict(state["weights"])
        for game, learner in self.learners.items():
            learner.load_own_state(state["games"][game])

    def cosines(self) -> dict[str, float]:
        """How the gradients of the games that have had a turn lie to each other at this moment (`agents.gradients`)."""
        found = {game: learner.sample_loss() for game, learner in self.learners.items()}
        losses = {game: loss for game, loss in found.items() if loss is not None}
        return trunk_cosines(self._first.weights.network, losses)


def train(learner: MultitaskLearner, worlds: Mapping[str, World]) -> Iterator[Progress]:
    """Learn until each game has had its budget of steps, yielding when all have had a turn.

    `done` counts the steps of each game. Metrics: each game's latest, NAME_GAME (`pqn.train`, `dqn.train`), and `share_GAME`,
    its part of the sum of losses.
    """
    turns = {game: one.train(worlds[game]) for game, one in learner.learners.items()}
    latest: dict[str, Progress] = {}
    while learner.steps < learner.budget:
        fewest = learner.steps
        for game, turn in turns.items():
            if learner.learners[game].tally.steps == fewest:  # one that was ahead when the run was interrupted waits
                latest[game] = next(turn)
        metrics = {f"{name}_{game}": value for game, p in latest.items() for name, value in p.metrics.items()}
        losses = {game: p.metrics["loss"] for game, p in latest.items() if "loss" in p.metrics}
        metrics |= {f"share_{game}": loss / (sum(losses.values()) or 1.0) for game, loss in losses.items()}
        yield Progress(done=learner.steps, total=learner.budget, unit="steps a game", metrics=metrics)
