"""What a dataset says about itself: its card, and the numbers that `dataset info` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets import schema
from pipeline.datasets.folders import Folder
from pipeline.datasets.schema import EpisodeRow, Manifest


def card(manifest: Manifest, rows: Sequence[EpisodeRow], q_NA: npt.NDArray[np.float32]) -> str:
    """README.md of a dataset: a YAML header for machines, then what, who, how good, and how to open it. `q_NA` is a sample."""
    whole = [row.episode_return for row in rows if row.complete]
    top_NA = np.sort(q_NA, axis=1)
    gap_N = top_NA[:, -1] - top_NA[:, -2] if q_NA.shape[1] > 1 else np.zeros(len(q_NA))
    returns = f"mean {np.mean(whole):.2f}, min {min(whole):g}, max {max(whole):g}" if whole else "no whole episode"
    return f"""---
pretty_name: {manifest.game}, states and Q-values of teacher {manifest.teacher["digest"][:12]}
format_version: {manifest.format_version}
game: {manifest.game}
states: {manifest.states}
episodes: {manifest.episodes}
teacher_digest: {manifest.teacher["digest"]}
digest: {manifest.digest}
license: apache-2.0
---

# {manifest.game}: {manifest.states:,} states with a teacher's full Q-vectors

- **What**: every state that a trained teacher met, with its Q-value for each of the {manifest.actions} actions, the executed
  action, raw reward and episode boundaries; whole episodes, in order.
- **Teacher**: {manifest.teacher.get("algorithm", "unknown algorithm")}, network {manifest.teacher.get("network", "unknown")},
  digest `{manifest.teacher["digest"][:12]}`.
- **Behaviour**: {_behaviour(manifest.collection)}.
- **Returns** over {len(whole)} whole episodes: {returns}.
- **Q-values** (first {len(q_NA):,} states): mean {q_NA.mean():.3f}, standard deviation {q_NA.std():.3f}, median gap between
  the best two actions {np.median(gap_N):.4f}.
- **World**: ale-py {manifest.environment.get("ale_py")}, ROM md5 `{manifest.environment.get("rom_md5")}`; every argument
  is in `{schema.MANIFEST}`.

```python
from pipeline.datasets.reader import open_dataset
data = open_dataset("{manifest.game}")
states = data.stacks(range(64))      # (64, 4, 84, 84) uint8
q = data.arrays["q"][:64]            # (64, {manifest.actions}) float32
print(data.manifest.digest)
```

Cite the digest above: it names exactly these bytes.
"""


def _behaviour(collection: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(collection.items())) or "not recorded"


def info(folder: Folder, manifest: Manifest) -> dict[str, Any]:
    """The facts of `dataset info --json`."""
    total = sum(folder.size(name) for name in manifest.files)
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
