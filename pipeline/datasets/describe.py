"""What a dataset says about itself: its card, and the numbers that `dataset info` prints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.datasets import schema
from pipeline.datasets.reader import WINDOW, Dataset
from pipeline.datasets.schema import EpisodeRow, Flag, Manifest

LINEAGE: Final = ("made_by", "parents")
"""What a dataset made from others says of them in its `collection`."""
LICENCE: Final = re.compile(r"[A-Za-z0-9.+-]{1,64}")
"""What a licence is called, as SPDX does: apache-2.0, cc-by-4.0."""
_LICENCE_LINE: Final = re.compile(rf"^license: ({LICENCE.pattern})$", re.MULTILINE)
UNTOLD: Final = "other"
"""The licence of a dataset whose maker named none."""


def card(manifest: Manifest, rows: Sequence[EpisodeRow], q_NA: npt.NDArray[np.float32], licence: str = UNTOLD) -> str:
    """README.md of a dataset: a YAML header for machines, then what, who, how good, and how to open it. `q_NA` is a sample."""
    assert LICENCE.fullmatch(licence), licence
    whole = [row.episode_return for row in rows if row.complete]
    with np.errstate(all="ignore"):  # a subset of a dataset with odd numbers has them too
        returns = f"mean {np.mean(whole):.2f}, min {min(whole):g}, max {max(whole):g}" if whole else "no whole episode"
        labels = f"mean {q_NA.mean():.3f}, standard deviation {q_NA.std():.3f}"
    return f"""---
pretty_name: {manifest.game}, states and Q-values of teacher {manifest.teacher["digest"][:12]}
format_version: {manifest.format_version}
game: {manifest.game}
states: {manifest.states}
episodes: {manifest.episodes}
teacher_digest: {manifest.teacher["digest"]}
digest: {manifest.digest}
license: {licence}
---

# {manifest.game}: {manifest.states:,} states with a teacher's full Q-vectors

- **What**: every state that a trained teacher met, with its Q-value for each of the {manifest.actions} actions, the executed
  action, raw reward and episode boundaries; whole episodes, in order.
- **Teacher**: {manifest.teacher.get("algorithm", "unknown algorithm")}, network {manifest.teacher.get("network", "unknown")},
  digest `{manifest.teacher["digest"][:12]}`.
- **Behaviour**: {_behaviour(manifest.collection)}.
{lineage(manifest.collection)}- **Returns** over {len(whole)} whole episodes: {returns}.
- **Q-values** (first {len(q_NA):,} states): {labels}, median gap between
  the best two actions {np.median(gaps(q_NA)):.4f}.
- **World**: ale-py {manifest.environment.get("ale_py")}, ROM md5 `{manifest.environment.get("rom_md5")}`; every argument
  is in `{schema.MANIFEST}`.
- **Licence**: {"its maker has named none, so ask before you pass it on" if licence == UNTOLD else licence}.

```python
from pipeline.datasets.reader import open_dataset
data = open_dataset("{manifest.game}")
states = data.stacks(range(64))      # (64, 4, 84, 84) uint8
q = data.read("q", 0, 64)            # (64, {manifest.actions}) float32
print(data.manifest.digest)
```

Cite the digest above: it names exactly these records and where they come from, however they are encoded. The SHA-256 of every
file is in `{schema.MANIFEST}`.
"""


def licence_of(datasets: Iterable[Dataset]) -> str:
    """The licence that the cards of all these name, if it is one."""
    named = {found[1] if (found := _LICENCE_LINE.search(dataset.card())) else UNTOLD for dataset in datasets}
    return named.pop() if len(named) == 1 else UNTOLD


def _behaviour(collection: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(collection.items()) if name not in LINEAGE) or "not recorded"


def lineage(collection: Mapping[str, Any]) -> str:
    """One line for a dataset that was made from others, nothing for one that was collected."""
    if "made_by" not in collection:
        return ""
    how = ", ".join(f"{name} {value}" for name, value in collection["made_by"].items())
    parents = ", ".join(f"`{parent['digest'][:12]}`" for parent in collection.get("parents", []))
    return f"- **Made from** {parents}: {how}.\n"


def size(dataset: Dataset) -> int:
    """Bytes of all its files but the manifest. ValueError names one that is not there."""
    sizes = dataset.folder.sizes()
    if missing := [name for name in dataset.manifest.files if name not in sizes]:
        raise ValueError(f"{dataset.folder}: {missing[0]!r}, which its manifest lists, is not there: fetch it again")
    return sum(sizes[name] for name in dataset.manifest.files)


def info(dataset: Dataset) -> dict[str, Any]:
    """The facts of `dataset info --json`."""
    manifest = dataset.manifest
    total = size(dataset)
    raw = manifest.states * (4 * 84 * 84 + manifest.actions * 4)
    return {
        "game": manifest.game,
        "digest": manifest.digest,
        "states": manifest.states,
        "episodes": manifest.episodes,
        "actions": manifest.actions,
        "bytes": total,
        "files": len(manifest.files) + 1,
        "bytes_per_state": round(total / manifest.states, 2),
        "raw_stacks_over_stored": round(raw / total, 1),
        "format_version": manifest.format_version,
        "teacher": manifest.teacher,
        "collection": manifest.collection,
        "ale_py": manifest.environment.get("ale_py"),
    }


def stats(dataset: Dataset) -> dict[str, Any]:
    """The facts of `dataset stats --json`: distributions over all episodes and states."""
    whole = [row for row in dataset.episodes if row.complete]
    best_N, gap_N = np.empty((2, len(dataset)), dtype=np.float32)
    taken_A, random = np.zeros(256, dtype=np.int64), 0
    for start in range(0, len(dataset), WINDOW):
        stop = min(start + WINDOW, len(dataset))
        q_NA = dataset.read("q", start, stop)
        best_N[start:stop], gap_N[start:stop] = q_NA.max(axis=1), gaps(q_NA)
        taken_A += np.bincount(dataset.read("action", start, stop), minlength=256)
        random += int(np.count_nonzero(dataset.read("flags", start, stop) & Flag.RANDOM_ACTION))
    return {
        "episodes": len(dataset.episodes),
        "return": _distribution([row.episode_return for row in whole]),
        "length": _distribution([row.length for row in whole]),
        "action_share": {
            str(a): round(taken / len(dataset), 4) for a, taken in enumerate(taken_A[: dataset.manifest.actions].tolist())
        },
        "random_share": round(random / len(dataset), 4),
        "q_best": _distribution(best_N),
        "q_gap": _distribution(gap_N),
    }


def gaps(q_NA: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """By how much the best action's Q-value exceeds the second best's, per state; 0 where there is one action."""
    if q_NA.shape[1] < 2:
        return np.zeros(len(q_NA), dtype=np.float32)
    top_N2 = np.partition(q_NA, -2, axis=1)[:, -2:]
    with np.errstate(all="ignore"):  # of infinities, which `validate` reports
        return np.asarray(top_N2[:, 1] - top_N2[:, 0])


def _distribution(values: npt.ArrayLike) -> dict[str, float | None] | None:
    """None of nothing, and for what is no finite number: JSON has no other word for it."""
    x = np.asarray(values)
    if not len(x):
        return None
    with np.errstate(all="ignore"):
        low, median, high = np.quantile(x, [0.05, 0.5, 0.95])
        mean, std = x.mean(dtype=np.float64), x.std(dtype=np.float64)
    facts = {"mean": mean, "std": std, "min": x.min(), "5%": low, "median": median, "95%": high, "max": x.max()}
    return {name: round(float(value), 4) if np.isfinite(value) else None for name, value in facts.items()}
