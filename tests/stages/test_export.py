"""export: what it publishes, compares on and refuses, and a program that needs nothing of ours to play the file."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from pipeline.agents.checkpoints import load_card, save_agent
from pipeline.agents.export import Exported, Form, load_exported
from pipeline.agents.networks import NetworkSpec, new_network
from pipeline.atari.envs import SlotWorld, action_meanings, fingerprint
from pipeline.datasets.mix import make_mix, write_mix
from pipeline.datasets.reader import open_dataset
from stages import export
from stages.cli import main
from stages.paths import Layout
from tests.fakes import ENVIRONMENT, SMALL, SMALL_NORM, edited_params, write_dataset
from tests.test_several_games import episode

pytestmark = pytest.mark.end_to_end

CPU = torch.device("cpu")
STUDENT = "students/breakout/kl-net3-0"


def agent(folder: Path, spec: NetworkSpec, games: dict[str, int], **card: Any) -> None:
    """An untrained agent in the environment of the tests."""
    worlds = {game: {"environment": fingerprint(game, ENVIRONMENT)} for game in games}
    (only, world), *more = worlds.items()
    save_agent(folder, new_network(spec, games, CPU, seed=2), card | ({"games": worlds} if more else {"game": only, **world}))


def dataset(folder: Path, game: str = "Breakout", actions: int = 4, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    write_dataset(folder, [episode(actions, rng) for _ in range(3)], game=game)  # 120 states


@pytest.fixture
def layout(tmp_path: Path, breakout_teacher: Path) -> Layout:
    """A student of the zoo's Breakout, the dataset of the game, and a multitask baseline."""
    found = Layout(root=tmp_path, zoo=breakout_teacher.parent)
    teacher = {"digest": load_card(breakout_teacher)["digest"], "game": "Breakout"}
    agent(found.agent(STUDENT), SMALL, {"Breakout": 4}, role="student", mix="breakout", teacher=teacher)
    agent(found.agent("multitask/pair/pqn-0"), SMALL_NORM, {"Breakout": 4, "Qbert": 6}, role="baseline")
    dataset(found.dataset("Breakout"))
    return found


def run(layout: Layout, name: str = STUDENT, to: Form = "torchscript", **options: Any) -> dict[str, Any]:
    given = {"out": None, "game": None, "states": 100, "dataset": None} | options
    facts: dict[str, Any] = json.loads(export.run(layout, name, to=to, as_json=True, **given))
    return facts


@pytest.mark.parametrize(("to", "suffix"), [("onnx", ".onnx"), ("torchscript", ".pt")])
def test_a_student_is_published_with_what_was_measured(layout: Layout, to: Form, suffix: str) -> None:
    facts = run(layout, to=to)
    path = layout.data / f"exports/{STUDENT}{suffix}"
    digest = load_card(layout.agent(STUDENT))["digest"]
    assert (facts["file"], facts["bytes"], facts["agent"]) == (str(path), path.stat().st_size, digest)
    measured = facts["parity"]
    assert (measured["states"], measured["same_actions"]) == (100, 1.0)
    assert measured["max_abs_dq"] < 1e-5
    assert measured["datasets"] == [str(layout.dataset("Breakout"))]
    assert set(facts["latency_ms"]) == {"file", "agent", "teacher", "teacher_file"}
    assert all(0 < taken < 1000 for taken in facts["latency_ms"].values())
    record = load_exported(path, to).record
    assert record["agent"] == digest
    assert record["actions"] == action_meanings("Breakout", ENVIRONMENT)
    assert (record["vector_env"]["game"], record["vector_env"]["frameskip"]) == ("breakout", 4)
    assert list(path.parent.iterdir()) == [path]


