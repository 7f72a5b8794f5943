"""The format: what is written is read, bytes are stable, shards are whole, damage is found and named."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import Zstd

from pipeline.datasets import schema, zstandard
from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.schema import Flag, Records
from pipeline.datasets.verify import verify
from pipeline.datasets.writer import Writer
from tests.fakes import corridor_dataset, rows_of, write_dataset


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "SHARD", 16)
    monkeypatch.setattr(schema, "FRAME_CHUNK", 4)
    monkeypatch.setattr(schema, "SMALL_CHUNK", 8)


def noise(length: int, seed: int, actions: int = 3) -> Records:
    rng = np.random.default_rng(seed)
    flags = np.zeros(length, dtype=np.uint8)
    flags[0] |= Flag.EPISODE_START
    flags[-1] |= Flag.TERMINATED
    return Records(
        frame_NHW=rng.integers(0, 256, (length, 84, 84), dtype=np.uint8),
        q_NA=rng.normal(size=(length, actions)).astype(np.float32),
        action_N=rng.integers(0, actions, length).astype(np.uint8),
        reward_N=rng.integers(-1, 2, length).astype(np.float32),
        flags_N=flags,
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def faults_of(folder: Path) -> list[str]:
    found: list[str] = []
    list(verify(open_dataset(folder), found))
    return found


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_what_is_written_is_read(small_shards: None, tmp_path_factory: Any, lengths: list[int]) -> None:
    folder = tmp_path_factory.mktemp("round") / "set"
    episodes = [noise(length, i) for i, length in enumerate(lengths)]
    manifest = write_dataset(folder, episodes)
    dataset = open_dataset(folder, check_files=True)
    assert len(dataset) == sum(lengths)
    for index, episode in enumerate(episodes):
        for name, stored in dataset.episode(index).by_name().items():
            assert np.array_equal(stored, episode.by_name()[name])
    assert dataset.manifest == manifest
    assert faults_of(folder) == []


def test_equal_records_are_equal_bytes_and_appending_leaves_whole_shards(small_shards: None, tmp_path: Path) -> None:
    episodes = [noise(11, i) for i in range(4)]
    write_dataset(tmp_path / "a", episodes)
    write_dataset(tmp_path / "b", episodes)
    write_dataset(tmp_path / "c", [*episodes, noise(30, 9)])
    first, longer = tree(tmp_path / "a"), tree(tmp_path / "c")
    assert first == tree(tmp_path / "b")
    whole = [f"states.zarr/frame/c/{k}/0/0" for k in range(44 // 16)]
    assert all(first[name] == longer[name] for name in whole)


def test_an_all_zero_shard_is_still_a_file(small_shards: None, tmp_path: Path) -> None:
    black = noise(16, 0)._replace(frame_NHW=np.zeros((16, 84, 84), dtype=np.uint8), reward_N=np.zeros(16, dtype=np.float32))
    write_dataset(tmp_path / "set", [black])
    assert (tmp_path / "set/states.zarr/frame/c/0/0/0").is_file()
    assert faults_of(tmp_path / "set") == []


def test_a_killed_writer_goes_on_after_its_whole_shards(small_shards: None, tmp_path: Path) -> None:
    episodes = [noise(25, i) for i in range(3)]
    write_dataset(tmp_path / "whole", episodes)
    killed = Writer(tmp_path / "resumed", 3)
    killed.append(episodes[0])
    killed.append(episodes[1])
    assert killed.packed == 48
    (tmp_path / "resumed/states.zarr/flags/c/2").unlink()  # the last shard was not finished in every array
    again = Writer(tmp_path / "resumed", 3)
    assert again.packed == 32
    again.append(schema.join(episodes).cut(32, 75))
    facts: dict[str, Any] = {
        "game": "Corridor",
        "teacher": {"digest": "t" * 64, "name": "optimal"},
        "environment": {"game": "Corridor"},
    }
    again.finish(rows_of(episodes), **facts, collection={"policy": "half-random", "seed": 0})
    assert tree(tmp_path / "whole") == tree(tmp_path / "resumed")


def test_stacks_are_padded_with_black_at_episode_starts(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", [noise(5, 0), noise(6, 1)])
    dataset = open_dataset(tmp_path / "set")
    frames = dataset.records(0, 11).frame_NHW
    stacks = dataset.stacks([0, 4, 5, 7, 10])
    assert not stacks[0, :3].any()
    assert np.array_equal(stacks[0, 3], frames[0])
    assert np.array_equal(stacks[1], frames[1:5])
    assert not stacks[2, :3].any()
    assert np.array_equal(stacks[3, 1:], frames[5:8])
    assert np.array_equal(stacks[4], frames[7:11])
    assert dataset.stacks([]).shape == (0, 4, 84, 84)


def test_a_missing_manifest_means_incomplete(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set")
    (tmp_path / "set" / schema.MANIFEST).unlink()
    with pytest.raises(ValueError, match="never finished"):
        open_dataset(tmp_path / "set")
    with pytest.raises(ValueError, match="does not exist"):
        open_dataset(tmp_path / "nowhere")


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set")
    path = tmp_path / "set/states.zarr/frame/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[40] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"frame/c/0/0/0 is damaged.*dvc"):
        open_dataset(tmp_path / "set", check_files=True)
    assert any("frame/c/0/0/0 is damaged" in fault for fault in faults_of(tmp_path / "set"))
    with pytest.raises(ValueError, match="array frame cannot be read"):
        open_dataset(tmp_path / "set").episode(0)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set")
    path = tmp_path / "set/states.zarr/q/c/0/0"
    path.write_bytes(path.read_bytes()[:-100])
    found = faults_of(tmp_path / "set")
    assert "q/c/0/0 is damaged" in found[0]
    assert "array q cannot be read" in found[1]


def test_a_missing_shard_and_a_foreign_file_are_named(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set")
    (tmp_path / "set/states.zarr/action/c/0").unlink()
    (tmp_path / "set/notes.txt").write_text("mine")
    text = "\n".join(faults_of(tmp_path / "set"))
    assert "action/c/0 is missing" in text
    assert "notes.txt is not in the manifest" in text


def test_changed_records_with_recomputed_file_digests_are_still_found(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set")
    changed = open_dataset(tmp_path / "set").records(0, 1)
    group = zarr.open_group(tmp_path / "set/states.zarr", mode="r+")
    q = group["q"]
    assert isinstance(q, zarr.Array)
    q[0] = changed.q_NA[0] + 1
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    name = "states.zarr/q/c/0/0"
    manifest["files"][name] = Folder(tmp_path / "set").digest(name)
    (tmp_path / "set/manifest.json").write_text(json.dumps(manifest))
    assert any("episode 0" in fault and "other records than its digest" in fault for fault in faults_of(tmp_path / "set"))


def test_a_manifest_may_not_point_outside(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set")
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = "0" * 64
    (tmp_path / "set/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="outside the dataset"):
        open_dataset(tmp_path / "set", check_files=True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format_version": 1}', '{"format_version": 2}', '{"format_version": 1, "x": 1}']
)
def test_a_broken_manifest_is_one_line(tmp_path: Path, text: str) -> None:
    corridor_dataset(tmp_path / "set")
    (tmp_path / "set/manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json"):
        open_dataset(tmp_path / "set")


def test_a_manifest_may_not_claim_another_digest(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set")
    path = tmp_path / "set/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"digest": "0" * 64}))
    with pytest.raises(ValueError, match=f"have digest {manifest['digest'][:12]}, its manifest says 000000000000: restore it"):
        open_dataset(tmp_path / "set")


DEEP: Any = {}
for _ in range(70):
    DEEP = {"deeper": DEEP}


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("environment", {"actions": 3}, "environment.actions are not the names of 2 actions"),
        ("environment", {"actions": ["NOOP"]}, "environment.actions are not the names of 2 actions"),
        ("environment", {"actions": ["NOOP", ["FIRE"]]}, "environment.actions are not the names of 2 actions"),
        ("environment", {"actions": ["NOOP", "<b>"]}, "environment.actions are not the names of 2 actions"),
        ("environment", DEEP, "nested more than 64 deep"),
        ("environment", {"speed": float("nan")}, "NaN is no number that JSON has"),
        ("collection", {"made_by": "hand"}, "collection.made_by is not an object"),
        ("collection", {"made_by": {}, "parents": {"a": 1}}, "collection.parents are not datasets with digests"),
        ("collection", {"parents": [{"digest": None}]}, "collection.parents are not datasets with digests"),
        ("teacher", {"digest": "a\nlicense: x"}, "teacher has no digest"),
    ],
)
def test_a_manifest_of_odd_types_is_refused(tmp_path: Path, field: str, value: Any, told: str) -> None:
    corridor_dataset(tmp_path / "set")
    path = tmp_path / "set/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(ValueError, match=rf"manifest.json is not a dataset manifest \(.*{re.escape(told)}"):
        open_dataset(tmp_path / "set")
    path.write_text(path.read_text().replace("NaN", "1e999"))
    with pytest.raises(ValueError, match=r"manifest\.json is not a dataset manifest"):
        open_dataset(tmp_path / "set")


def test_frames_of_some_steps_leave_the_chunks_between_unread(small_shards: None, tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", [noise(60, 0)])
    whole, part = (open_dataset(tmp_path / "set", count_bytes=True) for _ in range(2))
    steps = np.array([1, 2, 5, 30, 58])
    every = whole.read("frame", 0, 60)
    assert np.array_equal(part.frames(steps), every[steps])
    assert part.folder.bytes_read < whole.folder.bytes_read / 2


def test_states_far_apart_leave_the_chunks_between_unread(small_shards: None, tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", [noise(29, 0), noise(31, 1)])
    whole, part = (open_dataset(tmp_path / "set", count_bytes=True) for _ in range(2))
    steps = [58, 1, 30, 29, 58]  # in any order, one twice, across a boundary of episodes
    every = whole.stacks(range(60))
    assert np.array_equal(part.stacks(steps), every[steps])
    assert part.folder.bytes_read < 0.7 * whole.folder.bytes_read


def test_no_dimension_is_called_as_an_array() -> None:
    """xarray would take the executed actions for the labels of the Q-values' columns."""
    named = {dimension for layout in schema.layouts(3).values() for dimension in layout.dimensions}
    assert named.isdisjoint(schema.ARRAYS)


