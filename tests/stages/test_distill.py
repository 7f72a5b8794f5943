"""A student that was killed or interrupted is the one that nobody disturbed: weights, card and curve, to the byte."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.agents import device
from pipeline.agents.checkpoints import load_agent, load_card
from pipeline.datasets.mix import Ingredient, write_mix
from pipeline.distill.offline import Student
from stages import distill
from stages.cli import main
from stages.current import earlier_settings, made, other_collections
from stages.params import Cell, load_project
from stages.publish import load_state, save_state
from tests.fakes import corridor_dataset, corridor_episode, edited_params, write_dataset

COMMAND = ("distill", "--student", "way/kl")
KILLED = """
import os, signal
from pipeline.distill.offline import Student
from stages import distill
from stages.cli import main

def update(student, batch, real=Student.update):
    loss = real(student, batch)
    if student.updates == 33:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss

Student.update, distill.CHECKPOINT_EVERY_SECONDS = update, 0
main()
"""


def project(folder: Path) -> Path:
    """A student of the corridor, measured every ten updates."""
    with edited_params(folder) as raw:
        raw["mixes"] = {"way": ["Corridor"]}
        raw["students"] = {
            "kl": {"loss": "kl", "temperature": 0.05, "network": "tiny", "preset": "fast", "updates": 40, "recipe": 1}
        }
        raw["presets"]["fast"] |= {"batch": 8, "validate_every": 10, "validation_states": 32, "warmup_updates": 2}
        raw["grid"] = {"way": {"students": ["kl"], "seeds": [0]}}
    made = corridor_dataset(folder / "data/datasets/Corridor", 20)
    found = Ingredient(dataset="Corridor", digest=made.digest, teacher=made.teacher["digest"], actions=made.actions)
    write_mix(folder / "data/mixes/way.json", {"Corridor": (found,)})
    return folder


def distilled(folder: Path) -> dict[str, bytes]:
    """What the command publishes, by file."""
    done = CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), *COMMAND])
    assert done.exit_code == 0, done.output
    return {path.name: path.read_bytes() for path in (folder / "data/students/way/kl-0").iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    files = distilled(project(tmp_path_factory.mktemp("undisturbed")))
    assert files.keys() == {"card.json", "curve.csv", "model.safetensors"}
    return files


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_learning_is_in_float32_where_the_cpu_could_only_emulate_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(device, "_multiplies_bfloat16", lambda: precision == "bfloat16")
    card = json.loads(distilled(project(tmp_path))["card.json"])
    assert (card["precision"], card["settings"]["precision"]) == (precision, "bfloat16")


def test_killed_between_two_checkpoints(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    folder = project(tmp_path)
    words = [sys.executable, "-c", KILLED, "--params", str(folder / "params.yaml"), *COMMAND]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run(words, env=environment, check=False).returncode == -signal.SIGKILL
    assert list(folder.glob(".work/distill/*/checkpoint.pt"))
    assert distilled(folder) == undisturbed


@pytest.mark.parametrize("place", ["update", "validate"])
def test_interrupted_in_the_middle(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A second Ctrl-C does not wait for the end of what it comes into, and nothing half-done is kept."""
    real = getattr(Student, place)

    def interrupted(student: Student, *arguments: Any) -> Any:
        found = real(student, *arguments)
        if student.updates == 40:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return found

    folder = project(tmp_path)
    monkeypatch.setattr(distill, "CHECKPOINT_EVERY_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(Student, place, interrupted)
        left = CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), *COMMAND])
    assert left.exit_code == 130, left.output
    assert not (folder / "data/students/way/kl-0").exists()
    assert distilled(folder) == undisturbed


@pytest.mark.parametrize("change", [lambda state: state.pop("best"), lambda state: state["network"].popitem()])
def test_a_checkpoint_of_another_version_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], Any]
) -> None:
    def interrupted(student: Student, *arguments: Any, real: Any = Student.update) -> Any:
        if student.updates == 15:
            signal.raise_signal(signal.SIGINT)
        return real(student, *arguments)

    folder = project(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Student, "update", interrupted)
        CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), *COMMAND])
    (checkpoint,) = folder.glob(".work/distill/*/checkpoint.pt")
    state = load_state(checkpoint)
    assert state is not None
    change(state)
    save_state(checkpoint, state)
    left = CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), *COMMAND])
    assert left.exit_code == 1
    assert "checkpoint.pt is another version's (" in left.output.splitlines()[-1]
    assert left.output.endswith("go on with that, or remove it to start afresh\n")


def test_any_other_setting_of_a_student_is_noticed(tmp_path: Path) -> None:
    folder = project(tmp_path)
    distilled(folder)
    cell = Cell("students", "way", "kl", 0)

    def told(**changes: object) -> str:
        with edited_params(folder, folder / "params.yaml") as raw:
            before = dict(raw["students"]["kl"])
            raw["students"]["kl"] |= changes
        layout, params = load_project(folder / "params.yaml")
        with edited_params(folder, folder / "params.yaml") as raw:
            raw["students"]["kl"] = before
        return earlier_settings(layout, params, cell)

    assert told() == told(play_episodes=2) == ""
    assert told(updates=41) == "updates 40"
    assert told(loss="nll", updates=41) == "loss kl"
    assert told(temperature=0.01) == "temperature 0.05"
    assert told(network="net3") == "network tiny"
    for change in ({"per_gap": True}, {"balanced": True}, {"feature_weight": 0.01}, {"temperatures": {"Corridor": 0.1}}):
        (name,) = change
        assert told(**change).startswith(name)


