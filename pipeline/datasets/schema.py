"""What a dataset is: the arrays, the episode table and the manifest of one folder of (state, Q-value) records.

    states.zarr/      Zarr v3 group: frame, q, action, reward, flags; first dimension `step`
    episodes.parquet  one row per episode, in storage order
    manifest.json     environment, teacher, settings, per-file digests and the dataset's digest; written last
    README.md         the dataset card

Dimensions: N steps, A actions, H W pixels (84).
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FORMAT_VERSION: Final = 1
STATES: Final = "states.zarr"
EPISODES: Final = "episodes.parquet"
MANIFEST: Final = "manifest.json"
CARD: Final = "README.md"

SHARD: Final = 65_536
"""Steps per shard file of every array: shard k of all five arrays holds the same steps, and has one writer."""
FRAME_CHUNK: Final = 256
SMALL_CHUNK: Final = 8_192
LONGEST_EPISODE: Final = 1 << 17
"""Steps of an episode: Atari's time limit is 108,000 frames, so this bounds what a reader must hold, not what is played."""
ARRAYS: Final = ("frame", "q", "action", "reward", "flags")


class Layout(NamedTuple):
    """How an array lies on disk: one element's shape, its type, the dimensions' names, and the steps of a chunk."""

    trailing: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    chunk: int


def layouts(actions: int) -> dict[str, Layout]:
    """The layout of each array, in `ARRAYS` order. No dimension is called as an array is: xarray takes that for its labels."""
    return {
        "frame": Layout((84, 84), "uint8", ("step", "height", "width"), FRAME_CHUNK),
        "q": Layout((actions,), "float32", ("step", "choice"), SMALL_CHUNK),
        "action": Layout((), "uint8", ("step",), SMALL_CHUNK),
        "reward": Layout((), "float32", ("step",), SMALL_CHUNK),
        "flags": Layout((), "uint8", ("step",), SMALL_CHUNK),
    }


class Flag(enum.IntFlag):
    """Bits of the `flags` array."""

    EPISODE_START = 1
    TERMINATED = 2
    TRUNCATED = 4
    RANDOM_ACTION = 8
    LIFE_LOST = 16


class Records(NamedTuple):
    """Consecutive steps: newest frame of each state, teacher's Q-values, executed action, raw reward, `Flag` bits."""

    frame_NHW: npt.NDArray[np.uint8]
    q_NA: npt.NDArray[np.float32]
    action_N: npt.NDArray[np.uint8]
    reward_N: npt.NDArray[np.float32]
    flags_N: npt.NDArray[np.uint8]

    def owned(self) -> Records:
        """A copy that shares no memory with what it was cut from."""
        f, q, a, r, g = self
        return Records(f.copy(), q.copy(), a.copy(), r.copy(), g.copy())

    def by_name(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays under their names on disk, in `ARRAYS` order."""
        return dict(zip(ARRAYS, self, strict=True))

    @property
    def steps(self) -> int:
        return len(self.action_N)

    def cut(self, start: int, stop: int) -> Records:
        """Steps `start` to `stop`, as views."""
        f, q, a, r, g = self
        return Records(f[start:stop], q[start:stop], a[start:stop], r[start:stop], g[start:stop])


def join(parts: Iterable[Records]) -> Records:
    """The parts one after another."""
    return Records(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class EpisodeRow(NamedTuple):
    """One episode: where it lies, the environment seed it was played under, what it scored, and the digest of its records.

    `complete` is False only for an episode that was cut, the last one collected, where an exact number of states was reached;
    its return is then what was scored until the cut.
    """

    seed: int
    start: int
    length: int
    episode_return: float
    terminated: bool
    truncated: bool
    complete: bool
    sha256: str


_COLUMNS: Final[dict[str, pa.DataType]] = {
    "seed": pa.int64(),
    "start": pa.int64(),
    "length": pa.int32(),
    "episode_return": pa.float64(),
    "terminated": pa.bool_(),
    "truncated": pa.bool_(),
    "complete": pa.bool_(),
    "sha256": pa.string(),
}
EPISODE_SCHEMA: Final = pa.schema(_COLUMNS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """manifest.json. `teacher` has a "digest"; `collection` is what decides the records; `files` maps path to SHA-256."""

    format_version: int
    game: str
    states: int
    episodes: int
    actions: int
    teacher: dict[str, Any]
    environment: dict[str, Any]
    collection: dict[str, Any]
    files: dict[str, str]
    digest: str

    def as_json(self) -> str:
        fields = {name: getattr(self, name) for name in Manifest.__dataclass_fields__}
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"


def episode_digest(records: Records) -> str:
    """SHA-256 over one episode's decoded arrays in `ARRAYS` order, little-endian: independent of chunking and codec."""
    sha = hashlib.sha256()
    for array in records.by_name().values():
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def dataset_digest(
    game: str, teacher: dict[str, Any], environment: dict[str, Any], collection: dict[str, Any], rows: Iterable[EpisodeRow]
) -> str:
    """The dataset's identity: its provenance and every episode's seed, length, ending and digest."""
    provenance = {"game": game, "teacher": teacher["digest"], "environment": environment, "collection": collection}
    sha = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode())
    for row in rows:
        sha.update(json.dumps([row.seed, row.length, row.terminated, row.truncated, row.complete, row.sha256]).encode())
    return sha.hexdigest()
