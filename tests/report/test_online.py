"""Steadiness by hand."""

import math

import pytest

from pipeline.report.online import Run, steadiness, table


def test_by_hand() -> None:
    found = steadiness([0.0, 10.0, 4.0, 12.0])
    assert found.drop == 6.0
    assert found.area == 6.5
    mean = (10 - 6 + 8) / 3
    assert found.change == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in (10, -6, 8)) / 3))
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
            episodes=2,
        )

    teacher, student = table([run(0, 4.0), run(1, 8.0)])
    assert teacher[:5] == ["Pong", "teacher", "2", "0.00 (0.00 to 0.00)", "6.00 (4.00 to 8.00)"]
    assert student[4] == "0.00 (0.00 to 0.00)"
    assert run(0, 1.0).kept == 90.0