def test_a_student_of_another_mix_is_not_made(tmp_path: Path) -> None:
    folder = project(tmp_path)
    distilled(folder)
    cell = Cell("students", "way", "kl", 0)

    def is_made(*datasets: str) -> bool:
        with edited_params(folder, folder / "params.yaml") as raw:
            raw["mixes"]["way"] = list(datasets)
        return made(*load_project(folder / "params.yaml"), cell)

    assert not is_made("Corridor", "Corridor-1")
    assert is_made("Corridor")
    path = folder / "data/students/way/kl-0/card.json"
    card = json.loads(path.read_text())
    of_corridor = {"environment": card["environment"], "teacher": card["teacher"]}
    kept: dict[str, Any] = {"Pong": {"environment": {}}}  # of a teacher that it began with
    path.write_text(json.dumps(card | {"games": kept | {"Corridor": of_corridor}}))
    assert other_collections(*load_project(folder / "params.yaml"), cell) == []


def test_who_acted_goes_on_learning(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """A round: the student of `way` played Corridor-1, and the next begins with its weights."""
    folder = project(tmp_path)
    distilled(folder)
    actor = load_card(folder / "data/students/way/kl-0")
    rng = np.random.default_rng(5)

    def a_round(played_by: str) -> None:
        write_dataset(
            folder / "data/datasets/Corridor-1",
            [corridor_episode(0, rng) for _ in range(7)],
            collection={"policy": "epsilon-greedy", "seed": 11, "actor": {"digest": played_by}},
        )

    def learned(seed: int = 0, variant: str = "more", mix: str = "round") -> str:
        runner, params = CliRunner(), str(folder / "params.yaml")
        for command in (("mix", "--mix", mix), ("distill", "--student", f"{mix}/{variant}", "--seed", str(seed))):
            done = runner.invoke(main, ["--params", params, *command])
        return done.output

    with edited_params(folder, folder / "params.yaml") as raw:
        raw["mixes"]["round"] = ["Corridor", "Corridor-1"]
        raw["students"]["more"] = raw["students"]["kl"] | {"begins_with": "actor"}
        told = {"states": 9, "epsilon": 0.05, "seed": 11, "recipe": 1}
        raw["datasets"] = {"Corridor": told, "Corridor-1": told | {"game": "Corridor", "actor": "students/way/kl-0"}}
    a_round("another")
    assert "dataset Corridor-1 was played by agent another, " in learned()
    a_round(actor["digest"])
    assert "hold out other episodes (seed 0, held_out 0.05 and seed 1, held_out 0.05): give both the same" in learned(seed=1)
    assert "published" in learned()
    card = load_card(folder / "data/students/round/more-0")
    assert card["begins_with"] == actor["digest"]
    cell, (layout, params) = Cell("students", "round", "more", 0), load_project(folder / "params.yaml")
    assert earlier_settings(layout, params, cell) == ""
    path = folder / "data/students/way/kl-0/card.json"
    before = path.read_text()
    path.write_text(before.replace(actor["digest"], "0" * 64))
    assert earlier_settings(layout, params, cell) == f"begins_with {actor['digest'][:12]}"
    path.write_text(before)

    with edited_params(folder, folder / "params.yaml") as raw:
        del raw["datasets"]["Corridor-1"]["actor"]
    assert "params.yaml names no actor of dataset Corridor-1: add it there, or name an agent in begins_with" in learned()
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["datasets"]["Corridor-1"]["actor"] = "students/way/kl-0"
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["students"]["named"] = raw["students"]["more"] | {"begins_with": "students/way/kl-0"}
    assert "hold out other episodes (seed 0, held_out 0.05 and seed 1, held_out 0.05)" in learned(seed=1, variant="named")
    assert "published" in learned(variant="named")
    with edited_params(folder, folder / "params.yaml") as raw:  # who begins with it elsewhere has learned from all that
        raw["mixes"]["elsewhere"] = ["Corridor-1"]
        raw["students"]["after"] = raw["students"]["more"] | {"begins_with": "students/elsewhere/named-1"}
    assert "published" in learned(seed=1, variant="named", mix="elsewhere")
    assert "students/elsewhere/named-1 and this student hold out other episodes (seed 0" in learned(1, "after", "way")
    write_dataset(folder / "data/datasets/Corridor", [corridor_episode(1, rng) for _ in range(9)])
    assert "students/way/kl-0 learned from Corridor as it was, mix round has other episodes" in learned(variant="named")
    assert "students/way/kl-0 learned from Corridor as it was, mix round has other episodes" in learned()


def test_the_weights_of_the_lowest_held_out_loss_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Student] = []
    worse = itertools.count(1.0)

    class Declining(Student):
        """Its first validation is its best."""

        def validate(self) -> dict[str, float]:
            if self not in made:
                made.append(self)
            return super().validate() | {"held_out_loss": next(worse)}

    monkeypatch.setattr(distill, "Student", Declining)
    folder = project(tmp_path)
    card = json.loads(distilled(folder)["card.json"])
    published = load_agent(folder / "data/students/way/kl-0", torch.device("cpu")).network.state_dict()
    (student,) = made
    assert (card["best_updates"], student.updates) == (10, 40)
    assert all(torch.equal(weights, student.best_weights[name]) for name, weights in published.items())
    assert not all(torch.equal(weights, student.network.state_dict()[name]) for name, weights in published.items())
