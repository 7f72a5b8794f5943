"""The Dask cluster that a stage's work is spread over: one that is there, or one of this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import dask
from distributed import CancelledError, Client, KilledWorker, LocalCluster
from distributed.comm.core import CommClosedError

from stages.runlog import say

CONNECT_SECONDS: Final = 30.0


@contextmanager
def cluster(scheduler: str | None, workers: int) -> Iterator[Client]:
    """A client of the cluster at `scheduler`, or of one of so many `workers` on this machine. Tells where it can be watched.

    ValueError if there is none, or if it fails while it is used.
    """
    with ExitStack() as stack:
        # Blocks dropped at the end, blocks that failed and lost connections are told by us, in one line.
        for name in ("distributed", "distributed.client", "distributed.core"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if scheduler is None:
            settings = {
                "distributed.admin.tick.limit": "1h",
                "distributed.worker.profile.enabled": False,  # it interrupts what plays: a twentieth of the time
                "logging.distributed": "critical",
            }
            stack.enter_context(dask.config.set(settings))
            local = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL)
            client = stack.enter_context(Client(stack.enter_context(local)))
        else:
            try:
                client = stack.enter_context(Client(scheduler, timeout=CONNECT_SECONDS))
            except (OSError, ValueError) as error:
                remedy = "start one with `dask scheduler`"
                raise ValueError(f"no Dask scheduler answers at {scheduler} ({error}): {remedy}") from None
        threads = sum(client.nthreads().values())
        say(f"{threads or 'no'} workers{'' if threads else ' yet'}, dashboard {client.dashboard_link}")
        try:
            yield client
        except KilledWorker:
            raise ValueError("a worker died again and again, most likely for want of memory: use fewer --workers") from None
        except (CancelledError, CommClosedError):
            where = scheduler or "on this machine"
            raise ValueError(f"the Dask scheduler {where} went away: start it again, the same command goes on") from None
