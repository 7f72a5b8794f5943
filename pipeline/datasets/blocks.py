"""Blocks: fixed sets of whole episodes on their way into a dataset.

A worker records a block's episodes and writes one Arrow file and one small JSON receipt, each whole or not at all, into a
folder or a bucket. A block is a pure function of its job, so it may be played anywhere, in any order, once or twice. Frames
are compressed while the episode still runs: a stalled half-hour episode costs a megabyte or two.

Dimensions: A actions, H W pixels, K steps of a chunk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numcodecs import Zstd

from pipeline.datasets.folders import Folder
from pipeline.datasets.schema import EpisodeRow, Records
from pipeline.datasets.writer import LEVEL

_CODEC: Final = Zstd(level=1)
_CHUNK: Final = 256
_SMALL: Final[tuple[tuple[str, npt.DTypeLike], ...]] = (
    ("q", np.float32),
    ("action", np.uint8),
    ("reward", np.float32),
    ("flags", np.uint8),
)
_SCHEMA: Final = pa.schema(
    [
        ("frames", pa.list_(pa.binary())),
        *((name, pa.binary()) for name, _ in _SMALL),
        ("length", pa.int32()),
        ("actions", pa.int32()),
    ]
)


class Recorder:
    """One episode while it is played; `add` each step, `finish` at its end."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.episode_return = 0.0
        self._frames: list[npt.NDArray[np.uint8]] = []
        self._compressed: list[bytes] = []
        self._q: list[npt.NDArray[np.float32]] = []
        self._action: list[int] = []
        self._reward: list[float] = []
        self._flags: list[int] = []
        self._sha = hashlib.sha256()

    def add(
        self, frame_HW: npt.NDArray[np.uint8], q_A: npt.NDArray[np.float32], action: int, reward: float, flags: int
    ) -> None:
        """One step: the newest frame of the state, the teacher's Q-values there, and what happened."""
        self._frames.append(frame_HW.copy())
        self._q.append(q_A)
        self._action.append(action)
        self._reward.append(reward)
        self._flags.append(flags)
        self.episode_return += reward
        if len(self._frames) == _CHUNK:
            self._compress()

    def _compress(self) -> None:
        frame_KHW = np.stack(self._frames)
        self._sha.update(frame_KHW.data)
        self._compressed.append(bytes(_CODEC.encode(frame_KHW)))
        self._frames = []

    def finish(self, *, terminated: bool, truncated: bool) -> tuple[EpisodeRow, dict[str, Any]]:
        """The episode's row (its `start` still 0) and its record for `write_block`. The digest is `schema.episode_digest`'s."""
        if self._frames:
            self._compress()
        arrays: dict[str, npt.NDArray[Any]] = {
            "q": np.stack(self._q).astype(np.float32),
            "action": np.array(self._action, dtype=np.uint8),
            "reward": np.array(self._reward, dtype=np.float32),
            "flags": np.array(self._flags, dtype=np.uint8),
        }
        for array in arrays.values():
            self._sha.update(array.data)
        length = len(self._action)
        row = EpisodeRow(
            seed=self.seed,
            start=0,
            length=length,
            episode_return=self.episode_return,
            terminated=terminated,
            truncated=truncated,
            complete=True,
            sha256=self._sha.hexdigest(),
        )
        record = {"frames": self._compressed, "length": length, "actions": arrays["q"].shape[1]}
        return row, record | {name: array.tobytes() for name, array in arrays.items()}


def stored_bytes(record: Mapping[str, Any]) -> int:
    """About what a finished episode will take in a dataset, which is compressed harder than a block."""
    parts = [*(_CODEC.decode(chunk) for chunk in record["frames"]), *(record[name] for name, _ in _SMALL)]
    codec = Zstd(level=LEVEL)
    return sum(len(codec.encode(part)) for part in parts)


def _data(block: int) -> str:
    return f"{block:06}.arrow"


def _receipt(block: int) -> str:
    return f"{block:06}.json"


def write_block(folder: Folder, block: int, episodes: Sequence[tuple[EpisodeRow, dict[str, Any]]]) -> list[EpisodeRow]:
    """Write a finished block into `folder`, its receipt last; returns the receipt: one row per episode, in seed order."""
    ordered = sorted(episodes, key=lambda episode: episode[0].seed)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        for _, record in ordered:
            writer.write_batch(pa.RecordBatch.from_pylist([record], schema=_SCHEMA))
    folder.write(_data(block), sink.getvalue().to_pybytes())
    rows = [row for row, _ in ordered]
    write_receipt(folder, block, rows)
    return rows


def write_receipt(folder: Folder, block: int, rows: Sequence[EpisodeRow]) -> None:
    """Say that a block is finished: one row per episode, each with its `start` still 0."""
    folder.write(_receipt(block), json.dumps([row._asdict() for row in rows]).encode())


def read_receipt(folder: Folder, block: int) -> list[EpisodeRow] | None:
    """The rows of a finished block, or None."""
    try:
        return [EpisodeRow(**row) for row in json.loads(folder.read(_receipt(block)))]
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def finished(files: Collection[str], block: int) -> bool:
    """Whether the block's receipt is among the files of its folder."""
    return _receipt(block) in files


def receipts(folder: Folder, indices: Iterable[int]) -> dict[int, list[EpisodeRow]]:
    """The rows of those of the blocks that are finished. One listing serves them all."""
    wanted = list(indices)
    there = set(folder.files()) if wanted else set()
    return {index: rows for index in wanted if finished(there, index) and (rows := read_receipt(folder, index)) is not None}


def has_data(folder: Folder, block: int) -> bool:
    """Whether the block's records are still there (they are dropped once they lie in whole shards)."""
    return folder.exists(_data(block))


def drop_data(folder: Folder, block: int) -> None:
    folder.remove(_data(block))


def forget_without_data(folder: Folder, block: int) -> None:
    """Remove the receipt of a block whose records are gone, so that it is played again."""
    if not has_data(folder, block):
        folder.remove(_receipt(block))


def read_block(folder: Folder, block: int) -> Iterator[Records]:
    """The records of each episode, in receipt order."""
    reader = pa.ipc.open_file(pa.BufferReader(folder.read(_data(block))))
    for index in range(reader.num_record_batches):
        (record,) = reader.get_batch(index).to_pylist()
        small: dict[str, npt.NDArray[Any]] = {name: np.frombuffer(record[name], dtype=dtype) for name, dtype in _SMALL}
        frames = b"".join(_CODEC.decode(chunk) for chunk in record["frames"])
        yield Records(
            frame_NHW=np.frombuffer(frames, dtype=np.uint8).reshape(record["length"], 84, 84),
            q_NA=small["q"].reshape(record["length"], record["actions"]),
            action_N=small["action"],
            reward_N=small["reward"],
            flags_N=small["flags"],
        )
