"""Policy + world -> one row per episode.

Episode i is played under seed i and all are played to their end: never "the first n to finish", which favours short ones.

Dimensions: B slots, T steps of one episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.atari.rollout import Policy, World, rollout


class Episode(NamedTuple):
    """One finished episode: its environment seed, raw return, agent steps, and whether the frame cap cut it (`stalled`)."""

    seed: int
    episode_return: float
    steps: int
    stalled: bool


class Trace(NamedTuple):
    """The first executed actions of one episode, to be replayed for a clip."""

    seed: int
    action_T: npt.NDArray[np.int64]


def play(world: World, policy: Policy, seeds: Sequence[int], trace_steps: int = 0) -> Iterator[Episode | Trace]:
    """Yields every episode as it ends (sort by seed for a stable order); before the first seed's, its trace."""
    return_B = np.zeros(world.width)
    trace: list[int] = []
    for step in rollout(world, policy, iter(seeds)):
        if trace_steps:
            for slot in np.flatnonzero(step.active_B & (step.seed_B == seeds[0]) & (step.step_B < trace_steps)):
                trace.append(int(step.action_B[slot]))
        return_B += step.reward_B * step.active_B
        for slot in np.flatnonzero(step.terminated_B | step.truncated_B):
            seed = int(step.seed_B[slot])
            if trace_steps and seed == seeds[0]:
                yield Trace(seed, np.array(trace))
            yield Episode(
                seed=seed,
                episode_return=float(return_B[slot]),
                steps=int(step.step_B[slot]) + 1,
                stalled=bool(step.truncated_B[slot]),
            )
            return_B[slot] = 0.0
