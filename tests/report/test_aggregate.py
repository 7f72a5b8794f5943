"""Aggregates by hand and by brute force, intervals that repeat, and pages that hold them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report import aggregate, reproduction, tables
from pipeline.report.aggregate import aggregates, par
from pipeline.report.bootstrap import Values, interval
from pipeline.report.page import render
from pipeline.report.summary import Game
from tests.report.test_scores import evaluated
from tests.report.test_summary import game, results

SCORES = st.lists(st.integers(-30, 150) | st.floats(-50, 200, width=32), min_size=1, max_size=8)  # whole numbers: ties
GAMES = st.dictionaries(st.sampled_from(["Breakout", "Freeway", "Pong"]), SCORES, min_size=1)
FEW = settings(max_examples=40)
OneRun = Mapping[str, npt.ArrayLike]


def single(scores: OneRun) -> dict[str, list[Values]]:
    """A score set of one training run per game."""
    return {name: [np.asarray(values, dtype=np.float64)] for name, values in scores.items()}


def estimates(scores: OneRun) -> aggregate.Estimates:
    return aggregate.estimates(single(scores))


def improvement(own: OneRun, other: OneRun) -> aggregate.Estimate:
    return aggregate.improvement(single(own), single(other))


def test_estimates_by_hand() -> None:
    found = estimates({"Pong": [0, 10, 20, 130], "Breakout": [50, 60, 70, 100]})
    assert found.iqm.value == pytest.approx((20 + 50 + 60 + 70) / 4)  # without 0, 10 and 100, 130
    assert found.mean.value == found.median.value == pytest.approx((40 + 70) / 2)
    assert found.optimality_gap.value == pytest.approx(((100 + 90 + 80 + 0) / 4 + (50 + 40 + 30 + 0) / 4) / 2)
    three = estimates({"Pong": [0, 20], "Breakout": [100], "Freeway": [40, 40, 40]})
    assert three.median.value == pytest.approx(40)
    assert three.mean.value == pytest.approx(50)


def test_a_quarter_is_rounded_down() -> None:
    assert estimates({"Pong": [0, 10, 1000]}).iqm.value == pytest.approx(1010 / 3)  # of three scores none goes
    assert estimates({"Pong": [0, 10, 20, 30, 1000]}).iqm.value == pytest.approx(20)


def test_games_of_unequal_lengths_weigh_alike() -> None:
    # Weights 1/8 each of 0, 10, 20, 30 and 1/4 each of 40, 80; six scores, so that a sixth of the weight goes at either end:
    # all of 0, a third of 10's, and two thirds of 80's.
    found = estimates({"Pong": [0, 10, 20, 30], "Breakout": [40, 80]})
    kept = (1 / 8 - 1 / 24) * 10 + (20 + 30) / 8 + 40 / 4 + (1 / 4 - 1 / 6) * 80
    assert found.iqm.value == pytest.approx(kept / (2 / 3))
    assert found.mean.value == pytest.approx((15 + 60) / 2)


def test_improvement_by_hand() -> None:
    # Pong: of six pairs 3 won, 1 tied. Breakout: all lost.
    own, other = {"Pong": [1, 2, 3], "Breakout": [0]}, {"Pong": [0, 3], "Breakout": [5, 6]}
    assert improvement(own, other).value == pytest.approx(100 * (3.5 / 6 + 0) / 2)
    assert improvement(own, own).value == pytest.approx(50)


@FEW
@given(GAMES)
def test_estimates_equal_brute_force(scores: dict[str, list[float]]) -> None:
    found = estimates(scores)
    # Copied until all games are of one length, games are still what they were, and the cut falls between copies.
    whole = np.lcm.reduce([len(values) for values in scores.values()])
    total = sum(map(len, scores.values()))
    copies = total * int(whole)  # a multiple of both, so that the share `total // 4 / total` is a whole number of copies
    every = np.sort(np.concatenate([np.repeat(values, copies // len(values)) for values in scores.values()]))
    cut = total // 4 * len(every) // total
    iqm = every[cut : len(every) - cut].mean()
    assert found.iqm.value == pytest.approx(iqm, abs=1e-9)
    means = [np.mean(values) for values in scores.values()]
    assert found.mean.value == pytest.approx(np.mean(means), abs=1e-9)
    assert found.median.value == pytest.approx(np.median(means), abs=1e-9)
    gap = np.mean([100 - np.mean(np.minimum(values, 100)) for values in scores.values()])
    assert found.optimality_gap.value == pytest.approx(gap, abs=1e-9)


@FEW
@given(GAMES)
def test_an_interquartile_mean_lies_within_its_scores(scores: dict[str, list[float]]) -> None:
    found = estimates(scores).iqm
    least, most = min(map(min, scores.values())), max(map(max, scores.values()))
    for number in found:
        assert least - 1e-9 <= number <= most + 1e-9


@FEW
@given(st.dictionaries(st.sampled_from(["Breakout", "Pong"]), st.tuples(SCORES, SCORES), min_size=1))
def test_improvements_are_complements_and_equal_brute_force(both: dict[str, tuple[list[float], list[float]]]) -> None:
    own, other = ({name: pair[side] for name, pair in both.items()} for side in (0, 1))
    found = improvement(own, other).value
    pairs = [np.mean([(x > y) + (x == y) / 2 for x in xs for y in ys]) for xs, ys in both.values()]
    assert found == pytest.approx(100 * np.mean(pairs), abs=1e-9)
    assert found + improvement(other, own).value == pytest.approx(100)


def test_intervals_repeat_whatever_the_order_of_games() -> None:
    rng = np.random.default_rng(0)
    scores = {name: rng.normal(90, 30, count) for name, count in (("Pong", 30), ("Breakout", 20), ("Freeway", 25))}
    turned = dict(reversed(scores.items()))
    other = {name: values + 5 for name, values in turned.items()}
    for name in ("iqm", "median", "mean", "optimality_gap"):
        assert getattr(estimates(scores), name) == pytest.approx(getattr(estimates(turned), name), abs=1e-9)
    assert estimates(scores) == estimates(scores)
    assert improvement(scores, other) == improvement(scores, other)


def test_intervals_are_those_of_resamples_sorted_one_by_one() -> None:
    """Of one game the mean's interval is the plain bootstrap's up to other draws, the IQM's that of trimming each resample."""
    rng = np.random.default_rng(1)
    values = rng.normal(80, 20, 40)
    assert estimates({"Pong": values}).mean[1:] == pytest.approx(interval(values), abs=0.5)  # a standard error is 3.2
    drawn = np.sort(rng.choice(values, (10_000, 40)), axis=1)[:, 10:30].mean(axis=1)
    assert estimates({"Pong": values}).iqm[1:] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.5)


