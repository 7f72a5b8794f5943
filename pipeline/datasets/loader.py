"""Minibatches for distillation: which steps, in which order, and the frames that their states are made of.

Everything is a pure function of (seed, update), so a resumed run sees the batches that an undisturbed one would. A dataset that
fits the memory it is given stays there whole, and an epoch is one permutation of its states. A larger one is read in windows:
its blocks of 8,192 steps are dealt to windows anew every epoch, the states of a window are permuted, and while one is learned
from the next is read.

Dimensions: B batch, N steps, M frames in memory, C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.datasets.reader import episode_of
from pipeline.datasets.schema import SMALL_CHUNK, EpisodeRow
from pipeline.seeding import stream

BLOCK: Final = SMALL_CHUNK
"""Steps that are read at a time: whole chunks of every array."""
_FRAME: Final = 84 * 84


class Source(Protocol):
    """What is learned from: a `reader.Dataset`, or several of one game (`mix.Joined`). As text it says where it lies."""

    @property
    def game(self) -> str: ...
    @property
    def actions(self) -> int: ...
    @property
    def episodes(self) -> tuple[EpisodeRow, ...]: ...
    def __len__(self) -> int: ...
    def read(self, name: str, start: int, stop: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]: ...


class Split(NamedTuple):
    """Steps to learn from and steps of held-out whole episodes."""

    train_N: npt.NDArray[np.int64]
    held_out_N: npt.NDArray[np.int64]


def split_episodes(dataset: Source, fraction: float, seed: int) -> Split:
    """Hold out about `fraction` of the episodes, whole, at least one; neighbouring frames never fall on both sides."""
    count = len(dataset.episodes)
    if count < 2:
        raise ValueError(f"dataset {dataset} has {count} episode(s): two are the least to hold one out, collect more")
    chosen = set(stream(seed, "held-out").permutation(count)[: max(1, round(fraction * count))].tolist())
    steps = [np.arange(row.start, row.start + row.length) for row in dataset.episodes]
    return Split(
        train_N=np.concatenate([s for i, s in enumerate(steps) if i not in chosen]),
        held_out_N=np.concatenate([s for i, s in enumerate(steps) if i in chosen]),
    )


class Frames:
    """The frames of some blocks of a dataset, each with those that the stacks of its first steps reach back to.

    `stack_index(steps)` gives, for each state, the rows of `frame_MHW` that make its stack; the last row is black. They lie in
    `buffer_MHW`, if there is one.
    """

    def __init__(
        self,
        dataset: Source,
        blocks: Sequence[int],
        start_N: npt.NDArray[np.int64],
        depth: int,
        buffer_MHW: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        lead = depth - 1
        extents = [(max(0, block * BLOCK - lead), min((block + 1) * BLOCK, len(dataset))) for block in blocks]
        rows = sum(stop - start for start, stop in extents) + 1
        self.frame_MHW = np.empty((rows, 84, 84), dtype=np.uint8) if buffer_MHW is None else buffer_MHW[:rows]
        self._start_N = start_N
        self._offset = np.zeros(-(-len(dataset) // BLOCK), dtype=np.int64)  # what to add to a step of a block to get its row
        self._offsets_C = np.arange(-lead, 1)
        row = 0
        for block, (start, stop) in zip(blocks, extents, strict=True):
            dataset.read("frame", start, stop, out=self.frame_MHW[row : row + stop - start])
            self._offset[block] = row - start
            row += stop - start
        self.frame_MHW[row] = 0

    def stack_index(self, step_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows (B, C) of `frame_MHW`, oldest frame first."""
        wanted_BC = step_B[:, None] + self._offsets_C
        row_BC = wanted_BC + self._offset[step_B // BLOCK, None]
        return np.where(wanted_BC < self._start_N[step_B, None], len(self.frame_MHW) - 1, row_BC)


class Window(NamedTuple):
    """Blocks that are in memory together in an epoch; window 0 of epoch 0 comes first."""

    epoch: int
    number: int


class Loader:
    """Minibatches of `batch` training states, out of memory of at most `memory` bytes.

    `order(n)` is the first n training states; `place(update)` tells where a minibatch lies; `frames(window)` brings its
    frames, from the background if they are the next ones. All Q-values stay in memory (`q_NA`). `checked_N` are up to
    `check` held-out states from all of their episodes: where the dataset does not fit, their stacks are kept (`states`).
    `split` holds out other episodes than `seed` would.
    Several loaders, `sharing` in number, have `memory` together and one `background`, so that a block at a time is read.
    """

    def __init__(
        self,
        dataset: Source,
        *,
        batch: int,
        held_out: float,
        seed: int,
        memory: int,
        depth: int = 4,
        check: int = 0,
        split: Split | None = None,
        sharing: int = 1,
        background: ThreadPoolExecutor | None = None,
    ) -> None:
        self._dataset, self._batch, self._seed, self._depth = dataset, batch, seed, depth
        split = split or split_episodes(dataset, held_out, seed)
        self.train_N, self.held_out_N = split
        if batch > len(self.train_N):
            raise ValueError(
                f"a batch of {batch} does not fit into {len(self.train_N)} training states: collect more or lower the batch"
            )
        self.checked_N = self.held_out_N[:: max(1, math.ceil(len(self.held_out_N) / check))] if check else self.held_out_N[:0]
        count = -(-len(dataset) // BLOCK)
        bounds = np.searchsorted(split.train_N, np.arange(count + 1) * BLOCK)
        self._train_of = [split.train_N[bounds[i] : bounds[i + 1]] for i in range(count)]  # each block's training steps
        self._start_N = episode_of(dataset.episodes, np.arange(len(dataset))).start_N
        self.q_NA = dataset.read("q", 0, len(dataset))
        beside = self.q_NA.nbytes + 16 * len(dataset)  # Q-values, training steps, episode starts
        kept = len(self.checked_N) * depth * _FRAME
        self._window_blocks = _blocks_of_a_window(dataset, beside, kept, memory, sharing, depth)
        self._begins = [0]  # the update at which each epoch begins
        self._plans: dict[int, list[list[int]]] = {}
        self._order: tuple[Window, npt.NDArray[np.int64]] | None = None
        self._background = background or ThreadPoolExecutor(1)
        self._coming: tuple[Window, Future[Frames]] | None = None
        self._buffers: list[npt.NDArray[np.uint8]] = []  # of two windows, the one that was given out last at the end

    @property
    def episode_steps(self) -> npt.NDArray[np.int64]:
        """Training states of each episode to learn from."""
        starts = [row.start for row in self._dataset.episodes]
        steps = np.diff(np.searchsorted(self.train_N, [*starts, len(self._dataset)]))
        return np.asarray(steps[steps > 0])

    @property
    def resident(self) -> bool:
        """Whether the whole dataset is in memory at once."""
        return self._window_blocks >= len(self._train_of)

    def _plan(self, epoch: int) -> list[list[int]]:
        """The blocks of each window of an epoch."""
        if epoch not in self._plans:
            count, size = len(self._train_of), self._window_blocks
            dealt = range(count) if self.resident else stream(self._seed, "windows", epoch).permutation(count).tolist()
            windows = [sorted(dealt[i : i + size]) for i in range(0, count, size)]
            self._plans = {**dict(list(self._plans.items())[-1:]), epoch: windows}
        return self._plans[epoch]

    def _batches(self, epoch: int) -> list[int]:
        """Whole minibatches of each window; a window's incomplete last one is dropped."""
        return [sum(len(self._train_of[block]) for block in blocks) // self._batch for blocks in self._plan(epoch)]

    def place(self, update: int) -> tuple[Window, npt.NDArray[np.int64]]:
        """The window and the steps of minibatch `update`, from 0."""
        while update >= self._begins[-1]:
            whole = sum(self._batches(len(self._begins) - 1))
            if not whole:
                raise ValueError(f"no window of dataset {self._dataset} holds a batch of {self._batch}: raise memory_gb")
            self._begins.append(self._begins[-1] + whole)
        epoch = int(np.searchsorted(self._begins, update, side="right")) - 1
        ends = np.cumsum([0, *self._batches(epoch)])
        position = update - self._begins[epoch]
        window = Window(epoch, int(np.searchsorted(ends, position, side="right")) - 1)
        first = int(position - ends[window.number]) * self._batch
        return window, self._ordered(window)[first : first + self._batch]

    def order(self, count: int) -> tuple[Window, npt.NDArray[np.int64]]:
        """The first `count` training steps of the first window, or all of them."""
        return Window(0, 0), self._ordered(Window(0, 0))[:count]

    def _ordered(self, window: Window) -> npt.NDArray[np.int64]:
        if self._order is None or self._order[0] != window:
            steps = np.concatenate([self._train_of[block] for block in self._plan(window.epoch)[window.number]])
            names = (window.epoch, *([window.number] if window.number else []))
            self._order = (window, steps[stream(self._seed, "batches", *names).permutation(len(steps))])
        return self._order[1]

    def frames(self, window: Window) -> Frames:
        """The frames of a window. Reading the next one begins, into the memory of the one before, whose frames are gone."""
        coming, read = (self._coming[0], self._coming[1].result()) if self._coming else (None, None)
        if read is not None and coming == window:
            found = read
        else:
            found = self._read(self._plan(window.epoch)[window.number], self._buffer())
        if not self.resident:
            last = window.number + 1 == len(self._plan(window.epoch))
            following = Window(window.epoch + 1, 0) if last else Window(window.epoch, window.number + 1)
            blocks = self._plan(following.epoch)[following.number]
            self._coming = (following, self._background.submit(self._read, blocks, self._buffer()))
        return found

    def _buffer(self) -> npt.NDArray[np.uint8] | None:
        """Memory for a window, of the two that there are the one that was given out before the last. New memory is dear: the
        kernel clears it page by page.
        """
        if self.resident:
            return None
        if len(self._buffers) < 2:
            rows = self._window_blocks * (BLOCK + self._depth - 1) + 1
            self._buffers.append(np.empty((rows, 84, 84), dtype=np.uint8))
        else:
            self._buffers.reverse()
        return self._buffers[-1]

    def _read(self, blocks: Sequence[int], buffer_MHW: npt.NDArray[np.uint8] | None = None) -> Frames:
        return Frames(self._dataset, blocks, self._start_N, self._depth, buffer_MHW)

    def states(self, step_N: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The states (N, C, 84, 84) at these steps, in ascending order, read block by block."""
        state_NCHW = np.empty((len(step_N), self._depth, 84, 84), dtype=np.uint8)
        for block in np.unique(step_N // BLOCK):
            frames = self._read([int(block)])
            rows = slice(*np.searchsorted(step_N, [block * BLOCK, (block + 1) * BLOCK]))
            index_BC = frames.stack_index(step_N[rows])
            np.take(frames.frame_MHW, index_BC, axis=0, out=state_NCHW[rows], mode="clip")  # unlike "raise", without a copy
        return state_NCHW


def _blocks_of_a_window(dataset: Source, beside: int, kept: int, memory: int, sharing: int, depth: int) -> int:
    """How many blocks may be in memory at once: all of them if they fit, else half of what does, less one for reading.

    What reading takes beside is there once for all loaders that share the memory. `kept` bytes are taken where not all fit.
    """
    count = -(-len(dataset) // BLOCK)
    block = (BLOCK + depth - 1) * _FRAME
    share = (memory - block) // sharing + block
    if beside + (len(dataset) + BLOCK) * _FRAME <= share:
        return count
    fit = ((share - beside - kept) // block - 1) // 2
    if fit < 1:
        least = math.ceil(((beside + kept + 2 * block) * sharing + block) / 1e8) / 10  # to obey it is enough
        raise ValueError(
            f"dataset {dataset} does not fit into {'a share of ' if sharing > 1 else ''}{memory / 1e9:g} GB of memory, "
            f"nor do windows of it: raise memory_gb to {least:.1f} at least"
        )
    return int(min(fit, count))
