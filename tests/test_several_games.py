"""A mix of two games by the commands that dvc.yaml runs: one student, its baseline, scores and report; extended and cut."""

import csv
import importlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from pipeline.agents.checkpoints import load_agent, save_agent
from pipeline.agents.networks import NETWORKS, new_network
from pipeline.atari.envs import fingerprint
from pipeline.datasets.schema import Flag, Records
from stages.cli import main
from stages.current import earlier_settings
from stages.params import Cell, load_project
from stages.runlog import Stopped
from tests.fakes import ENVIRONMENT, edited_params, write_dataset

pytestmark = pytest.mark.end_to_end

GAMES = {"Breakout": 4, "Qbert": 6}
PLAYERS = ("students/pair/kl-0", "multitask/pair/pqn-0", "students/second/more-0")
CPU = torch.device("cpu")


def episode(actions: int, rng: np.random.Generator, steps: int = 40) -> Records:
    """Noise in the form of an episode: what it shows does not matter here."""
    flags = np.zeros(steps, dtype=np.uint8)
    flags[0], flags[-1] = Flag.EPISODE_START, Flag.TERMINATED
    return Records(
        frame_NHW=rng.integers(0, 256, (steps, 84, 84), dtype=np.uint8),
        q_NA=rng.normal(size=(steps, actions)).astype(np.float32),
        action_N=rng.integers(0, actions, steps).astype(np.uint8),
        reward_N=np.zeros(steps, dtype=np.float32),
        flags_N=flags,
    )


def fails(project: Path, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["--params", str(project / "params.yaml"), *arguments])
    assert result.exit_code == 1, result.output
    return result.output


