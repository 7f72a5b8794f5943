"""Which held-out number predicts the score: found where there is one, not named where there is none, and shown."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report import reproduction
from pipeline.report.page import Section, render
from pipeline.report.predictors import Point, correlate, kendall, predicted
from pipeline.report.results import Results
from pipeline.report.scores import Baseline, score
from pipeline.report.summary import Game
from pipeline.report.tables import Row
from tests.report.test_scores import evaluated


def students(folder: Path, count: int, loss: str, noise: float) -> list[Any]:
    """Students whose held-out KL tells their score exactly, and other numbers but for the noise, a share from 0 to 1."""
    rng = np.random.default_rng(len(loss))
    curve = folder / "curve.csv"
    curve.write_text("updates,kl,agreement,regret\n10,0.5,0.8,0.1\n20,0.4,0.9,0.05\n")
    made = []
    for i in range(count):
        reached, other = 10.0 + i, 10.0 + (1 - noise) * i + noise * rng.uniform(0, count)
        held_out = {"kl": 1 / reached, "agreement": 0.01 * other, "regret": 1 / other}
        card = {"held_out": held_out, "objective": {"loss": loss, "temperature": 0.01}}
        made.append(evaluated(folder, "student", [reached, reached + 2], name=f"{loss}-{i}", loss=loss, card=card, curve=curve))
    return made


def points(found: list[Any], folder: Path) -> tuple[list[Row], Game]:
    teacher, chance = evaluated(folder, "teacher", [30, 40]), evaluated(folder, "random", [0, 0])
    return [Row(score(who, Baseline(teacher, chance)), who, 100) for who in found], Game(teacher, chance, found)


def of(rows: list[Row]) -> list[Point]:
    return [Point(r.who.loss or "", r.who.card["held_out"], None, r.score) for r in rows]


@pytest.mark.parametrize(("noise", "named"), [(1.0, "kl"), (0.0, None)])
def test_the_best_is_named_where_the_intervals_allow(tmp_path: Path, noise: float, named: str | None) -> None:
    rows, _ = points(students(tmp_path, 12, "kl", noise) + students(tmp_path, 4, "nll", noise), tmp_path)
    groups, best = correlate(of(rows))
    assert [(g.loss, g.pairs) for g in groups] == [(None, 120), ("kl", 66)]
    within = groups[1].correlations
    assert within["kl"].value == pytest.approx(-1.0)
    assert within["kl"].ci95 is None  # of a perfect order every resample is in order
    value, ci95 = within["agreement"]
    assert ci95 is None if noise == 0 else ci95 is not None and ci95[0] <= value <= ci95[1]
    assert best == named
    assert correlate(of(rows)[:4]) == ([], None)


def test_students_are_compared_on_the_same_held_out_episodes_alone(tmp_path: Path) -> None:
    rows, _ = points(students(tmp_path, 10, "kl", 0.0), tmp_path)
    numbers = ({name: value + 9 * (i // 5) for name, value in p.held_out.items()} for i, p in enumerate(of(rows)))
    harder = [p._replace(held_out=told, episodes=i // 5) for i, (p, told) in enumerate(zip(of(rows), numbers, strict=True))]
    (group,), _ = correlate(harder)  # the second five, which play better, have held out harder episodes
    assert group.pairs == 20
    assert group.correlations["kl"] == (-1.0, None)
    (mixed,), _ = correlate([p._replace(episodes=0) for p in harder])
    assert mixed.correlations["kl"].value > 0
    assert correlate([p._replace(episodes=i) for i, p in enumerate(harder)]) == ([], None)


def test_kendalls_correlation_counts_pairs_in_order() -> None:
    x, y = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])
    order = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    every = ~np.eye(4, dtype=bool)
    times = [[1, 1, 1, 1], [2, 1, 1, 0], [4, 0, 0, 0]]
    assert kendall(order, every, times) == pytest.approx([4 / 6, (2 + 2 - 1) / 5, 0])


def test_the_page_has_them(tmp_path: Path) -> None:
    rows, game = points(students(tmp_path, 6, "kl", 1.0) + students(tmp_path, 5, "mse", 1.0), tmp_path)
    results = Results(predicted=predicted([(row.who, row.score) for row in rows]))
    page = render([Section(game="Pong", rows=rows, who=game)], results, {})
    assert "Which held-out number predicts the score?" in page
    for told in ("Pong, all losses (55)", "Pong, kl (15)", "Pong, mse (10)", "-1.00</td>", "The best is held-out KL"):
        assert told in page
    paper = reproduction.markdown(results)
    assert "| rank correlation [95 %] | Pong, all losses (55) | Pong, kl (15) | Pong, mse (10) |" in paper
    assert "tau = 0.01" in paper
    assert predicted([]) is None
