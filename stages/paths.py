"""Where things lie: one layout under the folder that holds params.yaml, for the quick road and for every experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CURVE: Final = "curve.csv"
"""What an agent's training looked like, beside its weights."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`root` holds params.yaml, data/ (DVC's) and .work/ (resumable, never versioned); `zoo` holds the teachers, `store` the
    datasets.
    """

    root: Path
    zoo: Path
    store: Path | None = None

    @property
    def data(self) -> Path:
        return self.root / "data"

    def teacher(self, name: str) -> Path:
        return self.zoo / name

    def dataset(self, name: str) -> Path:
        return (self.store or self.data / "datasets") / name

    def mix(self, name: str) -> Path:
        return self.data / "mixes" / f"{name}.json"

    def recipes(self, mix: str) -> Path:
        return self.data / "mixes" / f"{mix}.recipes.json"

    def student(self, name: str) -> Path:
        return self.data / "students" / name

    def multitask(self, name: str) -> Path:
        return self.data / "multitask" / name

    def history(self, name: str) -> Path:
        """Snapshots of a teacher as it learned, GAME-SEED."""
        return self.data / "history" / name

    def online(self, name: str) -> Path:
        """The student that followed it."""
        return self.data / "online" / name

    def versions(self, name: str) -> Path:
        """What that student learned from: a dataset a point of the history."""
        return self.data / "versions" / name

    def all_versions(self, name: str) -> list[Path]:
        """Their folders, as far as they are here, the last one last."""
        return sorted(path for path in self.versions(name).glob("*") if path.is_dir())

    def followers(self, name: str) -> Path:
        """That student as it was at each point."""
        return self.data / "followers" / name

    def agent(self, name: str) -> Path:
        """The folder of `teachers/GAME`, `students/MIX/VARIANT-SEED`, `multitask/MIX/VARIANT-SEED`, `online/GAME-SEED`, at a
        point `followers/GAME-SEED/007`, `history/GAME-SEED/best` (or `last`, or a snapshot, `007`), or a folder that is none
        of these.
        """
        kind, _, which = name.partition("/")
        folders = {
            "teachers": self.teacher(which),
            "students": self.student(which),
            "multitask": self.multitask(which),
            "online": self.online(which),
            "followers": self.followers(which),
            "history": self.history(which),
        }
        return folders[kind] if kind in folders and which else Path(name)

    def called(self, agent: str) -> str:
        """What its results are called: its name, of a folder that is none the folder's."""
        folder = self.agent(agent)
        return folder.resolve().name if folder == Path(agent) else agent

    def episodes(self, agent: str) -> Path:
        return self.data / "episodes" / f"{agent}.parquet"

    def scores(self, agent: str) -> Path:
        return self.data / "scores" / f"{agent}.json"

    def clip(self, agent: str) -> Path:
        return self.data / "clips" / f"{agent}.mp4"

    @property
    def report(self) -> Path:
        return self.data / "report"

    def work(self, stage: str, key: str, settings: Mapping[str, Any]) -> Path:
        """The folder a long stage resumes from: named by stage, key and a digest of everything that decides its result."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
        return self.root / ".work" / stage / f"{key.replace('/', '-')}-{digest}"
