"""What every long library function yields: how far it is, and numbers worth showing. Bars and logs are the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Progress(NamedTuple):
    """`done` of `total` `unit`s (steps, updates, states, episodes); `metrics` are this moment's numbers."""

    done: int
    total: int
    unit: str
    metrics: Mapping[str, float]
