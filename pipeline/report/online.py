"""How steadily a student follows a teacher that is still learning, in numbers.

Dimensions: P points of a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Steadiness(NamedTuple):
    """Of mean returns at successive points: the root of the mean square of their changes, the worst drop below the best so far,
    and the mean over the run (the area under the curve, over its length).
    """

    change: float
    drop: float
    area: float


def steadiness(return_P: Sequence[float]) -> Steadiness:
    """ValueError for fewer than two points."""
    if len(return_P) < 2:
        raise ValueError(f"{len(return_P)} point(s) have no changes: a history wants two at least")
    values_P = np.asarray(return_P, dtype=np.float64)
    return Steadiness(
        change=float(np.sqrt(np.mean(np.diff(values_P) ** 2))),
        drop=float((np.maximum.accumulate(values_P) - values_P).max()),
        area=float(values_P.mean()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One seed of a game: mean returns at each point, of the teacher as it was, of the best so far, and of the student.

    Scores are of the last student and of the best snapshot, on seeds that chose neither; `zero` is the random agent's.
    """

    game: str
    seed: int
    frame_P: Sequence[float]
    teacher_P: Sequence[float]
    best_P: Sequence[float]
    student_P: Sequence[float]
    student_score: float
    best_score: float
    zero: float
    episodes: int

    @property
    def kept(self) -> float | None:
        """The student's final score in per cent of the best snapshot's, random-normalised; None where that learned nothing."""
        above = self.best_score - self.zero
        return 100.0 * (self.student_score - self.zero) / above if above > 0 else None


def spread(values: Sequence[float]) -> str:
    """Mean, and over several seeds their least and greatest."""
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


HEAD = ("game", "who", "seeds", "change", "worst drop", "mean over the run", "at the end, fresh seeds", "normalised %")


def table(runs: Sequence[Run]) -> list[list[str]]:
    """Per game a row each for the teacher as it learned, the best so far, and the student, under `HEAD`; over seeds."""
    cells = []
    for game in dict.fromkeys(run.game for run in runs):
        of_game = [run for run in runs if run.game == game]
        kept = [run.kept for run in of_game if run.kept is not None]
        for who, curves, ends, share in (
            ("teacher", [run.teacher_P for run in of_game], [], []),
            ("best so far", [run.best_P for run in of_game], [run.best_score for run in of_game], []),
            ("student", [run.student_P for run in of_game], [run.student_score for run in of_game], kept),
        ):
            found = [steadiness(curve) for curve in curves]
            numbers = [spread([getattr(s, name) for s in found]) for name in ("change", "drop", "area")]
            cells.append(
                [game, who, str(len(of_game)), *numbers, *(spread(values) if values else "" for values in (ends, share))]
            )
    return cells
