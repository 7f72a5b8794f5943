"""Which held-out number tells beforehand how a student will play: rank correlations with its score, and how sure they are.

Numbers are comparable within a loss: what an MSE student's outputs are to its KL, a KL student's are not. Over all losses the
correlation mostly tells losses apart.

Dimensions: N students, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from pipeline.report.bootstrap import RESAMPLES, Values, percentiles
from pipeline.report.scores import Evaluated, Score
from pipeline.report.summary import rank_correlation
from pipeline.seeding import stream

PREDICTORS: Final = {
    "kl": "held-out KL (nats)",
    "agreement": "held-out action agreement",
    "regret": "held-out regret (Q units)",
}
RISING: Final = ("agreement",)
"""Those of which more is better."""
PERFECT: Final = 1.0 - 1e-9
FEWEST: Final = 5
"""Students that a correlation wants."""


class Point(NamedTuple):
    """A student: its loss, what held-out episodes said of it, and what it reached."""

    loss: str
    held_out: Mapping[str, float]
    score: Score


class Correlation(NamedTuple):
    """Spearman's, of one number and the score; the interval is what other students could have given, None where the order is
    perfect, as it is in every resample.
    """

    value: float
    ci95: tuple[float, float] | None


class Group(NamedTuple):
    """Students of one game, of one loss or (None) of all, with the correlation of each predictor."""

    game: str
    loss: str | None
    students: int
    correlations: Mapping[str, Correlation]


class Predicted(NamedTuple):
    """Students of the temperature that most have, and what `correlate` finds of them."""

    temperature: float
    points: Sequence[Point]
    groups: Sequence[Group]
    best: str | None


def predicted(students: Sequence[tuple[Evaluated, Score]]) -> Predicted | None:
    """Of those whose cards tell of held-out episodes; None where no game has enough of them."""
    told = [(who, score, who.card["objective"]["temperature"]) for who, score in students if who.card.get("held_out")]
    temperatures = [temperature for _, _, temperature in told]
    usual = max(temperatures, key=temperatures.count, default=0.0)
    points = [
        Point(who.card["objective"]["loss"], who.card["held_out"], score)
        for who, score, temperature in told
        if temperature == usual
    ]
    groups, best = correlate(points)
    shown = {group.game for group in groups}
    return Predicted(usual, [point for point in points if point.score.game in shown], groups, best) if groups else None


def correlate(points: Sequence[Point]) -> tuple[list[Group], str | None]:
    """Each game's correlations over all losses and within each, where there are students enough, and the best predictor.

    Best is that of the strongest mean correlation in the right direction within losses (over all of them, where no loss has
    students enough), named if the 95 % interval of its lead over every other is above zero: students are resampled, the same
    for all predictors.
    """
    groups: list[Group] = []
    strength_R: dict[str | None, dict[str, list[Values]]] = {}
    wanted: list[tuple[str, str | None]] = []
    for game in dict.fromkeys(point.score.game for point in points):
        losses = list(dict.fromkeys(point.loss for point in points if point.score.game == game))
        wanted += [(game, loss) for loss in ([None, *losses] if len(losses) > 1 else losses)]
    for game, loss in wanted:
        members = [point for point in points if point.score.game == game and loss in (None, point.loss)]
        if len(members) < FEWEST:
            continue
        pick_RN = stream(0, "bootstrap", f"{game} {loss} students").integers(0, len(members), (RESAMPLES, len(members)))
        score_N = np.array([point.score.normalized for point in members])
        found = {}
        for name in PREDICTORS:
            told_N = np.array([point.held_out[name] for point in members])
            drawn_R = rank_correlation(told_N[pick_RN], score_N[pick_RN])
            value = float(rank_correlation(told_N, score_N))
            found[name] = Correlation(value, percentiles(drawn_R) if abs(value) < PERFECT else None)
            kind = strength_R.setdefault(loss and "within", {})
            kind.setdefault(name, []).append(drawn_R if name in RISING else -drawn_R)
        groups.append(Group(game, loss, len(members), found))
    if not groups:
        return [], None
    mean_R = {name: np.mean(drawn, axis=0) for name, drawn in strength_R["within" if "within" in strength_R else None].items()}
    best = max(mean_R, key=lambda name: float(mean_R[name].mean()))
    ahead = all(percentiles(mean_R[best] - mean_R[name])[0] > 0 for name in mean_R if name != best)
    return groups, best if ahead else None
