"""train-teacher on a real ROM: below its gate nothing is published or lost; more steps and other settings go on from there."""

import csv
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from stages import train_teacher, training
from stages.cli import main
from tests import processes
from tests.fakes import edited_params

DQN = {
    "envs": 8,
    "replay": 4000,
    "replay_start": 500,
    "minibatch": 8,
    "steps_per_update": 4,
    "target_every": 100,
    "learning_rate": 2.5e-4,
    "squared_decay": 0.95,
    "gradient_decay": 0.95,
    "squared_minimum": 0.01,
    "gamma": 0.99,
    "epsilon_final": 0.1,
    "epsilon_steps": 2000,
    "double": False,
    "clip_rewards": True,
    "life_loss_ends": True,
}


def write(
    folder: Path, *, steps: int, gate: float, epsilon: float = 0.5, select_every: int = 128, algorithm: str = "pqn"
) -> None:
    few = {"steps": steps, "select_every": select_every, "select_episodes": 1, "gate_return": gate, "gate_episodes": 1}
    with edited_params(folder) as raw:
        raw["environment"]["max_episode_frames"] = 160
        raw["teachers"] = {"Breakout": raw["teachers"]["Pong"] | few}
        raw["teacher_presets"]["pqn-atari"]["pqn"] |= {"envs": 2, "horizon": 32, "minibatch": 64}
        raw["teacher_presets"]["pqn-atari"]["pqn"] |= {"epsilon_low": epsilon, "epsilon_high": epsilon}
        if algorithm == "dqn":
            raw["teacher_presets"]["pqn-atari"] = {"algorithm": "dqn", "dqn": DQN}
        raw["evaluation"]["epsilon"] = 0.9


def call(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["--params", str(folder / "params.yaml"), "train-teacher", "--game", "breakout", *arguments]
    )


