"""Alternate the things compared, so that a machine's drift falls on all of them, and report medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def rates(tasks: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median items per second of each task over `rounds` interleaved rounds, after one that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            items = task()
            if turn:
                taken[name].append(items / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in taken.items()}
