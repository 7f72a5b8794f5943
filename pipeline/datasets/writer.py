"""Appends records to a dataset under construction, one whole shard at a time, and finishes it with a manifest.

Every shard is written by one atomic rename, and the manifest, last, by another. A writer that was killed leaves whole
shards; `packed` says how many steps they hold. Only one process may write a dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import ZstdCodec

from pipeline.datasets import describe, schema
from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import Dataset
from pipeline.datasets.schema import EpisodeRow, Manifest, Records

LEVEL: Final = 7
Card = Callable[[Manifest, Sequence[EpisodeRow], npt.NDArray[np.float32]], str]
"""Makes README.md of a manifest whose files are not known yet, the episodes, and the Q-values of the first states."""


class Writer:
    """Packs steps into the shards of `folder`. `append` in order; `finish` once."""

    def __init__(self, folder: Path, actions: int) -> None:
        self.folder = folder
        self._group = _open_or_create(folder / schema.STATES, actions)
        self._pending: list[Records] = []
        self._pending_steps = 0
        self.packed = self._whole_shards() * schema.SHARD
        """Steps that lie in shards on disk, from the start."""
        for name in schema.ARRAYS:  # a writer that was killed may have promised more
            array = self._array(name)
            if array.shape[0] != self.packed:
                array.resize((self.packed, *array.shape[1:]))

    def _array(self, name: str) -> zarr.Array[Any]:
        # The setting belongs to the handle, not to the store: an all-zero shard must be a file, since missing means damaged.
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array

    def _whole_shards(self) -> int:
        """Shards that are on disk in every array: `flags` is written last, and a partial shard ends before its boundary."""
        boundary = self._array("flags").shape[0] // schema.SHARD
        return next(
            k for k in range(boundary + 1) if k == boundary or not (self.folder / schema.STATES / f"flags/c/{k}").exists()
        )

    def append(self, records: Records) -> None:
        """Add consecutive steps; writes every shard they complete."""
        self._pending.append(records)
        self._pending_steps += records.steps
        if self._pending_steps >= schema.SHARD:
            waiting = schema.join(self._pending)
            whole = waiting.steps // schema.SHARD * schema.SHARD
            for start in range(0, whole, schema.SHARD):
                self._write(waiting.cut(start, start + schema.SHARD))
            rest = waiting.cut(whole, waiting.steps)
            self._pending = [rest.owned()]
            self._pending_steps = rest.steps

    def holds(self, start: int, records: Records) -> bool:
        """Whether these are the records of the steps on disk from `start` on."""
        stop = start + records.steps
        assert stop <= self.packed
        return all(np.array_equal(self._array(name)[start:stop], values) for name, values in records.by_name().items())

    def holds_episode(self, row: EpisodeRow) -> bool:
        """Whether what is on disk at the place of this episode is what its digest says: disks fail between two sittings."""
        stop = row.start + row.length
        try:
            records = Records(*(np.asarray(self._array(name)[row.start : stop]) for name in schema.ARRAYS))
        except Exception:  # codecs raise many types
            return False
        return schema.episode_digest(records) == row.sha256

    @property
    def steps(self) -> int:
        """Steps taken in so far."""
        return self.packed + self._pending_steps

    @property
    def at_boundary(self) -> bool:
        """Whether the next step begins a shard."""
        return self.steps == self.packed and self.packed % schema.SHARD == 0

    def encodes_as(self, dataset: Dataset) -> bool:
        """Whether the dataset's shards are what this writer would make of their records."""

        def encoding(folder: Folder, name: str) -> dict[str, Any]:
            fields: dict[str, Any] = json.loads(folder.read(f"{schema.STATES}/{name}/zarr.json"))
            return fields | {"shape": fields["shape"][1:], "dimension_names": None}  # names encode nothing

        return all(encoding(Folder(self.folder), name) == encoding(dataset.folder, name) for name in schema.ARRAYS)

    def adopt(self, source: Dataset, shard: int) -> None:
        """Take over a whole shard of a dataset that `encodes_as` this, byte for byte; only `at_boundary`.

        ValueError if it is missing or not what the dataset's manifest says: damage must not get a new certificate.
        """
        assert self.at_boundary
        for name in schema.ARRAYS:
            array = self._array(name)
            grid = ["0"] * (array.ndim - 1)
            array.resize((self.packed + schema.SHARD, *array.shape[1:]))
            path = "/".join([schema.STATES, name, "c"])
            theirs = "/".join([path, str(shard), *grid])
            try:
                data = source.folder.read(theirs)
            except FileNotFoundError:
                data = b""
            if hashlib.sha256(data).hexdigest() != source.manifest.files.get(theirs):
                raise ValueError(f"dataset {source.folder}: {theirs} is damaged or missing: restore it with `dvc pull`")
            Folder(self.folder).write("/".join([path, str(self.packed // schema.SHARD), *grid]), data)
        self.packed += schema.SHARD

    def _write(self, records: Records) -> None:
        start, stop = self.packed, self.packed + records.steps
        # In the order of ARRAYS: `flags`, the last, tells a resumed writer that this shard is whole in all of them.
        for name, values in records.by_name().items():
            array = self._array(name)
            if array.shape[0] < stop:
                array.resize((stop, *array.shape[1:]))
            array[start:stop] = values
        self.packed = stop

    def finish(
        self,
        rows: Sequence[EpisodeRow],
        *,
        game: str,
        teacher: Mapping[str, Any],
        environment: Mapping[str, Any],
        collection: Mapping[str, Any],
        card: Card = describe.card,
    ) -> Manifest:
        """Write the last, partial shard, the episode table, the card, and at the very end the manifest.

        ValueError for an episode that is longer than the format allows: nobody could open it.
        """
        if (longest := max(row.length for row in rows)) > schema.LONGEST_EPISODE:
            raise ValueError(
                f"{self.folder}: an episode has {longest:,} steps, {schema.LONGEST_EPISODE:,} are the most: "
                "lower the environment's max_episode_frames"
            )
        if self._pending_steps:
            self._write(schema.join(self._pending))
            self._pending, self._pending_steps = [], 0
        states = sum(row.length for row in rows)
        assert states == self.packed == self._array("frame").shape[0], (states, self.packed)
        q = self._array("q")
        write_episodes(self.folder / schema.EPISODES, rows)
        draft = Manifest(
            format_version=schema.FORMAT_VERSION,
            game=game,
            states=states,
            episodes=len(rows),
            actions=q.shape[1],
            teacher=dict(teacher),
            environment=dict(environment),
            collection=dict(collection),
            files={},
            digest=schema.dataset_digest(game, dict(teacher), dict(environment), dict(collection), rows),
        )
        (self.folder / schema.CARD).write_text(card(draft, rows, np.asarray(q[: min(states, schema.SHARD)])))
        folder = Folder(self.folder)
        files = {name: folder.digest(name) for name in folder.files() if name != schema.MANIFEST}
        manifest = Manifest(**{name: getattr(draft, name) for name in Manifest.__dataclass_fields__} | {"files": files})
        folder.write(schema.MANIFEST, manifest.as_json().encode())
        return manifest


def write_episodes(path: Path, rows: Iterable[EpisodeRow]) -> None:
    """The episode table; pinned writer settings, so equal rows are equal bytes."""
    columns = list(zip(*rows, strict=True))
    table = pa.table(
        [pa.array(values, type=field.type) for values, field in zip(columns, schema.EPISODE_SCHEMA, strict=True)],
        schema=schema.EPISODE_SCHEMA,
    )
    pq.write_table(table, path, compression="zstd", row_group_size=1 << 20)


def _open_or_create(path: Path, actions: int) -> zarr.Group:
    for debris in [*path.rglob("*.partial"), *path.parent.rglob(".*.part")]:  # of a writer that was killed
        debris.unlink()
    group = zarr.open_group(path, mode="a", zarr_format=3)
    for name, layout in schema.layouts(actions).items():
        if name in group:
            continue
        group.create_array(
            name,
            shape=(0, *layout.trailing),
            chunks=(layout.chunk, *layout.trailing),
            shards=(schema.SHARD, *layout.trailing),
            dtype=layout.dtype,
            compressors=[ZstdCodec(level=LEVEL, checksum=True)],
            fill_value=0,
            dimension_names=layout.dimensions,
        )
    return group
