"""Opens a dataset: manifest, episode table, arrays, and the four-frame states rebuilt from single frames.

Dimensions: N steps, C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr
from zarr.buffer.cpu import NDBuffer

from pipeline.datasets import schema, zstandard
from pipeline.datasets.folders import Folder, FolderStore
from pipeline.datasets.schema import EpisodeRow, Manifest, Records

READ_PIPELINE: Final = "zarrs.ZarrsCodecPipeline"
"""Decodes on all cores. Reading only: its writes of sharded arrays differ from run to run."""

LONGEST_SHARD: Final = 1 << 20
MOST_ACTIONS: Final = 256
"""Actions are bytes."""
MOST_EPISODES: Final = 1 << 22
DEEPEST: Final = 64
"""Levels of a manifest: what walks them may recurse."""
WINDOW: Final = 8_192
"""Steps that a walk over all episodes reads at a time, or one episode if that is longer."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """An open dataset. `arrays` are lazy Zarr arrays; nothing is read until it is indexed."""

    folder: Folder
    manifest: Manifest
    episodes: tuple[EpisodeRow, ...]
    arrays: dict[str, zarr.Array[Any]]

    def __len__(self) -> int:
        return self.manifest.states

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def game(self) -> str:
        return self.manifest.game

    @property
    def actions(self) -> int:
        return self.manifest.actions

    def records(self, start: int, stop: int) -> Records:
        """Steps `start` to `stop`, decoded. ValueError names the array that cannot be read."""
        return Records(*(self.read(name, start, stop) for name in schema.ARRAYS))

    def read(self, name: str, start: int, stop: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Steps `start` to `stop` of one array, decoded, into `out` if there is one. ValueError says what cannot be read."""
        try:
            self._check_shards(name, start, stop)
            if out is None:
                return np.asarray(self.arrays[name][start:stop])
            self.arrays[name].get_basic_selection(slice(start, stop), out=NDBuffer.from_numpy_array(out))
            return out
        except Exception as error:  # codecs raise many types
            raise ValueError(
                f"dataset {self.folder}: array {name} cannot be read between steps {start:,} and {stop:,} "
                f"({type(error).__name__}: {error}): restore it with `dvc checkout --force` or `dvc pull`"
            ) from None

    def _check_shards(self, name: str, start: int, stop: int) -> None:
        """FileNotFoundError for a shard that is not there: Zarr would take it for zeros. ValueError for a chunk that would not
        fit the memory. Elsewhere `FolderStore` and the codec tell.
        """
        array = self.arrays[name]
        if self.folder.local is None or not array.shards:
            return
        steps, chunk = array.shards[0], array.chunks[0]
        for shard in range(start // steps, -(-stop // steps)):
            path = _shard(name, shard, schema.layouts(self.manifest.actions)[name])
            begin, end = max(start - shard * steps, 0), min(stop - shard * steps, steps)
            zstandard.check_shard(self.folder.path(path), steps // chunk, begin // chunk, -(-end // chunk))

    def card(self) -> str:
        """README.md; nothing where there is none, or one that the manifest does not know: a link may lead to any file here."""
        try:
            data = self.folder.read(schema.CARD)
        except FileNotFoundError:
            return ""
        known = hashlib.sha256(data).hexdigest() == self.manifest.files.get(schema.CARD)
        return data.decode(errors="replace") if known else ""

    def episode(self, index: int) -> Records:
        """The records of one episode."""
        row = self.episodes[index]
        return self.records(row.start, row.start + row.length)

    def by_episode(self) -> Iterator[tuple[int, Records | str]]:
        """Every episode in order: its index, and its records or in one line why they cannot be read.

        Reads several episodes at a time, so that a chunk that they share is fetched and decoded once.
        """
        first, ends = 0, [row.start + row.length for row in self.episodes]
        while first < len(self.episodes):
            start, last = self.episodes[first].start, first
            while last + 1 < len(self.episodes) and ends[last + 1] - start <= WINDOW:
                last += 1
            stop = ends[last]
            try:
                window = self.records(start, stop)
            except ValueError:
                window = None  # one of them is damaged: ask for each
            for index in range(first, last + 1):
                row = self.episodes[index]
                try:
                    yield (
                        index,
                        window.cut(row.start - start, row.start - start + row.length) if window else self.episode(index),
                    )
                except ValueError as error:
                    yield index, str(error)
            first = last + 1

    def frames(self, step_N: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The newest frame (n, 84, 84) of each of these steps, in ascending order; chunks that hold none are not read."""
        runs = np.split(step_N, np.flatnonzero(np.diff(step_N // self.arrays["frame"].chunks[0]) > 1) + 1)
        return np.concatenate([self.read("frame", run[0], run[-1] + 1)[run - run[0]] for run in runs])

    def stacks(self, steps: Sequence[int], depth: int = 4) -> npt.NDArray[np.uint8]:
        """The states (n, depth, 84, 84) at these steps, as the agent saw them; chunks that hold none of them are not read."""
        wanted = np.asarray(steps, dtype=np.int64)
        if len(wanted) == 0:
            return np.zeros((0, depth, 84, 84), dtype=np.uint8)
        if wanted.min() < 0 or wanted.max() >= len(self):
            raise ValueError(
                f"dataset {self.folder} has steps 0 to {len(self) - 1:,}: {wanted.min():,} to {wanted.max():,} were asked for"
            )
        since_N = wanted - episode_of(self.episodes, wanted).start_N
        back_C = np.arange(depth)
        needed = np.unique((wanted[:, None] - back_C)[back_C <= since_N[:, None]])
        at_N = np.searchsorted(needed, wanted)  # the frames of a state are all there, one after another
        return stack(self.frames(needed), at_N, at_N - since_N, depth)


class Place(NamedTuple):
    """The index of the episode that each step belongs to, and that episode's first step."""

    index_N: npt.NDArray[np.int64]
    start_N: npt.NDArray[np.int64]


def episode_of(episodes: Sequence[EpisodeRow], step_N: npt.NDArray[np.int64]) -> Place:
    """Where each step lies."""
    starts = np.array([row.start for row in episodes], dtype=np.int64)
    index_N = np.searchsorted(starts, step_N, side="right") - 1
    return Place(index_N, starts[index_N])


def stack(
    frame_NHW: npt.NDArray[np.uint8], step_B: npt.NDArray[np.int64], start_B: npt.NDArray[np.int64], depth: int
) -> npt.NDArray[np.uint8]:
    """States (B, depth, H, W), oldest frame first: frames before the episode's start are black, as the vector environment pads.

    `start_B` is each step's episode start; it may lie before the frames at hand (negative).
    """
    wanted_BC = step_B[:, None] + np.arange(1 - depth, 1)
    outside_BC = wanted_BC < start_B[:, None]
    states_BCHW = frame_NHW[np.where(outside_BC, 0, wanted_BC)]
    states_BCHW[outside_BC] = 0
    return states_BCHW


def open_dataset(where: str | Path | Folder, *, check_files: bool = False, count_bytes: bool = False) -> Dataset:
    """Open the dataset at a path or URL (`folders.Folder`), read-only. ValueError says what is wrong and how to mend it.

    Only the bytes that are asked for are read: `folder.bytes_read` tells how many elsewhere than on this machine, and here with
    `count_bytes`, which is slower. `check_files` compares every file's SHA-256 with the manifest (tens of milliseconds for
    half a million states, here).
    """
    folder = _folder(where)
    manifest = read_manifest(folder)
    if check_files:
        faults = file_faults(folder, manifest)
        if faults:
            raise ValueError("\n".join(faults))
    rows = _read_episodes(folder, manifest)
    digest = schema.dataset_digest(manifest.game, manifest.teacher, manifest.environment, manifest.collection, rows)
    if digest != manifest.digest:
        raise ValueError(
            f"dataset {folder}: its provenance and episode table have digest {digest[:12]}, its manifest says "
            f"{manifest.digest[:12]}: restore it with `dvc pull`, or do not trust it"
        )
    for name, layout in schema.layouts(manifest.actions).items():
        _check_array(folder, name, layout, manifest)
    return Dataset(folder, manifest, rows, _open_arrays(folder, fast=folder.local is not None and not count_bytes))


def _open_arrays(folder: Folder, *, fast: bool) -> dict[str, zarr.Array[Any]]:
    store = folder.local / schema.STATES if fast and folder.local else FolderStore(folder, schema.STATES)
    try:
        if fast:
            folder.path(f"{schema.STATES}/zarr.json")  # Zarr would open whatever is there
        with zarr.config.set({"codec_pipeline.path": READ_PIPELINE} if fast else {"codecs.zstd": zstandard.CODEC}):
            group = zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)
            return {name: group[name] for name in schema.ARRAYS}  # type: ignore[misc]
    except Exception as error:  # zarr raises many types
        fault = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"dataset {folder}: {schema.STATES} cannot be opened ({fault}): restore it with `dvc pull`") from None


def _read_episodes(folder: Folder, manifest: Manifest) -> tuple[EpisodeRow, ...]:
    """The episode table: whole, without gaps, and of as many steps as the manifest says."""
    table = _read_table(folder, manifest)
    rows = tuple(EpisodeRow(*values) for values in zip(*(column.to_pylist() for column in table.columns), strict=True))
    expected, longest = 0, _longest_episode(manifest)
    for index, row in enumerate(rows):
        if row.start != expected or not 1 <= row.length <= longest:
            place = f"episode {index} has {row.length:,} steps from {row.start:,}"
            told = f"the one before it ends at {expected:,}, and {longest:,} are the most"
            raise ValueError(f"dataset {folder}: {place}, {told}: do not trust it")
        expected += row.length
    if (expected, len(rows)) != (manifest.states, manifest.episodes):
        raise ValueError(
            f"dataset {folder}: the episode table covers {expected:,} states in {len(rows)} episodes, "
            f"the manifest says {manifest.states:,} in {manifest.episodes}"
        )
    return rows


def _read_table(folder: Folder, manifest: Manifest) -> pa.Table:
    """The episode table's rows, of the format's types and the manifest's number."""
    try:
        # As a dictionary a text that is repeated is kept once: else a few bytes could be unpacked to any number.
        with pq.ParquetFile(io.BytesIO(folder.read(schema.EPISODES)), read_dictionary=["sha256"]) as file:
            if not file.metadata.schema.to_arrow_schema().equals(schema.EPISODE_SCHEMA):
                raise ValueError(f"dataset {folder}: {schema.EPISODES} has other columns than format {schema.FORMAT_VERSION}")
            if file.metadata.num_rows != manifest.episodes:
                raise ValueError(
                    f"dataset {folder}: {schema.EPISODES} has {file.metadata.num_rows:,} rows, the manifest says "
                    f"{manifest.episodes:,}: restore it with `dvc pull`"
                )
            table = file.read()
    except FileNotFoundError:
        raise ValueError(
            f"dataset {folder}: {schema.EPISODES} is missing: restore it with `dvc checkout` or `dvc pull`"
        ) from None
    except (pa.ArrowException, OSError) as error:
        fault = str(error).splitlines()[0]
        raise ValueError(f"dataset {folder}: {schema.EPISODES} is damaged ({fault}): restore it with `dvc pull`") from None
    if any(column.null_count for column in table.columns):
        raise ValueError(f"dataset {folder}: {schema.EPISODES} has values missing: do not trust it")
    chunks: list[Any] = table["sha256"].chunks
    for chunk in chunks:
        if not pc.all(pc.match_substring_regex(chunk.dictionary, "^[0-9a-f]{64}$"), min_count=0).as_py():
            raise ValueError(f"dataset {folder}: {schema.EPISODES} has a sha256 that is none: do not trust it")
    return table


def _longest_episode(manifest: Manifest) -> int:
    """Steps after which the time limit ends an episode, where the manifest tells it; never more than the format's."""
    config = manifest.environment.get("config")
    frames, skip = (config.get(key) if isinstance(config, dict) else None for key in ("max_episode_frames", "frame_skip"))
    if type(frames) is not int or type(skip) is not int or skip < 1:
        return schema.LONGEST_EPISODE
    return min(-(-frames // skip), schema.LONGEST_EPISODE)


def _check_array(folder: Folder, name: str, layout: schema.Layout, manifest: Manifest) -> None:
    """ValueError if an array's metadata is not the format's: no other codec is ever asked to decode what a stranger wrote.

    Nor are there more steps than there are shards for, so that memory for all of them may be asked for.
    """
    path = f"{schema.STATES}/{name}/zarr.json"
    try:
        found = json.loads(folder.read(path).decode())
        (sharding,) = found["codecs"]
        inside = sharding["configuration"]
        facts = {
            "zarr_format": (found["zarr_format"], 3),
            "shape": (found["shape"], [manifest.states, *layout.trailing]),
            "data_type": (found["data_type"], layout.dtype),
            "shard": (found["chunk_grid"]["configuration"]["chunk_shape"][1:], list(layout.trailing)),
            "chunk": (inside["chunk_shape"][1:], list(layout.trailing)),
            "keys": (found["chunk_key_encoding"], {"name": "default", "configuration": {"separator": "/"}}),
            "transformers": (found.get("storage_transformers", []), []),
            "codec": (sharding["name"], "sharding_indexed"),
            "codecs": ([codec["name"] for codec in inside["codecs"]], ["bytes", "zstd"]),
            "index": (inside.get("index_location", "end"), "end"),
            "index codecs": ([codec["name"] for codec in inside["index_codecs"]], ["bytes", "crc32c"]),
        }
        shard, chunk = found["chunk_grid"]["configuration"]["chunk_shape"][0], inside["chunk_shape"][0]
        step = math.prod(layout.trailing) * np.dtype(layout.dtype).itemsize
        fits = (
            type(shard) is type(chunk) is int
            and 0 < chunk <= shard <= LONGEST_SHARD
            and shard % chunk == 0
            and chunk * step <= zstandard.LARGEST_CHUNK
        )
    except FileNotFoundError:
        raise ValueError(f"dataset {folder}: {path} is missing: restore it with `dvc pull`") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"dataset {folder}: {path} is not an array's metadata ({error!r}): restore it with `dvc pull`"
        ) from None
    other = [f"{what} {theirs}, not {ours}" for what, (theirs, ours) in facts.items() if theirs != ours]
    if other or not fits:
        told = "; ".join(other) or f"shards of {shard} and chunks of {chunk} steps"
        raise ValueError(f"dataset {folder}: array {name} is not as format {schema.FORMAT_VERSION} wants it: {told}")
    for number in range(-(-manifest.states // shard)):
        if (path := _shard(name, number, layout)) not in manifest.files:
            raise ValueError(f"dataset {folder}: its manifest lacks {path}, where its states should lie: do not trust it")


def _shard(name: str, number: int, layout: schema.Layout) -> str:
    return "/".join([schema.STATES, name, "c", str(number), *["0"] * len(layout.trailing)])


def _folder(where: str | Path | Folder) -> Folder:
    return where if isinstance(where, Folder) else Folder(where)


def read_manifest(where: str | Path | Folder) -> Manifest:
    """The manifest alone. ValueError where there is none: the dataset is incomplete."""
    folder = _folder(where)
    path = f"{folder}/{schema.MANIFEST}"
    try:
        text = folder.read(schema.MANIFEST)
    except FileNotFoundError:
        reason = (
            f"has no {schema.MANIFEST}: it is none, or its collection never finished (the same command goes on)"
            if folder.is_folder()
            else "does not exist"
        )
        remedy = "`pd-pipeline collect` makes one, `dvc pull` fetches what was pushed to a DVC remote"
        raise ValueError(f"dataset {folder} {reason}; {remedy}") from None
    return parse_manifest(text, path)


def parse_manifest(text: bytes | str, where: str) -> Manifest:
    """What a manifest says. ValueError, naming `where` it came from, if it is none or leads outside its dataset."""
    try:
        fields = json.loads(text, parse_float=_number, parse_constant=_number)
        version = fields["format_version"]
        manifest = Manifest(**fields) if version == schema.FORMAT_VERSION else None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not a dataset manifest ({type(error).__name__}: {error}): restore it") from None
    if manifest is None:
        raise ValueError(f"{where}: format {version}, this version reads {schema.FORMAT_VERSION}: update pd-pipeline")
    if odd := _odd_fields(manifest) or _odd_story(manifest):
        raise ValueError(f"{where} is not a dataset manifest ({odd[0]}): do not trust it")
    return manifest


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number that JSON has")
    return value


def _odd_fields(manifest: Manifest) -> list[str]:
    """What in a manifest is not of its type, or leads outside the dataset."""
    wanted = {
        **dict.fromkeys(("game", "digest"), str),
        **dict.fromkeys(("states", "episodes", "actions"), int),
        **dict.fromkeys(("teacher", "environment", "collection", "files"), dict),
    }
    odd = [
        f"{name} is {type(getattr(manifest, name)).__name__}"
        for name, t in wanted.items()
        if type(getattr(manifest, name)) is not t
    ]
    if odd:
        return odd
    if (
        min(manifest.states, manifest.episodes, manifest.actions) < 1
        or manifest.actions > MOST_ACTIONS
        or manifest.episodes > MOST_EPISODES
    ):
        odd.append(f"{manifest.states} states, {manifest.episodes} episodes, {manifest.actions} actions")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", manifest.game) or not re.fullmatch(r"[0-9a-f]{64}", manifest.digest):
        odd.append(f"game {manifest.game!r}, digest {manifest.digest!r}")  # files are named after them
    teacher = manifest.teacher.get("digest")
    if not isinstance(teacher, str) or not teacher.isprintable():
        odd.append("teacher has no digest")
    for name, sha256 in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            odd.append(f"it names {name!r}, outside the dataset")
        elif not isinstance(sha256, str):
            odd.append(f"{name} has no digest")
    return odd


def _odd_story(manifest: Manifest) -> list[str]:
    """What in a manifest's account of its world and its making is not as `describe`, `edit` and the report's page take it."""
    odd = []
    names = manifest.environment.get("actions")
    if names is not None and not (
        isinstance(names, list)
        and len(names) == manifest.actions
        and all(isinstance(name, str) and re.fullmatch(r"\w{1,32}", name) for name in names)
    ):
        odd.append(f"environment.actions are not the names of {manifest.actions} actions")
    if not isinstance(manifest.collection.get("made_by", {}), dict):
        odd.append("collection.made_by is not an object")
    parents = manifest.collection.get("parents", [])
    if not isinstance(parents, list) or not all(isinstance(p, dict) and isinstance(p.get("digest"), str) for p in parents):
        odd.append("collection.parents are not datasets with digests")
    level: list[Any] = [manifest.teacher, manifest.environment, manifest.collection]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
    if level:
        odd.append(f"it is nested more than {DEEPEST} deep")
    return odd


def _inside(value: object) -> Collection[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def file_faults(folder: Folder, manifest: Manifest) -> list[str]:
    """One line per file that is missing, damaged or foreign; empty when every byte is as the manifest says."""
    faults = []
    for name, expected in sorted(manifest.files.items()):
        try:
            found = folder.digest(name)
        except FileNotFoundError:
            faults.append(f"dataset {folder}: {name} is missing: restore it with `dvc checkout --force` or `dvc pull`")
            continue
        if found != expected:
            remedy = "restore it with `dvc checkout --force` or `dvc pull`"
            faults.append(f"dataset {folder}: {name} is damaged (its SHA-256 is not the manifest's): {remedy}")
    known = {*manifest.files, schema.MANIFEST}
    faults += [f"dataset {folder}: {name} is not in the manifest: remove it" for name in folder.files() if name not in known]
    return faults
