"""Replay memory of a vector environment: one frame per state, stacks rebuilt when sampled, four times smaller than stacks.

Dimensions: T steps kept per slot, B slots, M minibatch, C stacked frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numcodecs import Zstd

from pipeline.atari.rollout import Step

_CODEC: Final = Zstd(level=1)
_ENCODED: Final = 32
"""Steps of all slots that a checkpoint compresses at once."""


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
        self._oldest = self._added = 0  # step t of every slot is row t % length, from the oldest that is kept

    def __len__(self) -> int:
        return (self._added - self._oldest) * self.width

    def add(self, step: Step, reward_B: npt.NDArray[np.float32], done_B: npt.NDArray[np.bool_]) -> None:
        """Keep one step of every slot; `reward_B` and `done_B` are the learner's (clipped, life loss) or the world's."""
        at = self._added % self.length
        self._frame_TBHW[at] = step.obs_BCHW[:, -1]
        self._action_TB[at], self._reward_TB[at], self._done_TB[at] = step.action_B, reward_B, done_B
        self._age_TB[at] = step.step_B
        self._added += 1
        self._oldest = max(self._oldest, self._added - self.length)

    def sample(self, count: int, rng: np.random.Generator) -> Transitions:
        """`count` uniform transitions."""
        skip = self.depth - 1 if self._oldest else 0
        at_M = rng.integers(self._oldest + skip, self._added - 1, count)
        slot_M = rng.integers(self.width, size=count)
        row_M = at_M % self.length
        return Transitions(
            obs_MCHW=self._stack(at_M, slot_M),
            action_M=self._action_TB[row_M, slot_M],
            reward_M=self._reward_TB[row_M, slot_M],
            done_M=self._done_TB[row_M, slot_M],
            next_obs_MCHW=self._stack(at_M + 1, slot_M),
        )

    def state_dict(self) -> dict[str, Any]:
        """What is kept, oldest first. Frames are compressed to a hundredth or so, two gigabytes in a second."""
        row_T = np.arange(self._oldest, self._added) % self.length
        encoded = (_CODEC.encode(self._frame_TBHW[row_T[k : k + _ENCODED]]) for k in range(0, len(row_T), _ENCODED))
        return {
            "added": self._added,
            "width": self.width,
            "frame": [torch.from_numpy(np.frombuffer(chunk, dtype=np.uint8).copy()) for chunk in encoded],
            **{name: torch.from_numpy(array_TB[row_T]) for name, array_TB in self._small().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the newest of what another replay kept, as far as it fits; nothing where that had another number of slots.

        The worlds begin anew: what comes next follows on nothing here, which ends as at a time limit.
        """
        kept = len(state["action"])
        if state["width"] != self.width or not kept:
            return
        self._added = state["added"]
        self._oldest = self._added - min(kept, self.length)
        row_T = np.arange(self._added - kept, self._added) % self.length
        fitting = slice(max(0, kept - self.length), kept)
        for name, array_TB in self._small().items():
            array_TB[row_T[fitting]] = state[name].numpy()[fitting]
        for k, chunk in enumerate(state["frame"]):  # those that do not fit are overwritten by those that do
            row_K = row_T[k * _ENCODED : (k + 1) * _ENCODED]
            frames = np.frombuffer(_CODEC.decode(chunk.numpy()), dtype=np.uint8)
            self._frame_TBHW[row_K] = frames.reshape(len(row_K), self.width, 84, 84)
        self._done_TB[row_T[-1]] = 1.0

    def _small(self) -> dict[str, npt.NDArray[Any]]:
        return {"action": self._action_TB, "reward": self._reward_TB, "done": self._done_TB, "age": self._age_TB}

    def _stack(self, at_M: npt.NDArray[np.int64], slot_M: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The states at these steps; frames before their episode began are black."""
        back_C = np.arange(self.depth - 1, -1, -1)
        row_MC = (at_M[:, None] - back_C) % self.length
        stacks_MCHW: npt.NDArray[np.uint8] = self._frame_TBHW[row_MC, slot_M[:, None]]
        stacks_MCHW[back_C > self._age_TB[at_M % self.length, slot_M][:, None]] = 0
        return stacks_MCHW
