"""Intervals: what the mean over episodes could have been with other episodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.seeding import stream

Statistic = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def interval(
    values: npt.ArrayLike, statistic: Statistic | None = None, *, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic` (default: the mean) over episodes.

    `statistic` maps (resamples, n) to (resamples,). Deterministic: the same values give the same interval.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or len(values_N) == 0:
        raise ValueError("an interval needs at least one episode")
    pick_RN = stream(0, "bootstrap").integers(0, len(values_N), size=(resamples, len(values_N)))
    drawn_RN = values_N[pick_RN]
    result_R = drawn_RN.mean(axis=1) if statistic is None else statistic(drawn_RN)
    low, high = np.quantile(result_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
