"""What the algorithms that learn from reward share, and what they offer to the stages that train and publish them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.agents.device import Compute
from pipeline.agents.networks import QNetwork
from pipeline.atari.rollout import Step, World
from pipeline.progress import Progress


class Tally:
    """How far a run is: steps (agent decisions over all environments), updates, full episodes, and their latest raw returns."""

    def __init__(self) -> None:
        self.steps = 0
        self.updates = 0
        self.episodes = 0
        self.recent_returns: deque[float] = deque(maxlen=100)
        self._return_B = np.zeros(0)
        self._whole_B = np.zeros(0, dtype=np.bool_)

    def begin(self, width: int, *, staggered: bool = False) -> None:
        """A world of this width starts anew; episodes that a killed run left unfinished never count, nor do the first ones of
        a world that cuts them (`envs.Staggered`).
        """
        self._return_B = np.zeros(width)
        self._whole_B = np.full(width, not staggered)

    def add(self, step: Step) -> None:
        """Account for the rewards and the ended episodes of one vector step; counting its steps is the learner's business."""
        over_B = step.terminated_B | step.truncated_B
        self._return_B += step.reward_B
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
            "recent_returns": list(self.recent_returns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.updates, self.episodes = state["steps"], state["updates"], state["episodes"]
        self.recent_returns.extend(state["recent_returns"])


def learning_signal(
    step: Step, *, clip_rewards: bool, life_loss_ends: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Reward and end of episode as learned from (Mnih et al. 2015): rewards clipped to their sign, a lost life an end."""
    over_B = step.terminated_B | step.truncated_B
    reward_B = np.sign(step.reward_B) if clip_rewards else step.reward_B
    return reward_B, over_B | step.life_lost_B if life_loss_ends else over_B


class Weights(Protocol):
    """What an agent has learned; learners of several games may share it."""

    @property
    def network(self) -> QNetwork: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Learner(Protocol):
    """`envs` is the width of the world it trains in; `budget` is in steps. `result` is the network to evaluate and publish.

    Its state is that of its weights and its own.
    """

    compute: Compute
    budget: int
    tally: Tally

    @property
    def weights(self) -> Weights: ...
    @property
    def envs(self) -> int: ...
    @property
    def result(self) -> QNetwork: ...
    def train(self, world: World) -> Iterator[Progress]: ...
    def begin_with(self, weights: Mapping[str, Tensor], steps: int) -> None: ...
    def sample_loss(self) -> Tensor | None: ...
    def own_state(self) -> dict[str, Any]: ...
    def load_own_state(self, state: Mapping[str, Any]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
