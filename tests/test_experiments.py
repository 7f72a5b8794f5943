"""What the params files of the repository ask for is possible, told before days of play."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.atari.envs import action_meanings
from pipeline.datasets.loader import Loader, Source
from pipeline.datasets.schema import EpisodeRow
from pipeline.distill.losses import LossName
from stages.params import Params, StudentParams, load_project, network, recipe_of

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "params.yaml", *sorted(ROOT.glob("experiments/*/params.yaml"))]


@dataclass
class Planned:
    """A dataset that is not there: blank, in episodes of a thousand steps."""

    game: str
    actions: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    @property
    def episodes(self) -> tuple[EpisodeRow, ...]:
        told: dict[str, Any] = {"episode_return": 0.0, "terminated": True, "truncated": False, "complete": True, "sha256": ""}
        return tuple(EpisodeRow(seed=i, start=1000 * i, length=1000, **told) for i in range(self.steps // 1000))

    def read(self, name: str, start: int, stop: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float32]:
        assert name == "q", "frames are read when a student learns"
        return np.zeros((stop - start, self.actions), dtype=np.float32)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_every_students_datasets_fit_the_memory_it_is_given(path: Path) -> None:
    layout, params = load_project(path)
    for mix, variant in dict.fromkeys((cell.mix, cell.variant) for cell in params.cells() if cell.kind == "students"):
        student = params.students[variant]
        states: dict[str, int] = {}
        for name in params.mixes[mix]:
            recipe = recipe_of(layout, params, name)
            assert recipe is not None, f"nothing tells how many states {name} has"
            game = recipe.game or name
            states[game] = states.get(game, 0) + recipe.states
        for game, count in states.items():
            load(params, student, game, count, sharing=len(states))
    for game, online in params.online.items():  # at the end the last version is larger than the others of the window
        load(params, params.students[online.student], game, (online.window - 1) * online.states + online.final_states)


def load(params: Params, student: StudentParams, game: str, states: int, *, sharing: int = 1) -> None:
    """ValueError where that does not fit."""
    config = params.presets[student.preset]
    planned: Source = Planned(game, len(action_meanings(game, params.environment)), states)
    Loader(
        planned,
        batch=config.batch,
        held_out=config.held_out,
        seed=0,
        memory=int(config.memory_gb * 1e9),
        depth=network(student.network).stack,
        check=config.validation_states // sharing,
        sharing=sharing,
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_a_student_named_after_a_loss_learns_by_it(path: Path) -> None:
    """A line that takes over another's settings takes over its loss, too."""
    for name, variant in load_project(path)[1].students.items():
        named = [loss for loss in get_args(LossName) if name.startswith(f"{loss}-")]
        assert variant.loss in (named or [variant.loss]), name
