"""A frame of a video: where its bars end and what colour they have."""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ImageColor

from pipeline.report.film import BAR, CHANCE, CHOSEN, LINE, drawn, shares, standing

ACTIONS = ["NOOP", "FIRE", "LEFT"]
SCREEN = np.full((210, 160, 3), 90, dtype=np.uint8)


def bars(picture: npt.NDArray[np.uint8], scale: int) -> list[tuple[int, str]]:
    """Length and colour of every action's bar, along its middle."""
    found = []
    names = {ImageColor.getrgb(colour): colour for colour in (BAR, CHOSEN, CHANCE)}
    for action in range(len(ACTIONS)):
        y = (210 + LINE * (action + 1) + LINE // 2) * scale
        row = [names[tuple(pixel)] for pixel in picture[y].tolist() if tuple(pixel) in names]
        found.append((len(row), row[0]))
        assert len(set(row)) == 1
    return found


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_bars_stand_between_the_least_and_the_greatest_q_value(scale: int) -> None:
    q_A = np.array([-1.0, 0.0, 1.0], dtype=np.float32)
    picture = drawn(SCREEN, q_A, ACTIONS, chosen=2, random=False, title="step 0", policy=False, scale=scale)
    assert picture.shape == ((210 + LINE * 4) * scale, 160 * scale, 3)
    assert (picture[: 210 * scale] == 90).all()
    (least, low), (middle, mid), (greatest, high) = bars(picture, scale)
    assert least < 3  # a line that says where bars begin
    assert middle * 2 == pytest.approx(greatest, abs=2)
    assert (low, mid, high) == (BAR, BAR, CHOSEN)


def test_bars_of_a_policy_are_its_probabilities_and_chance_has_a_colour_of_its_own() -> None:
    logit_A = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float32))
    picture = drawn(SCREEN, logit_A, ACTIONS, chosen=1, random=True, title="", policy=True)
    (half, _), (quarter, taken), (other, _) = bars(picture, 1)
    assert quarter == other
    assert quarter * 2 == pytest.approx(half, abs=2)
    assert taken == CHANCE


def test_the_longest_names_and_numbers_have_room() -> None:
    names = ["UP", "DOWNRIGHTFIRE", "DOWNLEFTFIRE"]
    value_A = np.array([-999.999, -0.00123, 0.0], dtype=np.float32)
    picture = drawn(SCREEN, value_A, names, chosen=0, random=False, title="", policy=False)
    dark = np.array(ImageColor.getrgb("#14181c"))
    beneath = picture[210 + LINE :].astype(int)
    assert (beneath[:, -1] == dark).all()
    long_bar = beneath[2 * LINE + LINE // 2]  # of the greatest value
    bar = np.flatnonzero((long_bar == ImageColor.getrgb(BAR)).all(axis=1))
    assert len(bar) > 25
    for line in range(3):  # neither a name nor a number reaches into where bars are
        row = beneath[line * LINE : (line + 1) * LINE]
        assert (row[:, bar[0] - 3] == dark).all()
        assert (row[:, bar[-1] + 2] == dark).all()


def test_outputs_of_any_size_are_drawn() -> None:
    for huge in (np.array([1e30, -1e30, 0], np.float32), np.zeros(3, np.float32)):
        for policy in (False, True):
            drawn(SCREEN, huge, ACTIONS, chosen=0, random=False, title="", policy=policy)
    assert shares(np.array([1000.0, 1000.0], np.float32)).tolist() == [0.5, 0.5]
    assert standing(np.zeros(2, np.float32)).tolist() == [0.0, 0.0]
