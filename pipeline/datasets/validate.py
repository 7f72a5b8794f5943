"""Does a dataset make sense: what no digest can tell, from its records alone.

Dimensions: N steps, A actions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.datasets.reader import Dataset
from pipeline.datasets.schema import EpisodeRow, Flag, Records
from pipeline.progress import Progress


def validate(dataset: Dataset, faults: list[str]) -> Iterator[Progress]:
    """Appends one line per fault to `faults`, yielding per episode.

    Each episode begins and ends where its flags say, no two are the same; returns are the sums of
    rewards; actions exist; Q-values are finite and tell actions apart; frames change.
    """
    seen: dict[str, int] = {}
    for index, records in dataset.by_episode():
        row = dataset.episodes[index]

        def fault(text: str, index: int = index, row: EpisodeRow = row) -> None:
            faults.append(f"dataset {dataset.folder}: episode {index} (seed {row.seed}): {text}")

        if row.sha256 in seen:
            fault(f"has the same records as episode {seen[row.sha256]}")
        seen.setdefault(row.sha256, index)
        if isinstance(records, str):
            faults.append(records)
        else:
            for text in _faults(row, records):
                fault(text)
        yield Progress(done=index + 1, total=len(dataset.episodes), unit="episodes", metrics={})


def _faults(row: EpisodeRow, records: Records) -> Iterator[str]:
    if records.steps != row.length:
        yield f"has {records.steps:,} steps, the table says {row.length:,}"
    yield from _boundary_faults(row, records.flags_N)
    yield from _label_faults(records)
    if (odd := np.flatnonzero(~np.isfinite(records.reward_N))).size:
        yield f"step {odd[0]:,} has a reward that is not finite"
    else:
        yield from return_faults(row, records.reward_N)
    if records.steps > 1 and (records.frame_NHW == records.frame_NHW[0]).all():
        yield "shows the same frame at every step"


def _boundary_faults(row: EpisodeRow, flags_N: npt.NDArray[np.uint8]) -> Iterator[str]:
    last = len(flags_N) - 1
    if (unknown := np.flatnonzero(flags_N & ~np.uint8(sum(Flag)))).size:
        yield f"step {unknown[0]:,} has unknown flags {int(flags_N[unknown[0]]):#x}"
    for flag, expected in (
        (Flag.EPISODE_START, [0]),
        (Flag.TERMINATED, [last] if row.terminated else []),
        (Flag.TRUNCATED, [last] if row.truncated else []),
    ):
        found = np.flatnonzero(flags_N & flag).tolist()
        if found != expected:
            yield f"{flag.name} is set at steps {found[:3]}, should be at {expected}"
    if (row.terminated or row.truncated) != row.complete:
        yield f"complete is {row.complete}, but terminated is {row.terminated} and truncated is {row.truncated}"


def _label_faults(records: Records) -> Iterator[str]:
    q_NA = records.q_NA
    yield from (f"step {step:,} {text}" for step, text in action_faults(records.action_N, q_NA.shape[1]))
    if (odd := np.flatnonzero(~np.isfinite(q_NA).all(axis=1))).size:
        yield f"step {odd[0]:,} has a Q-value that is not finite"
    elif q_NA.shape[1] > 1 and (q_NA == q_NA[:, :1]).all():
        yield "has one Q-value for all actions in every state"
    elif len(q_NA) > 1 and (q_NA == q_NA[0]).all():
        yield "has the same Q-values in every state"


def return_faults(row: EpisodeRow, reward_N: npt.NDArray[np.float32]) -> Iterator[str]:
    """That an episode's return is not the sum of its rewards: no digest covers the return, and much is told by it."""
    with np.errstate(invalid="ignore"):  # of infinities, which `validate` reports
        total = float(reward_N.sum(dtype=np.float64))
    if not np.isclose(total, row.episode_return, rtol=1e-9, atol=1e-6, equal_nan=True):
        yield f"its rewards sum to {total:g}, the table says {row.episode_return:g}"


def action_faults(action_N: npt.NDArray[np.uint8], actions: int) -> Iterator[tuple[int, str]]:
    """The first step whose action is none of the game's, and what to say of it."""
    if (odd := np.flatnonzero(action_N >= actions)).size:
        yield int(odd[0]), f"has action {action_N[odd[0]]}, there are {actions}"