def test_for_people_it_prints_a_table(layout: Layout) -> None:
    text = export.run(
        layout, STUDENT, to="torchscript", out=None, game="breakout", states=50, dataset=None, as_json=False
    ).splitlines()
    assert [line[:24].rstrip() for line in text] == [
        "file",
        "bytes",
        "states compared",
        "same actions",
        "largest |dq|",
        "torchscript",
        "agent in torch",
        "teacher in torchscript",
        "teacher in torch",
    ]
    assert text[3].endswith("100.00%")
    assert "ms a state on one core, " in text[5]
    assert text[5].endswith("% of its teacher's")


def test_from_the_command_line(tmp_path: Path, breakout_teacher: Path) -> None:
    with edited_params(tmp_path) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    dataset(tmp_path / "data/datasets/Breakout")
    command = ["--params", str(tmp_path / "params.yaml"), "export", "teachers/Breakout", "--states", "20"]
    done = CliRunner().invoke(main, [*command, "--to", "torchscript", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert Path(facts["file"]) == tmp_path / "data/exports/teachers/Breakout.pt"
    assert facts["parity"]["states"] == 20
    refused = CliRunner().invoke(main, [*command, "--to", "onnx", "--dataset", str(tmp_path / "nowhere")])
    assert (refused.exit_code, len(refused.stderr.splitlines()) <= 2) == (1, True)


def test_one_game_of_several(layout: Layout) -> None:
    dataset(layout.dataset("Qbert"), "Qbert", 6)
    with pytest.raises(ValueError, match=r"plays Breakout, Qbert: choose one with --game"):
        run(layout, "multitask/pair/pqn-0")
    with pytest.raises(ValueError, match=r"plays Breakout, Qbert, not Pong"):
        run(layout, "multitask/pair/pqn-0", game="pong")
    with pytest.raises(ValueError, match=r"unknown game 'Pung'"):
        run(layout, "multitask/pair/pqn-0", game="Pung")
    facts = run(layout, "multitask/pair/pqn-0", game="qbert")
    assert facts["file"] == str(layout.data / "exports/multitask/pair/pqn-0/Qbert.pt")
    assert facts["parity"]["datasets"] == [str(layout.dataset("Qbert"))]
    assert set(facts["latency_ms"]) == {"file", "agent"}  # it has no teacher


def test_an_agent_of_any_folder(layout: Layout, tmp_path: Path) -> None:
    assert run(layout, str(layout.agent(STUDENT)))["file"] == str(layout.data / "exports/kl-net3-0.pt")
    assert run(layout, out=tmp_path / "here/mine.pt")["file"] == str(tmp_path / "here/mine.pt")


def test_where_the_states_come_from(layout: Layout) -> None:
    """The mix that it learned from, the game's dataset, its sample, or one that is named."""
    names = {"first": layout.dataset("first"), "second": layout.dataset("second")}
    sample = layout.data / "samples/Breakout"
    for seed, folder in enumerate([*names.values(), sample], start=1):
        dataset(folder, seed=seed)
    assert run(layout)["parity"]["datasets"] == [str(layout.dataset("Breakout"))]
    write_mix(layout.mix("breakout"), make_mix(names, lambda game: None))
    told = run(layout)["parity"]
    assert (told["datasets"], told["states"]) == ([str(folder) for folder in names.values()], 100)
    layout.mix("breakout").unlink()
    layout.dataset("Breakout").rename(layout.data / "moved")
    assert run(layout)["parity"]["datasets"] == [str(sample)]
    url = f"file://{layout.data / 'moved'}"
    assert run(layout, dataset=url, states=10_000)["parity"] | {"max_abs_dq": 0} == {
        "states": 120,
        "same_actions": 1.0,
        "max_abs_dq": 0,
        "datasets": [url],
    }
    (sample / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no dataset of Breakout is at hand .*: name one with --dataset"):
        run(layout)


def test_the_states_are_spread_over_the_datasets(layout: Layout) -> None:
    dataset(layout.dataset("other"), seed=1)
    opened = [open_dataset(layout.dataset(name)) for name in ("Breakout", "other")]
    state_SCHW = export._spread(opened, 64)
    assert state_SCHW.shape == (64, 4, 84, 84)
    for half_SCHW, one in zip(np.split(state_SCHW, 2), opened, strict=True):
        every_NCHW = one.stacks(range(len(one)))
        at = [int(np.flatnonzero((every_NCHW == state).all(axis=(1, 2, 3)))[0]) for state in half_SCHW]
        assert at == sorted(set(at))
        assert (at[0], at[-1] > 105) == (0, True)
    assert len(export._spread(opened, 3)) == 3


def test_bad_input_is_refused_before_anything_is_written(layout: Layout, tmp_path: Path) -> None:
    dataset(layout.dataset("Qbert"), "Qbert", 6)
    for match, name, options in (
        ("has no network to export", "random/Breakout", {}),
        ("no agent at", "students/breakout/none-0", {}),
        ("is a folder: name a file in it", STUDENT, {"out": tmp_path}),
        (
            "is of Qbert with 6 actions, not of Breakout with 4: name another",
            STUDENT,
            {"dataset": str(layout.dataset("Qbert"))},
        ),
        ("nowhere", STUDENT, {"dataset": str(tmp_path / "nowhere")}),
    ):
        with pytest.raises(ValueError, match=match) as refused:
            run(layout, name, **options)
        assert "\n" not in str(refused.value)
    assert not (layout.data / "exports").exists()


def test_another_teacher_is_not_timed(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    agent(layout.agent(STUDENT), SMALL, {"Breakout": 4}, role="student", teacher={"digest": "0" * 64})
    assert set(run(layout)["latency_ms"]) == {"file", "agent"}
    assert "teacher 000000000000 is not in" in " ".join(capsys.readouterr().err.split())


def test_a_file_that_chooses_otherwise_is_not_published(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(run(layout)["file"])
    before = path.read_bytes()

    def wrong_once_in(states: int, right: Exported) -> Exported:
        def q_values(obs_BCHW: Any) -> Any:
            q_BA = right.q_values(obs_BCHW).copy()
            q_BA[::states] *= -1
            return q_BA

        return Exported(q_values, right.record)

    monkeypatch.setattr(export, "load_exported", lambda *given: wrong_once_in(100, load_exported(*given)))
    with pytest.raises(ValueError, match=r"chooses the agent's action in 99\.00% of 100 states, less than 99\.9%"):
        run(layout)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_program_without_us_plays_the_file(layout: Layout, tmp_path: Path) -> None:
    """The return of the example is that of the same policy in our own world."""
    short = dataclasses.replace(ENVIRONMENT, max_episode_frames=1600)
    folder = tmp_path / "player"
    save_agent(
        folder,
        new_network(SMALL, {"Breakout": 4}, CPU, seed=3),
        {"role": "student", "game": "Breakout", "environment": fingerprint("Breakout", short)},
    )
    path = Path(run(layout, str(folder), "onnx")["file"])
    example = Path("examples/play_onnx.py").resolve()
    tree = ast.walk(ast.parse(example.read_text()))
    names = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    assert names <= {"json", "sys", "numpy", "onnxruntime"}

    q_values = load_exported(path, "onnx").q_values
    expected = {}
    for seed in (3, 5):
        rng, total, over = np.random.default_rng(seed), 0.0, False
        world = SlotWorld("Breakout", short, width=1)
        obs_BCHW, _ = world.reset(np.array([seed]), np.array([True]))
        while not over:
            action = rng.integers(4) if rng.random() < 0.05 else q_values(obs_BCHW)[0].argmax()
            obs_BCHW, reward_B, terminated_B, truncated_B, _ = world.step(np.array([action]), np.array([True]))
            total += float(reward_B[0])
            over = bool(terminated_B[0] or truncated_B[0])
        expected[seed] = f"Breakout: return {total:g}\n"
    for seed, told in expected.items():
        command = [sys.executable, "-W", "error", str(example), str(path), str(seed)]
        played = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (played.returncode, played.stdout) == (0, told), played.stderr
    assert len(set(expected.values())) == 2
    assert onnx.load(path).metadata_props[0].key == "pd_pipeline"
