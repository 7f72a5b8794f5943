"""Which code made this: the package version and, in a checkout, the revision."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def code_version() -> dict[str, str]:
    """{"version", "revision"}; the revision is "unknown" outside a checkout and ends in "+" where the tree is dirty."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    return {"version": version("pd-pipeline"), "revision": revision}


def processor() -> str:
    """The make of this machine's CPU, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    named = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.is_file()
        else []
    )
    return named[0] if named else platform.processor() or platform.machine()
