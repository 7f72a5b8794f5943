"""What every algorithm that learns from reward offers to the stages that train, evaluate, checkpoint and publish it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from pipeline.agents.device import Compute
from pipeline.agents.networks import QNetwork
from pipeline.atari.rollout import World
from pipeline.progress import Progress


class Learner(Protocol):
    """`envs` is the width of the world it trains in; `budget` and `steps` are agent decisions over all environments."""

    network: QNetwork
    compute: Compute
    budget: int
    steps: int
    updates: int
    episodes: int

    @property
    def envs(self) -> int: ...
    def train(self, world: World) -> Iterator[Progress]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
