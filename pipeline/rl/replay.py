"""Replay memory of a vector environment: one frame per state, stacks rebuilt when sampled, four times smaller than stacks.

Dimensions: T steps kept per slot, B slots, M minibatch, C stacked frames, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.atari.rollout import Step


class Transitions(NamedTuple):
    """A minibatch of (s, a, r, s'), with `done_M` 1.0 where s' has no value."""

    obs_MCHW: npt.NDArray[np.uint8]
    action_M: npt.NDArray[np.int64]
    reward_M: npt.NDArray[np.float32]
    done_M: npt.NDArray[np.float32]
    next_obs_MCHW: npt.NDArray[np.uint8]


class Replay:
    """The last `capacity` steps of all slots together, sampled uniformly.

    A ring per slot. The newest step of a slot has no successor yet, and the oldest `depth` - 1 may have lost frames of their
    stack to the ring; neither is sampled.
    """

    def __init__(self, capacity: int, width: int, depth: int = 4) -> None:
        self.length = capacity // width
        if self.length <= depth + 1:
            raise ValueError(
                f"a replay of {capacity} steps is too small for {width} environments: keep at least {width * (depth + 2)}"
            )
        self.width, self.depth = width, depth
        self._frame_TBHW = np.zeros((self.length, width, 84, 84), dtype=np.uint8)
        self._action_TB = np.zeros((self.length, width), dtype=np.int64)
        self._reward_TB = np.zeros((self.length, width), dtype=np.float32)
        self._done_TB = np.zeros((self.length, width), dtype=np.float32)
        self._age_TB = np.zeros((self.length, width), dtype=np.int64)  # step within its episode
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.length) * self.width

    def add(self, step: Step, reward_B: npt.NDArray[np.float32], done_B: npt.NDArray[np.bool_]) -> None:
        """Keep one step of every slot; `reward_B` and `done_B` are the learner's (clipped, life loss) or the world's."""
        at = self._added % self.length
        self._frame_TBHW[at] = step.obs_BCHW[:, -1]
        self._action_TB[at], self._reward_TB[at], self._done_TB[at] = step.action_B, reward_B, done_B
        self._age_TB[at] = step.step_B
        self._added += 1

    def sample(self, count: int, rng: np.random.Generator) -> Transitions:
        """`count` uniform transitions."""
        kept = min(self._added, self.length)
        oldest = self._added - kept
        skip = self.depth - 1 if oldest else 0
        at_M = rng.integers(oldest + skip, self._added - 1, count)
        slot_M = rng.integers(self.width, size=count)
        row_M = at_M % self.length
        return Transitions(
            obs_MCHW=self._stack(at_M, slot_M),
            action_M=self._action_TB[row_M, slot_M],
            reward_M=self._reward_TB[row_M, slot_M],
            done_M=self._done_TB[row_M, slot_M],
            next_obs_MCHW=self._stack(at_M + 1, slot_M),
        )

    def _stack(self, at_M: npt.NDArray[np.int64], slot_M: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The states at these steps; frames before their episode began are black."""
        back_C = np.arange(self.depth - 1, -1, -1)
        row_MC = (at_M[:, None] - back_C) % self.length
        stacks_MCHW: npt.NDArray[np.uint8] = self._frame_TBHW[row_MC, slot_M[:, None]]
        stacks_MCHW[back_C > self._age_TB[at_M % self.length, slot_M][:, None]] = 0
        return stacks_MCHW
