"""Several games -> what is typical over games and episodes, and how often a student beats its teacher (Agarwal et al. 2021).

A score set is {game: its training runs, each an array of episodes' scores}; the paper's matrix of runs x tasks is one array per
task. Numbers of runs and episodes may differ: games weigh alike, and so do the episodes of a game. Scores are in per cent.

Intervals are 95 % percentiles of a stratified bootstrap: every game is resampled apart, within it runs where there are several,
and episodes within runs, so that they include the variance of training as far as so few runs can tell.

Dimensions: G games, S training runs (seeds), N episodes of a game, K distinct scores, C resamples of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.report.bootstrap import RESAMPLES, Values, percentiles
from pipeline.report.scores import Baseline, read_returns
from pipeline.report.summary import Game
from pipeline.seeding import stream

Scores = Mapping[str, Sequence[Values]]
TARGET: Final = 100.0
"""Per cent, the teacher's mean: what the optimality gap is measured from."""
TRIM: Final = 4
"""The interquartile mean leaves out one score in so many at either end."""
CHUNK: Final = 250
"""Resamples at a time: 250 x 4 games x 500 episodes are megabytes, all 10,000 would be gigabytes."""


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimates:
    """A score set in four numbers, all in per cent.

    `iqm`: mean of the middle half of all scores. `median`, `mean`: of the games' means. `optimality_gap`: how far scores fall
    short of 100 on average, those above it counting as 100; of single episodes it counts their noise as well.
    """

    iqm: Estimate
    median: Estimate
    mean: Estimate
    optimality_gap: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """One kind of student over all games. `episodes` are those of all its runs and games.

    `improvement`: per cent of chances that an episode of it returns more than one of its teacher; 50 is equal.
    """

    variant: str
    episodes: int
    scores: Estimates
    improvement: Estimate


class _Counted(NamedTuple):
    """A game's scores as indices into its distinct ones; resamples are then histograms, which is what keeps them small."""

    game: str
    value_K: Values
    index_N: npt.NDArray[np.int64]
    length_S: npt.NDArray[np.int64]


class _Run(NamedTuple):
    """A training run's returns in a game, the teacher's that it is measured by, and the random agent's mean."""

    own_N: Values
    best_N: Values
    zero: float

    @property
    def score_N(self) -> Values:
        """Random-normalised per cents, (return - random) / (teacher - random), of single episodes.

        The two means are taken as they are: intervals are those of the student, not of what it is measured by.
        """
        return np.asarray(100.0 * (self.own_N - self.zero) / (self.best_N.mean() - self.zero))


def aggregates(games: Mapping[str, Game]) -> list[Aggregate]:
    """A row per variant that has played every game, in the order of their first appearance."""
    found = []
    for variant, of_games in _runs(games).items():
        if of_games.keys() == games.keys():
            scores = {name: [run.score_N for run in runs] for name, runs in of_games.items()}
            own = {name: [run.own_N for run in runs] for name, runs in of_games.items()}
            # The teacher's once, on the seeds of the run that has played most (all count from the same first one). Raw: what
            # ties as a return ties.
            theirs = {name: [max((run.best_N for run in runs), key=len)] for name, runs in of_games.items()}
            episodes = sum(len(run_N) for runs in own.values() for run_N in runs)
            row = Aggregate(variant=variant, episodes=episodes, scores=estimates(scores), improvement=improvement(own, theirs))
            found.append(row)
    return found


def par(games: Mapping[str, Game]) -> Aggregate:
    """The teachers as measured by themselves, on all their seeds: what a student that plays as they do comes to. Of single
    episodes, whose distribution is skewed, that is not 100 in the middle half, nor is their gap 0.
    """
    runs = {}
    for name, game in games.items():
        own_N, seeds_N, _ = read_returns(game.teacher.episodes)
        baseline = Baseline(game.teacher, game.chance)
        runs[name] = _Run(own_N, baseline.best_N(seeds_N), baseline.zero)
    own = {name: [run.own_N] for name, run in runs.items()}
    return Aggregate(
        variant="the teachers themselves",
        episodes=sum(len(run.own_N) for run in runs.values()),
        scores=estimates({name: [run.score_N] for name, run in runs.items()}),
        improvement=improvement(own, own),
    )


def _runs(games: Mapping[str, Game]) -> dict[str, dict[str, list[_Run]]]:
    """Every variant's, by game."""
    found: dict[str, dict[str, list[_Run]]] = {}
    for name, game in games.items():
        baseline = Baseline(game.teacher, game.chance)
        for who in game.students:
            if who.variant:
                own_N, seeds_N, _ = read_returns(who.episodes)
                run = _Run(own_N, baseline.best_N(seeds_N), baseline.zero)
                found.setdefault(who.variant, {}).setdefault(name, []).append(run)
    return found


