"""Steadiness by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.report import tables
from pipeline.report.bootstrap import Values
from pipeline.report.online import Run, share_of_drop, share_within, steadiness, table


def constant(*return_P: float, episodes: int = 4) -> Values:
    """Every episode at a point returns the same."""
    return np.repeat(np.array(return_P)[:, None], episodes, axis=1)


def test_by_hand() -> None:
    found = steadiness(constant(0.0, 10.0, 4.0, 12.0), constant(0.0, 9.0, 9.0, 11.0))
    assert found.drop == 5.0
    assert found.area == 6.5
    assert found.change == pytest.approx(math.sqrt((10**2 + 6**2 + 8**2) / 3))
    assert steadiness(constant(5.0, 6.0), constant(4.0, 5.0)).drop == -1.0  # better than the best so far throughout
    with pytest.raises(ValueError, match="two at least"):
        steadiness(constant(1.0), constant(1.0))
    with pytest.raises(ValueError, match="two at least"):
        steadiness(constant(1.0, 2.0, episodes=1), constant(1.0, 2.0, episodes=1))


def test_each_half_of_the_episodes_measures_where_the_other_is_worst() -> None:
    below = np.array([[6.0, 2.0], [1.0, 4.0]])
    assert steadiness(-below, np.zeros((2, 2))).drop == (2.0 + 1.0) / 2


def test_the_drop_is_over_all_ways_to_halve_the_episodes() -> None:
    """Two of three ways find the first point worst, by 4, the third, as above, by 1.5. Their order is all the same."""
    below = np.array([[6.0, 2.0, 6.0, 2.0], [1.0, 4.0, 1.0, 4.0]])
    found = [steadiness(-below[:, order], np.zeros((2, 4))).drop for order in ([0, 1, 2, 3], [0, 2, 1, 3])]
    assert found == pytest.approx([(4.0 + 4.0 + 1.5) / 3] * 2, abs=0.1)


@pytest.mark.parametrize(
    ("episodes", "true", "found", "greatest"),
    [
        (50, 0.0, 0.0, 0.31),
        (50, 0.25, 0.07, 0.36),
        (50, 0.5, 0.30, 0.52),
        (50, 1.0, 0.97, 1.0),
        (200, 0.0, 0.0, 0.15),
        (200, 0.25, 0.14, 0.26),
        (200, 0.5, 0.48, 0.50),
        (200, 1.0, 1.0, 1.0),
    ],
)
def test_noise_is_no_drop_and_a_drop_like_the_noise_is_measured_as_less(
    monkeypatch: pytest.MonkeyPatch, episodes: int, true: float, found: float, greatest: float
) -> None:
    """Ten points of so many new episodes each, at one of them worse than the best by so many deviations of an episode: the drop
    as measured, and what the greatest difference of means would be. docs/distilling.md tells of these.
    """
    monkeypatch.setattr("pipeline.report.online.HALVINGS", 10)  # of how many it is the mean does not change what is expected
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 2, 10, episodes))
    noise[:, 1, 4] -= true
    assert np.mean([(best - own).mean(axis=1).max() for best, own in noise]) == pytest.approx(greatest, abs=0.02)
    assert np.mean([steadiness(own, best).drop for best, own in noise]) == pytest.approx(found, abs=0.02)


def run(seed: int, dropped: float) -> Run:
    return Run(
        game="Pong",
        seed=seed,
        frame_P=[1.0, 2.0],
        teacher_PN=constant(10.0, 10.0 - dropped),
        student_PN=constant(8.0, 9.0),
        best_P=[0, 0],
        last_N=np.array([5.0, 7.0]),
        best_N=np.array([9.0, 11.0]),
        student_N=np.array([8.0, 10.0]),
        random_N=np.array([-1.0, 1.0]),
        states=100,
    )


def test_a_student_that_never_learns_has_dropped() -> None:
    useless = replace(run(0, 4.0), student_PN=constant(0.0, 0.0))
    assert useless.steadiness("student").drop == 10.0
    assert share_of_drop([useless]) == 2.5
    assert share_of_drop([run(0, 0.0)]) == math.inf
    assert share_within([run(0, 0.0)]) == (math.inf, math.inf)
    assert table([run(0, 0.0)])[2][6] == "teachers did not drop"


def test_the_best_is_who_other_seeds_chose() -> None:
    risen = replace(run(0, -5.0), best_P=[0, 1])
    assert risen.returns("best").mean(axis=1).tolist() == [10.0, 15.0]
    assert risen.steadiness("teacher").drop == 0.0
    assert risen.steadiness("student").drop == 6.0


def test_a_drop_where_the_best_had_stood_leaves_out_where_it_had_just_changed() -> None:
    late = replace(
        run(0, 0.0),
        frame_P=[1.0, 2.0, 3.0],
        teacher_PN=constant(10.0, 20.0, 15.0),
        student_PN=constant(9.0, 11.0, 18.0),
        best_P=[0, 1, 1],
    )
    assert (late.steadiness("student").drop, late.drop_later("student")) == (9.0, 2.0)
    assert (late.steadiness("teacher").drop, late.drop_later("teacher")) == (5.0, 5.0)
    assert replace(late, best_P=[0, 1, 2]).drop_later("student") is None


def test_the_share_has_an_interval_over_episodes() -> None:
    rng = np.random.default_rng(1)
    noisy = replace(
        run(0, 8.0),
        teacher_PN=constant(10.0, 2.0, episodes=60) + rng.normal(size=(2, 60)),
        student_PN=constant(8.0, 9.0, episodes=60) + rng.normal(size=(2, 60)),
    )
    low, high = share_within([noisy])
    assert low < share_of_drop([noisy]) < high
    assert 0.0 < high - low < 0.3
    steady = replace(noisy, teacher_PN=noisy.teacher_PN + np.array([[0.0], [7.7]]))  # in some resamples it does not drop
    low, high = share_within([steady])
    assert low < math.inf == high
    assert table([steady])[2][6].endswith(", no end]")


def test_the_interval_of_the_share_covers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is the hardest: students that are worse at one point only, by half of an episode's deviation."""
    monkeypatch.setattr("pipeline.report.bootstrap.RESAMPLES", 200)
    teacher_P, best_P, behind_P = np.array([0, 8, 6, 9, 12, 10.5, 20, 15.0]), [0, 1, 1, 3, 4, 4, 6, 6], np.eye(8)[4]
    rng = np.random.default_rng(0)

    def drawn(seed: int) -> Run:
        student_P = teacher_P[best_P] - behind_P
        teacher_PN, student_PN = (mean_P[:, None] + rng.normal(scale=2.0, size=(8, 50)) for mean_P in (teacher_P, student_P))
        return replace(run(seed, 0.0), teacher_PN=teacher_PN, student_PN=student_PN, best_P=best_P)

    within = [share_within([drawn(seed) for seed in range(3)]) for _ in range(40)]
    assert sum(low <= 1.0 / 5.0 <= high for low, high in within) >= 38


