"""What the pictures of a policy's evolution say, and which states they show."""

import numpy as np
import pytest

from pipeline.report.evolution import render
from pipeline.report.film import standing
from stages.show_history import decisive


def test_standing_is_between_the_least_and_the_most_valued() -> None:
    found = standing(np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]], dtype=np.float32))
    assert found.tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("preferred", "story"),
    [
        ([0, 1, 0, 0], "UP has been preferred since step 30; the preference changed 2 times."),
        ([1, 1, 1, 0], "UP has been preferred since step 40; the preference changed once."),
        ([1, 1, 1, 1], "DOWN has been preferred since step 10; the preference never changed."),
    ],
)
def test_the_page_tells_since_when(preferred: list[int], story: str) -> None:
    q_PSA = np.eye(2, dtype=np.float32)[preferred][:, None]
    page = render("title", {}, np.zeros((1, 84, 84), np.uint8), q_PSA, [10, 20, 30, 40], ["UP", "DOWN"], ["a state"])
    assert story in page


def test_actions_take_turns_where_they_matter_most() -> None:
    q_NA = np.array([[9, 0], [5, 0], [0, 3], [7, 0], [0, 2], [8, 0], [1, 0], [4, 0]], dtype=np.float32)

    def chosen(count: int, *blank: int) -> list[int]:
        return decisive(q_NA, count, lambda step: step not in blank)

    assert chosen(2) == [0, 4]  # step 5 stands out more, but is the first action's again
    assert chosen(4) == [0, 2, 5, 7]  # nobody prefers the second in the last two
    assert chosen(100) == list(range(8))
    assert chosen(2, 0, 4) == [3, 5]
    assert chosen(2, *range(8)) == [0, 4]
