"""Where a student and its teacher disagree most: what the student prefers there costs most by the teacher's Q-values.

Dimensions: H W pixels, A actions.
"""

from __future__ import annotations

import heapq
import io
import itertools
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.report.film import drawn

APART: Final = 30
"""Agent steps of a stretch of play, two seconds: only the worst of each counts, or all would be of one moment."""


class Dispute(NamedTuple):
    """One state: the screen in colour, what both make of it, and the regret, in Q-values of the teacher."""

    step: int
    frame_HW3: npt.NDArray[np.uint8]
    teacher_A: npt.NDArray[np.float32]
    student_A: npt.NDArray[np.float32]

    @property
    def regret(self) -> float:
        """max Q - Q of the student's preferred action, both by the teacher."""
        return float(self.teacher_A.max() - self.teacher_A[self.student_A.argmax()])


def largest(moments: Iterable[Dispute], count: int) -> list[Dispute]:
    """The `count` of most regret, the worst first, at most one of each stretch; only those with any. `moments` are in order."""
    stretches = itertools.groupby(moments, key=lambda moment: moment.step // APART)
    worst = (max(stretch, key=lambda moment: moment.regret) for _, stretch in stretches)
    return heapq.nlargest(count, (moment for moment in worst if moment.regret > 0), key=lambda moment: moment.regret)


def picture(dispute: Dispute, actions: Sequence[str], *, policy: bool) -> bytes:
    """A PNG: the teacher's Q-values and preferred action, and beside them the student's (a `policy`'s are probabilities)."""
    sides = [
        drawn(
            *(dispute.frame_HW3, value_A, actions),
            chosen=int(value_A.argmax()),
            random=False,
            title=title,
            policy=logits,
        )
        for title, value_A, logits in (("teacher: Q", dispute.teacher_A, False), ("student", dispute.student_A, policy))
    ]
    told = io.BytesIO()
    Image.fromarray(np.concatenate(sides, axis=1)).save(told, "PNG", optimize=True)
    return told.getvalue()