@pytest.fixture(scope="module")
def missed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose teacher has spent 128 steps and missed its gate."""
    folder = tmp_path_factory.mktemp("missed")
    write(folder, steps=128, gate=1000.0)
    result = call(folder)
    assert result.exit_code == 1
    assert "its gate is 1000: raise teachers.Breakout.steps (the run goes on from 128)" in result.output
    assert not (folder / "data/teachers").exists()
    return folder


@pytest.fixture
def failed(missed: Path, tmp_path: Path) -> Path:
    """A copy of that project."""
    return Path(shutil.copytree(missed, tmp_path / "project"))


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


def test_the_card_tells_of_every_code_that_a_run_learned_by(failed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(failed, steps=128, gate=-1.0)
    newer = {"version": "9.9", "revision": "0123456789ab"}
    monkeypatch.setattr(training, "code_version", lambda: newer)
    assert call(failed).exit_code == 0
    earlier, latest = card(failed)["history"]
    assert latest == {**earlier, "from": 128, "code": newer}
    assert earlier["code"] != newer


def test_what_was_learned_is_saved_before_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, steps=256, gate=-1.0)

    def killed(*_: object) -> float:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(train_teacher, "mean_return", killed)
        assert str(call(tmp_path).exception) == "killed"
    assert "resuming Breakout at 128 steps" in call(tmp_path).output


@pytest.mark.slow
def test_a_published_teacher_may_be_gone_on_from(tmp_path: Path) -> None:
    write(tmp_path, steps=128, gate=-1.0)
    assert call(tmp_path).exit_code == 0
    first = shutil.copytree(tmp_path / "data/teachers/Breakout", tmp_path / "theirs")
    updates = card(tmp_path)["updates"]
    write(tmp_path, steps=256, gate=-1.0)
    result = call(tmp_path, "--from", str(first))
    assert result.exit_code == 0, result.output
    assert [h["from"] for h in card(tmp_path)["history"]] == [0, 128]
    assert card(tmp_path)["steps_trained"] == 256
    assert card(tmp_path)["updates"] == 2 * updates
    before, after = ((folder / "curve.csv").read_text() for folder in (first, tmp_path / "data/teachers/Breakout"))
    *rest, last = csv.DictReader(before.splitlines())
    *again, begun, end = csv.DictReader(after.splitlines())
    assert again[: len(rest)] == rest
    assert [row["steps"] for row in (last, begun, end)] == ["128", "192", "256"]
    assert float(last["seconds"]) < float(begun["seconds"]) <= float(end["seconds"])
    write(tmp_path, steps=256, gate=-1.0, algorithm="dqn")
    refused = call(tmp_path, "--from", str(first))
    assert refused.exit_code == 1
    assert f"{first} is Breakout, pqn, network pqn, not Breakout, dqn" in refused.output


def test_a_snapshot_of_an_unfinished_run_goes_on_elsewhere(failed: Path, tmp_path: Path) -> None:
    checkpoints = [p.read_bytes() for p in failed.glob(".work/train-teacher/*/checkpoint.pt")]
    result = call(failed, "--snapshot", str(tmp_path / "snapshot"))
    assert result.exit_code == 0, result.output
    assert "a snapshot at 128 steps, that has passed no gate" in result.stderr
    assert checkpoints == [p.read_bytes() for p in failed.glob(".work/train-teacher/*/checkpoint.pt")]
    taken = json.loads((tmp_path / "snapshot/card.json").read_text())
    assert (taken["role"], taken["steps"]) == ("snapshot", 128)
    assert "evaluation" not in taken
    assert (tmp_path / "snapshot/curve.csv").read_text().startswith("steps,frames")
    (tmp_path / "snapshot/card.json").write_text(json.dumps(taken | {"role": "teacher"}))
    foreign = call(failed, "--snapshot", str(tmp_path / "snapshot"))
    assert foreign.exit_code == 1
    assert "holds something that is not a snapshot" in foreign.output
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere, steps=256, gate=-1.0)
    refused = call(elsewhere, "--snapshot", str(tmp_path / "none"))
    assert refused.exit_code == 1
    assert "there is no unfinished run in" in refused.output
    assert call(elsewhere, "--from", str(tmp_path / "snapshot")).exit_code == 0
    assert [h["from"] for h in card(elsewhere)["history"]] == [0, 128]


def test_beginning_from_nothing_is_one_line(failed: Path) -> None:
    write(failed, steps=256, gate=-1.0, epsilon=0.25)
    result = call(failed, "--from", str(failed / "no.pt"))
    assert result.exit_code == 1
    assert "no.pt is not there or holds no agent: --from wants the folder of one, or the checkpoint.pt" in result.output


def test_beginning_from_something_else_is_one_line(failed: Path, tmp_path: Path) -> None:
    write(failed, steps=256, gate=-1.0, epsilon=0.25)
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("hello")
    zoo = Path("data/teachers/Pong")
    for start, fault in (
        (tmp_path / "weights.pt", "is no checkpoint of a training: begin from the checkpoint.pt of one"),
        (tmp_path / "text.pt", "is not a checkpoint of ours ("),
        (zoo / "model.safetensors", "checkpoint of"),  # what torch makes of it depends on its version
        (zoo.parent, "teachers is not there or holds no agent"),
    ):
        result = call(failed, "--from", str(start))
        assert result.exit_code == 1
        assert fault in result.output
        assert result.output.count("\n") == 1


def test_beginning_from_a_teacher_of_other_actions_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, steps=64, gate=-1.0)
    assert call(tmp_path).exit_code == 0
    params = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params.replace("full_action_space: false", "full_action_space: true"))
    result = call(tmp_path, "--from", str(tmp_path / "data/teachers/Breakout"))
    assert result.exit_code == 1
    assert "Breakout chooses among 4 actions, here there are 18: begin from one like it" in result.output


def test_beginning_from_a_run_in_another_environment_is_one_line(failed: Path) -> None:
    (checkpoint,) = failed.glob(".work/train-teacher/*/checkpoint.pt")
    params = (failed / "params.yaml").read_text()
    (failed / "params.yaml").write_text(params.replace("sticky: 0.0", "sticky: 0.25"))
    result = call(failed, "--from", str(checkpoint))
    assert result.exit_code == 1
    assert "learned with sticky 0.0, not 0.25: begin from a --snapshot of it" in result.output
    (failed / "params.yaml").write_text(params)


def test_beginning_from_another_kind_of_teacher_is_one_line(failed: Path) -> None:
    (checkpoint,) = failed.glob(".work/train-teacher/*/checkpoint.pt")
    write(failed, steps=256, gate=-1.0, algorithm="dqn")
    result = call(failed, "--from", str(checkpoint))
    assert result.exit_code == 1
    assert (
        "is of a run of Breakout, pqn, network pqn, not of Breakout, dqn, network pqn: begin from one like it" in result.output
    )
    assert not list(failed.glob(".work/train-teacher/*/publish"))


def test_what_the_gate_has_seen_it_need_not_see_again(failed: Path) -> None:
    (notes,) = failed.glob(".work/train-teacher/*/gate-*.jsonl")
    episode = next(note for note in map(json.loads, notes.read_text().splitlines()) if "episode_return" in note)
    notes.write_text(json.dumps(episode | {"episode_return": 2000.0}) + "\n")
    assert call(failed).exit_code == 0
    assert card(failed)["evaluation"]["mean_return"] == 2000.0
    assert card(failed)["evaluation"]["gates_missed"] == 1
    assert not list(failed.glob(".work/train-teacher/*"))


@pytest.mark.slow
def test_a_budget_that_the_last_steps_pass_may_be_resumed(tmp_path: Path) -> None:
    write(tmp_path, steps=100, gate=1000.0)
    assert "the run goes on from 128" in call(tmp_path).output  # two horizons of 64 steps
    write(tmp_path, steps=100, gate=-1.0)
    result = call(tmp_path)
    assert result.exit_code == 0, result.output
    assert card(tmp_path)["steps_trained"] == 128


def test_fewer_steps_than_done_is_one_line(failed: Path) -> None:
    write(failed, steps=64, gate=-1.0)
    result = call(failed)
    assert result.exit_code == 1
    assert "is at 128 steps, beyond teachers.Breakout.steps = 64: raise that" in result.output


@pytest.mark.slow
def test_the_time_may_be_spent_before_the_steps(tmp_path: Path) -> None:
    write(tmp_path, steps=1_000_000, gate=-1.0)
    result = call(tmp_path, "--minutes", "0.01")
    assert result.exit_code == 0, result.output
    assert "of 1,000,000 steps: the time is spent" in result.output
    assert 0 < card(tmp_path)["steps_trained"] < 1_000_000


@pytest.mark.slow
def test_below_the_gate_when_the_time_is_spent(tmp_path: Path) -> None:
    write(tmp_path, steps=1_000_000, gate=1000.0)
    result = call(tmp_path, "--minutes", "0.01")
    assert result.exit_code == 1
    assert "raise --minutes (the run goes on from" in result.output


def test_nothing_but_a_teacher_of_the_game_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, steps=64, gate=-1.0)
    zoo = tmp_path / "zoo"
    (zoo / "Pong").mkdir(parents=True)
    result = call(tmp_path, "--out", str(zoo))
    assert result.exit_code == 1
    assert "zoo holds something that is not a teacher" in result.output
    shutil.copy("data/teachers/Pong/card.json", zoo / "Pong")
    result = call(tmp_path, "--out", str(zoo / "Pong"))
    assert result.exit_code == 1
    assert "holds a teacher of Pong: choose another --out" in result.output
    assert (zoo / "Pong/card.json").exists()


def test_another_seed_goes_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, steps=64, gate=-1.0)
    result = call(tmp_path, "--seed", "7")
    assert result.exit_code == 1
    assert "seed 7 would replace the teacher of Breakout by another: say where it goes with --out" in result.output
    result = call(tmp_path, "--seed", "7", "--out", str(tmp_path / "seventh"))
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "seventh/card.json").read_text())["seed"] == 7
    assert not (tmp_path / "data/teachers").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("algorithm", "start", "gate"),
    [("pqn", "data/teachers/Pong", 15.0), ("dqn", "experiments/same-network/data/teachers/Pong", 10.0)],
)
def test_sigkill_at_a_random_moment_then_the_same_command_reaches_the_gate(
    tmp_path: Path, algorithm: str, start: str, gate: float
) -> None:
    """The gate is out of reach of what is untrained: a run begins with a good player, which a resume must not lose."""
    begun = json.loads((Path(start) / "card.json").read_text())["steps"]
    with edited_params(tmp_path) as raw:
        few = {"network": algorithm, "select_episodes": 8, "gate_return": gate, "gate_episodes": 16}
        raw["teachers"]["Pong"] |= few | {"steps": begun + 30_000, "select_every": 20_000}
        if algorithm == "dqn":
            raw["teacher_presets"]["pqn-atari"] = {"algorithm": "dqn", "dqn": DQN | {"learning_rate": 1e-6}}
    command = ("train-teacher", "--game", "pong", "--from", str(Path(start).resolve()))
    began = time.monotonic()
    processes.run(tmp_path, *command, "--out", str(tmp_path / "undisturbed"))
    seconds = time.monotonic() - began
    killed = 0
    while killed < 4:
        out = tmp_path / f"killed-{killed}"
        running = processes.start(tmp_path, (*command, "--out", str(out)))
        time.sleep(random.uniform(0, seconds))
        if running.poll() is None:
            killed += 1
            running.kill()
        running.communicate()
        checkpoints = list(out.parent.glob(".work/train-teacher/*/checkpoint.pt"))
        if not out.exists():
            assert (f"resuming {out.name} at" in processes.run(tmp_path, *command, "--out", str(out))) == bool(checkpoints)
        made = json.loads((out / "card.json").read_text())
        assert (made["algorithm"], made["steps_trained"] // 1000) == (algorithm, (begun + 30_000) // 1000)
        assert made["evaluation"]["mean_return"] >= gate
        assert (out / "curve.csv").read_text().splitlines()[-1].startswith(f"{made['steps_trained']},")
        shutil.rmtree(out)
        shutil.rmtree(out.parent / ".work", ignore_errors=True)
