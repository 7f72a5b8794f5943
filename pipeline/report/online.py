"""How steadily a student follows a teacher that is still learning, in numbers.

Dimensions: P points of a history, N episodes, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.report.bootstrap import Values, percentiles, resampled_means


class Steadiness(NamedTuple):
    """Of mean returns at successive points: the root of the mean square of their changes, the worst drop below the best policy
    so far, 0 if there is none, and the mean over the run (the area under the curve, over its length).
    """

    change: float
    drop: float
    area: float


def steadiness(return_P: Sequence[float], best_P: Sequence[float]) -> Steadiness:
    """`best_P` are the returns, on the same seeds, of the policy that other seeds have chosen as the best so far: below its own
    greatest value every curve drops by noise, and one that never rises does not. ValueError for fewer than two points.
    """
    if len(return_P) < 2:
        raise ValueError(f"{len(return_P)} point(s) have no changes: a history wants two at least")
    values_P = np.asarray(return_P, dtype=np.float64)
    return Steadiness(
        change=float(np.sqrt(np.mean(np.diff(values_P) ** 2))),
        drop=max(0.0, float((np.asarray(best_P, dtype=np.float64) - values_P).max())),
        area=float(values_P.mean()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One seed of a game: mean returns at each point, of the teacher as it was, of the best so far, and of the student.

    The episodes, on seeds that chose nobody and made no curve, are of the teacher's last policy, of its best, and of the final
    student, the latter two on the same seeds, and of the random agent; `states` is how many steps were played at each point for
    the student to learn from.
    """

    game: str
    seed: int
    frame_P: Sequence[float]
    teacher_P: Sequence[float]
    best_P: Sequence[float]
    student_P: Sequence[float]
    last_N: Values
    best_N: Values
    student_N: Values
    random_N: Values
    states: int

    def steadiness(self, who: str) -> Steadiness:
        """Of `teacher`, `best` or `student`."""
        return steadiness(getattr(self, f"{who}_P"), self.best_P)

    @property
    def zero(self) -> float:
        """The random agent's mean return, which is taken as it is."""
        return float(self.random_N.mean())

    @property
    def share_of_drop(self) -> float | None:
        """The student's worst drop over the teacher's; None where the teacher never dropped."""
        dropped = self.steadiness("teacher").drop
        return self.steadiness("student").drop / dropped if dropped else None

    @property
    def kept(self) -> float | None:
        """The final student's score in per cent of the best snapshot's, random-normalised; None where that is not surely above
        the random agent's.
        """
        return None if self.kept_R is None else 100.0 * (self.student_N.mean() - self.zero) / (self.best_N.mean() - self.zero)

    @property
    def kept_R(self) -> Values | None:
        """`kept` of resampled episodes, paired by seed."""
        above_R = resampled_means(self.best_N) - self.zero
        return None if above_R.min() <= 0 else 100.0 * (resampled_means(self.student_N) - self.zero) / above_R


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean, and over several seeds their least and greatest, and of how many of them where some have none; empty where all."""
    there = [value for value in values if value is not None]
    if not there:
        return ""
    told = f"{np.mean(there):.{digits}f}"
    if len(there) > 1:
        told += f" ({min(there):.{digits}f} to {max(there):.{digits}f})"
    return told if len(there) == len(values) else f"{told}, {len(there)} of {len(values)} seeds"


HEAD = (
    "game",
    "who",
    "seeds",
    "change",
    "worst drop",
    "drop, of the teacher's",
    "mean over the run",
    "at the end, fresh seeds",
    "kept %",
    "95 % over episodes",
)


def table(runs: Sequence[Run]) -> list[list[str]]:
    """Per game a row each for the teacher as it learned, the best so far, and the student, under `HEAD`; over seeds."""
    cells = []
    for game in dict.fromkeys(run.game for run in runs):
        of_game = [run for run in runs if run.game == game]
        drawn = [kept_R for run in of_game if (kept_R := run.kept_R) is not None]
        low, high = percentiles(np.mean(drawn, axis=0)) if drawn else (0.0, 0.0)
        student = [
            spread([run.share_of_drop for run in of_game]),
            spread([run.kept for run in of_game]),
            f"{low:.1f} to {high:.1f}" if drawn else "",
        ]
        for who, name, ends, (share, kept, within) in (
            ("teacher", "teacher", [run.last_N.mean() for run in of_game], ["", "", ""]),
            ("best so far", "best", [run.best_N.mean() for run in of_game], ["", "", ""]),
            ("student", "student", [run.student_N.mean() for run in of_game], student),
        ):
            found = [run.steadiness(name) for run in of_game]
            change, drop, area = (spread([getattr(s, what) for s in found]) for what in ("change", "drop", "area"))
            cells.append([game, who, str(len(of_game)), change, drop, share, area, spread(ends), kept, within])
    return cells