def test_runs_are_resampled_and_then_their_episodes() -> None:
    """Runs that differ widen the interval, as pooled episodes would not; its ends are those of a bootstrap by hand."""
    rng = np.random.default_rng(2)
    runs = [rng.normal(mean, 10, size) for mean, size in ((60, 50), (80, 50), (100, 50))]
    found = aggregate.estimates({"Pong": runs}).mean
    assert found.value == pytest.approx(np.concatenate(runs).mean())
    means = [np.mean([rng.choice(runs[s], 50).mean() for s in rng.integers(0, 3, 3)]) for _ in range(10_000)]
    assert found[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1.0)
    pooled = estimates({"Pong": np.concatenate(runs)}).mean
    assert found.high - found.low > 2 * (pooled.high - pooled.low)


def test_runs_of_unequal_lengths() -> None:
    found = aggregate.estimates({"Pong": [np.zeros(1), np.full(30, 100.0)]})
    assert found.mean == pytest.approx((100 * 30 / 31, 0.0, 100.0))


def test_what_cannot_be_aggregated_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one game"):
        estimates({})
    for bad in ([], [1, np.nan], [[1, 2]]):
        with pytest.raises(ValueError, match="a run of Pong is not"):
            estimates({"Pong": bad})
    with pytest.raises(ValueError, match="same games of both, got Pong and Breakout"):
        improvement({"Pong": [1]}, {"Breakout": [1]})
    with pytest.raises(ValueError, match="at least one run of Pong"):
        aggregate.estimates({"Pong": []})


