"""Policy + world -> one row per episode.

Episode i is played under seed i and all are played to their end: never "the first n to finish", which favours short ones.

Dimensions: B slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline.atari.rollout import Policy, World, rollout


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