def test_an_episode_is_no_longer_than_its_environment_lets_it_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = {"config": {"max_episode_frames": 38, "frame_skip": 4}}
    write_dataset(tmp_path / "set", [noise(10, 0)], environment=world)
    assert len(open_dataset(tmp_path / "set")) == 10
    write_dataset(tmp_path / "long", [noise(10, 0), noise(11, 1)], environment=world)
    with pytest.raises(ValueError, match=r"episode 1 has 11 steps from 10, .* and 10 are the most"):
        open_dataset(tmp_path / "long")
    write_dataset(tmp_path / "untold", [noise(11, 1)])
    monkeypatch.setattr(schema, "LONGEST_EPISODE", 10)
    with pytest.raises(ValueError, match=r"episode 0 has 11 steps from 0, .* and 10 are the most"):
        open_dataset(tmp_path / "untold")
    with pytest.raises(
        ValueError, match="an episode has 11 steps, 10 are the most: lower the environment's max_episode_frames"
    ):
        write_dataset(tmp_path / "unwritten", [noise(11, 1)])


def test_more_episodes_than_the_manifest_says_are_not_read(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set", 5)
    corridor_dataset(tmp_path / "more", 6)
    (tmp_path / "more/episodes.parquet").replace(tmp_path / "set/episodes.parquet")
    with pytest.raises(ValueError, match=r"episodes.parquet has 6 rows, the manifest says 5"):
        open_dataset(tmp_path / "set")


def test_digests_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corridor_dataset(tmp_path / "set", 40)
    path = tmp_path / "set/episodes.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("sha256")
    pq.write_table(
        table.set_column(column, table.schema.field("sha256"), pa.array(["a" * 1_000_000] * 40)), path, compression="zstd"
    )
    assert path.stat().st_size < 20_000
    del table
    taken: list[int] = []

    def watched(*arguments: Any) -> Any:
        taken.append(pa.total_allocated_bytes())
        return match(*arguments)

    match, before = pc.match_substring_regex, pa.total_allocated_bytes()
    monkeypatch.setattr(pc, "match_substring_regex", watched)
    with pytest.raises(ValueError, match="has a sha256 that is none: do not trust it"):
        open_dataset(tmp_path / "set")
    assert taken[0] - before < 10_000_000


def test_a_chunk_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set", 5)
    path = tmp_path / "set/states.zarr/frame/zarr.json"
    fields = json.loads(path.read_text())
    fields["codecs"][0]["configuration"]["chunk_shape"][0] = schema.SHARD
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="array frame is not as format 1 wants it: shards of 65536 and chunks of 65536 steps"):
        open_dataset(tmp_path / "set")