def test_rows_are_of_variants_that_played_every_game(tmp_path: Path) -> None:
    pong = game(tmp_path, "Pong", 10, {"kl": [[5, 15], [10, 10]], "mse": [[1, 1]]})
    games = {"Pong": pong, "Breakout": game(tmp_path, "Breakout", 100, {"kl": [[40, 60]]})}
    (found,) = aggregates(games)
    assert (found.variant, found.episodes) == ("kl", 6)
    assert found.scores.mean.value == pytest.approx(75)
    assert found.scores.optimality_gap.value == pytest.approx((50 / 4 + 50) / 2)
    assert found.improvement.value == pytest.approx(25)  # Pong: one lost, one won, two even; Breakout: lost
    assert found == aggregates(games)[0]
    hopeless = game(tmp_path, "Pong", 0, {"kl": [[5]]})
    with pytest.raises(ValueError, match=r"teacher of Pong scores 0\.00, no better than random"):
        aggregates({"Pong": hopeless})


def test_a_student_beats_its_teacher_as_often_whichever_seeds_it_is_measured_by(tmp_path: Path) -> None:
    teacher, chance = evaluated(tmp_path, "teacher", [10, 20, 90, 100]), evaluated(tmp_path, "random", [0, 0])
    student = evaluated(tmp_path, "student", [10, 20], variant="kl")
    (found,) = aggregates({"Pong": Game(teacher, chance, [student])})
    assert found.scores.mean.value == pytest.approx(100)  # by the teacher's first two
    assert found.improvement.value == pytest.approx(50)  # by the same: two lost or won, two even


def test_the_teacher_counts_once_where_one_run_has_played_more(tmp_path: Path) -> None:
    teacher, chance = evaluated(tmp_path, "teacher", [10, 10, 30, 30]), evaluated(tmp_path, "random", [0, 0])
    fewer, more = (
        evaluated(tmp_path, "student", returns, variant="kl", seed=seed, name=f"kl-{seed}")
        for seed, returns in enumerate(([20, 20], [20, 20, 20, 20]))
    )
    (found,) = aggregates({"Pong": Game(teacher, chance, [fewer, more])})
    assert found.improvement.value == pytest.approx(50)  # not of 10, 10, 10, 10, 30, 30


def test_the_teachers_own_row_is_par(tmp_path: Path) -> None:
    teacher, chance = evaluated(tmp_path, "teacher", [10, 100, 100, 190]), evaluated(tmp_path, "random", [0, 0])
    same = evaluated(tmp_path, "student", [10, 100, 100, 190], variant="kl")
    games = {"Pong": Game(teacher, chance, [same])}
    row, (student,) = par(games), aggregates(games)
    assert row.scores == student.scores
    assert (row.episodes, row.improvement.value) == (4, 50.0)
    assert row.scores.optimality_gap.value == pytest.approx(90 / 4)


def test_the_pages_hold_them(tmp_path: Path) -> None:
    games = {name: game(tmp_path, name, 10, {"kl": [[9, 9]]}) for name in ("Pong", "Breakout")}
    rows = aggregates(games)
    told = "90.0 [90.0, 90.0] | 90.0 [90.0, 90.0] | 90.0 [90.0, 90.0] | 10.0 [10.0, 10.0] | 0.0 [0.0, 0.0]"
    assert f"| kl | 4 | {told} |" in tables.aggregates(rows).markdown()
    assert told in reproduction.markdown(results(games, aggregates=rows))
    assert "IQM" not in reproduction.markdown(results(games))
    page = render([], results(games, aggregates=rows), {})
    assert page.count("<table>") == 2
    assert "10.0 [10.0,&nbsp;10.0]" in page
