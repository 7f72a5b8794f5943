"""The cores that this process may use, which are not always all of the machine's."""

from __future__ import annotations

import os


def cores() -> tuple[int, ...]:
    """Their numbers; where the system does not tell (macOS), those of all."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def core_count() -> int:
    """How many of them it may keep busy: a container's quota is less than its cores, and takes none of them away."""
    from dask.system import cpu_count

    return cpu_count()
