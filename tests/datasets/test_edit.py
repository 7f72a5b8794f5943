"""Cut and join: whole episodes with their digests, whole shards untouched, lineage told."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import edit, schema
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.schema import Records
from pipeline.datasets.verify import verify
from tests.datasets.test_format import noise, small_shards, tree
from tests.fakes import cut_short, rewritten, write_dataset

__all__ = ["small_shards"]


@pytest.fixture
def source(small_shards: None, tmp_path: Path) -> Dataset:
    """Nine episodes of 3 to 27 steps, 135 in all: eight whole shards and a bit."""
    write_dataset(tmp_path / "source", [noise(3 * (i + 1), i) for i in range(9)])
    return open_dataset(tmp_path / "source")


def written(folder: Path, parts: list[edit.Part]) -> Dataset:
    *_, last = edit.write(folder, parts, {"operation": "test"})
    assert last.done == last.total
    made = open_dataset(folder, check_files=True)
    found: list[str] = []
    list(verify(made, found))
    assert found == []
    return made


def test_a_subset_has_its_episodes_and_names_its_parent(source: Dataset, tmp_path: Path) -> None:
    indices = edit.chosen(source, min_length=6, max_length=20)
    assert indices == [1, 2, 3, 4, 5]
    made = written(tmp_path / "made", [(source, indices)])
    assert [row.sha256 for row in made.episodes] == [source.episodes[i].sha256 for i in indices]
    assert made.manifest.collection["made_by"] == {"operation": "test"}
    (parent,) = made.manifest.collection["parents"]
    assert parent["digest"] == source.manifest.digest
    assert made.manifest.collection["seed"] == source.manifest.collection["seed"]
    assert f"Made from** `{source.manifest.digest[:12]}`: operation test" in made.folder.read(schema.CARD).decode()
    again = written(tmp_path / "again", [(made, [0])])
    assert again.manifest.collection["parents"][0]["collection"]["parents"][0]["digest"] == source.manifest.digest


def test_episodes_are_chosen_by_return_and_number(source: Dataset) -> None:
    returns = [row.episode_return for row in source.episodes]
    assert edit.chosen(source, min_return=0.5) == [i for i, r in enumerate(returns) if r >= 0.5]
    assert edit.chosen(source, max_return=0.5) == [i for i, r in enumerate(returns) if r <= 0.5]
    assert edit.chosen(source, episodes=4) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="no episode of its 9 fits"):
        edit.chosen(source, min_length=100)
    with pytest.raises(ValueError, match="only 2 episodes fit, 3 were asked for"):
        edit.chosen(source, min_length=22, episodes=3)


def test_a_split_gives_every_episode_to_one_part(source: Dataset) -> None:
    parts = edit.split(source, {"train": 0.7, "test": 0.3}, 0)
    assert sorted(parts["train"] + parts["test"]) == list(range(9))
    assert len(parts["test"]) == 3
    assert parts == edit.split(source, {"train": 0.7, "test": 0.3}, 0)
    assert len({tuple(edit.split(source, {"train": 0.7, "test": 0.3}, seed)["test"]) for seed in range(8)}) > 1
    with pytest.raises(ValueError, match="a 50%, b 40% do not sum to 100%"):
        edit.split(source, {"a": 0.5, "b": 0.4}, 0)
    with pytest.raises(ValueError, match="none would fall to b"):
        edit.split(source, {"a": 0.99, "b": 0.01}, 0)


def test_whole_shards_are_taken_over_unread(source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "other", [noise(20, 50), noise(21, 51)])
    other = open_dataset(tmp_path / "other")
    read: list[tuple[int, int]] = []
    records = Dataset.records

    def counted(self: Dataset, start: int, stop: int) -> Records:
        read.append((start, stop))
        return records(self, start, stop)

    monkeypatch.setattr(Dataset, "records", counted)
    *_, _ = edit.write(tmp_path / "joined", edit.merged([source, other]), {"operation": "merge"})
    assert sum(stop - start for start, stop in read) == 135 % 16 + 41
    before, after = tree(tmp_path / "source"), tree(tmp_path / "joined")
    shards = [name for name in before if "/c/" in name and int(name.split("/c/")[1].split("/")[0]) < 135 // 16]
    assert len(shards) == 5 * 8
    assert all(before[name] == after[name] for name in shards)
    joined = written(tmp_path / "joined again", edit.merged([source, other]))
    assert np.array_equal(joined.records(135, 176).q_NA, other.records(0, 41).q_NA)


def test_shards_of_another_encoding_are_encoded_anew(source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "FRAME_CHUNK", 8)
    made = written(tmp_path / "made", [(source, range(9))])
    assert made.arrays["frame"].chunks[0] == 8
    assert [row.sha256 for row in made.episodes] == [row.sha256 for row in source.episodes]


def test_an_episode_that_two_hold_is_taken_once(source: Dataset) -> None:
    (_, first), (_, second) = edit.merged([source, source])
    assert list(first) == list(range(9))
    assert list(second) == []


def test_an_episode_that_was_cut_is_taken_from_who_holds_more_of_it(source: Dataset, tmp_path: Path) -> None:
    begun = cut_short(source, tmp_path / "begun", episodes=4)
    for datasets, kept in (([begun, source], [range(3), range(3, 9)]), ([source, begun], [range(9), []])):
        assert [list(indices) for _, indices in edit.merged(datasets)] == [list(indices) for indices in kept]
    other = rewritten(source, tmp_path / "other", lambda index, records: records._replace(q_NA=records.q_NA + 1))
    (_, first), (_, second) = edit.merged([begun, other])  # of the same seeds, and another play
    assert (len(first), len(second)) == (4, 9)


@pytest.mark.parametrize(
    ("change", "message", "excuse"),
    [
        ({"game": "Pong"}, "has game Corridor, other has Pong", {}),
        ({"teacher": {"digest": "u"}}, "has teacher t+, other has u: .*--any-teacher", {"any_teacher": True}),
        ({"environment": {"game": "x"}}, "has environment.game Corridor.*--any-environment", {"any_environment": True}),
    ],
)
def test_what_differs_is_not_joined_unless_told(
    source: Dataset, tmp_path: Path, change: dict[str, Any], message: str, excuse: dict[str, bool]
) -> None:
    other = replace(source, folder=Path("other"), manifest=replace(source.manifest, **change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        edit.merged([source, other])
    if excuse:
        assert len(edit.merged([source, other], **excuse)) == 2


@pytest.mark.parametrize("name", ["frame", "reward"])
def test_a_missing_shard_is_not_taken_for_zeros(source: Dataset, tmp_path: Path, name: str) -> None:
    (shard,) = (source.folder.local or tmp_path).glob(f"states.zarr/{name}/c/2*")
    shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    for dataset in (source, open_dataset(tmp_path / "source", count_bytes=True)):
        with pytest.raises(ValueError, match=r"is damaged or missing|cannot be read between steps"):
            list(edit.write(tmp_path / "made", [(dataset, range(9))], {"operation": "test"}))
        shutil.rmtree(tmp_path / "made")


def test_a_parent_is_told_of_in_full_and_its_parents_by_digest(source: Dataset, tmp_path: Path) -> None:
    dataset, sizes = source, []
    for generation in range(4):
        before, dataset = dataset, written(tmp_path / str(generation), [(dataset, range(9))])
        sizes.append(len(dataset.folder.read(schema.MANIFEST)))
        (parent,) = dataset.manifest.collection["parents"]
        assert parent["digest"] == before.manifest.digest
        assert parent["collection"]["seed"] == source.manifest.collection["seed"]
        grandparents = [p["digest"] for p in before.manifest.collection.get("parents", [])]
        assert parent["collection"].get("parents", []) == [{"digest": digest} for digest in grandparents]
    assert sizes[3] == sizes[2]


def test_a_card_names_its_makers_licence_and_no_other(source: Dataset, tmp_path: Path) -> None:
    assert "license: other\n" in source.card()
    assert "its maker has named none" in source.card()
    *_, _ = edit.write(tmp_path / "free", [(source, [0])], {"operation": "test"}, "cc-by-4.0")
    free = open_dataset(tmp_path / "free")
    assert "license: cc-by-4.0\n" in free.card()
    assert "- **Licence**: cc-by-4.0.\n" in free.card()
    assert free.manifest.digest == written(tmp_path / "untold", [(source, [0])]).manifest.digest
    assert "license: cc-by-4.0\n" in written(tmp_path / "again", [(free, [0])]).card()
    assert "license: other\n" in written(tmp_path / "joined", [(free, [0]), (source, [1])]).card()
    (tmp_path / "free" / schema.CARD).unlink()
    *_, _ = edit.write(tmp_path / "cardless", [(free, [0])], {"operation": "test"})
    assert "license: other\n" in open_dataset(tmp_path / "cardless").card()
