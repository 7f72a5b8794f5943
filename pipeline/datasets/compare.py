"""Two datasets side by side: the same records, the same files, or what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.datasets.reader import Dataset


def compare(a: Dataset, b: Dataset) -> dict[str, Any]:
    """`same_data`: equal digests; `same_encoding`: equal files; `episodes`: how many, by their records, both have or only one;
    `differences`: one line each.
    """
    ours, theirs = (Counter(row.sha256 for row in dataset.episodes) for dataset in (a, b))
    both = (ours & theirs).total()
    fields = ("game", "format_version", "states", "actions", "teacher", "environment", "collection")
    lines = [line for name in fields for line in _differences(name, getattr(a.manifest, name), getattr(b.manifest, name))]
    same_data = a.manifest.digest == b.manifest.digest
    if not same_data and both == len(a.episodes) == len(b.episodes) and not lines:
        lines.append("episodes: the same records under other seeds, endings or order")
    return {
        "same_data": same_data,
        "same_encoding": a.manifest.files == b.manifest.files,
        "episodes": {"both": both, "only_a": len(a.episodes) - both, "only_b": len(b.episodes) - both},
        "differences": lines,
    }


def _differences(name: str, ours: object, theirs: object) -> list[str]:
    if ours == theirs:
        return []
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        return [line for key in keys for line in _differences(f"{name}.{key}", ours.get(key), theirs.get(key))]
    return [f"{name}: {_shown(ours)} in A, {_shown(theirs)} in B"]


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)
