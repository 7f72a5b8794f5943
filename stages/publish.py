"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.datasets.folders import Folder
from pipeline.progress import Progress
from stages.runlog import say


@contextmanager
def alone_in(work: Path, *, wait: bool = False) -> Iterator[Path]:
    """Make `work`, which it gives back, and keep other processes out of it: two would take each other's files away. ValueError
    if one is there, unless it is to `wait` for that.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise ValueError(f"another process works in {work}: wait for it, or stop it and run this again") from None
            say(f"another process works in {work}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield work


def replace_folder(finished: Path, target: Path) -> None:
    """Move `finished` to `target`, replacing what is there; from another file system it is first copied. A kill between
    two renames leaves the old one beside it, as .NAME.old, which is not removed before a new one is there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    moved = finished
    if finished.stat().st_dev != target.parent.stat().st_dev:
        moved = target.with_name(f".{target.name}.new")
        shutil.rmtree(moved, ignore_errors=True)
        shutil.copytree(finished, moved)
    retired = target.with_name(f".{target.name}.old")
    if target.exists():
        shutil.rmtree(retired, ignore_errors=True)
        target.rename(retired)
    try:
        moved.rename(target)
    except OSError:
        if retired.exists():
            retired.rename(target)
        raise
    for rest in (retired, finished):
        shutil.rmtree(rest, ignore_errors=True)


def check_target(target: Folder, mark: str, what: str) -> None:
    """ValueError if `target` is something else than a folder that holds `mark`, or is to be: nobody's files are replaced."""
    if target.local is not None:
        foreign = target.local.exists() and (target.local.is_file() or any(target.local.iterdir()))
    else:
        foreign = bool(target.files())
    if foreign and not target.exists(mark):
        raise ValueError(f"{target} holds something that is not {what}: choose another --out or empty it")


def upload_folder(finished: Path, target: Folder, mark: str) -> Iterator[Progress]:
    """Make `target` what `finished` is. `mark`, which tells the SHA-256 of every file, comes last: without it readers take it
    for unfinished. What is there already, by its own mark, is not sent again; what is new there, before the old mark goes.
    """
    source = Folder(finished)
    wanted: dict[str, str] = json.loads(source.read(mark))["files"]
    there: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        there = json.loads(target.read(mark))["files"]
    others = [name for name, sha256 in wanted.items() if there.get(name) != sha256]
    new = sorted(name for name in others if name not in there)
    changed = sorted(name for name in others if name in there)
    names = [*new, *changed, mark]
    for done, name in enumerate(names, start=1):
        if name == (changed or [mark])[0]:
            target.remove(mark)
            for foreign in set(target.files()) - wanted.keys():
                target.remove(foreign)
        target.write(name, source.read(name))
        yield Progress(done=done, total=len(names), unit="files", metrics={})


@contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """Write to the path this yields; it becomes `target` by one rename when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """A resumable run's state, by one rename; a full disk is an OSError and leaves the last state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replaced_file(path) as part:
        part.write_bytes(buffer.getbuffer())


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or None if there is nothing; only tensors and plain values are ever loaded. ValueError if it is
    something else.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of a file that is something else, torch's reader raises anything
        raise ValueError(
            f"{path} is not a checkpoint of ours ({type(error).__name__}), or is damaged: remove it, or begin from another"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint of ours: it holds a {type(state).__name__}")
    return state


@contextmanager
def resuming(checkpoint: Path) -> Iterator[None]:
    """Take over what `load_state` found. ValueError where another version of this program saved something else."""
    try:
        yield
    except (KeyError, RuntimeError) as error:
        if type(error) not in (KeyError, RuntimeError):  # a full GPU, say, which is no fault of the checkpoint
            raise
        told = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise ValueError(f"{checkpoint} is another version's ({told}): go on with that, or remove it to start afresh") from None


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV, for DVC plots; columns are the union of the rows' keys, empty where a row has none."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
