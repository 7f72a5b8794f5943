"""A student that was killed or interrupted is the one that nobody disturbed: weights, card and curve, to the byte."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.datasets.mix import Ingredient, write_mix
from pipeline.distill.offline import Student
from stages import distill
from stages.cli import main
from tests.fakes import corridor_dataset, edited_params

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
