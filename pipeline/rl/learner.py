"""What the algorithms that learn from reward share, and what they offer to the stages that train and publish them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.agents.device import Compute
from pipeline.agents.networks import QNetwork
from pipeline.atari.rollout import Step, World
from pipeline.progress import Progress


class Tally:
    """How far a run is: steps (agent decisions over all environments), updates, full episodes, and their latest raw returns.
    `refills` are episodes that were only played to fill a replay again: their seeds are used, and they count for nothing else.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.updates = 0
        self.episodes = 0
        self.refills = 0
        self.recent_returns: deque[float] = deque(maxlen=100)
        self._return_B = np.zeros(0)
        self._whole_B = np.zeros(0, dtype=np.bool_)

    def begin(self, width: int, *, staggered: bool = False) -> None:
        """A world of this width starts anew; episodes that a killed run left unfinished never count, nor do the first ones of
        a world that cuts them (`envs.Staggered`).
        """
        self._return_B = np.zeros(width)
        self._whole_B = np.full(width, not staggered)

    def add(self, step: Step, *, refill: bool = False) -> None:
        """Account for the rewards and the ended episodes of one vector step; counting its steps is the learner's business."""
        over_B = step.terminated_B | step.truncated_B
        self._return_B += step.reward_B
        if refill:
            self.refills += int(over_B.sum())
        else:
            self.recent_returns.extend(self._return_B[over_B & self._whole_B].tolist())
            self.episodes += int(over_B.sum())
        self._return_B[over_B] = 0.0
        self._whole_B |= over_B

    def metrics(self) -> dict[str, float]:
        """`return` (mean of the last 100 full episodes, absent before the first), `episodes` and `updates`."""
        returns = {"return": float(np.mean(self.recent_returns))} if self.recent_returns else {}
        return {**returns, "episodes": float(self.episodes), "updates": float(self.updates)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "updates": self.updates,
            "episodes": self.episodes,
            "refills": self.refills,
            "recent_returns": list(self.recent_returns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.updates, self.episodes = state["steps"], state["updates"], state["episodes"]
        self.refills = state.get("refills", 0)
        self.recent_returns.extend(state["recent_returns"])


def learning_signal(
    step: Step, *, clip_rewards: bool, life_loss_ends: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Reward and end of episode as learned from (Mnih et al. 2015): rewards clipped to their sign, a lost life an end."""
    over_B = step.terminated_B | step.truncated_B
    reward_B = np.sign(step.reward_B) if clip_rewards else step.reward_B
    return reward_B, over_B | step.life_lost_B if life_loss_ends else over_B


def finite(loss: Tensor, steps: int) -> float:
    """The loss as a number. ValueError where it is none: the weights are lost then, and would be saved."""
    number = float(loss)
    if not math.isfinite(number):
        raise ValueError(
            f"the loss is not finite after {steps:,} steps: lower the learning rate, and begin anew or from a snapshot (--from)"
        )
    return number


class Weights:
    """What an agent has learned: the network, perhaps its moving average (Polyak and Juditsky 1992), and the optimiser's state.

    Learners of several games may share it. `average_decay` is per update; without it there is no average.
    """

    def __init__(self, network: QNetwork, optimizer: torch.optim.Optimizer, average_decay: float | None) -> None:
        self.network, self.optimizer = network, optimizer
        averaging = None if average_decay is None else get_ema_multi_avg_fn(average_decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(network, multi_avg_fn=averaging) if averaging else None

    @property
    def result(self) -> QNetwork:
        """The network to evaluate and publish: the averaged one where there is one."""
        if self._average is None:
            return self.network
        averaged = self._average.module
        assert isinstance(averaged, QNetwork)
        return averaged

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from these; the optimiser begins anew."""
        self.network.load_state_dict(weights)
        self.result.load_state_dict(weights)

    def step(self) -> None:
        """One update from the gradients at hand."""
        self.optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.network)

    def state_dict(self) -> dict[str, Any]:
        average = {} if self._average is None else {"average": self._average.state_dict()}
        return {"network": self.network.state_dict(), **average, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was learned and the optimiser's averages, but none of its settings: they are this run's."""
        self.network.load_state_dict(state["network"])
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(own)
        if self._average is not None and "average" in state:
            self._average.load_state_dict(state["average"])
        elif self._average is not None:  # begun by a run without one
            self.result.load_state_dict(state["network"])


class Learner(ABC):
    """One that learns a game from reward in a world `envs` wide, until its `budget` of steps (agent decisions over all
    environments) is spent.

    Its state is that of its weights and its own. Learners of several games may share `weights` (`rl.multitask`): each then says
    which `game` it plays. It can stop after every `stride` steps, and so may pass its budget by less than that.
    """

    def __init__(
        self, envs: int, stride: int, budget: int, compute: Compute, seed: int, weights: Weights, game: str | None
    ) -> None:
        self.envs, self.stride, self.budget, self.compute, self.seed = envs, stride, budget, compute, seed
        self.weights, self.game = weights, game
        self.tally = Tally()

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self.tally.steps

    @property
    def beyond(self) -> bool:
        """Whether it has had more steps than its budget would have let it have: it was begun with a larger one."""
        return self.tally.steps - self.budget >= self.stride

    @property
    def network(self) -> QNetwork:
        """The network that learns."""
        return self.weights.network

    @property
    def result(self) -> QNetwork:
        """The network to evaluate and publish."""
        return self.weights.result

    @abstractmethod
    def train(self, world: World) -> Iterator[Progress]:
        """Learn until the budget is spent, yielding every few thousand steps."""

    @abstractmethod
    def sample_loss(self) -> Tensor | None:
        """The loss of a minibatch of what was last lived through, to look at its gradient; None before there is enough."""

    def begin_with(self, weights: Mapping[str, Tensor], *, steps: int, updates: int, episodes: int) -> None:
        """Go on from an agent's weights, which took so many; all else begins anew."""
        self.weights.begin_with(weights)
        self.tally.steps, self.tally.updates, self.tally.episodes = steps, updates, episodes

    def own_state(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights."""
        return {"tally": self.tally.state_dict()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.tally.load_state_dict(state["tally"])

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; plain tensors and numbers, so that it loads with `weights_only=True`."""
        return {**self.weights.state_dict(), **self.own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights.load_state_dict(state)
        self.load_own_state(state)
