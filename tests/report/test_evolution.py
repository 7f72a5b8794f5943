"""What the pictures of a policy's evolution say."""

import numpy as np

from pipeline.report.evolution import render
from pipeline.report.film import standing


def test_standing_is_between_the_least_and_the_most_valued() -> None:
    found = standing(np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]], dtype=np.float32))
    assert found.tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]


def test_the_page_tells_since_when() -> None:
    q_PSA = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]], [[2.0, 0.0]]], dtype=np.float32)
    page = render("title", {}, np.zeros((1, 84, 84), np.uint8), q_PSA, [10, 20, 30, 40], ["UP", "DOWN"], ["a state"])
    assert "UP has been preferred since step 30; the preference changed 2 times." in page