def test_no_more_steps_than_there_are_shards_for(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set", 5)
    path = tmp_path / "set/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["states.zarr/q/c/0/0"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"its manifest lacks states\.zarr/q/c/0/0, where its states should lie"):
        open_dataset(tmp_path / "set")


@pytest.mark.parametrize("count_bytes", [False, True])
def test_a_chunk_that_unpacks_to_more_than_it_should_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_bytes: bool
) -> None:
    corridor_dataset(tmp_path / "set", 5)
    dataset = open_dataset(tmp_path / "set", count_bytes=count_bytes)
    assert dataset.read("q", 0, 3).shape == (3, 2)
    monkeypatch.setattr(zstandard, "LARGEST_CHUNK", 4_096)
    with pytest.raises(ValueError, match=r"array q cannot be read .* a chunk may decode to .* bytes, 4,096 are the most"):
        dataset.read("q", 0, 3)


@settings(max_examples=50)
@given(data=st.data())
def test_no_frame_is_thought_to_decode_to_less_than_it_does(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 400_000))
    period = data.draw(st.integers(1, 10_000))
    content = np.resize(np.random.default_rng(size).integers(0, 256, period, dtype=np.uint8), size)
    frame = bytes(Zstd(level=data.draw(st.sampled_from([1, 7])), checksum=data.draw(st.booleans())).encode(content))
    zstandard.check_frame(memoryview(frame))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zstandard, "LARGEST_CHUNK", size - 1)
        for odd in (frame, frame + frame, frame[:-1], b"", frame[:5]):
            with pytest.raises(ValueError, match=r"a chunk (may decode to|is not one Zstandard frame)"):
                zstandard.check_frame(memoryview(odd))
