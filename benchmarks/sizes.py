"""Bytes per state and files of datasets, Q-values included, against raw stacks and the same episodes in Minari.

Minari's are written some at a time and removed again, so that half a million states (15 GB there) need little of the disk.

    python -m benchmarks.sizes [DATASET]...
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks import command
from pipeline.datasets.exchange import DEPTH, to_minari
from pipeline.datasets.reader import Dataset, open_dataset

SAMPLE = "data/samples/Pong"
EPISODES = 16
RAW = DEPTH * 84 * 84


def main(places: list[str]) -> None:
    for place in places:
        dataset = open_dataset(place)
        sizes = dataset.folder.sizes()
        ours, theirs, states = sum(sizes.values()), minari_bytes(dataset), len(dataset)
        print(f"{place}: {states:,} states in {len(sizes)} files, {ours / states:,.1f} bytes per state", end="; ")
        print(f"raw stacks {RAW:,}, {RAW * states / ours:.0f}x; Minari {theirs / states:,.0f}, {theirs / ours:.0f}x")


def minari_bytes(dataset: Dataset) -> int:
    """What all its episodes take there."""
    total = 0
    for first in range(0, len(dataset.episodes), EPISODES):
        some = replace(dataset, episodes=dataset.episodes[first : first + EPISODES])
        with tempfile.TemporaryDirectory() as name:
            for _ in to_minari(some, Path(name) / "minari"):
                pass
            total += sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())
    return total


if __name__ == "__main__":
    command.run(main, __doc__, places=[SAMPLE])
