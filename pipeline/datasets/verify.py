"""Does a dataset hold exactly what its manifest says: files, then every decoded episode."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.datasets import schema
from pipeline.datasets.reader import Dataset, file_faults
from pipeline.progress import Progress


def verify(dataset: Dataset, faults: list[str]) -> Iterator[Progress]:
    """Appends one line per fault to `faults`, yielding per episode; none means that every file and record agrees."""
    manifest = dataset.manifest
    faults += file_faults(dataset.folder, manifest)
    for index, records in dataset.by_episode():
        row = dataset.episodes[index]
        if isinstance(records, str):
            faults.append(records)
        elif schema.episode_digest(records) != row.sha256:
            place = f"episode {index} (seed {row.seed}, steps {row.start:,} to {row.start + row.length:,})"
            faults.append(f"dataset {dataset.folder}: {place} has other records than its digest")
        yield Progress(done=index + 1, total=manifest.episodes, unit="episodes", metrics={})
