"""import-teacher on a real ROM: checked, evaluated, published, collected from; what does not play well is refused."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from stages.cli import main
from tests.agents.test_imports import CleanRl


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with params.yaml and a CleanRL checkpoint that nobody trained: it loses Breakout in short episodes."""
    (tmp_path / "params.yaml").write_text(Path("params.yaml").read_text())
    torch.manual_seed(0)
    torch.save(CleanRl(4).state_dict(), tmp_path / "dqn.pth")
    return tmp_path


def call(project: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--params", str(project / "params.yaml"), *arguments])


def test_an_imported_teacher_is_one_to_collect_from(project: Path, on_one_worker: tuple[str, str]) -> None:
    given = ["import-teacher", str(project / "dqn.pth"), "--from", "cleanrl", "--game", "breakout", "--episodes", "2"]
    result = call(project, *given, "--gate", "-1")
    assert result.exit_code == 0, result.output
    card = json.loads((project / "data/teachers/Breakout/card.json").read_text())
    assert card["network"] == "dqn"
    assert card["imported"]["from"] == "cleanrl"
    assert card["evaluation"]["episodes"] == 2
    assert call(project, "collect", "--game", "Breakout", "--states", "64", *on_one_worker).exit_code == 0
    manifest = json.loads((project / "data/datasets/Breakout/manifest.json").read_text())
    assert manifest["teacher"]["digest"] == card["digest"]
    again = call(project, *given)
    assert again.exit_code == 1
    assert "holds a teacher already" in again.output


def test_below_its_gate_nothing_is_published(project: Path) -> None:
    given = ["import-teacher", str(project / "dqn.pth"), "--from", "cleanrl", "--game", "Breakout", "--episodes", "1"]
    result = call(project, *given, "--gate", "18")
    assert result.exit_code == 1
    assert "not above its gate, 18" in result.output
    assert not (project / "data/teachers").exists()


def test_the_wrong_game_is_one_line(project: Path) -> None:
    result = call(project, "import-teacher", str(project / "dqn.pth"), "--from", "cleanrl", "--game", "Pong")
    assert result.exit_code == 1
    assert "chooses among 4 actions, Pong has 6" in result.output
