"""Several games -> what is typical over games and episodes, and how often a student beats its teacher (Agarwal et al. 2021).

A score set is {game: scores}, in per cent; the paper's matrix of runs x tasks is the case of equal lengths. Games weigh alike
whatever their lengths, and so do the scores of a game: each weighs 1 / (G N). Intervals are 95 % percentiles of a stratified
bootstrap: the scores of every game are resampled apart, and as many.

Dimensions: G games, N scores of a game, K distinct scores, C resamples of a slice, R all resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.report.bootstrap import RESAMPLES, Values, percentiles
from pipeline.report.scores import Contestant, read_returns
from pipeline.report.summary import Game
from pipeline.seeding import stream

Scores = Mapping[str, npt.ArrayLike]
TARGET: Final = 100.0
"""Per cent, the teacher's mean: what the optimality gap is measured from."""
SLICE: Final = 250
"""Resamples at a time: 250 of 4 games of 500 episodes are a few megabytes, all 10,000 would be gigabytes."""


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimates:
    """A score set in four numbers, per cent.

    `iqm`: mean of the middle half of all scores; `median` and `mean`: of the games' means; `optimality_gap`: how far scores
    fall short of 100 on average, those above it counting as 100.
    """

    iqm: Estimate
    median: Estimate
    mean: Estimate
    optimality_gap: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """One kind of student over all games. `episodes` are those of all its runs and games.

    `p_improvement`: per cent of chances that an episode of it returns more than one of its teacher; 50 is equal.
    """

    variant: str
    episodes: int
    iqm: Estimate
    median: Estimate
    mean: Estimate
    optimality_gap: Estimate
    p_improvement: Estimate


class _Counted(NamedTuple):
    """A game's scores as indices into distinct ones: a resample is then a histogram, and needs no sorting."""

    game: str
    value_K: Values
    index_N: npt.NDArray[np.int64]


def aggregates(games: Mapping[str, Game]) -> list[Aggregate]:
    """A row per variant that has played every game, in the order of their first appearance."""
    teachers = {name: normalized([game.teacher], game) for name, game in games.items()}
    variants = dict.fromkeys(who.variant for game in games.values() for who in game.students if who.variant)
    rows = []
    for variant in variants:
        runs = {name: [who for who in game.students if who.variant == variant] for name, game in games.items()}
        if all(runs.values()):
            scores = {name: normalized(runs[name], game) for name, game in games.items()}
            found = estimates(scores)
            rows.append(
                Aggregate(
                    variant=variant,
                    episodes=sum(len(score_N) for score_N in scores.values()),
                    iqm=found.iqm,
                    median=found.median,
                    mean=found.mean,
                    optimality_gap=found.optimality_gap,
                    p_improvement=improvement(scores, teachers),
                )
            )
    return rows


def normalized(runs: Sequence[Contestant], game: Game) -> Values:
    """Random-normalised per cents of all episodes of these runs: (return - random mean) / (teacher mean - random mean).

    Both means are taken as they are: intervals are of the runs' episodes, not of what they are measured by.
    """
    best, zero = (float(read_returns(who.episodes)[0].mean()) for who in (game.teacher, game.chance))
    if not best > zero:
        raise ValueError(
            f"the teacher of {game.teacher.game} scores {best:.2f}, no better than random ({zero:.2f}): "
            "train it for longer, or leave the game out"
        )
    return_N = np.concatenate([read_returns(who.episodes)[0] for who in runs])
    return np.asarray(100.0 * (return_N - zero) / (best - zero))


def estimates(scores: Scores) -> Estimates:
    """The score set in four numbers.

    A quarter of the scores, rounded down, is left out at either end for the interquartile mean, as scipy's `trim_mean` does.
    With unequal lengths it is that share of the weight, and a score that the cut falls inside counts in part.
    """
    checked = _checked(scores)
    counted = [_Counted(game, *np.unique(score_N, return_inverse=True)) for game, score_N in checked.items()]
    total = sum(len(of.index_N) for of in counted)
    cut = (total // 4) / total
    points = _statistics(counted, [_shares(of, of.index_N[None]) for of in counted], cut)
    slices = [_statistics(counted, shares, cut) for shares in _resampled(counted, "scores")]
    return Estimates(**{name: _estimate(point_1, [part[name] for part in slices]) for name, point_1 in points.items()})


def improvement(own: Scores, other: Scores) -> Estimate:
    """P(own > other) in per cent, ties counting a half: Mann and Whitney's U / (N_own N_other), mean over games.

    Both are resampled, apart from each other: U compares every episode with every one, not with its twin of the same seed.
    """
    ours, theirs = _checked(own), _checked(other)
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"an improvement needs the same games of both, got {', '.join(ours)} and {', '.join(theirs)}: "
            "evaluate the missing ones"
        )
    value = {game: np.unique(np.concatenate([ours[game], theirs[game]])) for game in ours}
    sides = [[_Counted(game, value[game], np.searchsorted(value[game], of[game])) for game in value] for of in (ours, theirs)]
    point_1 = _superiority(*([_shares(of, of.index_N[None]) for of in side] for side in sides))
    pairs = zip(_resampled(sides[0], "scores"), _resampled(sides[1], "other's scores"), strict=True)
    return _estimate(point_1, [_superiority(*pair) for pair in pairs])


