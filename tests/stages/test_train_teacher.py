"""train-teacher on a real ROM: below its gate nothing is published or lost; more steps and other settings go on from there."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stages.cli import main
from tests.fakes import edited_params


def write(folder: Path, *, steps: int, gate: float, epsilon: float = 0.5) -> None:
    few = {"steps": steps, "select_every": 128, "select_episodes": 1, "gate_return": gate, "gate_episodes": 1}
    with edited_params(folder) as raw:
        raw["teachers"] = {"Breakout": raw["teachers"]["Pong"] | few}
        raw["teacher_presets"]["pqn-atari"]["pqn"] |= {"envs": 8, "horizon": 8, "minibatch": 64}
        raw["teacher_presets"]["pqn-atari"]["pqn"] |= {"epsilon_low": epsilon, "epsilon_high": epsilon}
        raw["evaluation"]["epsilon"] = 0.9


def call(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["--params", str(folder / "params.yaml"), "train-teacher", "--game", "breakout", *arguments]
    )


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """A project whose teacher has spent 128 steps and missed its gate."""
    write(tmp_path, steps=128, gate=1000.0)
    result = call(tmp_path)
    assert result.exit_code == 1
    assert "its gate is 1000: raise teachers.Breakout.steps (the run goes on from 128)" in result.output
    assert not (tmp_path / "data/teachers").exists()
    return tmp_path


def card(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "data/teachers/Breakout/card.json").read_text())
    return loaded


def test_more_steps_go_on_and_the_card_says_so(failed: Path) -> None:
    write(failed, steps=256, gate=-1.0)
    result = call(failed)
    assert result.exit_code == 0, result.output
    assert "resuming Breakout at 128 steps" in result.output
    assert [(h["from"], h["budget"]) for h in card(failed)["history"]] == [(0, 128), (128, 256)]
    assert card(failed)["steps_trained"] == 256


def test_other_settings_are_another_run_that_may_begin_from_this_one(failed: Path) -> None:
    (checkpoint,) = failed.glob(".work/train-teacher/*/checkpoint.pt")
    write(failed, steps=256, gate=-1.0, epsilon=0.25)
    result = call(failed, "--from", str(checkpoint))
    assert result.exit_code == 0, result.output
    history = card(failed)["history"]
    assert [h["from"] for h in history] == [0, 128]
    assert [h["settings"]["epsilon_low"] for h in history] == [0.5, 0.25]
    assert checkpoint.exists()


def test_beginning_from_nothing_is_one_line(failed: Path) -> None:
    write(failed, steps=256, gate=-1.0, epsilon=0.25)
    result = call(failed, "--from", str(failed / "no.pt"))
    assert result.exit_code == 1
    assert "no.pt does not exist: --from wants the checkpoint.pt" in result.output


def test_fewer_steps_than_done_is_one_line(failed: Path) -> None:
    write(failed, steps=64, gate=-1.0)
    result = call(failed)
    assert result.exit_code == 1
    assert "is at 128 steps, beyond teachers.Breakout.steps = 64: raise that" in result.output
