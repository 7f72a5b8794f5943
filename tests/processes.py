"""The command line as a process of its own, to be killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def _start(folder: Path, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
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
    running = _start(folder, arguments)
    _, said = running.communicate()
    assert running.returncode == 0, said
    return said


def kill(folder: Path, *arguments: str, once: str, later: float = 0.0) -> None:
    """Start `pd-pipeline ARGUMENTS` in `folder` and SIGKILL it and its workers `later` seconds after `once` matches."""
    running = _start(folder, arguments)
    deadline = time.monotonic() + 120
    while not list(folder.glob(once)) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(folder.glob(once)), f"no {once} came"
    time.sleep(later)
    assert running.poll() is None, "it was over before it could be killed"
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