def test_what_was_asked_is_open_until_all_seeds_are_there() -> None:
    runs = [run(0, 4.0), run(1, 16.0)]
    assert [row[3] for row in tables.bars_of_online(runs, ["Qbert-0"]).cells] == ["met", "missed"]
    assert [row[2:] for row in tables.bars_of_online(runs, ["Pong-2"]).cells] == [["0.200", "open"], ["90.0", "open"]]


def test_what_was_asked_is_of_the_means_over_seeds() -> None:
    met = tables.bars_of_online([run(0, 4.0), run(1, 16.0)]).cells  # drops of 2 and 2 beside 4 and 16
    assert met[0] == ["Pong: worst drop, of the teacher's", "at most 0.333", "0.200", "met"]
    assert met[1] == ["Pong: kept %", "at least 97.0", "90.0", "missed"]
    assert tables.bars_of_online([run(0, 4.0)]).cells[0][2:] == ["0.500", "missed"]
    steady = [run(0, 0.0), run(1, 16.0)]  # the first teacher never dropped
    assert tables.bars_of_online(steady).cells[0][2:] == ["0.250", "met"]
    assert tables.bars_of_online(steady[:1]).cells[0][2:] == ["teachers did not drop", "open"]  # of nothing
    assert tables.bars_of_online([replace(steady[0], student_PN=constant(10.0, 10.0))]).cells[0][2:] == ["0.000", "open"]
    hopeless = [run(0, 4.0), replace(run(1, 4.0), random_N=np.array([11.0]))]
    assert tables.bars_of_online(hopeless).cells[1][2:] == ["", "open"]


def test_what_the_episodes_do_not_tell_is_not_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.bootstrap.RESAMPLES", 1000)

    def noisy(seed: int, student: float, final: float) -> Run:
        rng = np.random.default_rng(seed)
        noise = [rng.normal(scale=4.0, size=(2, 60)) for _ in range(2)]
        return replace(
            run(seed, 8.0),
            teacher_PN=constant(10.0, 2.0, episodes=60) + noise[0],
            student_PN=constant(10.0, student, episodes=60) + noise[1],
            best_N=10.0 + rng.normal(size=200),
            student_N=final + rng.normal(size=200),
            random_N=np.zeros(4),
        )

    def held(student: float, final: float) -> list[str]:
        return [row[-1] for row in tables.bars_of_online([noisy(seed, student, final) for seed in range(3)]).cells]

    assert held(10.0, 10.0) == ["met", "met"]
    assert held(8.0, 9.75) == ["met, not surely", "met, not surely"]
    assert held(7.3, 9.65) == ["missed, not surely", "missed, not surely"]
    assert held(3.0, 9.0) == ["missed", "missed"]


def test_the_table_is_over_seeds() -> None:
    teacher, best, student = table([run(0, 4.0), run(1, 8.0)])
    same = "6.00 (4.00 to 8.00)"  # change, drop, and drop where the best had not just changed
    assert teacher[:7] == ["Pong", "teacher", "2", same, same, same, ""]
    assert teacher[8] == "6.00 (6.00 to 6.00)"
    assert best[3:5] == ["0.00 (0.00 to 0.00)", "0.00 (0.00 to 0.00)"]
    assert best[7:9] == ["10.00 (10.00 to 10.00)", "10.00 (10.00 to 10.00)"]
    assert student[3:6] == ["1.00 (1.00 to 1.00)", "2.00 (2.00 to 2.00)", "1.00 (1.00 to 1.00)"]
    assert student[6] == "0.33 [0.33, 0.33]"
    assert student[-2:] == ["90.00 (90.00 to 90.00)", "88.9 to 90.9"]  # each resample: 8/9, 9/10 or 10/11
    assert replace(run(0, 1.0), random_N=np.array([9.5])).kept is None
