"""Minibatches for distillation: which steps, in which order, and the states at them.

The order is a pure function of (seed, epoch, position), so a resumed run sees the batches that an undisturbed one would.

Dimensions: B batch, N steps, C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.datasets.reader import Dataset, episode_starts
from pipeline.datasets.schema import SHARD
from pipeline.seeding import stream


class Split(NamedTuple):
    """Steps to learn from and steps of held-out whole episodes."""

    train_N: npt.NDArray[np.int64]
    held_out_N: npt.NDArray[np.int64]


def split_episodes(dataset: Dataset, fraction: float, seed: int) -> Split:
    """Hold out about `fraction` of the episodes, whole, at least one; neighbouring frames never fall on both sides."""
    count = len(dataset.episodes)
    if count < 2:
        raise ValueError(f"dataset {dataset.folder} has {count} episode(s): two are the least to hold one out, collect more")
    chosen = set(stream(seed, "held-out").permutation(count)[: max(1, round(fraction * count))].tolist())
    steps = [np.arange(row.start, row.start + row.length) for row in dataset.episodes]
    return Split(
        train_N=np.concatenate([s for i, s in enumerate(steps) if i not in chosen]),
        held_out_N=np.concatenate([s for i, s in enumerate(steps) if i in chosen]),
    )


def batch_steps(step_N: npt.NDArray[np.int64], size: int, seed: int, update: int) -> npt.NDArray[np.int64]:
    """The steps of minibatch `update` (from 0): each epoch is a fresh permutation, its incomplete last batch dropped."""
    if size > len(step_N):
        raise ValueError(f"a batch of {size} does not fit into {len(step_N)} training states: collect more or lower the batch")
    epoch, position = divmod(update, len(step_N) // size)
    return step_N[_permutation(len(step_N), seed, epoch)[position * size : (position + 1) * size]]


_last: tuple[tuple[int, int, int], npt.NDArray[np.int64]] | None = None


def _permutation(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    global _last  # noqa: PLW0603 - one epoch's order, kept because every batch of the epoch asks for it
    key = (count, seed, epoch)
    if _last is None or _last[0] != key:
        _last = (key, stream(seed, "batches", epoch).permutation(count))
    return _last[1]


class Resident:
    """A whole dataset in memory, one frame per state, as the gather below wants it.

    `stack_index(steps)` gives, for each state, the rows of `frame_MHW` that make its stack; row N is black.
    """

    def __init__(self, dataset: Dataset, depth: int = 4) -> None:
        self.frame_MHW = np.zeros((len(dataset) + 1, 84, 84), dtype=np.uint8)
        self.q_NA = np.zeros((len(dataset), dataset.manifest.actions), dtype=np.float32)
        for start in range(0, len(dataset), SHARD):
            stop = min(start + SHARD, len(dataset))
            self.frame_MHW[start:stop] = dataset.read("frame", start, stop)
            self.q_NA[start:stop] = dataset.read("q", start, stop)
        self._black = len(dataset)
        self._start_N = episode_starts(dataset.episodes, np.arange(len(dataset)))
        self._offsets_C = np.arange(1 - depth, 1)

    def stack_index(self, step_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows (B, C) of `frame_MHW`, oldest frame first."""
        wanted_BC = step_B[:, None] + self._offsets_C
        return np.where(wanted_BC < self._start_N[step_B, None], self._black, wanted_BC)
