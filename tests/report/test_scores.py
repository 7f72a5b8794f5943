"""Scores by hand, intervals that cover, and a page that holds them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report import tables
from pipeline.report.bootstrap import interval
from pipeline.report.page import Section, render
from pipeline.report.paper import published_percent
from pipeline.report.results import Results
from pipeline.report.scores import Baseline, Evaluated, score
from pipeline.report.summary import Game
from pipeline.report.tables import Row


def evaluated(folder: Path, role: str, returns: Any, **more: Any) -> Evaluated:
    name, first = more.pop("name", role), more.pop("first", 0)
    path = folder / f"{name}.parquet"
    count = len(returns)
    order = np.random.default_rng(0).permutation(count)
    rows = {
        "game": ["Pong"] * count,
        "seed": first + np.arange(count)[order],
        "episode_return": np.asarray(returns, float)[order],
    }
    pq.write_table(pa.table(rows | {"steps": [100] * count, "stalled": [False] * count}), path)
    facts: dict[str, Any] = {"agent": name, "role": role, "game": "Pong", "network": "net2", "parameters": 100, "card": {}}
    return Evaluated(episodes=path, **facts | more)


def test_scores_by_hand(tmp_path: Path) -> None:
    teacher, chance = evaluated(tmp_path, "teacher", [10, 20]), evaluated(tmp_path, "random", [-20, -20])
    found = score(evaluated(tmp_path, "student", [5, 15]), Baseline(teacher, chance))
    assert (found.mean, found.min, found.episodes) == (10.0, 5.0, 2)
    assert found.teacher_percent == pytest.approx(100 * 10 / 15)
    assert found.normalized == pytest.approx(100 * 30 / 35)
    assert score(teacher, Baseline(teacher, chance)).normalized_ci95 == (100.0, 100.0)
    assert score(chance, Baseline(teacher, chance)).normalized_ci95 == (0.0, 0.0)
    below = evaluated(tmp_path, "teacher", [-5, 5], name="zero")
    assert score(chance, Baseline(below, chance)).teacher_percent is None


def test_pairing_by_seed_narrows_the_interval(tmp_path: Path) -> None:
    returns = np.random.default_rng(0).normal(10, 5, 40)
    teacher, chance = evaluated(tmp_path, "teacher", returns), evaluated(tmp_path, "random", [0.0] * 10)
    low, high = score(evaluated(tmp_path, "student", returns - 1), Baseline(teacher, chance)).normalized_ci95
    apart = evaluated(
        tmp_path, "student", np.append(returns, 10.0) - 1, name="apart"
    )  # the teacher has not played its last seed
    wide_low, wide_high = score(apart, Baseline(teacher, chance)).normalized_ci95
    assert high - low < 0.3 * (wide_high - wide_low)


def test_who_has_played_some_of_its_teachers_seeds_is_measured_by_these(tmp_path: Path) -> None:
    teacher, chance = evaluated(tmp_path, "teacher", [10, 20, 90, 100]), evaluated(tmp_path, "random", [-20, -20])
    baseline = Baseline(teacher, chance)
    found = score(evaluated(tmp_path, "student", [5, 15]), baseline)
    assert found.normalized == pytest.approx(100 * 30 / 35)  # its seeds are 0 and 1: by 15, and not by 55
    assert found.teacher_percent == pytest.approx(100 * 10 / 15)
    twin = score(evaluated(tmp_path, "twin", [10, 20]), baseline)
    assert (twin.normalized, twin.normalized_ci95) == (100.0, (100.0, 100.0))  # in every resample
    assert score(teacher, baseline).normalized_ci95 == (100.0, 100.0)
    more = score(evaluated(tmp_path, "more", [5, 15, 25, 35, 45]), baseline)
    assert more.normalized == pytest.approx(100 * 45 / 75)  # by all that the teacher has played


@pytest.mark.parametrize("first", [2, 4])
def test_who_has_played_as_many_other_seeds_is_resampled_apart(tmp_path: Path, first: int) -> None:
    teacher, chance = evaluated(tmp_path, "teacher", [10, 20, 90, 100]), evaluated(tmp_path, "random", [0, 0])
    other = score(evaluated(tmp_path, "other", [10, 20, 90, 100], first=first), Baseline(teacher, chance))
    assert other.normalized == 100.0
    low, high = other.normalized_ci95
    assert low < 50
    assert high > 200


def test_a_teacher_no_better_than_random_is_refused(tmp_path: Path) -> None:
    teacher, chance = evaluated(tmp_path, "teacher", [-21, -21]), evaluated(tmp_path, "random", [-20, -20])
    with pytest.raises(ValueError, match="nothing to distil"):
        score(teacher, Baseline(teacher, chance))


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = [low <= 0 <= high for low, high in (interval(rng.normal(size=60)) for _ in range(300))]
    assert 0.90 < np.mean(covered) < 0.98
    with pytest.raises(ValueError, match="at least one episode"):
        interval([])


def test_published_numbers() -> None:
    assert published_percent("Pong", "kl", "dqn") == (100.6, "Table 1, Pong")
    assert published_percent("Pong", "kl", "net3") == (83.9, "ten-game mean")
    assert published_percent("Pong", "nll", "net3") is None
    assert published_percent("Boxing", "kl", "dqn") is None


def filmed(folder: Path) -> tuple[Path, Path, Evaluated, Evaluated]:
    """A student's curve, a clip, a teacher who has it, and the random agent."""
    curve, clip = folder / "curve.csv", folder / "clip.mp4"
    curve.write_text("updates,kl,agreement,regret\n10,0.5,0.8,0.1\n20,0.4,0.9,0.05\n")
    clip.write_bytes(b"not really a clip")
    return curve, clip, evaluated(folder, "teacher", [10, 20], clip=clip), evaluated(folder, "random", [-20, -21])


def test_tables_and_page_hold_every_agent(tmp_path: Path) -> None:
    curve, _, teacher, chance = filmed(tmp_path)
    student = evaluated(tmp_path, "student", [9, 19], name="<net2>", loss="kl", curve=curve)
    rows = [Row(score(who, Baseline(teacher, chance)), who, 100) for who in (teacher, chance, student)]
    page = render(
        [Section(game="Pong", rows=rows, who=Game(teacher, chance, [student]))],
        Results(protocol="epsilon 0.05"),
        {"digest": "abc"},
    )
    assert "&lt;net2&gt;" in page
    assert "<net2>" not in page
    assert page.count("<svg") == 4
    assert "data:video/mp4;base64," in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert tables.scores(rows).markdown().count("\n") == 5


def test_of_several_runs_the_first_is_filmed(tmp_path: Path) -> None:
    curve, clip, teacher, chance = filmed(tmp_path)
    runs = [
        evaluated(tmp_path, f"{variant}-{seed}", [9, 19], variant=variant, seed=seed, loss="kl", clip=clip, curve=curve)
        for variant in ("kl-net2", "kl-net3")
        for seed in (0, 1)
    ]
    rows = [Row(score(who, Baseline(teacher, chance)), who, 100) for who in (teacher, chance, *runs)]
    page = render(
        [Section(game="Pong", rows=rows, who=Game(teacher, chance, runs))], Results(protocol="epsilon 0.05"), {"digest": "abc"}
    )
    assert page.count("data:video/mp4;base64,") == 3
    told = re.findall(r"<figcaption>(kl-net\d-\d): ", page)
    assert told == ["kl-net2-0", "kl-net3-0"]