def call(project: Path, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["--params", str(project / "params.yaml"), *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    """How long things take, which a baseline tells when it starts, is measured at once; emulators not at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.plan.PROBE_SECONDS", 0.02)
        patch.setattr("stages.plan._emulation", lambda game, environment: 1000.0)
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two games with teachers that know nothing and datasets of noise, in an environment whose episodes are short."""
    folder = tmp_path_factory.mktemp("pair")
    with edited_params(folder) as raw:
        raw["environment"]["max_episode_frames"] = 160
        raw["datasets"] = {game: {"states": 200, "epsilon": 0.05, "seed": 1, "recipe": 1} for game in GAMES}
        raw["mixes"] = {"pair": list(GAMES), "first": ["Breakout"], "second": ["Qbert"]}
        student: dict[str, Any] = {
            "loss": "kl",
            "temperature": 0.5,
            "network": "multi3",
            "preset": "fast",
            "updates": 6,
            "recipe": 1,
        }
        raw["students"] = {
            "kl": student | {"interleave": 1, "play_episodes": 1},
            "alone": student,
            "more": student | {"begins_with": "students/first/alone-0", "frozen": True},
            "onward": student | {"begins_with": "students/first/alone-0", "play_episodes": 1},
        }
        raw["presets"]["fast"] |= {"batch": 16, "validate_every": 3, "validation_states": 16, "warmup_updates": 2}
        raw["teacher_presets"]["pqn-atari"]["pqn"] |= {"envs": 2, "horizon": 16, "minibatch": 16}
        raw["teacher_presets"]["pqn-held"] = {
            **raw["teacher_presets"]["pqn-atari"],
            "pqn": raw["teacher_presets"]["pqn-atari"]["pqn"] | {"hold_exponent": 2.0},
        }
        raw["teacher_presets"]["pqn-slow"] = {
            **raw["teacher_presets"]["pqn-atari"],
            "pqn": raw["teacher_presets"]["pqn-atari"]["pqn"] | {"learning_rate": 1.0e-5},
        }
        baseline = {
            "preset": "pqn-atari",
            "network": "pqn-multi3",
            "steps": 64,
            "select_every": 32,
            "select_episodes": 1,
            "recipe": 2,
        }
        raw["multitask"] = {
            "pqn": baseline | {"presets": {"Qbert": "pqn-held"}},
            "unlike": baseline | {"presets": {"Qbert": "pqn-slow"}},
        }
        raw["grid"] = {
            "pair": {"students": ["kl"], "baselines": ["pqn"], "seeds": [0]},
            "begun": {"mixes": ["first"], "students": ["alone"], "seeds": [0]},
            "added": {"mixes": ["second"], "students": ["more"], "seeds": [0]},
        }
        raw["evaluation"] |= {"episodes": 2, "epsilon": 0.5, "width": 1}
    environment = ENVIRONMENT.__class__(
        **{name: getattr(ENVIRONMENT, name) for name in ENVIRONMENT.__slots__} | {"max_episode_frames": 160}
    )
    rng = np.random.default_rng(0)
    for game, actions in GAMES.items():
        network = new_network(NETWORKS["net3"], {game: actions}, CPU, 0)
        world = fingerprint(game, environment)
        card = {"role": "teacher", "game": game, "environment": world, "evaluation": {"mean_return": 1000.0, "episodes": 2}}
        digest = save_agent(folder / "data/teachers" / game, network, card)["digest"]
        noise = [episode(actions, rng) for _ in range(5)]
        write_dataset(folder / "data/datasets" / game, noise, game=game, teacher=digest, environment=world)
    return folder


@pytest.fixture(scope="module")
def travelled(project: Path) -> Path:
    """After every command but the report."""
    for mix in ("pair", "first", "second"):
        call(project, "mix", "--mix", mix)
    for student in ("pair/kl", "first/alone", "second/more"):
        call(project, "distill", "--student", student)
    told = call(project, "train-multitask", "--baseline", "pair/pqn")
    assert re.search(r"pair/pqn-0: to 64 steps of each of Breakout, Qbert, about \d+:\d\d on this machine", told)
    call(project, "evaluate", "students/first/alone-0")
    for game in GAMES:
        for agent in (f"teachers/{game}", f"random/{game}"):
            call(project, "evaluate", agent)
        for agent in PLAYERS:
            call(project, "evaluate", agent, "--game", game.lower())
        chance = project / f"data/episodes/random/{game}.parquet"
        table = pq.read_table(chance)
        worse = pa.array(table["episode_return"].to_numpy() - 999.0)  # so that these teachers have taught something
        pq.write_table(table.set_column(table.schema.get_field_index("episode_return"), "episode_return", worse), chance)
    return project


def test_one_student_and_one_baseline_of_both_games(travelled: Path) -> None:
    student = json.loads((travelled / "data/students/pair/kl-0/card.json").read_text())
    baseline = json.loads((travelled / "data/multitask/pair/pqn-0/card.json").read_text())
    assert student["heads"] == baseline["heads"] == GAMES
    assert student["games"].keys() == baseline["games"].keys() == GAMES.keys()
    assert student["games"]["Qbert"]["environment"]["game"] == "Qbert"
    assert (baseline["steps_trained"], baseline["settings"]["Qbert"]["hold_exponent"]) == (64, 2.0)
    curve = (travelled / "data/students/pair/kl-0/curve.csv").read_text().splitlines()
    for column in ("return_Qbert", "kl_Breakout", "cosine_Breakout_Qbert", "share_Qbert", "states_Qbert"):
        assert column in curve[0].split(",")
    curve = (travelled / "data/multitask/pair/pqn-0/curve.csv").read_text().splitlines()
    for column in ("eval_return_Qbert", "cosine_Breakout_Qbert", "share_Qbert"):
        assert column in curve[0].split(",")


def test_the_report_shows_both(travelled: Path) -> None:
    call(travelled, "report", "--paper", str(travelled / "paper.md"))
    rows = json.loads((travelled / "data/report/scores.json").read_text())
    for game in GAMES:
        agents = [row["agent"] for row in rows if row["game"] == game]
        assert agents[:2] == [f"teachers/{game}", f"random/{game}"]
        begun = ["students/first/alone-0"] if game == "Breakout" else []
        assert sorted(agents[2:]) == sorted([*begun, *(f"{agent}/{game}" for agent in PLAYERS)])
    page = (travelled / "data/report/index.html").read_text()
    assert "One network for Breakout, Qbert" in page
    assert "pair/kl-0: do games pull the shared trunk the same way?" in page
    paper = (travelled / "paper.md").read_text()
    assert "| pair/kl | " in paper
    assert "| pair/pqn | " in paper
    assert "| second/more | " in paper
    several = paper[paper.index("## One network for Breakout, Qbert") :]
    assert several.index("| alone | ") < several.index("| second/more | ")  # what it began with: its old games before
    scores = travelled / "data/scores/multitask/pair/pqn-0/Qbert.json"
    scores.rename(travelled / "aside")
    assert "run `pd-pipeline evaluate multitask/pair/pqn-0 --game Qbert`" in fails(travelled, "report")
    assert "left out, not evaluated yet: pair/pqn-0\n" in call(travelled, "report", "--partial")
    (travelled / "aside").rename(scores)


def test_any_other_setting_of_a_baseline_is_noticed(travelled: Path) -> None:
    params = travelled / "params.yaml"
    before = params.read_text()

    def told(section: str, name: str, **changes: object) -> str:
        with edited_params(travelled, params) as raw:
            entry = raw[section][name]
            (entry["pqn"] if section == "teacher_presets" else entry).update(changes)
        found = earlier_settings(*load_project(params), Cell("multitask", "pair", "pqn", 0))
        params.write_text(before)
        return found

    assert told("multitask", "pqn") == ""
    assert told("multitask", "pqn", select_every=64) == "select_every 32"
    with edited_params(travelled, params) as raw:
        raw["mixes"]["pair"] = [*reversed(GAMES)]
    assert earlier_settings(*load_project(params), Cell("multitask", "pair", "pqn", 0)) == ""
    with edited_params(travelled, params) as raw:
        raw["mixes"]["pair"] = ["Qbert"]
    assert earlier_settings(*load_project(params), Cell("multitask", "pair", "pqn", 0)) == "games Breakout, Qbert"
    params.write_text(before)
    assert told("multitask", "pqn", steps=128) == "steps 64"
    assert told("multitask", "pqn", network="multi3") == "network pqn-multi3"
    assert told("teacher_presets", "pqn-held", hold_exponent=3.0) == "hold_exponent of Qbert 2.0"


def test_the_plan_knows_what_is_left(travelled: Path) -> None:
    plan = json.loads(call(travelled, "plan", "--json"))
    assert all(job["done"] for job in plan["jobs"])
    done = [(job["stage"], job["name"]) for job in plan["jobs"]]
    assert ("train-multitask", "pair/pqn-0") in done
    assert {("evaluate", f"{agent}/{game}") for agent in PLAYERS for game in GAMES} <= set(done)
    (travelled / "data/multitask/pair/pqn-0/card.json").rename(travelled / "aside")
    left = [job for job in json.loads(call(travelled, "plan", "--json"))["jobs"] if not job["done"]]
    anew = [("evaluate", f"multitask/pair/pqn-0/{game}") for game in GAMES]  # its scores are of what is gone
    assert [(job["stage"], job["name"]) for job in left] == [("train-multitask", "pair/pqn-0"), *anew]
    assert all(job["seconds"] > 0 for job in left)
    params = travelled / "params.yaml"
    before = params.read_text()
    with edited_params(travelled, params) as raw:
        raw["datasets"]["Breakout"] = {"states": 10**6, "epsilon": 0.5, "seed": 0, "recipe": 1}
    anew = [(j["stage"], j["name"]) for j in json.loads(call(travelled, "plan", "--json"))["jobs"] if not j["done"]]
    params.write_text(before)
    assert {("collect", "Breakout"), ("distill", "pair/kl-0"), ("distill", "first/alone-0")} <= set(anew)
    (travelled / "aside").rename(travelled / "data/multitask/pair/pqn-0/card.json")


def test_a_game_is_added_and_one_is_cut_out(travelled: Path) -> None:
    before = load_agent(travelled / "data/students/first/alone-0", CPU)
    after = load_agent(travelled / "data/students/second/more-0", CPU)
    assert after.card["heads"] == GAMES
    assert after.card["begins_with"] == before.digest
    assert after.world("Breakout") == before.world("Breakout") is not None
    call(travelled, "cut", "students/second/more-0", "--game", "breakout", "--out", str(travelled / "cut"))
    alone = load_agent(travelled / "cut", CPU)
    assert (alone.card["game"], alone.card["cut_from"]) == ("Breakout", after.digest)
    for name, weights in before.network.state_dict().items():
        assert torch.equal(weights, alone.network.state_dict()[name])
    call(travelled, "evaluate", str(travelled / "cut"))
    own, whole = (
        json.loads((travelled / f"data/scores/{name}.json").read_text()) for name in ("cut", "students/second/more-0/Breakout")
    )
    assert (own["mean"], own["game"], own["role"]) == (whole["mean"], "Breakout", "student")
    (travelled / "twin").mkdir()
    shutil.copytree(travelled / "cut", travelled / "twin/cut")
    told = fails(travelled, "evaluate", str(travelled / "cut"), str(travelled / "twin/cut"))
    assert "would have results called cut" in told
    call(
        travelled, "cut", "students/second/more-0", "--game", "qbert", "--out", str(travelled / "cut")
    )  # a cut may be replaced
    for taken in ("data/teachers/Breakout", "data/students/second/more-0"):
        told = fails(travelled, "cut", "students/second/more-0", "--game", "qbert", "--out", str(travelled / taken))
        assert "holds an agent that was not cut from another" in told


def test_a_card_tells_nothing_that_is_no_longer_so(travelled: Path) -> None:
    call(travelled, "distill", "--student", "second/onward")
    kept = json.loads((travelled / "data/students/second/more-0/card.json").read_text())["games"]
    moved = json.loads((travelled / "data/students/second/onward-0/card.json").read_text())["games"]
    assert "held_out" in kept["Breakout"]
    assert "held_out" not in moved["Breakout"]
    assert "held_out" in moved["Qbert"]
    columns = (travelled / "data/students/second/onward-0/curve.csv").read_text().splitlines()[0].split(",")
    assert {"return_Breakout", "return_Qbert"} <= set(columns)  # what it forgets, too


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "command"),
    [("distill", ("distill", "--student", "pair/kl")), ("train_multitask", ("train-multitask", "--baseline", "pair/pqn"))],
)
def test_an_evaluation_that_was_interrupted_is_made(
    travelled: Path, monkeypatch: pytest.MonkeyPatch, stage: str, command: tuple[str, ...]
) -> None:
    module = importlib.import_module(f"stages.{stage}")
    real, calls = module.tried, itertools.count()

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 3:  # the second game of the last evaluation
            raise Stopped
        return real(*arguments, **named)

    monkeypatch.setattr(module, "tried", interrupted)
    result = CliRunner().invoke(main, ["--params", str(travelled / "params.yaml"), *command, "--seed", "1"])
    assert result.exit_code == 130, result.output
    call(travelled, *command, "--seed", "1")
    kind, column = ("students", "return_Qbert") if stage == "distill" else ("multitask", "eval_return_Qbert")
    (curve,) = travelled.glob(f"data/{kind}/pair/*-1/curve.csv")
    with curve.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1][column] != ""
    assert sum(row[column] != "" for row in rows) == 2


