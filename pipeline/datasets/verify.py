"""Does a dataset hold exactly what its manifest and table say: files, then every decoded episode, its return too."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.datasets import schema
from pipeline.datasets.reader import Dataset, file_faults
from pipeline.datasets.schema import EpisodeRow, Records
from pipeline.datasets.validate import return_faults
from pipeline.progress import Progress


def verify(dataset: Dataset, faults: list[str]) -> Iterator[Progress]:
    """Appends one line per fault to `faults`, yielding per episode; none means that every file and record agrees."""
    manifest = dataset.manifest
    faults += file_faults(dataset.folder, manifest)
    for index, records in dataset.by_episode():
        row = dataset.episodes[index]
        if isinstance(records, str):
            faults.append(records)
        else:
            place = f"episode {index} (seed {row.seed}, steps {row.start:,} to {row.start + row.length:,})"
            faults += [f"dataset {dataset.folder}: {place}: {what}" for what in _faults(row, records)]
        yield Progress(done=index + 1, total=manifest.episodes, unit="episodes", metrics={})


def _faults(row: EpisodeRow, records: Records) -> Iterator[str]:
    if schema.episode_digest(records) != row.sha256:
        yield "has other records than its digest"
    yield from return_faults(row, records.reward_N)
