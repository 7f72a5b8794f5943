"""How steadily a student follows a teacher that is still learning, in numbers.

Dimensions: P points of a history, N episodes, R resamples, H ways to halve the episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.report.bootstrap import Values, percentiles, resampled_counts, resampled_means
from pipeline.seeding import stream

RETURNS: Final = "returns.csv"
"""Beside a follower's curve: at each `point`, under each `seed`, the return of the `teacher` and of the `student`."""
HALVINGS: Final = 1000
HALVINGS_OF_RESAMPLES: Final = 50
"""Of how many ways to halve the episodes a worst drop is the mean, and that of a resample."""


class Steadiness(NamedTuple):
    """Of mean returns at successive points: the root of the mean square of their changes, the worst drop below the best policy
    so far, and the mean over the run (the area under the curve, over its length).
    """

    change: float
    drop: float
    area: float


def steadiness(return_PN: Values, best_PN: Values) -> Steadiness:
    """`best_PN` are the returns, on the same seeds, of the policy that other seeds have chosen as the best so far: below its
    own greatest value every curve drops by noise, and one that never rises does not.

    The greatest of several noisy drops is more than any of them is. So half of the episodes say at which point the drop is
    worst, and the other half how far it goes there, over many ways to halve them: without a drop that is 0 on average, or a
    little less.
    ValueError for fewer than two points or episodes.
    """
    if len(return_PN) < 2:
        raise ValueError(f"{len(return_PN)} point(s) have no changes: a history wants two at least")
    mean_P = return_PN.mean(axis=1)
    return Steadiness(
        change=float(np.sqrt(np.mean(np.diff(mean_P) ** 2))),
        drop=_drop(best_PN - return_PN),
        area=float(mean_P.mean()),
    )


def _drop(below_PN: Values) -> float:
    return float(_drop_R(below_PN, np.ones((1, below_PN.shape[1])), HALVINGS)[0])