@pytest.mark.slow
def test_a_baseline_goes_on_elsewhere_from_a_snapshot(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> Any:
        raise Stopped

    baseline = ("train-multitask", "--baseline", "pair/pqn", "--seed", "2")
    snapshot = tmp_path / "unfinished"
    assert "there is no unfinished run in" in fails(project, *baseline, "--snapshot", str(snapshot))
    with monkeypatch.context() as patched:
        patched.setattr("stages.train_multitask.tried", stopped)
        assert CliRunner().invoke(main, ["--params", str(project / "params.yaml"), *baseline]).exit_code == 130
    assert "a snapshot at 32 steps a game" in call(project, *baseline, "--snapshot", str(snapshot))
    card = json.loads((snapshot / "card.json").read_text())
    assert (card["role"], card["steps"], card["heads"]) == ("snapshot", 32, GAMES)
    shutil.rmtree(project / ".work")
    assert "beginning pair/pqn-2 at 32 steps a game from" in call(project, *baseline, "--from", str(snapshot))
    done = json.loads((project / "data/multitask/pair/pqn-2/card.json").read_text())
    assert [(part["from"], part.get("begins_with")) for part in done["history"]] == [(0, None), (32, card["digest"])]
    assert done["steps_trained"] == 64
    with (project / "data/multitask/pair/pqn-2/curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows] == ["32", "64"]
    assert int(rows[1]["updates_Qbert"]) == 2 * int(rows[0]["updates_Qbert"]) > 0
    foreign = fails(project, "train-multitask", "--baseline", "pair/pqn", "--seed", "3", "--from", "data/teachers/Pong")
    assert "Pong is Pong, pqn, network pqn, not Breakout, Qbert, pqn, network pqn-multi3: begin from one like it" in foreign


def test_what_is_refused(travelled: Path) -> None:
    assert "plays Breakout, Qbert: choose one with --game" in fails(travelled, "evaluate", "students/pair/kl-0")
    assert "plays Breakout, Qbert, not Pong" in fails(travelled, "evaluate", "students/pair/kl-0", "--game", "pong")
    assert "agent random/Qbert plays Qbert, not Pong" in fails(travelled, "evaluate", "random/Qbert", "--game", "pong")
    assert "plays Breakout, Qbert, not Pong" in fails(travelled, "cut", "students/pair/kl-0", "--game", "pong", "--out", "x")
    assert "the preset of Qbert differs from that of Breakout in more than epsilon_low" in fails(
        travelled, "train-multitask", "--baseline", "pair/unlike"
    )
    assert "baseline 'pqn' names no mix" in fails(travelled, "train-multitask", "--baseline", "pqn")
    card = travelled / "data/teachers/Qbert/card.json"
    whole = card.read_text()
    card.write_text(
        json.dumps({key: value for key, value in json.loads(whole).items() if key != "evaluation"})
    )  # as of a snapshot
    assert "data/teachers/Qbert was never evaluated" in fails(
        travelled, "train-multitask", "--baseline", "pair/pqn", "--seed", "7"
    )
    evaluated = json.loads(whole)
    card.write_text(json.dumps(evaluated | {"evaluation": evaluated["evaluation"] | {"mean_return": -1.0}}))
    assert "data/teachers/Qbert scores -1.00, no better than random" in fails(
        travelled, "train-multitask", "--baseline", "pair/pqn", "--seed", "7"
    )
    card.write_text(whole)
    gone = travelled / "data/datasets/Qbert"
    gone.rename(travelled / "away")
    assert "Qbert" in (told := fails(travelled, "distill", "--student", "pair/alone"))
    assert len(told.strip().splitlines()) == 1
    (travelled / "away").rename(gone)
