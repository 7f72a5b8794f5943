"""Episodes -> one row per agent: mean, worst, per cent of the teacher, random-normalised score, each with its interval.

Dimensions: N episodes, R resamples.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.report.bootstrap import Values, percentiles, resampled_means
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


def score(who: Evaluated, teacher: Evaluated, chance: Evaluated) -> Score:
    """`who` against its teacher and the random agent of the same game; paired by seed where the seeds are the same."""
    own_N, own_seeds, stalled = read_returns(who.episodes)
    teacher_N, teacher_seeds, _ = read_returns(teacher.episodes)
    random_N, _, _ = read_returns(chance.episodes)
    mean, best, zero = own_N.mean(), teacher_N.mean(), random_N.mean()
    if not best > zero:
        raise ValueError(
            f"the teacher of {who.game} scores {best:.2f}, no better than random ({zero:.2f}): there is nothing to distil"
        )
    own_R = resampled_means(own_N)
    paired = np.array_equal(own_seeds, teacher_seeds)
    teacher_R = resampled_means(teacher_N, "episodes" if paired else "teacher's episodes")
    random_R = resampled_means(random_N, "episodes" if who is chance else "random agent's episodes")
    normalized_R = 100.0 * (own_R - random_R) / (teacher_R - random_R)
    return Score(
        agent=who.agent,
        role=who.role,
        game=who.game,
        variant=who.variant,
        network=who.network,
        parameters=who.parameters,
        seed=who.seed,
        episodes=len(own_N),
        mean=float(mean),
        min=float(own_N.min()),
        ci95=percentiles(own_R),
        teacher_percent=float(100.0 * mean / best) if best > 0 else None,
        normalized=float(100.0 * (mean - zero) / (best - zero)),
        normalized_ci95=percentiles(normalized_R),
        stalled=stalled,
    )
