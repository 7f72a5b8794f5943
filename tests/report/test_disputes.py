"""The states in which student and teacher disagree most, and their pictures."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.report.disputes import APART, Dispute, largest, picture
from pipeline.report.film import LINE

FRAME = np.zeros((210, 160, 3), dtype=np.uint8)


def moment(step: int, teacher: Sequence[float], preferred: int) -> Dispute:
    student_A = np.zeros(len(teacher), dtype=np.float32)
    student_A[preferred] = 1.0
    return Dispute(step, FRAME, np.array(teacher, dtype=np.float32), student_A)


def test_regret_is_what_the_students_choice_costs_by_the_teacher() -> None:
    assert moment(0, [1.0, 3.0, 2.5], 2).regret == pytest.approx(0.5)
    assert moment(0, [1.0, 3.0, 2.5], 1).regret == 0


def test_the_worst_of_each_stretch_worst_first() -> None:
    play = [moment(step, [0, 1 + step % APART], 0) for step in range(3 * APART)]
    play[5] = moment(5, [0, 1000], 0)
    play[2 * APART + 1] = moment(2 * APART + 1, [0, 500], 0)
    assert [found.step for found in largest(iter(play), 4)] == [5, 2 * APART + 1, 2 * APART - 1]
    assert [found.step for found in largest(iter(play), 1)] == [5]


def test_where_they_agree_there_is_no_dispute() -> None:
    assert largest(iter([moment(step, [0, 1], 1) for step in range(100)]), 4) == []
    assert largest(iter([]), 4) == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 10), max_size=200), st.integers(1, 6))
def test_of_any_play(regrets: list[float], count: int) -> None:
    found = largest(iter([moment(step, [0, regret], 0) for step, regret in enumerate(regrets)]), count)
    told = [dispute.regret for dispute in found]
    assert told == sorted(told, reverse=True)
    assert len({dispute.step // APART for dispute in found}) == len(found) <= count
    if regrets and max(np.float32(r) for r in regrets) > 0:
        assert told[0] == max(np.float32(r) for r in regrets)


@pytest.mark.parametrize("policy", [False, True])
def test_the_picture_shows_both(policy: bool) -> None:
    png = picture(moment(3, [0.0, 1.0, 0.2], 2), ["NOOP", "UP", "DOWN"], policy=policy)
    with Image.open(io.BytesIO(png)) as seen:
        assert seen.format == "PNG"
        assert seen.size == (320, 210 + 4 * LINE)
