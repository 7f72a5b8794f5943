"""Which held-out number tells beforehand how a student will play: rank correlations with its score, and how sure they are.

Numbers are comparable within a loss: what an MSE student's outputs are to its KL, a KL student's are not. Over all losses the
correlation mostly tells losses apart. And they are comparable on the same held-out episodes: these differ in how hard they are
by more than students do. So correlations are Kendall's, of pairs that were measured on the same.

Dimensions: N students, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.report.bootstrap import RESAMPLES, Values, percentiles
from pipeline.report.scores import Evaluated, Score, learned_from
from pipeline.seeding import stream

PREDICTORS: Final = {
    "kl": "held-out KL (nats)",
    "agreement": "held-out action agreement",
    "regret": "held-out regret (Q units)",
}
RISING: Final = ("agreement",)
"""Those of which more is better."""
PERFECT: Final = 1.0 - 1e-9
FEWEST: Final = 10
"""Pairs of students that a correlation wants: those of five that were measured on the same episodes."""


class Point(NamedTuple):
    """A student: its loss, what held-out episodes said of it, which these were, and what it reached."""

    loss: str
    held_out: Mapping[str, float]
    episodes: object
    score: Score


class Correlation(NamedTuple):
    """Kendall's, of one number and the score; the interval is what other students could have given, None where the order is
    perfect, as it is in every resample.
    """

    value: float
    ci95: tuple[float, float] | None


class Group(NamedTuple):
    """Students of one game, of one loss or (None) of all, with the correlation of each predictor over their `pairs`."""

    game: str
    loss: str | None
    pairs: int
    correlations: Mapping[str, Correlation]


class Predicted(NamedTuple):
    """Students of the temperature that most have, none of it in gaps, and what `correlate` finds of them."""

    temperature: float
    points: Sequence[Point]
    groups: Sequence[Group]
    best: str | None


def predicted(students: Sequence[tuple[Evaluated, Score]]) -> Predicted | None:
    """Of those whose cards tell of held-out episodes; None where no game has enough of them."""
    measured = [(who.card, score) for who, score in students if who.card.get("held_out")]
    told = [(card, score) for card, score in measured if not card["objective"].get("per_gap")]
    temperatures = [card["objective"]["temperature"] for card, _ in told]
    usual = max(temperatures, key=temperatures.count, default=0.0)
    points = [
        Point(card["objective"]["loss"], card["held_out"], _episodes(card), score)
        for card, score in told
        if card["objective"]["temperature"] == usual
    ]
    groups, best = correlate(points)
    shown = {group.game for group in groups}
    return Predicted(usual, [point for point in points if point.score.game in shown], groups, best) if groups else None


def _episodes(card: Mapping[str, Any]) -> object:
    """What decides which episodes a student held out."""
    return card.get("seed"), card.get("settings", {}).get("held_out"), tuple(told["digest"] for told in learned_from(card))


def correlate(points: Sequence[Point]) -> tuple[list[Group], str | None]:
    """Each game's correlations over all losses and within each, where there are pairs enough, and the best predictor.

    Best is that of the strongest mean correlation in the right direction within losses (over all of them, where no loss has
    pairs enough), named if the 95 % interval of its lead over every other is above zero: students are resampled, the same
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
        count = len(members)
        comparable_NN = np.array([[a is not b and a.episodes == b.episodes for b in members] for a in members])
        if (pairs := int(comparable_NN.sum()) // 2) < FEWEST:
            continue
        drawn_RN = stream(0, "bootstrap", f"{game} {loss} students").multinomial(count, np.full(count, 1 / count), RESAMPLES)
        score_N = np.array([point.score.normalized for point in members])
        found = {}
        for name in PREDICTORS:
            told_N = np.array([point.held_out[name] for point in members])
            order_NN = np.sign(told_N[:, None] - told_N) * np.sign(score_N[:, None] - score_N)
            drawn_R = kendall(order_NN, comparable_NN, drawn_RN)
            (value,) = kendall(order_NN, comparable_NN, np.ones((1, count))).tolist()
            found[name] = Correlation(value, percentiles(drawn_R) if abs(value) < PERFECT else None)
            kind = strength_R.setdefault(loss and "within", {})
            kind.setdefault(name, []).append(drawn_R if name in RISING else -drawn_R)
        groups.append(Group(game, loss, pairs, found))
    if not groups:
        return [], None
    mean_R = {name: np.mean(drawn, axis=0) for name, drawn in strength_R["within" if "within" in strength_R else None].items()}
    best = max(mean_R, key=lambda name: float(mean_R[name].mean()))
    ahead = all(percentiles(mean_R[best] - mean_R[name])[0] > 0 for name in mean_R if name != best)
    return groups, best if ahead else None


def kendall(order_NN: Values, comparable_NN: npt.NDArray[np.bool_], times_RN: npt.ArrayLike) -> Values:
    """Kendall's rank correlation (R,): by how much more of the comparable pairs are in order (1) than out of it (-1), where
    each student is there so many times; 0 where no pair is.
    """
    times = np.asarray(times_RN, dtype=np.float64)
    total_R, pairs_R = (((times @ pair_NN) * times).sum(axis=1) for pair_NN in (order_NN * comparable_NN, comparable_NN))
    return np.asarray(np.divide(total_R, pairs_R, out=np.zeros_like(pairs_R), where=pairs_R > 0))
