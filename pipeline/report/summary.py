"""Several games -> one claim per kind of student: normalised per cent of the teachers, and their geometric mean over games.

Dimensions: S training runs (seeds), N episodes, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.report.bootstrap import RESAMPLES, Values, percentiles
from pipeline.report.scores import Baseline, Evaluated, learned_from, read_curve
from pipeline.seeding import stream

ROLLOUT: Final = 2048
"""Evaluations wait for the end of a rollout, of up to so many steps, which one learner has sooner than another."""
FLOOR: Final = 1.0
"""Per cent: what a student is taken to reach at least, since one hopeless game would make a geometric mean nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """One kind of student in one game: means over its runs. `percent` is of the teacher's raw return, None if that is not above
    zero, as its interval is where resamples are not; `runs` says how many training runs the intervals include, of which
    `ci95` is that of `normalized`. Each learned from so many stored `states`; `gpus` are those that runs learned on, if any.
    """

    returned: float
    returned_ci95: tuple[float, float]
    percent: float | None
    percent_ci95: tuple[float, float] | None
    normalized: float
    ci95: tuple[float, float]
    runs: int
    states: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """One kind of student over the games, or of baseline. `learned` tells from what: a loss, or an algorithm.

    `plain` as `Evaluated` has it; students of one game have acted themselves for `rounds` of their datasets, and `onward` are
    those that began with another's weights.

    `mean` is the geometric mean of the normalised per cents, None where it has not played every game; `floored` names the games
    in which it was taken to reach 1 %; `percent_mean` and `percent_floored` are so of the raw per cents, as the paper has them.
    A baseline has had so many `steps` of each game; `at_equal_steps` is its mean where the
    teachers are the best that they were until these, None where their curves do not tell or one knew no more than chance then.
    """

    variant: str
    loss: str
    learned: str
    network: str
    parameters: int
    games: dict[str, Standing]
    mean: float | None
    ci95: tuple[float, float] | None
    floored: tuple[str, ...]
    percent_mean: float | None
    percent_ci95: tuple[float, float] | None
    percent_floored: bool
    plain: bool
    rounds: int
    onward: bool = False
    steps: int | None = None
    at_equal_steps: float | None = None


@dataclass(frozen=True, slots=True)
class Lead:
    """By how many points of normalised per cent the students of a loss are ahead of those of another: in each game that both
    play, and of their geometric means, None unless both play all. Each with its 95 % interval.
    """

    loss: str
    other: str
    games: dict[str, tuple[float, tuple[float, float]]]
    mean: tuple[float, tuple[float, float]] | None


@dataclass(frozen=True, slots=True)
class Game:
    """Who played a game."""

    teacher: Evaluated
    chance: Evaluated
    students: Sequence[Evaluated]


def summarise(games: Mapping[str, Game]) -> list[Summary]:
    """A row per variant, in the order of their first appearance."""
    variants = dict.fromkeys(who.variant for game in games.values() for who in game.students if who.variant)
    baselines = {name: Baseline(game.teacher, game.chance) for name, game in games.items()}
    return [_summary(variant, games, baselines) for variant in variants]


def leads(games: Mapping[str, Game], network: str, losses: Sequence[str]) -> list[Lead]:
    """Each loss against the next, of plain students of that network (`Evaluated.plain`); nothing where no game has both."""
    drawn: dict[str, dict[str, _Drawn]] = {loss: {} for loss in losses}
    for name, game in games.items():
        baseline = Baseline(game.teacher, game.chance)
        for loss in losses:
            if runs := [who for who in game.students if who.plain and (who.loss, who.network) == (loss, network)]:
                drawn[loss][name] = _standing(name, runs, baseline)

    def lead(loss: str, other: str) -> Lead:
        a, b = drawn[loss], drawn[other]
        both = {name: (a[name], b[name]) for name in games if name in a and name in b}
        found = {
            name: (
                mine.standing.normalized - theirs.standing.normalized,
                percentiles(mine.normalized_R - theirs.normalized_R),
            )
            for name, (mine, theirs) in both.items()
        }
        if not both or both.keys() != games.keys():
            return Lead(loss, other, found, None)
        means = [geometric_mean([np.array([one.standing.normalized]) for one in of.values()])[0] for of in (a, b)]
        means_R = [geometric_mean([one.normalized_R for one in of.values()]) for of in (a, b)]
        return Lead(loss, other, found, (float(means[0] - means[1]), percentiles(means_R[0] - means_R[1])))

    return [found for pair in pairwise(losses) if (found := lead(*pair)).games]


