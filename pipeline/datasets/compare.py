"""Two datasets side by side: the same records, the same files, or what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pipeline.datasets.reader import Dataset
from pipeline.datasets.schema import EpisodeRow


def compare(a: Dataset, b: Dataset) -> dict[str, Any]:
    """What both say of themselves, side by side; whether it is true, `verify` tells.

    `same_data`: equal digests; `same_encoding`: equal files; `episodes`: how many, by their records, both have or only one;
    `differences`: one line each, the last one about the first episode that differs.
    """
    ours, theirs = (Counter(row.sha256 for row in dataset.episodes) for dataset in (a, b))
    both = (ours & theirs).total()
    fields = ("game", "format_version", "states", "actions", "teacher", "environment", "collection")
    ours_told, theirs_told = ({name: getattr(dataset.manifest, name) for name in fields} for dataset in (a, b))
    lines = [f"{name}: {_shown(x)} in A, {_shown(y)} in B" for name, x, y in differing(ours_told, theirs_told)]
    return {
        "same_data": a.manifest.digest == b.manifest.digest,
        "same_encoding": a.manifest.files == b.manifest.files,
        "episodes": {"both": both, "only_a": len(a.episodes) - both, "only_b": len(b.episodes) - both},
        "differences": [*lines, *_first_other_episode(a.episodes, b.episodes)],
    }


def _first_other_episode(ours: Sequence[EpisodeRow], theirs: Sequence[EpisodeRow]) -> Iterator[str]:
    for index, (a, b) in enumerate(zip_longest(ours, theirs)):
        if a is None or b is None:
            yield f"episode {index} (seed {(a or b).seed}): only in {'A' if b is None else 'B'}"
            return
        if a != b:
            told = [f"{name} {x} in A, {y} in B" for name, x, y in zip(a._fields, a, b, strict=True) if x != y]
            yield f"episode {index} (seed {a.seed}): {'; '.join(told)}"
            return


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two mappings differ: the dotted key, ours and theirs, None where one has none."""
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        x, y = ours.get(key), theirs.get(key)
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            yield from differing(x, y, f"{within}{key}.")
        elif x != y:
            yield f"{within}{key}", x, y


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)
