"""Real Git and DVC repositories."""

import os
import subprocess
import sys
from pathlib import Path


def run(folder: Path, *command: str) -> None:
    """Run a command there, as somebody. AssertionError with what it said if it fails."""
    who = {f"GIT_{role}_{field}": "a@a" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | who | path)
    assert done.returncode == 0, done.stderr


def new_repository(folder: Path) -> Path:
    """An empty one in `folder`, which is made."""
    folder.mkdir(parents=True)
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    return folder


def publish(folder: Path, path: str, tag: str) -> None:
    """Track `path` with DVC, commit everything else, tag it."""
    run(folder, "dvc", "add", "-q", path)
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-q", "-m", f"Collect {path}")
    run(folder, "git", "tag", tag)