def estimates(scores: Scores) -> Estimates:
    """Of a score set.

    With as many scores in every game the interquartile mean is that of all scores, a quarter of them rounded down left out at
    either end. With unequal numbers a score weighs 1 / (G N) and that same share of the weight is left out, of a score in part
    where the cut falls inside it; so copying all episodes of a game changes nothing but how the share is rounded.
    """
    counted = [_counted(game, runs, runs) for game, runs in scores.items()]
    if not counted:
        raise ValueError("aggregates need at least one game: evaluate an agent first")
    total = sum(len(of.index_N) for of in counted)
    cut = (total // TRIM) / total
    point = _statistics(counted, [_shares(of, of.index_N[None]) for of in counted], cut)
    drawn = [_statistics(counted, shares, cut) for shares in _resampled(counted, "episodes")]
    told = {name: _estimate(value_1, [part[name] for part in drawn]) for name, value_1 in point.items()}
    return Estimates(**told)


def improvement(own: Scores, other: Scores) -> Estimate:
    """P(own > other) in per cent, ties counting a half: the mean over games of Mann and Whitney's U / (N_own N_other).

    Both are resampled apart, as in rliable. Equal seeds do not pair them: U compares every episode with every one, not with its
    twin alone; how one seed's episodes go together would have to be resampled across training runs as well; and where it
    matters at all, good starts being good for both, leaving it out can but widen the interval.
    """
    if own.keys() != other.keys() or not own:
        raise ValueError(
            f"an improvement needs the same games of both, got {', '.join(own) or 'none'} and {', '.join(other) or 'none'}: "
            "evaluate the missing ones"
        )
    ours = [_counted(game, runs, [*runs, *other[game]]) for game, runs in own.items()]
    theirs = [_counted(game, other[game], [*runs, *other[game]]) for game, runs in own.items()]
    point = _superiority(*([_shares(of, of.index_N[None]) for of in side] for side in (ours, theirs)))
    pairs = zip(_resampled(ours, "episodes"), _resampled(theirs, "other's episodes"), strict=True)
    return _estimate(point, [_superiority(*pair) for pair in pairs])


def _estimate(point_1: Values, drawn: Sequence[Values]) -> Estimate:
    return Estimate(float(point_1[0]), *percentiles(np.concatenate(drawn)))


def _counted(game: str, runs: Sequence[Values], seen: Sequence[Values]) -> _Counted:
    """`runs` on the distinct values of `seen`, which holds them."""
    for run_N in runs:
        if np.ndim(run_N) != 1 or len(run_N) == 0 or not np.isfinite(run_N).all():
            raise ValueError(f"a run of {game} is not a list of finite scores, at least one: evaluate it again")
    if not runs:
        raise ValueError(f"aggregates need at least one run of {game}: evaluate one, or leave the game out")
    value_K = np.unique(np.concatenate(seen))
    return _Counted(game, value_K, np.searchsorted(value_K, np.concatenate(runs)), np.array([len(run_N) for run_N in runs]))


def _shares(of: _Counted, index_CN: npt.NDArray[np.int64]) -> Values:
    """(C, K): what share of the game's resampled episodes each distinct score has."""
    bins, (count, episodes) = len(of.value_K), index_CN.shape
    row_C1 = bins * np.arange(count)[:, None]
    return np.asarray(np.bincount((index_CN + row_C1).ravel(), minlength=count * bins).reshape(count, bins) / episodes)


def _resampled(counted: Sequence[_Counted], whose: str) -> Iterator[list[Values]]:
    """Shares (C, K) of every game, a chunk of resamples at a time. A game's stream is its own: the others do not matter."""
    rngs = [stream(0, "bootstrap", f"{of.game} {whose}, by run") for of in counted]
    assert RESAMPLES % CHUNK == 0
    for _ in range(RESAMPLES // CHUNK):
        yield [_shares(of, of.index_N[_picks(of.length_S, rng)]) for of, rng in zip(counted, rngs, strict=True)]


def _picks(length_S: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Positions (C, N): for each run some run of the game, and as many episodes of that as the first had."""
    start_S = np.cumsum(length_S) - length_S
    blocks = []
    for length in length_S:
        run_C1 = rng.integers(0, len(length_S), size=(CHUNK, 1))
        within_CN = (rng.random((CHUNK, length)) * length_S[run_C1]).astype(np.int64)
        blocks.append(start_S[run_C1] + within_CN)
    return np.concatenate(blocks, axis=1)


def _statistics(counted: Sequence[_Counted], shares: Sequence[Values], cut: float) -> dict[str, Values]:
    """The fields of `Estimates`, each (C,)."""
    pairs = [(of.value_K, share_CK) for of, share_CK in zip(counted, shares, strict=True)]
    mean_GC = [share_CK @ value_K for value_K, share_CK in pairs]
    reached_GC = [share_CK @ np.minimum(value_K, TARGET) for value_K, share_CK in pairs]
    all_K = np.concatenate([of.value_K for of in counted])
    return {
        "iqm": _trimmed_mean(all_K, np.concatenate(shares, axis=1) / len(counted), cut),
        "median": np.asarray(np.median(mean_GC, axis=0)),
        "mean": np.asarray(np.mean(mean_GC, axis=0)),
        "optimality_gap": np.asarray(TARGET - np.mean(reached_GC, axis=0)),
    }


def _trimmed_mean(value_K: Values, weight_CK: Values, cut: float) -> Values:
    """Without the share `cut` of the weight at either end: the least value, and each step up times the weight kept above it."""
    order_K = np.argsort(value_K)
    step_K = np.diff(value_K[order_K])
    below_CK = np.cumsum(weight_CK[:, order_K[:-1]], axis=1)
    above_CK = np.clip((1.0 - cut - below_CK) / (1.0 - 2.0 * cut), 0.0, 1.0)
    return np.asarray(value_K[order_K[0]] + above_CK @ step_K)


def _superiority(ours: Sequence[Values], theirs: Sequence[Values]) -> Values:
    """Per cent (C,) that a score of ours is above one of theirs, on the same distinct values, ties a half; mean over games."""
    won_GC = [
        np.sum(own_CK * (np.cumsum(other_CK, axis=1) - other_CK / 2), axis=1)
        for own_CK, other_CK in zip(ours, theirs, strict=True)
    ]
    return np.asarray(100.0 * np.mean(won_GC, axis=0))
