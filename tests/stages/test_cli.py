"""The command line: help at once, one line and exit code 1 for what users can mend."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stages.cli import main
from tests.fakes import corridor_dataset, edited_params


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


COMMANDS = ["train-teacher", "import-teacher", "collect", "mix", "distill", "evaluate", "plan", "report", "games", "dataset"]


@pytest.mark.parametrize("command", ["", *COMMANDS, "dataset info", "dataset verify"])
def test_every_command_explains_itself(command: str) -> None:
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "zarr", "gymnasium", "dask", "numpy")
    code = f"import sys; from stages.cli import main; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "stages.cli", "--help"], check=True, capture_output=True)
    assert time.monotonic() - start < 2


def test_an_unknown_game() -> None:
    result = call("collect", "--game", "Pongg")
    assert result.exit_code == 1
    assert result.output.startswith("Error: unknown game 'Pongg': did you mean Pong")


def test_a_game_without_teacher_or_dataset() -> None:
    result = call("collect", "--game", "Boxing")
    assert "give --states or --episodes" in result.output
    result = call("collect", "--game", "Boxing", "--states", "10")
    assert result.exit_code == 1
    assert "no agent at" in result.output


def test_no_params_file(tmp_path: Path) -> None:
    result = call("--params", str(tmp_path / "none.yaml"), "report")
    assert result.exit_code == 1
    assert "--params FILE" in result.output


def test_nothing_to_report_on(tmp_path: Path) -> None:
    with edited_params(tmp_path) as raw:
        raw["grid"] = {}
    result = call("--params", str(tmp_path / "params.yaml"), "report")
    assert result.exit_code == 1
    assert "grid names nothing to report on: add a mix" in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate", "nobody"], "unknown agent 'nobody'"),
        (["evaluate", "teachers/"], "unknown agent"),
        (["distill", "--student", "kl-net2"], "names no mix"),
        (["distill", "--student", "pong/none"], "has no student 'none'"),
        (["mix", "--mix", "none"], "has no mix 'none'"),
        (["train-teacher", "--game", "Boxing"], "has no teacher 'Boxing'"),
        (["evaluate", "teachers/Pong", "--device", "quantum"], "unknown device 'quantum'"),
        (["dataset", "info", "nowhere"], "does not exist"),
    ],
)
def test_faults_are_one_line(arguments: list[str], told: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 1
    assert told in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_dataset_info_and_verify(tmp_path: Path) -> None:
    manifest = corridor_dataset(tmp_path / "set")
    facts = json.loads(call("dataset", "info", str(tmp_path / "set"), "--json").output)
    assert facts["digest"] == manifest.digest
    assert {"game", "states", "episodes", "bytes", "format_version", "teacher"} <= facts.keys()
    assert manifest.digest in call("dataset", "info", str(tmp_path / "set")).output
    assert call("dataset", "verify", str(tmp_path / "set")).exit_code == 0
    (tmp_path / "set/states.zarr/q/c/0/0").write_bytes(b"")
    result = call("dataset", "verify", str(tmp_path / "set"), "--json")
    assert result.exit_code == 1
    assert '"ok": false' in result.output


def test_games_lists_the_wheel() -> None:
    assert len(json.loads(call("games", "--json").output)) > 100
    assert "MsPacman" in call("games").output