def _summary(variant: str, games: Mapping[str, Game], baselines: Mapping[str, Baseline]) -> Summary:
    drawn: dict[str, _Drawn] = {}
    first: Evaluated | None = None
    parameters = 0
    for name, game in games.items():
        runs = [who for who in game.students if who.variant == variant]
        if runs:
            first = first or runs[0]
            parameters = max(parameters, *(who.parameters for who in runs))
            drawn[name] = _standing(name, runs, baselines[name])
    assert first is not None
    standings = {name: found.standing for name, found in drawn.items()}
    whole = standings.keys() == games.keys()
    means_R = geometric_mean([found.normalized_R for found in drawn.values()])
    percents = [s.percent for s in standings.values() if s.percent is not None]
    percents_R = [found.percent_R for found in drawn.values() if found.percent_R is not None]
    steps = first.card.get("steps_trained") if first.role == "multitask" else None
    then = {} if steps is None else {name: _evaluated_at(games[name].teacher, steps) for name in standings}
    shares = [
        100.0 * (standing.returned - zero) / (best - zero)
        for name, standing in standings.items()
        if (best := then.get(name)) is not None and best > (zero := baselines[name].zero)
    ]
    return Summary(
        variant=variant,
        loss=first.loss or "",
        learned=first.loss or first.algorithm or "",
        network=first.network,
        parameters=parameters,
        games=standings,
        mean=float(geometric_mean([np.array([s.normalized]) for s in standings.values()])[0]) if whole else None,
        ci95=percentiles(means_R) if whole else None,
        floored=tuple(name for name, s in standings.items() if s.normalized < FLOOR),
        percent_mean=float(geometric_mean([np.array(p) for p in percents])) if len(percents) == len(games) else None,
        percent_ci95=percentiles(geometric_mean(percents_R)) if len(percents_R) == len(games) else None,
        percent_floored=any(p < FLOOR for p in percents),
        plain=first.plain,
        rounds=max(0, len(learned_from(first.card)) - 1),
        onward="begins_with" in first.card,
        steps=steps,
        at_equal_steps=float(geometric_mean([np.array(s) for s in shares])) if len(shares) == len(games) else None,
    )


def _evaluated_at(teacher: Evaluated, steps: int) -> float | None:
    """The best that a teacher scored, until so many steps, give or take a rollout, when its snapshot was chosen; None without
    one.
    """
    rows = read_curve(teacher.curve) if teacher.curve else []
    told = [float(row["eval_return"]) for row in rows if row.get("eval_return") and float(row["steps"]) < steps + ROLLOUT]
    return max(told, default=None)


def geometric_mean(percents: Sequence[npt.NDArray[np.float64]]) -> Values:
    """Over the first axis, each floored at 1 %."""
    return np.asarray(np.exp(np.mean([np.log(np.maximum(p, FLOOR)) for p in percents], axis=0)))


class _Drawn(NamedTuple):
    """A standing and its resampled per cents, normalised and raw, the latter None where a teacher's mean is not above zero."""

    standing: Standing
    normalized_R: Values
    percent_R: Values | None


def _standing(game: str, runs: Sequence[Evaluated], baseline: Baseline) -> _Drawn:
    """The standing of these training runs of one variant, and what it comes from.

    With several runs, runs are resampled as well as episodes (a hierarchical bootstrap): the interval includes what another
    training would have brought, as far as so few can tell.
    """
    measured = [baseline.measure(who) for who in runs]
    pick_RS = stream(0, "bootstrap", f"{game} runs").integers(0, len(runs), size=(RESAMPLES, len(runs)))

    def picked(of_runs: Sequence[Values]) -> Values:
        return np.asarray(np.take_along_axis(np.stack(of_runs, axis=1), pick_RS, axis=1).mean(axis=1))

    normalized_R = picked([one.normalized_R for one in measured])
    percents = [one.percent for one in measured if one.percent is not None]
    percents_R = [one.percent_R for one in measured if one.percent_R is not None]
    percent_R = picked(percents_R) if len(percents_R) == len(runs) else None
    standing = Standing(
        returned=float(np.mean([one.mean for one in measured])),
        returned_ci95=percentiles(picked([one.own_R for one in measured])),
        percent=float(np.mean(percents)) if len(percents) == len(runs) else None,
        percent_ci95=None if percent_R is None else percentiles(percent_R),
        normalized=float(np.mean([one.normalized for one in measured])),
        ci95=percentiles(normalized_R),
        runs=len(runs),
        states=max(sum(told["states"] for told in learned_from(who.card)) for who in runs),
        gpus=tuple(device for who in runs if (device := who.card.get("device", "cpu")) != "cpu"),
    )
    return _Drawn(standing, normalized_R, percent_R)