def _checked(scores: Scores) -> dict[str, Values]:
    if not scores:
        raise ValueError("aggregates need at least one game: evaluate an agent first")
    checked = {game: np.asarray(values, dtype=np.float64) for game, values in scores.items()}
    for game, score_N in checked.items():
        if score_N.ndim != 1 or len(score_N) == 0 or not np.isfinite(score_N).all():
            raise ValueError(f"the scores of {game} are not a list of finite numbers, at least one: evaluate it again")
    return checked


def _estimate(point_1: Values, slices: Sequence[Values]) -> Estimate:
    return Estimate(float(point_1[0]), *percentiles(np.concatenate(slices)))


def _shares(of: _Counted, index_CN: npt.NDArray[np.int64]) -> Values:
    """(C, K): what share of the game's resampled scores each distinct one has."""
    bins, (rows, length) = len(of.value_K), index_CN.shape
    place_CN = index_CN + bins * np.arange(rows)[:, None]
    return np.asarray(np.bincount(place_CN.ravel(), minlength=rows * bins).reshape(rows, bins) / length)


def _resampled(counted: Sequence[_Counted], whose: str) -> Iterator[list[Values]]:
    """Shares (C, K) of every game, slice by slice. A game's stream is its own: neither the others nor their order matter."""
    assert RESAMPLES % SLICE == 0
    streams = [stream(0, "bootstrap", f"{of.game} {whose}") for of in counted]
    for _ in range(RESAMPLES // SLICE):
        yield [
            _shares(of, of.index_N[rng.integers(0, len(of.index_N), size=(SLICE, len(of.index_N)))])
            for of, rng in zip(counted, streams, strict=True)
        ]


def _statistics(counted: Sequence[_Counted], shares: Sequence[Values], cut: float) -> dict[str, Values]:
    """The fields of `Estimates`, each (C,)."""
    pairs = [(of.value_K, share_CK) for of, share_CK in zip(counted, shares, strict=True)]
    mean_GC = np.stack([share_CK @ value_K for value_K, share_CK in pairs])
    short_GC = np.stack([share_CK @ np.maximum(TARGET - value_K, 0.0) for value_K, share_CK in pairs])
    value_K = np.concatenate([of.value_K for of in counted])
    return {
        "iqm": _trimmed_mean(value_K, np.concatenate(shares, axis=1) / len(counted), cut),
        "median": np.asarray(np.median(mean_GC, axis=0)),
        "mean": np.asarray(mean_GC.mean(axis=0)),
        "optimality_gap": np.asarray(short_GC.mean(axis=0)),
    }


def _trimmed_mean(value_K: Values, weight_CK: Values, cut: float) -> Values:
    """Means (C,) without the share `cut` of the weight at either end.

    The kept weight up to a score is what lies below it, held between the two cuts; its own is the difference to the one before.
    """
    order_K = np.argsort(value_K)
    upto_CK = np.clip(np.cumsum(weight_CK[:, order_K], axis=1), cut, 1.0 - cut)
    upto_CK[:, -1] = 1.0 - cut  # not what rounding left of it
    kept_CK = np.diff(upto_CK, axis=1, prepend=cut)
    return np.asarray(kept_CK @ value_K[order_K] / (1.0 - 2.0 * cut))


def _superiority(ours: Sequence[Values], theirs: Sequence[Values]) -> Values:
    """Per cent (C,) that a score of ours is above one of theirs, of the same distinct ones; ties a half, mean over games."""
    won_GC = [
        np.sum(own_CK * (np.cumsum(other_CK, axis=1) - other_CK / 2.0), axis=1)
        for own_CK, other_CK in zip(ours, theirs, strict=True)
    ]
    return np.asarray(100.0 * np.mean(won_GC, axis=0))
