"""Play a student's first evaluation episode again and find where its teacher would have it act otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

import numpy as np
import torch

from pipeline.report.disputes import Dispute, largest
from pipeline.seeding import episode_seeds
from pipeline.watch import watch
from stages import params as settings
from stages.contest import find_contestant
from stages.paths import Layout

SHOWN: Final = 4
LONGEST: Final = 4500
"""Agent steps that are looked at, five minutes of play."""
BATCH: Final = 16
"""States that the teacher judges at once."""


def disputes(layout: Layout, params: settings.Params, game: str, student: str) -> list[Dispute]:
    """The states of the student's first evaluation episode with the largest regret by its game's teacher, worst first."""
    device = torch.device("cpu")
    who, teacher = (
        find_contestant(layout, params, agent, device, game, elsewhere=True) for agent in (student, f"teachers/{game}")
    )
    sights = islice(watch(game, who.environment, who.policy, episode_seeds("evaluate", params.evaluation.seed)), LONGEST)

    def moments() -> Iterator[Dispute]:
        first = 0
        while batch := list(islice(sights, BATCH)):
            q_BA = teacher.policy.q_values(np.stack([sight.obs_CHW for sight in batch]))
            for step, (sight, q_A) in enumerate(zip(batch, q_BA, strict=True), start=first):
                yield Dispute(step, sight.frame_HW3, q_A, sight.value_A)
            first += len(batch)

    return largest(moments(), SHOWN)
