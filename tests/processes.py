"""The command line and a Dask cluster as processes of their own, to be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType


def start(folder: Path, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, *arguments: str) -> str:
    """Run `pd-pipeline ARGUMENTS` in `folder` to its end; returns what it said. AssertionError if it fails."""
    running = start(folder, arguments)
    _, said = running.communicate()
    assert running.returncode == 0, said
    return said


def kill(folder: Path, *arguments: str, once: str, later: float = 0.0) -> None:
    """Start `pd-pipeline ARGUMENTS` in `folder` and SIGKILL it and its workers `later` seconds after `once` matches."""
    running = start(folder, arguments)
    deadline = time.monotonic() + 120
    while not list(folder.glob(once)) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(folder.glob(once)), f"no {once} came"
    time.sleep(later)
    assert running.poll() is None, "it was over before it could be killed"
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()


class Cluster:
    """A Dask scheduler and two workers without nannies, each a process in a folder of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def _begin(self, name: str, *command: str) -> None:
        place = self.folder / name
        place.mkdir(exist_ok=True)
        with (place / "log").open("a") as log:
            self._running[name] = subprocess.Popen([sys.executable, "-m", *command], cwd=place, stdout=log, stderr=log)

    def ensure(self) -> None:
        """Start what is not running."""
        if not self._alive("scheduler"):
            self.kill(*list(self._running))  # workers of a dead scheduler
            told = self.folder / "scheduler.json"
            told.unlink(missing_ok=True)
            serve = ("--port", "0", "--no-dashboard", "--scheduler-file", str(told))
            self._begin("scheduler", "distributed.cli.dask_scheduler", *serve)
            deadline = time.monotonic() + 60
            while not (told.exists() and told.read_text().strip()) and time.monotonic() < deadline:
                time.sleep(0.1)
            self.address = json.loads(told.read_text())["address"]
        for name in ("first", "second"):
            if not self._alive(name):
                work = (self.address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
                self._begin(name, "distributed.cli.dask_worker", *work)

    def _alive(self, name: str) -> bool:
        return name in self._running and self._running[name].poll() is None

    def kill(self, *names: str) -> None:
        """SIGKILL these: "scheduler", "first", "second"."""
        for name in names:
            process = self._running.pop(name)
            process.kill()
            process.wait()

    def __enter__(self) -> "Cluster":
        self.ensure()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill(*list(self._running))
