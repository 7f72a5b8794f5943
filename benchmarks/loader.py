"""Stacked states/s from a dataset that is four times larger than the memory it is given, and the peak of that memory.

Against naive fancy indexing of the Zarr array (random states, as ours), and against a DataLoader with two workers over the
first episodes in Minari (whole episodes, as Minari hands them out). All in one run.

    python -m benchmarks.loader DATASET
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minari import MinariDataset
from torch.utils.data import DataLoader

from benchmarks import command
from benchmarks.memory import peak_memory
from benchmarks.timing import rates
from pipeline.agents.device import prepare_to_learn
from pipeline.datasets import edit
from pipeline.datasets.exchange import to_minari
from pipeline.datasets.loader import Loader
from pipeline.datasets.reader import open_dataset

BATCH = 256
CHECK = 8192
"""Held-out states to be measured on, as a student has them."""
EPISODES = 8
"""That are in Minari too."""


def main(path: Path) -> None:
    prepare_to_learn()  # as `distill` does
    torch.set_num_threads(1)  # the other core decodes: a second thread here would only wait for the first, busily
    dataset = open_dataset(path)
    frames = len(dataset) * 84 * 84
    memory = frames // 4
    before = peak_memory()
    own = Loader(dataset, batch=BATCH, held_out=0.05, seed=0, memory=memory, check=CHECK)
    kept = own.states(own.checked_N)
    batches = _batches(own)
    start = time.perf_counter()
    states = sum(len(batch) for batch in itertools.islice(batches, 2 * len(dataset) // BATCH))
    ours = states / (time.perf_counter() - start)
    peak = peak_memory() - before
    print(f"{path}: {len(dataset):,} states, {frames / 1e9:.2f} GB of frames; memory given {memory / 1e9:.2f} GB")
    print(f"within that, {len(kept):,} held-out states to be measured on, kept as stacks")
    print(f"ours, two epochs: {ours:,.0f} states/s; peak of memory {peak / 1e9:.2f} GB more than at the start")
    rng = np.random.default_rng(0)

    def fancy() -> int:
        step_B = rng.integers(3, len(dataset), BATCH)
        dataset.arrays["frame"].oindex[np.unique(step_B[:, None] + np.arange(-3, 1))]
        return BATCH

    with tempfile.TemporaryDirectory() as name:
        few = Path(name) / "few"
        list(edit.write(few, [(dataset, range(EPISODES))], {"operation": "subset"}))
        list(to_minari(open_dataset(few), Path(name) / "minari"))
        (place,) = (Path(name) / "minari").glob("*/*/data")
        loader: DataLoader[Any] = DataLoader(
            MinariDataset(place),
            batch_size=1,
            shuffle=True,
            num_workers=2,
            collate_fn=lambda episodes: torch.from_numpy(episodes[0].observations[:-1]),
        )
        found = rates({"fancy indexing": fancy, "minari": lambda: sum(len(states) for states in loader)}, rounds=2)
    for what, rate in found.items():
        print(f"{what}: {rate:,.0f} states/s, ours is {ours / rate:,.0f}x")


def _batches(loader: Loader) -> Iterator[torch.Tensor]:
    """Minibatches of states for ever, as a student gets them."""
    here = None
    for update in itertools.count():
        window, step_B = loader.place(update)
        if window != here:
            frames, frame_MHW = None, torch.empty(0)
            frames, here = loader.frames(window), window
            frame_MHW = torch.from_numpy(frames.frame_MHW)
        assert frames is not None
        index_BC = torch.from_numpy(frames.stack_index(step_B))
        yield frame_MHW.index_select(0, index_BC.flatten()).view(*index_BC.shape, 84, 84)


if __name__ == "__main__":
    command.run(main, __doc__, path=Path)
