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
    """An empty one in `folder`, which is made: what `git init` and `dvc init` make, without a second of waiting for DVC."""
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").touch()
    (folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (folder / ".dvcignore").touch()
    run(folder, "git", "init", "-q")
    return folder


def add_remotes(folder: Path, default: str, **remotes: dict[str, str]) -> None:
    """Write what `dvc remote add` and `dvc remote modify` would, at a second a command; `remotes` are the settings of each."""
    settings = {name: "".join(f"    {key} = {value}\n" for key, value in its.items()) for name, its in remotes.items()}
    sections = "".join(f"['remote \"{name}\"']\n{lines}" for name, lines in settings.items())
    (folder / ".dvc/config").write_text(f"[core]\n    remote = {default}\n{sections}")


def publish(folder: Path, path: str, tag: str) -> None:
    """Track `path` with DVC, commit everything else, tag it."""
    run(folder, "dvc", "add", "-q", path)
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-q", "-m", f"Collect {path}")
    run(folder, "git", "tag", tag)
