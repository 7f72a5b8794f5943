"""import-teacher on a real ROM: checked, evaluated, published, collected from; what does not play well is refused."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from pipeline.evaluate import Episode
from stages import contest, import_teacher
from stages.cli import main
from stages.contest import Contestant
from tests.agents.test_imports import CleanRl, Screen
from tests.fakes import edited_params


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with params.yaml, whose episodes are short, and a CleanRL checkpoint that nobody trained."""
    with edited_params(tmp_path) as raw:
        raw["environment"]["max_episode_frames"] = 160
    torch.manual_seed(0)
    torch.save(CleanRl(4).state_dict(), tmp_path / "dqn.pth")
    return tmp_path


def call(project: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--params", str(project / "params.yaml"), *arguments])


def test_an_imported_teacher_is_one_to_collect_from(project: Path, on_one_worker: tuple[str, str], small_blocks: None) -> None:
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


@pytest.mark.slow
def test_a_student_of_a_stable_baselines3_agent(project: Path, on_one_worker: tuple[str, str], small_blocks: None) -> None:
    from stable_baselines3 import DQN

    model = DQN("CnnPolicy", Screen(4), buffer_size=100, learning_starts=20, seed=3, device="cpu")
    model.learn(200)
    model.save(project / "dqn.zip")
    with edited_params(project) as raw:
        raw["mixes"] = {"breakout": ["Breakout"]}
        raw["students"] = {"kl": raw["students"]["kl-net2"] | {"network": "net3", "updates": 60}}
        raw["presets"]["fast"] |= {"batch": 32, "validate_every": 30, "validation_states": 64, "warmup_updates": 5}
        raw["grid"] = {"breakout": {"students": ["kl"], "seeds": [0]}}
        raw["evaluation"]["episodes"] = 2
    for command in (
        ["import-teacher", str(project / "dqn.zip"), "--from", "sb3", "--game", "Breakout", "--episodes", "2", "--gate", "-1"],
        ["collect", "--game", "Breakout", "--episodes", "12", *on_one_worker],
        ["mix", "--mix", "breakout"],
        ["distill", "--student", "breakout/kl"],
        ["evaluate", "students/breakout/kl-0"],
    ):
        result = call(project, *command)
        assert result.exit_code == 0, result.output
    student = json.loads((project / "data/students/breakout/kl-0/card.json").read_text())
    teacher = json.loads((project / "data/teachers/Breakout/card.json").read_text())
    assert teacher["imported"]["from"] == "sb3"
    assert student["teacher"]["digest"] == teacher["digest"]


def test_below_its_gate_nothing_is_published(project: Path) -> None:
    given = ["import-teacher", str(project / "dqn.pth"), "--from", "cleanrl", "--game", "Breakout", "--episodes", "1"]
    result = call(project, *given, "--gate", "18")
    assert result.exit_code == 1
    assert "not above its gate, 18" in result.output
    assert not (project / "data/teachers").exists()


@pytest.mark.parametrize(("returns", "accepted"), [([0.0, 9.0] * 4, False), ([8.0, 9.0] * 4, True)])
def test_without_a_gate_it_must_surely_beat_the_random_agent(
    project: Path, monkeypatch: pytest.MonkeyPatch, returns: list[float], accepted: bool
) -> None:
    by_chance = [3.0, 5.0] * 4  # between the two

    def play(contestant: Contestant, *_: object) -> list[Episode]:
        drawn = by_chance if contestant.agent.startswith("random") else returns
        return [Episode(seed, episode_return, 10, True) for seed, episode_return in enumerate(drawn)]

    for module in (import_teacher, contest):
        monkeypatch.setattr(module, "played", play)
    (project / "dvc.yaml").touch()
    result = call(project, "import-teacher", str(project / "dqn.pth"), "--from", "cleanrl", "--game", "Breakout")
    assert (result.exit_code == 0) is accepted
    assert (project / "data/teachers/Breakout").exists() is accepted
    told = "dvc commit -f train-teacher@Breakout" if accepted else "not above the random agent's interval, which ends at 4."
    assert told in result.output


def test_the_wrong_game_is_one_line(project: Path) -> None:
    result = call(project, "import-teacher", str(project / "dqn.pth"), "--from", "cleanrl", "--game", "Pong")
    assert result.exit_code == 1
    assert "chooses among 4 actions, Pong has 6" in result.output
