"""Episodes -> one row per agent: mean, worst, per cent of the teacher, random-normalised score, each with its interval.

Dimensions: N episodes, R resamples.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.report.bootstrap import Values, interval, percentiles, resampled_means
from pipeline.report.paper import TEMPERATURE


def learned_from(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, digest and states of each dataset that a student learned from; older cards have their only one apart."""
    return card.get("datasets") or ([card["dataset"]] if "dataset" in card else [])


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """One agent of the report: its episodes, its card, and for those that learn the curve and variant.

    `loss` is that of a student, `algorithm` that of one who learns from reward. `flops` are those of one state, a multiply-add
    counting as two, `latency_ms` what it takes on one core, if measured. `elsewhere`: what differs between the environment
    that it was made in and this one. `protocol` is the digest of that of its scores, if they name one.
    """

    agent: str
    role: str
    game: str
    network: str
    parameters: int
    episodes: Path
    card: dict[str, Any]
    clip: Path | None = None
    curve: Path | None = None
    variant: str | None = None
    loss: str | None = None
    algorithm: str | None = None
    seed: int | None = None
    flops: int | None = None
    latency_ms: float | None = None
    elsewhere: str = ""
    protocol: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is a student of the paper's tables: named LOSS-NETWORK, at their temperature, taught by its teachers' own
        play alone.
        """
        objective = self.card.get("objective", {})
        tempered = objective.get("temperature") == TEMPERATURE and not objective.get("per_gap")
        named = (self.variant or "").rpartition("/")[-1] == f"{self.loss}-{self.network}"
        datasets, games = len(learned_from(self.card)), len(self.card["games"]) if "games" in self.card else 1
        return named and tempered and datasets == games


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A row of scores.json. Intervals are 95 % percentile bootstraps over episodes; they do not include training variance.

    `teacher_percent` is the raw ratio that the paper reports, None for a teacher that scores no more than zero; `normalized`
    is (mean - random) / (teacher - random) in per cent, the one to compare and to average.
    """

    agent: str
    role: str
    game: str
    variant: str | None
    network: str
    parameters: int
    seed: int | None
    episodes: int
    mean: float
    min: float
    ci95: tuple[float, float]
    teacher_percent: float | None
    normalized: float
    normalized_ci95: tuple[float, float]
    stalled: int


def read_returns(path: Path) -> tuple[Values, npt.NDArray[np.int64], int]:
    """Values and seeds in seed order, and how many episodes the frame cap cut."""
    table = pq.read_table(path)
    order = np.argsort(table["seed"].to_numpy())
    return table["episode_return"].to_numpy()[order], table["seed"].to_numpy()[order], int(np.sum(table["stalled"].to_numpy()))


def read_curve(path: Path) -> list[dict[str, str]]:
    """The rows of a learning curve, as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """An agent's mean return in a game, beside its teacher's (`best`) and the random agent's (`zero`), each also resampled."""

    mean: float
    best: float
    zero: float
    own_R: Values
    best_R: Values
    zero_R: Values

    @property
    def normalized(self) -> float:
        """Per cent of the way from the random agent's return to the teacher's."""
        return 100.0 * (self.mean - self.zero) / (self.best - self.zero)

    @property
    def normalized_R(self) -> Values:
        """The same of each resample."""
        return np.asarray(100.0 * (self.own_R - self.zero_R) / (self.best_R - self.zero_R))

    @property
    def percent(self) -> float | None:
        """Of the teacher's raw return; None unless that is above zero."""
        return 100.0 * self.mean / self.best if self.best > 0 else None

    @property
    def percent_R(self) -> Values | None:
        """The same of each resample; None unless the teacher's is above zero in all of them."""
        return np.asarray(100.0 * self.own_R / self.best_R) if self.best_R.min() > 0 else None


class Baseline:
    """What agents of a game are measured by: the returns of their teacher and of the random agent.

    An agent whose seeds the teacher has all played, those and maybe more, is measured by the teacher's returns on its own
    seeds, and the two are resampled alike: a start that is good for one is mostly good for the other, which then cancels.
    Any other is measured by all that the teacher has played, and resampled apart from it, along with agents of its own seeds.
    """

    def __init__(self, teacher: Evaluated, chance: Evaluated) -> None:
        self._chance = chance
        self._game = teacher.game
        self._teacher_N, self._seeds_N, _ = read_returns(teacher.episodes)
        random_N, _, _ = read_returns(chance.episodes)
        self.zero = float(random_N.mean())
        self._zero_R = resampled_means(random_N, f"{self._game} random agent's episodes")
        self._resampled: dict[str, Values] = {}

    def best_N(self, seeds_N: npt.NDArray[np.int64]) -> Values:
        """The teacher's returns that an agent with these seeds is measured by. ValueError if they are no better than random."""
        best_N = self._teacher_N[np.isin(self._seeds_N, seeds_N)] if self._paired(seeds_N) else self._teacher_N
        if not best_N.mean() > self.zero:
            raise ValueError(
                f"the teacher of {self._game} scores {best_N.mean():.2f}, no better than random ({self.zero:.2f}): there is "
                "nothing to distil, train it for longer or leave the game out"
            )
        return best_N

    def measure(self, who: Evaluated) -> Measured:
        """`who` beside its teacher."""
        own_N, seeds_N, _ = read_returns(who.episodes)
        best_N, stream = self.best_N(seeds_N), self._stream(seeds_N)
        beside = stream if self._paired(seeds_N) else self._stream(self._seeds_N)
        if beside not in self._resampled:
            self._resampled[beside] = resampled_means(best_N, beside)
        return Measured(
            mean=float(own_N.mean()),
            best=float(best_N.mean()),
            zero=self.zero,
            own_R=self._zero_R if who is self._chance else resampled_means(own_N, stream),
            best_R=self._resampled[beside],
            zero_R=self._zero_R,
        )

    def _paired(self, seeds_N: npt.NDArray[np.int64]) -> bool:
        """Whether the teacher has played all of these."""
        return np.array_equal(self._seeds_N[np.isin(self._seeds_N, seeds_N)], seeds_N)

    def _stream(self, seeds_N: npt.NDArray[np.int64]) -> str:
        """Games are resampled apart from each other; within one, those who have played the same seeds together."""
        apart = "" if np.array_equal(seeds_N, self._seeds_N) else f" {zlib.crc32(seeds_N.tobytes())}"
        return f"{self._game} episodes{apart}"


def score(who: Evaluated, baseline: Baseline) -> Score:
    """`who` against its teacher and the random agent of the same game."""
    own_N, _, stalled = read_returns(who.episodes)
    measured = baseline.measure(who)
    return Score(
        agent=who.agent,
        role=who.role,
        game=who.game,
        variant=who.variant,
        network=who.network,
        parameters=who.parameters,
        seed=who.seed,
        episodes=len(own_N),
        mean=measured.mean,
        min=float(own_N.min()),
        ci95=interval(own_N),
        teacher_percent=measured.percent,
        normalized=measured.normalized,
        normalized_ci95=percentiles(measured.normalized_R),
        stalled=stalled,
    )
