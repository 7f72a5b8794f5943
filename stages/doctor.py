"""doctor: what this machine and checkout have, what will be slow or fail for it, and what to do about that."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pipeline.cores import core_count
from stages.versions import code_version, processor

Verdict = Literal["good", "note", "slow", "bad"]
PACKAGES: Final = ("torch", "ale-py", "gymnasium", "zarr", "zarrs", "dask", "pyarrow", "dvc")
DATASET_GB: Final = 4
"""Disk that the datasets of experiments/paper and their students take, with what is being written."""
MEMORY_GB: Final = 8
"""What a run of the quick road is comfortable with."""
PROBE_SECONDS: Final = 0.5


class Finding(NamedTuple):
    """One thing looked at. `remedy` says what its being slow or bad means and what helps, if anything does."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def run(root: Path, *, as_json: bool) -> tuple[str, bool]:
    """What to print, and whether nothing is bad."""
    findings = list(examine(root))
    fine = all(finding.verdict != "bad" for finding in findings)
    if as_json:
        return json.dumps([finding._asdict() for finding in findings], indent=2), fine
    width = max(len(finding.name) for finding in findings) + 2
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:6}{finding.name:{width}}{finding.found}")
        if finding.remedy:
            lines.append(" " * (width + 6) + finding.remedy)
    return "\n".join(lines), fine


def examine(root: Path) -> Iterator[Finding]:
    """All findings, in the order in which they are read."""
    yield _python()
    yield from (_package(name) for name in PACKAGES)
    yield Finding("code", "good", "{version}, revision {revision}".format(**code_version()))
    yield _cores()
    yield _memory()
    if find_spec("torch") is not None:
        yield from _torch()
    yield _disk(root)
    yield _program("ffmpeg", _ffmpeg, "clips and films cannot be written: pip install imageio-ffmpeg")
    yield _program("git", lambda: _said("git", "--version"), "DVC works only in a git checkout: install git")
    yield _remote(root)
    yield _chromium()


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info[:2] == (3, 11)
    return Finding("Python", "good" if fine else "bad", found, "" if fine else "3.11 is wanted: make setup PYTHON=python3.11")


def _package(name: str) -> Finding:
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "bad", "not installed", "make setup installs it")
    pinned = _pins().get(name)
    if pinned and found.partition("+")[0] != pinned:
        remedy = f"constraints.txt pins {pinned}, which the data and tests are from: make setup"
        return Finding(name, "note" if name != "ale-py" else "bad", found, remedy)
    return Finding(name, "good", found)


def _pins() -> dict[str, str]:
    path = Path(__file__).parent.parent / "constraints.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", "\n".join(lines), re.MULTILINE))


def _cores() -> Finding:
    count = core_count()
    remedy = "" if count > 1 else "collecting and teachers' play want two: everything takes about twice as long"
    return Finding("cores", "good" if count > 1 else "slow", f"{count}, {processor()}", remedy)


def _memory() -> Finding:
    from distributed.system import memory_limit

    total = memory_limit() / 1e9  # a container's, where it has one
    remedy = (
        ""
        if total >= MEMORY_GB
        else f"less than {MEMORY_GB}: give students `memory_gb` in their preset, and collect with fewer --workers"
    )
    return Finding("memory", "good" if total >= MEMORY_GB else "slow", f"{total:.1f} GB", remedy)


def _torch() -> Iterator[Finding]:
    """Threads, bfloat16, the GPU."""
    import torch

    threads, count = torch.get_num_threads(), core_count()
    remedy = f"more than the {count} cores: unset OMP_NUM_THREADS" if threads > count else ""
    yield Finding("threads of torch", "slow" if remedy else "good", str(threads), remedy)
    yield _bfloat16()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: everything runs on the CPU"
    yield Finding("GPU", "good", gpu)


def _bfloat16() -> Finding:
    """Whether learning on the CPU is in bfloat16, and how fast that is beside float32, measured."""
    import torch

    from pipeline.agents.device import learning

    if learning(torch.device("cpu"), "bfloat16").precision == "float32":
        remedy = "all learn in float32 instead; from AVX512 on, a CPU has them and learns faster, as does a GPU"
        return Finding("bfloat16", "slow", "this CPU has no instructions for it", remedy)
    ratio = _seconds(torch.float32) / _seconds(torch.bfloat16)
    remedy = "give students' and teachers' presets `precision: float32`"
    return Finding(
        "bfloat16", "good" if ratio > 1.0 else "slow", f"{ratio:.1f}x as fast as float32", "" if ratio > 1.0 else remedy
    )


def _seconds(dtype: Any) -> float:
    """Of one 512 x 512 product."""
    import torch

    x = torch.ones((512, 512), dtype=dtype)
    x @ x
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < PROBE_SECONDS / 2:
        x @ x
        rounds += 1
    return (time.perf_counter() - began) / rounds


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free / 1e9
    remedy = (
        "" if free >= DATASET_GB else f"the paper's four datasets want {DATASET_GB}: free some, or collect with --out s3://..."
    )
    return Finding("disk", "good" if free >= DATASET_GB else "note", f"{free:.1f} GB free at {root.resolve()}", remedy)


def _program(name: str, look: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(name, "good", look())
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError):
        return Finding(name, "bad", "not there", remedy)


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_version())


def _said(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()


def _remote(root: Path) -> Finding:
    try:
        _said(sys.executable, "-m", "dvc", "root", cwd=root)
        remotes = _said(sys.executable, "-m", "dvc", "remote", "list", cwd=root)
    except (OSError, subprocess.CalledProcessError):
        return Finding(
            "DVC", "bad", f"{root.resolve()} is no DVC project", "`git init && dvc init` makes it one, or run in a clone"
        )
    if not remotes:
        remedy = "data cannot be pushed or pulled: `dvc remote add -d NAME s3://BUCKET/PATH`"
        return Finding("DVC remote", "note", "none", remedy)
    return Finding("DVC remote", "good", ", ".join(" ".join(line.split()) for line in remotes.splitlines()))


def _chromium() -> Finding:
    found = shutil.which("chromium")
    remedy = "" if found else "only the tests of pages want it, they are skipped: apt-get install chromium"
    return Finding("chromium", "good" if found else "note", found or "not there", remedy)