def _drop_R(below_PN: Values, count_RN: Values, halvings: int) -> Values:
    """The worst drop (R,) where each episode counts so often: the mean over so many ways (H) to halve the episodes, of each
    half's mean at the point where the other has its greatest. All counts of an episode are in the same half.
    """
    episodes = below_PN.shape[1]
    if episodes < 2:
        raise ValueError("one episode at a point cannot tell how far a drop goes: a score wants two at least")
    side_HN = np.tile(np.arange(episodes) < episodes // 2, (halvings, 1))
    half_NH = stream(0, "halves").permuted(side_HN, axis=1).T.astype(np.float64)
    mean_PRH = [[_mean_RH(below_N * count_RN, count_RN, of_NH) for below_N in below_PN] for of_NH in (half_NH, 1.0 - half_NH)]
    first_PRH, other_PRH = (np.stack(mean) for mean in mean_PRH)
    found_RH = (_at(other_PRH, first_PRH.argmax(axis=0)) + _at(first_PRH, other_PRH.argmax(axis=0))) / 2
    return np.asarray(found_RH.mean(axis=1))


def _mean_RH(total_RN: Values, count_RN: Values, of_NH: Values) -> Values:
    """Means over parts of the episodes, or over all of them where none of a part is counted."""
    all_R = total_RN.sum(axis=1) / count_RN.sum(axis=1)
    counted_RH = count_RN @ of_NH
    mean_RH: Values = np.repeat(all_R[:, None], of_NH.shape[1], axis=1)
    np.divide(total_RN @ of_NH, counted_RH, out=mean_RH, where=counted_RH > 0)
    return mean_RH


def _at(value_PRH: Values, point_RH: npt.NDArray[np.intp]) -> Values:
    """The values (R, H) at these points."""
    return np.asarray(np.take_along_axis(value_PRH, point_RH[None], axis=0)[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One seed of a game: returns at each point, of the teacher as it was and of the student, and which point's teacher was the
    best so far.

    The episodes at the end, on seeds that chose nobody and made no curve, are of the teacher's last policy, of its best, and of
    the final student, the latter two on the same seeds, and of the random agent; `states` is how many steps were played at each
    point where the student learned.
    """

    game: str
    seed: int
    frame_P: Sequence[float]
    teacher_PN: Values
    student_PN: Values
    best_P: Sequence[int]
    last_N: Values
    best_N: Values
    student_N: Values
    random_N: Values
    states: int

    def returns(self, who: str) -> Values:
        """Of `teacher`, `best` or `student`, at each point (P, N)."""
        best_PN = self.teacher_PN[list(self.best_P)]
        return {"teacher": self.teacher_PN, "best": best_PN, "student": self.student_PN}[who]

    def steadiness(self, who: str) -> Steadiness:
        """Of `teacher`, `best` or `student`."""
        return steadiness(self.returns(who), self.returns("best"))

    def drop_later(self, who: str) -> float | None:
        """The worst drop at points where the best so far had been that at the point before, too; None where there are none.
        Where it has just changed, a student has had no time, and the teacher is the best.
        """
        later = [at for at in range(1, len(self.best_P)) if self.best_P[at] == self.best_P[at - 1]]
        return _drop((self.returns("best") - self.returns(who))[later]) if later else None

    @cached_property
    def drops_R(self) -> dict[str, tuple[Values, Values]]:
        """Of `teacher` and `student` the worst drop with other episodes, which understates small ones, and the greatest
        difference of means, which overstates them.
        """
        return {who: self._drops_R(who) for who in ("teacher", "student")}

    def _drops_R(self, who: str) -> tuple[Values, Values]:
        below_PN = self.returns("best") - self.returns(who)
        count_RN = resampled_counts(below_PN.shape[1], f"{self.game}-{self.seed}")
        greatest_R = (count_RN @ below_PN.T / below_PN.shape[1]).max(axis=1)
        return _drop_R(below_PN, count_RN, HALVINGS_OF_RESAMPLES), greatest_R

    @property
    def zero(self) -> float:
        """The random agent's mean return, which is taken as it is."""
        return float(self.random_N.mean())

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


def share_of_drop(runs: Sequence[Run]) -> float:
    """The students' worst drop over their teachers', means over seeds; infinite where only students dropped."""
    student, teacher = (sum(run.steadiness(who).drop for run in runs) for who in ("student", "teacher"))
    if teacher <= 0:
        return math.inf if student > 0 else 0.0
    return student / teacher


NO_DROP: Final = "teachers did not drop"
"""In place of a share of it."""


def told_share(runs: Sequence[Run], digits: int = 2) -> str:
    """`share_of_drop` in a table; `NO_DROP` where it is infinite."""
    share = share_of_drop(runs)
    return f"{share:.{digits}f}" if math.isfinite(share) else NO_DROP


def share_within(runs: Sequence[Run]) -> tuple[float, float]:
    """An interval of `share_of_drop` over episodes that covers 95 % at least: each end of drops that err to its side. Where in
    more than one of forty resamples teachers do not drop its upper end is infinite.
    """
    (student_R, most_R), (teacher_R, of_most_R) = (
        np.sum([run.drops_R[who] for run in runs], axis=0) for who in ("student", "teacher")
    )
    low, _ = _ends(student_R, of_most_R)
    _, high = _ends(most_R, teacher_R)
    return low, high


def _ends(student_R: Values, teacher_R: Values) -> tuple[float, float]:
    endless_R = np.where(student_R > 0, np.inf, 0.0)
    share_R = np.divide(student_R, teacher_R, out=endless_R, where=teacher_R > 0)
    low, high = np.quantile(share_R, [0.025, 0.975], method="nearest")  # between two infinite ones lies no number
    return float(low), float(high)


def teachers_drop(runs: Sequence[Run]) -> bool:
    """Whether the teachers dropped at all, surely: of nothing there is no share, and who never rises keeps everything."""
    low, _ = percentiles(np.sum([run.drops_R["teacher"][0] for run in runs], axis=0))
    return low > 0


def kept_within(runs: Sequence[Run]) -> tuple[float, float]:
    """The 95 % interval over episodes of the mean of `Run.kept` over those runs that have one; (0, 0) where none has."""
    drawn = [kept_R for run in runs if (kept_R := run.kept_R) is not None]
    return percentiles(np.mean(drawn, axis=0)) if drawn else (0.0, 0.0)


def spread(values: Sequence[float | None]) -> str:
    """Mean, and over several seeds their least and greatest, and of how many of them where some have none; empty where all."""
    there = [value for value in values if value is not None]
    if not there:
        return ""
    told = f"{np.mean(there):.2f}"
    if len(there) > 1:
        told += f" ({min(there):.2f} to {max(there):.2f})"
    return told if len(there) == len(values) else f"{told}, {len(there)} of {len(values)} seeds"


HEAD = (
    "game",
    "who",
    "seeds",
    "change",
    "worst drop",
    "worst drop, best unchanged",
    "drop / teacher's drop [95 % at least]",
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
        low, high = kept_within(of_game)
        share, (least, most) = told_share(of_game), share_within(of_game)
        student = [
            share if share == NO_DROP else f"{share} [{least:.2f}, {f'{most:.2f}' if math.isfinite(most) else 'no end'}]",
            spread([run.kept for run in of_game]),
            f"{low:.1f} to {high:.1f}" if high else "",
        ]
        for who, name, ends, (share, kept, within) in (
            ("teacher", "teacher", [run.last_N.mean() for run in of_game], ["", "", ""]),
            ("best so far", "best", [run.best_N.mean() for run in of_game], ["", "", ""]),
            ("student", "student", [run.student_N.mean() for run in of_game], student),
        ):
            found = [run.steadiness(name) for run in of_game]
            change, drop, area = (spread([getattr(s, what) for s in found]) for what in ("change", "drop", "area"))
            later = spread([run.drop_later(name) for run in of_game])
            cells.append([game, who, str(len(of_game)), change, drop, later, share, area, spread(ends), kept, within])
    return cells
