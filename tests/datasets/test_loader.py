"""Batches are a pure function of (seed, epoch, position); stacks gathered from memory are the reader's."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.loader import Resident, batch_steps, split_episodes
from pipeline.datasets.reader import open_dataset
from tests.fakes import corridor_dataset


def test_an_epoch_visits_every_step_once_in_a_new_order() -> None:
    steps = np.arange(100, 197)
    epochs = [[batch_steps(steps, 8, 3, e * 12 + i) for i in range(12)] for e in range(2)]
    for batches in epochs:
        seen = np.concatenate(batches)
        assert len(np.unique(seen)) == 96
        assert np.isin(seen, steps).all()
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    assert np.array_equal(batch_steps(steps, 8, 3, 17), epochs[1][5])
    assert not np.array_equal(batch_steps(steps, 8, 4, 17), epochs[1][5])
    with pytest.raises(ValueError, match="does not fit"):
        batch_steps(steps, 98, 0, 0)


def test_whole_episodes_are_held_out(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set", 40)
    dataset = open_dataset(tmp_path / "set")
    split = split_episodes(dataset, 0.1, 0)
    held = set(split.held_out_N.tolist())
    inside = [all(s in held for s in range(r.start, r.start + r.length)) for r in dataset.episodes]
    assert sum(inside) == 4
    assert sorted([*split.train_N, *split.held_out_N]) == list(range(len(dataset)))
    assert set(split_episodes(dataset, 0.1, 1).held_out_N.tolist()) != held


def test_one_episode_cannot_be_split(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set", 1)
    with pytest.raises(ValueError, match="two are the least"):
        split_episodes(open_dataset(tmp_path / "set"), 0.1, 0)


def test_resident_stacks_are_the_readers(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set")
    dataset = open_dataset(tmp_path / "set")
    resident = Resident(dataset)
    steps = np.arange(len(dataset))
    assert np.array_equal(resident.frame_MHW[resident.stack_index(steps)], dataset.stacks(steps.tolist()))
