"""A frame of a video: the screen, and beneath it what the agent thinks of each action and which it takes.

Dimensions: H W pixels, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

LINE: Final = 12
"""Pixels of a line of text at scale 1."""
NUMBER: Final = 42
"""Pixels of the longest number, -999.999, and what parts it from the bars."""
INK, SOFT, BAR, CHOSEN, CHANCE = "#e6e9ec", "#a3acb5", "#3f6f86", "#2fa4d7", "#e08a3c"


def drawn(
    frame_HW3: npt.NDArray[np.uint8],
    value_A: npt.NDArray[np.float32],
    actions: Sequence[str],
    *,
    chosen: int,
    random: bool,
    title: str,
    policy: bool,
    scale: int = 1,
) -> npt.NDArray[np.uint8]:
    """The picture (H, W, 3), both even. Bars are probabilities where the outputs are a `policy`'s logits, else Q-values between
    the least and the greatest of this state, and the numbers beside them those. The executed action is bright, orange where
    chance chose it.
    """
    height, width, _ = frame_HW3.shape
    line = LINE * scale
    picture = Image.new("RGB", (width * scale, height * scale + line * (len(actions) + 1)), "#14181c")
    screen = Image.fromarray(frame_HW3).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    picture.paste(screen, (0, 0))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=9 * scale)
    top = height * scale
    draw.text((2 * scale, top), title, SOFT, font)
    bar_A = shares(value_A) if policy else standing(value_A)
    number_A = bar_A if policy else value_A
    left = round(max(draw.textlength(name, font) for name in actions)) + 6 * scale
    longest = width * scale - left - NUMBER * scale
    for action, name in enumerate(actions):
        y = top + line * (action + 1)
        taken = action == chosen
        colour = (CHANCE if random else CHOSEN) if taken else BAR
        draw.text((2 * scale, y), name, INK if taken else SOFT, font)
        draw.rectangle((left, y + 3 * scale, left + int(bar_A[action] * longest), y + line - 2 * scale), fill=colour)
        number = f"{number_A[action]:.3f}" if abs(number_A[action]) < 1000 else f"{number_A[action]:.3g}"
        draw.text((width * scale - 2 * scale, y), number, INK if taken else SOFT, font, anchor="ra")
    return np.asarray(picture, dtype=np.uint8)


def shares(logit_A: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """softmax"""
    raised_A = np.exp(logit_A.astype(np.float64) - logit_A.max())
    return np.asarray(raised_A / raised_A.sum())


def standing(q_A: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Q-values between 0, the least, and 1, the greatest; over the last axis."""
    low, high = q_A.min(axis=-1, keepdims=True), q_A.max(axis=-1, keepdims=True)
    return np.asarray((q_A - low) / np.maximum(high - low, 1e-12), dtype=np.float64)
