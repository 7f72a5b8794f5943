"""Intervals: what the mean over episodes could have been with other episodes.

Dimensions: N episodes, R resamples.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.seeding import stream

RESAMPLES: Final = 10_000
Values = npt.NDArray[np.float64]


def resampled_means(values: npt.ArrayLike, name: str = "episodes") -> Values:
    """Means (R,) of bootstrap resamples. Equal lengths and names resample the same positions: that is what pairs two agents."""
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or len(values_N) == 0:
        raise ValueError("an interval needs at least one episode")
    pick_RN = stream(0, "bootstrap", name).integers(0, len(values_N), size=(RESAMPLES, len(values_N)))
    return np.asarray(values_N[pick_RN].mean(axis=1))


def resampled_counts(episodes: int, name: str) -> Values:
    """How often each of so many episodes is in each bootstrap resample (R, N)."""
    counts_RN = stream(0, "bootstrap", name).multinomial(episodes, np.full(episodes, 1 / episodes), size=RESAMPLES)
    return counts_RN.astype(np.float64)


def percentiles(drawn_R: Values) -> tuple[float, float]:
    """The 95 % percentile interval of resampled numbers."""
    low, high = np.quantile(drawn_R, [0.025, 0.975])
    return float(low), float(high)


def interval(values: npt.ArrayLike) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean. Deterministic: the same values give the same interval."""
    return percentiles(resampled_means(values))
