"""dvc.yaml says what the commands do: real commands, recipes in params, cheap stages listing their code."""

import ast
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.cli import main

ROOT = Path(__file__).parent.parent
FILES = sorted(p for p in ROOT.glob("**/dvc.yaml") if ".venv" not in p.parts)
CHEAP = {"mix": "stages/mix.py", "report": "stages/report.py"}


def stages_of(path: Path) -> dict[str, dict[str, Any]]:
    raw = YAML(typ="safe", pure=True).load(path.read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in raw.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_every_stage_runs_a_command_of_ours(path: Path) -> None:
    for name, stage in stages_of(path).items():
        words = stage["cmd"].split()
        assert words[0] == "pd-pipeline", name
        assert words[1] in main.commands, name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_dear_stages_have_no_code_among_their_dependencies(path: Path) -> None:
    for name, stage in stages_of(path).items():
        code = [d for d in stage.get("deps", []) if d.endswith(".py") or "pipeline/" in d]
        assert bool(code) == (stage["cmd"].split()[1] in CHEAP), name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
@pytest.mark.parametrize("command", CHEAP)
def test_cheap_stages_list_the_code_they_run(path: Path, command: str) -> None:
    """The stage's own module and the modules it imports that decide its output."""
    up = Path(*[".."] * len(path.parent.relative_to(ROOT).parts))
    decides = {"mix": {"pipeline/datasets/mix.py"}, "report": {"pipeline/report"}}[command] | {CHEAP[command]}
    imported = {
        node.module for node in ast.walk(ast.parse((ROOT / CHEAP[command]).read_text())) if isinstance(node, ast.ImportFrom)
    }
    assert {"mix": "pipeline.datasets.mix", "report": "pipeline.report.page"}[command] in imported
    found = [stage for stage in stages_of(path).values() if stage["cmd"].split()[1] == command]
    assert found
    for stage in found:
        assert {(up / d).as_posix() for d in decides} <= set(stage["deps"])
