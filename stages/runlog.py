"""What a person sees while a stage runs: a bar with rate and time left on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipeline.progress import Progress

LINE_EVERY_SECONDS = 30.0

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line to the user, on stderr: stdout is for results."""
    console.print(message, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """1:02:03, or 2:03."""
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def show(progress: Iterable[Progress], title: str, metrics: tuple[str, ...] = ()) -> Iterator[Progress]:
    """Pass `progress` through, drawing it. `metrics` are the names to print beside the bar."""
    started = time.monotonic()
    first: int | None = None
    last_line = started

    def text(p: Progress) -> tuple[float, str]:
        elapsed = max(1e-9, time.monotonic() - started)
        rate = (p.done - (first or 0)) / elapsed
        shown = " ".join(f"{name} {p.metrics[name]:.4g}" for name in metrics if name in p.metrics)
        return rate, f"{rate:,.0f} {p.unit}/s {shown}"

    if sys.stderr.isatty():
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
        with Bar(*columns, console=console) as bar:
            task = bar.add_task(title, total=None, note="")
            for p in progress:
                first = p.done if first is None else first
                bar.update(task, completed=p.done, total=p.total, note=text(p)[1])
                yield p
        return
    for p in progress:
        first = p.done if first is None else first
        now = time.monotonic()
        if now - last_line >= LINE_EVERY_SECONDS or p.done >= p.total:
            last_line = now
            rate, note = text(p)
            left = (p.total - p.done) / rate if rate > 0 else math.inf
            say(f"{title}: {p.done:,}/{p.total:,} {p.unit}, {note}, {duration(left)} left")
        yield p
