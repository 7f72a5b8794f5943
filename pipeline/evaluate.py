"""Policy + world -> one row per episode.

Episode i is played under seed i and all are played to their end: never "the first n to finish", which favours short ones.

Dimensions: B slots.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from pipeline.atari.envs import EnvConfig, fingerprint
from pipeline.atari.rollout import Policy, World, rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How scores come about: the world that agents play in and how often a random action takes the place of theirs."""

    name: str
    epsilon: float
    environment: EnvConfig

    def digest(self, game: str) -> str:
        """SHA-256, 12 digits, of everything but the seeds: equal digests are scores that may be compared."""
        return self.digest_in(fingerprint(game, self.environment))

    def digest_in(self, world: Mapping[str, Any]) -> str:
        """The same in a world of other versions, by its fingerprint."""
        decides = json.dumps({"epsilon": self.epsilon, "environment": world}, sort_keys=True)
        return hashlib.sha256(decides.encode()).hexdigest()[:12]


_NULL_OPS: Final = {"noop_max": 30, "sticky": 0.0, "max_episode_frames": 108_000}
PROTOCOLS: Final[Mapping[str, tuple[float, Mapping[str, Any]]]] = {
    "paper": (0.05, _NULL_OPS),
    "greedy": (0.0, _NULL_OPS),
    "sticky": (0.01, {"noop_max": 0, "sticky": 0.25, "max_episode_frames": 18_000}),
}
"""By name: epsilon, and what it changes of the environment that agents were made in.

`paper`: up to 30 null-ops, epsilon 0.05, 30 minutes (Rusu et al. 2015, section 3, but for its human starts). `greedy`: the same
without random actions. `sticky`: Machado et al. 2018, but for their 18 actions and starts without FIRE: the emulator repeats
the last action with probability 0.25, no null-ops, 5 minutes, and the epsilon of their DQN.
"""


class Episode(NamedTuple):
    """One finished episode: its environment seed, raw return, agent steps, and whether the frame cap cut it (`stalled`)."""

    seed: int
    episode_return: float
    steps: int
    stalled: bool


def play(world: World, policy: Policy, seeds: Iterable[int]) -> Iterator[Episode]:
    """Yields every episode as it ends; sort by seed for a stable order."""
    return_B = np.zeros(world.width)
    for step in rollout(world, policy, iter(seeds)):
        return_B += step.reward_B * step.active_B
        for slot in np.flatnonzero(step.terminated_B | step.truncated_B):
            yield Episode(
                seed=int(step.seed_B[slot]),
                episode_return=float(return_B[slot]),
                steps=int(step.step_B[slot]) + 1,
                stalled=bool(step.truncated_B[slot]),
            )
            return_B[slot] = 0.0
