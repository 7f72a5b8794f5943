"""Steadiness by hand."""

import math
from dataclasses import replace

import pytest

from pipeline.report.online import Run, steadiness, table


def test_by_hand() -> None:
    found = steadiness([0.0, 10.0, 4.0, 12.0])
    assert found.drop == 6.0
    assert found.area == 6.5
    assert found.change == pytest.approx(math.sqrt((10**2 + 6**2 + 8**2) / 3))
    with pytest.raises(ValueError, match="two at least"):
        steadiness([1.0])


def test_the_table_is_over_seeds() -> None:
    def run(seed: int, dropped: float) -> Run:
        return Run(
            game="Pong",
            seed=seed,
            frame_P=[1.0, 2.0],
            teacher_P=[10.0, 10.0 - dropped],
            best_P=[10.0, 10.0],
            student_P=[8.0, 9.0],
            student_score=9.0,
            best_score=10.0,
            zero=0.0,
            episodes=2,
        )

    teacher, best, student = table([run(0, 4.0), run(1, 8.0)])
    assert teacher[:5] == ["Pong", "teacher", "2", "6.00 (4.00 to 8.00)", "6.00 (4.00 to 8.00)"]
    assert best[3:7] == ["0.00 (0.00 to 0.00)", "0.00 (0.00 to 0.00)", "10.00 (10.00 to 10.00)", "10.00 (10.00 to 10.00)"]
    assert student[3:5] == ["1.00 (1.00 to 1.00)", "0.00 (0.00 to 0.00)"]
    assert student[-1] == "90.00 (90.00 to 90.00)"
    assert replace(run(0, 1.0), best_score=0.0).kept is None
