"""Which code made this: the package version and, in a checkout, the revision."""

from __future__ import annotations

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
