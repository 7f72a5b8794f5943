"""Batches are a pure function of (seed, update), whether the dataset fits into memory or is read in windows."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets import loader as loading
from pipeline.datasets.loader import Loader, split_episodes
from pipeline.datasets.reader import Dataset, open_dataset
from tests.fakes import corridor_dataset

PLENTY = 10**9


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("corridor") / "set"
    corridor_dataset(folder, 80)
    return open_dataset(folder)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BLOCK", 16)


@pytest.fixture(scope="module")
def stacks(dataset: Dataset) -> dict[int, np.ndarray]:
    """depth -> the stack of every step, each read by itself."""
    return {d: np.concatenate([dataset.stacks([s], d) for s in range(len(dataset))]) for d in (1, 4)}


def room_for(dataset: Dataset, blocks: int) -> int:
    """Memory for windows of so many blocks."""
    beside = len(dataset) * (4 * dataset.manifest.actions + 16)
    return beside + (2 * blocks + 1) * (loading.BLOCK + 3) * 84 * 84


def make(dataset: Dataset, memory: int = PLENTY, batch: int = 8, seed: int = 3) -> Loader:
    return Loader(dataset, batch=batch, held_out=0.1, seed=seed, memory=memory)


def epoch_of(loader: Loader, epoch: int) -> list[np.ndarray]:
    batches, update = [], 0
    while (place := loader.place(update))[0].epoch <= epoch:
        if place[0].epoch == epoch:
            batches.append(place[1])
        update += 1
    return batches


@pytest.mark.parametrize("blocks", [None, 3])
def test_an_epoch_visits_the_training_states_once_in_a_new_order(
    dataset: Dataset, small_blocks: None, blocks: int | None
) -> None:
    loader = make(dataset, room_for(dataset, blocks) if blocks else PLENTY)
    assert loader.resident == (blocks is None)
    windows = 1 if blocks is None else -(-len(dataset) // (16 * blocks))
    epochs = [epoch_of(loader, e) for e in range(2)]
    for batches in epochs:
        seen = np.concatenate(batches)
        assert len(np.unique(seen)) == len(seen)
        assert np.isin(seen, loader.train_N).all()
        assert len(loader.train_N) - len(seen) < 8 * windows
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    again = make(dataset, room_for(dataset, blocks) if blocks else PLENTY)
    assert np.array_equal(again.place(len(epochs[0]) + 2)[1], epochs[1][2])  # without the epochs before
    assert not np.array_equal(make(dataset, seed=4).place(0)[1], make(dataset).place(0)[1])


def test_windows_mix_distant_blocks(dataset: Dataset, small_blocks: None) -> None:
    loader = make(dataset, room_for(dataset, 4))
    window, _ = loader.place(0)
    blocks = loader._plan(0)[window.number]
    assert len(blocks) == 4
    assert blocks != list(range(blocks[0], blocks[0] + 4))
    assert {b for w in loader._plan(0) for b in w} == set(range(-(-len(dataset) // 16)))
    assert loader._plan(0) != loader._plan(1)


@settings(max_examples=20)
@given(blocks=st.integers(1, 5), size=st.sampled_from([5, 16, 33]), depth=st.sampled_from([1, 4]))
def test_stacks_are_the_readers(dataset: Dataset, stacks: dict[int, np.ndarray], blocks: int, size: int, depth: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "BLOCK", size)
        memory = room_for(dataset, blocks)
        loader = Loader(dataset, batch=4, held_out=0.1, seed=0, memory=memory, depth=depth)
        seen = None
        for update in range(60):
            window, steps = loader.place(update)
            if window != seen:
                frames, seen = loader.frames(window), window
            assert np.array_equal(frames.frame_MHW[frames.stack_index(steps)], stacks[depth][steps])
        assert np.array_equal(loader.states(loader.held_out_N), stacks[depth][loader.held_out_N])


def test_windows_are_read_into_two_buffers_in_turns(dataset: Dataset, small_blocks: None) -> None:
    loader = make(dataset, room_for(dataset, 2))
    windows = [loading.Window(epoch, number) for epoch in range(2) for number in range(len(loader._plan(epoch)))]
    memory = [loader.frames(window).frame_MHW for window in windows]
    assert len(memory) > 4
    for before, here, after in zip(memory, memory[1:], memory[2:], strict=False):
        assert np.shares_memory(before, after)
        assert not np.shares_memory(before, here)


def test_ten_of_the_papers_datasets_fit_into_two_gibibytes() -> None:
    steps, actions, depth = 540_000, 18, 4
    beside, kept = steps * (4 * actions + 16), 8192 // 10 * depth * 84 * 84
    window = loading._blocks_of_a_window(range(steps), beside, kept, 2 * 2**30, 10, depth)  # type: ignore[arg-type]
    assert window >= 1
    block = (loading.BLOCK + depth - 1) * 84 * 84
    assert 10 * (beside + kept + 2 * window * block) + block <= 2 * 2**30


def test_windows_and_the_stacks_to_be_measured_on_keep_within_the_memory(dataset: Dataset, small_blocks: None) -> None:
    check = 48
    memory = room_for(dataset, 2) + check * 4 * 84 * 84
    list(dataset.read("frame", 0, 1))  # what is opened once
    tracemalloc.start()
    loader = Loader(dataset, batch=4, held_out=0.2, seed=0, memory=memory, check=check)
    kept = loader.states(loader.checked_N)
    frames, seen = None, None
    for update in range(200):
        window, _ = loader.place(update)
        if window != seen:
            frames = None
            frames, seen = loader.frames(window), window
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames is not None
    assert not loader.resident
    assert len(kept) > check // 2
    assert (
        peak <= memory + 32 * 84 * 84
    )  # black frames and small objects; the stacks twice, or not counted, are thrice that over


def test_memory_and_batches_that_do_not_fit(dataset: Dataset, small_blocks: None) -> None:
    with pytest.raises(
        ValueError, match=r"does not fit into 1e-05 GB of memory, nor do windows of it: raise memory_gb to 0\.\d"
    ):
        make(dataset, 10_000)
    with pytest.raises(ValueError, match=r"raise memory_gb to (\d+\.\d) at least") as refused:
        make(dataset, 10_000)
    make(dataset, int(float(str(refused.value).split()[-3]) * 1e9))  # what it says is enough
    with pytest.raises(ValueError, match="a batch of 100000 does not fit into"):
        make(dataset, batch=100_000)
    with pytest.raises(ValueError, match=r"no window of dataset .* holds a batch of 40: raise memory_gb"):
        make(dataset, room_for(dataset, 1), batch=40).place(0)


def test_whole_episodes_are_held_out(dataset: Dataset) -> None:
    split = split_episodes(dataset, 0.1, 0)
    held = set(split.held_out_N.tolist())
    inside = [all(s in held for s in range(r.start, r.start + r.length)) for r in dataset.episodes]
    assert sum(inside) == 8
    assert sorted([*split.train_N, *split.held_out_N]) == list(range(len(dataset)))
    assert set(split_episodes(dataset, 0.1, 1).held_out_N.tolist()) != held


def test_one_episode_cannot_be_split(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set", 1)
    with pytest.raises(ValueError, match="two are the least"):
        split_episodes(open_dataset(tmp_path / "set"), 0.1, 0)
