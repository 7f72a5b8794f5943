"""Opens a dataset: manifest, episode table, arrays, and the four-frame states rebuilt from single frames.

Dimensions: N steps, C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from pipeline.datasets import schema
from pipeline.datasets.folders import Folder, FolderStore
from pipeline.datasets.schema import EpisodeRow, Manifest, Records

READ_PIPELINE: Final = "zarrs.ZarrsCodecPipeline"
"""Decodes on all cores. Reading only: its writes of sharded arrays differ from run to run."""

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

    def records(self, start: int, stop: int) -> Records:
        """Steps `start` to `stop`, decoded. ValueError names the array that cannot be read."""
        return Records(*(self.read(name, start, stop) for name in schema.ARRAYS))

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Steps `start` to `stop` of one array, decoded. ValueError says what cannot be read."""
        try:
            return np.asarray(self.arrays[name][start:stop])
        except Exception as error:  # codecs raise many types
            raise ValueError(
                f"dataset {self.folder}: array {name} cannot be read between steps {start:,} and {stop:,} "
                f"({type(error).__name__}: {error}): restore it with `dvc checkout --force` or `dvc pull`"
            ) from None

    def episode(self, index: int) -> Records:
        """The records of one episode."""
        row = self.episodes[index]
        return self.records(row.start, row.start + row.length)

    def by_episode(self) -> Iterator[tuple[int, Records | str]]:
        """Every episode in order: its index, and its records or in one line why they cannot be read.

        Reads several episodes at a time, so that a chunk that they share is fetched and decoded once.
        """
        first = 0
        while first < len(self.episodes):
            start, last = self.episodes[first].start, first
            while last + 1 < len(self.episodes) and self.episodes[last].start - start < WINDOW:
                last += 1
            stop = self.episodes[last].start + self.episodes[last].length
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

    def stacks(self, steps: Sequence[int], depth: int = 4) -> npt.NDArray[np.uint8]:
        """The states (n, depth, 84, 84) at these steps, as the agent saw them."""
        wanted = np.asarray(steps, dtype=np.int64)
        if len(wanted) == 0:
            return np.zeros((0, depth, 84, 84), dtype=np.uint8)
        if wanted.min() < 0 or wanted.max() >= len(self):
            raise ValueError(
                f"dataset {self.folder} has steps 0 to {len(self) - 1:,}: {wanted.min():,} to {wanted.max():,} were asked for"
            )
        start_N = episode_starts(self.episodes, wanted)
        first = int(max(wanted.min() - depth + 1, 0))
        frame_NHW = self.read("frame", first, int(wanted.max()) + 1)
        return stack(frame_NHW, wanted - first, start_N - first, depth)


def episode_starts(episodes: Sequence[EpisodeRow], step_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first step of the episode that each step belongs to."""
    starts = np.array([row.start for row in episodes], dtype=np.int64)
    return starts[np.searchsorted(starts, step_N, side="right") - 1]


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
    try:
        table = pq.read_table(io.BytesIO(folder.read(schema.EPISODES)))
    except FileNotFoundError:
        raise ValueError(
            f"dataset {folder}: {schema.EPISODES} is missing: restore it with `dvc checkout` or `dvc pull`"
        ) from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"dataset {folder}: {schema.EPISODES} is damaged ({error}): restore it with `dvc pull`") from None
    if not table.schema.equals(schema.EPISODE_SCHEMA):
        raise ValueError(f"dataset {folder}: {schema.EPISODES} has other columns than format {schema.FORMAT_VERSION}")
    rows = tuple(EpisodeRow(*values) for values in zip(*(column.to_pylist() for column in table.columns), strict=True))
    if sum(row.length for row in rows) != manifest.states:
        raise ValueError(f"dataset {folder}: the episode table covers other states than the manifest's {manifest.states:,}")
    try:
        if folder.local is not None and not count_bytes:
            with zarr.config.set({"codec_pipeline.path": READ_PIPELINE}):
                group = zarr.open_group(folder.local / schema.STATES, mode="r")
                arrays = {name: group[name] for name in schema.ARRAYS}
        else:
            group = zarr.open_group(FolderStore(folder, schema.STATES), mode="r", zarr_format=3)
            arrays = {name: group[name] for name in schema.ARRAYS}
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise ValueError(f"dataset {folder}: {schema.STATES} is incomplete ({error}): restore it with `dvc pull`") from None
    shapes = {name: array.shape for name, array in arrays.items() if isinstance(array, zarr.Array)}
    n, a = manifest.states, manifest.actions
    if shapes != {"frame": (n, 84, 84), "q": (n, a), "action": (n,), "reward": (n,), "flags": (n,)}:
        raise ValueError(f"dataset {folder}: array shapes {shapes} do not fit {n:,} states and {a} actions")
    return Dataset(folder, manifest, rows, arrays)  # type: ignore[arg-type]


def _folder(where: str | Path | Folder) -> Folder:
    return where if isinstance(where, Folder) else Folder(where)


def read_manifest(where: str | Path | Folder) -> Manifest:
    """The manifest alone. ValueError where there is none: the dataset is incomplete."""
    folder = _folder(where)
    path = f"{folder}/{schema.MANIFEST}"
    try:
        text = folder.read(schema.MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        reason = (
            f"has no {schema.MANIFEST}: its collection never finished (run it again to resume)"
            if folder.is_folder()
            else "does not exist"
        )
        raise ValueError(f"dataset {folder} {reason}; `dvc repro` makes it, `dvc pull` fetches it") from None
    try:
        fields = json.loads(text)
        if fields["format_version"] != schema.FORMAT_VERSION:
            raise ValueError(
                f"{path}: format {fields['format_version']}, this version reads {schema.FORMAT_VERSION}: update pd-pipeline"
            )
        manifest = Manifest(**fields)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a dataset manifest ({type(error).__name__}: {error}): restore it") from None
    return manifest


def file_faults(folder: Folder, manifest: Manifest) -> list[str]:
    """One line per file that is missing, damaged or foreign; empty when every byte is as the manifest says."""
    faults = []
    for name, expected in sorted(manifest.files.items()):
        if not _inside(folder, name):
            faults.append(f"dataset {folder}: the manifest names {name}, outside the dataset: do not trust it")
            continue
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


def _inside(folder: Folder, name: str) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return False
    return folder.local is None or (folder.local / name).resolve().is_relative_to(folder.local.resolve())  # a link may lead out
