"""Steadiness by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.report import tables
from pipeline.report.online import Run, steadiness, table


def test_by_hand() -> None:
    found = steadiness([0.0, 10.0, 4.0, 12.0], [0.0, 9.0, 9.0, 11.0])
    assert found.drop == 5.0
    assert found.area == 6.5
    assert found.change == pytest.approx(math.sqrt((10**2 + 6**2 + 8**2) / 3))
    assert steadiness([5.0, 6.0], [4.0, 5.0]).drop == 0.0
    with pytest.raises(ValueError, match="two at least"):
        steadiness([1.0], [1.0])


def run(seed: int, dropped: float) -> Run:
    return Run(
        game="Pong",
        seed=seed,
        frame_P=[1.0, 2.0],
        teacher_P=[10.0, 10.0 - dropped],
        best_P=[10.0, 10.0],
        student_P=[8.0, 9.0],
        last_N=np.array([5.0, 7.0]),
        best_N=np.array([9.0, 11.0]),
        student_N=np.array([8.0, 10.0]),
        random_N=np.array([-1.0, 1.0]),
        states=100,
    )


def test_a_student_that_never_learns_has_dropped() -> None:
    useless = replace(run(0, 4.0), student_P=[0.0, 0.0])
    assert useless.steadiness("student").drop == 10.0
    assert useless.share_of_drop == 2.5
    assert run(0, 0.0).share_of_drop is None


def test_what_was_asked_is_of_the_mean_over_seeds() -> None:
    met = tables.bars_of_online([run(0, 4.0), run(1, 16.0)]).cells  # shares of the drop: 0.5 and 0.125
    assert met[0] == ["Pong: worst drop, of the teacher's", "at most 0.333", "0.312", "met"]
    assert met[1] == ["Pong: kept %", "at least 97.0", "90.0", "missed"]
    assert tables.bars_of_online([run(0, 4.0)]).cells[0][2:] == ["0.500", "missed"]
    steady = [run(0, 0.0), run(1, 16.0)]  # where its teacher never dropped, the student has
    assert tables.bars_of_online(steady).cells[0][2:] == ["inf", "missed"]
    assert tables.bars_of_online([replace(steady[0], student_P=[10.0, 10.0])]).cells[0][2:] == ["0.000", "met"]
    hopeless = [run(0, 4.0), replace(run(1, 4.0), random_N=np.array([11.0]))]
    assert tables.bars_of_online(hopeless).cells[1][2:] == ["", "open"]


def test_the_table_is_over_seeds() -> None:
    teacher, best, student = table([run(0, 4.0), run(1, 8.0)])
    assert teacher[:6] == ["Pong", "teacher", "2", "6.00 (4.00 to 8.00)", "6.00 (4.00 to 8.00)", ""]
    assert teacher[7] == "6.00 (6.00 to 6.00)"
    assert best[3:5] == ["0.00 (0.00 to 0.00)", "0.00 (0.00 to 0.00)"]
    assert best[6:8] == ["10.00 (10.00 to 10.00)", "10.00 (10.00 to 10.00)"]
    assert student[3:6] == ["1.00 (1.00 to 1.00)", "2.00 (2.00 to 2.00)", "0.38 (0.25 to 0.50)"]
    assert student[-2:] == ["90.00 (90.00 to 90.00)", "88.9 to 90.9"]  # each resample: 8/9, 9/10 or 10/11
    assert replace(run(0, 1.0), random_N=np.array([9.5])).kept is None
    _, _, student = table([run(0, 4.0), run(1, 0.0), run(2, 8.0)])  # the second teacher never dropped
    assert student[5] == "0.38 (0.25 to 0.50), 2 of 3 seeds"
