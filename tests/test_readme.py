"""The README's commands exist, and its Python runs as printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_runs_as_printed(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b[0-9a-f]{64}\b", done.stdout)


def test_commands_exist() -> None:
    used = set(re.findall(r"pd-pipeline ([a-z-]+)", README))
    assert used
    assert used <= main.commands.keys() | {"pipeline"}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) - {"the"} <= targets


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
