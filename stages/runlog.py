"""What a person sees while a stage runs: a bar with rate and time left on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import atexit
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipeline.progress import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LINE_EVERY_SECONDS = 30.0

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line to the user, on stderr: stdout is for results."""
    console.print(message, markup=False, soft_wrap=True)


_events: Path | None = None
_writers: dict[str, SummaryWriter] = {}


def record_in(folder: Path) -> None:
    """From now on what learning measures is also written there, as TensorBoard events, a run per title."""
    global _events  # noqa: PLW0603
    if find_spec("tensorboard") is None:
        raise ValueError("--tensorboard wants the package tensorboard, which is not installed: pip install tensorboard")
    _events = folder


def mark(title: str, done: int, metrics: Mapping[str, float]) -> None:
    """Record what was measured at this step or update of what learns under `title`, if `record_in` asked for it."""
    if _events is None:
        return
    from torch.utils.tensorboard import SummaryWriter

    if title not in _writers:  # one file for each: a reader leaves a file as soon as there is a newer one
        _writers[title] = SummaryWriter(_events / re.sub(r"[^\w.@-]+", "-", title))
        atexit.register(_writers[title].close)
    for metric, value in metrics.items():
        _writers[title].add_scalar(metric, value, done)
    _writers[title].flush()


def duration(seconds: float) -> str:
    """1:02:03, or 2:03."""
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


class Stopped(KeyboardInterrupt):
    """The user asked to stop, and what learns is between two yields, where its state is consistent."""


@contextmanager
def saved_when_stopped(save: Callable[[], None], reached: Callable[[], str]) -> Iterator[None]:
    """Save where the user stopped at a yield, and tell how far it came. Any other interrupt may come in the middle of an
    update: then the last checkpoint is what the same command goes on from.
    """
    try:
        yield
    except Stopped:
        save()
        say(f"stopped at {reached()}; the same command goes on from there")
        raise


@contextmanager
def stop_at_next_yield() -> Iterator[Callable[[], bool]]:
    """Ctrl-C, SIGTERM and a closed terminal wait for the next yield, where state is consistent and can be saved; a second
    Ctrl-C does not wait.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        del frame
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        say("stopping at the next safe point ...")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asking = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it goes on
        asking.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in asking}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(
    progress: Iterable[Progress], title: str, metrics: tuple[str, ...] = (), *, learning: bool = False
) -> Generator[Progress, None, None]:
    """Pass `progress` through, drawing it. `metrics` are the names to print beside the bar; those of what is `learning` are
    marked as well.

    Raises Stopped between two yields when the user asked to stop: the place to save and leave. A generator is closed with
    this one, or it would tidy up when it is collected as garbage, after what it works with has gone.
    """
    started = time.monotonic()
    last_line = started
    first: int | None = None
    with ExitStack() as ending, stop_at_next_yield() as stopping, _bar() as bar:
        if isinstance(progress, Generator):
            ending.callback(progress.close)
        task = bar.add_task(title, total=None, note="") if bar else None
        for p in progress:
            first = p.done if first is None else first
            now = time.monotonic()
            rate = (p.done - first) / max(1e-9, now - started)
            numbers = " ".join(f"{name} {p.metrics[name]:.4g}" for name in metrics if name in p.metrics)
            pace = f"{rate:,.0f} {p.unit}/s" if rate >= 1 else f"{rate * 3600:,.0f} {p.unit}/h" if rate else ""
            note = f"{pace} {numbers}".strip()
            if bar and task is not None:
                bar.update(task, completed=p.done, total=p.total, note=note)
            elif now - last_line >= LINE_EVERY_SECONDS or p.done >= p.total:
                last_line = now
                left = f"{duration((p.total - p.done) / rate)} left" if rate else ""
                say(", ".join(filter(None, (f"{title}: {p.done:,}/{p.total:,} {p.unit}", note, left))))
            if learning:
                mark(title, p.done, p.metrics)
            yield p
            if stopping():
                raise Stopped


@contextmanager
def _bar() -> Iterator[Bar | None]:
    if not sys.stderr.isatty():
        yield None
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Bar(*columns, console=console) as bar:
        yield bar
