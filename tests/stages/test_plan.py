"""plan: everything that a run takes is in what it is said to take, before it starts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.datasets.mix import read_recipes, write_recipes
from pipeline.report.scores import learned_from
from stages import params, plan
from stages.current import collected, made, outdated
from stages.paths import Layout
from tests.fakes import corridor_episode, edited_params, write_dataset

ROOT = Path(__file__).parents[2]
STEP = 1 / 100 + 1 / 1000
"""Seconds of playing: 100 emulated and 1,000 evaluated states a second."""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose rates are known."""
    monkeypatch.setattr(plan, "_emulation", lambda game, environment: 100.0)
    monkeypatch.setattr(plan.Machine, "_forward", lambda self, network, precision, batch: 1000.0)
    monkeypatch.setattr(plan.Machine, "_judge", lambda self, network: 1000.0)
    monkeypatch.setattr(plan.Machine, "_orthogonalise", lambda self, network, precision: 0.02)


def test_a_run_counts_what_is_played_for_its_curve_and_a_missing_dataset_is_named(tmp_path: Path) -> None:
    with edited_params(tmp_path) as raw:
        raw["datasets"] = {}
        raw["mixes"] = {"pair": ["Pong", "Qbert"], "more": ["Freeway"], "alone": ["Breakout"]}
        raw["presets"]["fast"] |= {"batch": 100, "validate_every": 50, "optimizer": "muon"}
        student = {"loss": "kl", "temperature": 0.01, "network": "multi3", "preset": "fast", "updates": 120, "recipe": 1}
        onward = student | {"begins_with": "students/pair/kl-0", "play_episodes": 2}
        raw["students"] = {"kl": student, "onward": onward, "frozen": onward | {"frozen": True}}
        baseline = {"preset": "pqn-atari", "network": "pqn-multi3", "steps": 1000, "select_every": 400, "recipe": 2}
        raw["multitask"] = {"pqn": baseline | {"select_episodes": 5}}
        raw["grid"] = {
            "pair": {"students": ["kl"], "seeds": [0]},
            "more": {"students": ["onward", "frozen"], "seeds": [0]},
            "alone": {"baselines": ["pqn"], "seeds": [0]},
        }
    loaded = params.load(tmp_path / "params.yaml")
    found = {(job.stage, job.name): job.seconds for job in plan.jobs(Layout(tmp_path, tmp_path / "zoo"), loaded)}
    learning, episode = 120 * (3 * 100 / 1000 + 0.02), plan.UNKNOWN_STEPS * STEP
    assert found["distill", "pair/kl-0"] == pytest.approx(learning)
    assert found["distill", "more/onward-0"] == pytest.approx(learning + 3 * 2 * 3 * episode)  # three games, three validations
    assert found["distill", "more/frozen-0"] == pytest.approx(learning + 3 * 2 * 1 * episode)  # the old ones stay as they are
    learning = 1000 * plan.Machine(loaded).learn("pqn-atari", "pqn-multi3", "Breakout")
    assert found["train-multitask", "alone/pqn-0"] == pytest.approx(learning + 3 * 5 * episode)
    assert {name: told for (stage, name), told in found.items() if stage == "collect"} == {
        "Pong": None,
        "Qbert": None,
        "Freeway": None,  # Breakout's baseline wants none
    }


def test_a_dataset_of_fewer_states_than_asked_is_not_done(tmp_path: Path) -> None:
    episode = corridor_episode(0, np.random.default_rng(0))
    write_dataset(tmp_path / "data/datasets/Pong", [episode, episode], game="Pong")

    def collecting(states: int) -> plan.Job:
        with edited_params(tmp_path) as raw:
            raw["datasets"]["Pong"]["states"] = states
        found = plan.jobs(Layout(tmp_path, tmp_path / "zoo"), params.load(tmp_path / "params.yaml"))
        (job,) = [job for job in found if job.stage == "collect"]
        return job

    states = 2 * episode.steps
    assert collecting(states).done
    assert collecting(states + 1).seconds == pytest.approx((states + 1) * STEP)


def test_anew_it_is_as_if_there_were_nothing(tmp_path: Path) -> None:
    episode = corridor_episode(0, np.random.default_rng(0))
    write_dataset(tmp_path / "data/datasets/Pong", [episode, episode], game="Pong")
    with edited_params(tmp_path) as raw:
        raw["datasets"]["Pong"]["states"] = 2 * episode.steps
    loaded, layout = params.load(tmp_path / "params.yaml"), Layout(tmp_path, ROOT / "data/teachers")
    told = loaded.teachers["Pong"]
    found = {job.stage: job for job in plan.jobs(layout, loaded)}
    assert (found["train-teacher"].done, found["collect"].done) == (True, True)
    anew = {job.stage: job for job in plan.jobs(layout, loaded, anew=True)}
    assert not any(job.done for job in anew.values())
    assert anew["collect"].seconds == pytest.approx(2 * episode.steps * STEP)
    learning = told.steps * plan.Machine(loaded).learn(told.preset, told.network, "Pong")
    played = -(-told.steps // told.select_every) * told.select_episodes + told.gate_episodes
    assert anew["train-teacher"].seconds == pytest.approx(learning + played * plan.UNKNOWN_STEPS * STEP)


def test_episodes_are_as_long_as_the_teachers_or_else_the_random_agents_were(tmp_path: Path) -> None:
    layout, machine = Layout(tmp_path, tmp_path / "zoo"), plan.Machine(params.load(ROOT / "params.yaml"))
    took = [machine.episodes(layout, "Pong", 10)]
    for agent, steps in (("random", 800), ("teachers", 1600)):
        path = layout.episodes(f"{agent}/Pong")
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"steps": [steps - 100, steps + 100]}), path)
        took.append(machine.episodes(layout, "Pong", 10))
    assert took == pytest.approx([10 * steps / 100 for steps in (plan.UNKNOWN_STEPS, 800, 1600)])


def test_a_student_whose_data_would_be_collected_otherwise_is_not_made() -> None:
    layout, told = params.load_project(ROOT / "experiments/same-network/params.yaml")
    cells = told.cells()
    assert all(made(layout, told, cell) for cell in cells)
    for change in ({"epsilon": 0.1}, {"seed": 2}, {"actor": "students/pong/kl-dqn-0"}, {"states": 1}):
        datasets = {"Pong": told.datasets["Pong"].model_copy(update=change)}
        other = told.model_copy(update={"datasets": datasets})
        assert not any(made(layout, other, cell) for cell in cells)
        if "states" not in change:
            assert all(outdated(layout, other, cell) for cell in cells)


def test_it_is_the_students_own_data_that_count_and_not_what_the_mix_has_since(tmp_path: Path) -> None:
    source, told = params.load_project(ROOT / "experiments/same-network/params.yaml")
    layout = replace(source, root=shutil.copytree(source.root, tmp_path / "copy"))
    cells = told.cells()
    recipes = read_recipes(layout.recipes("pong"))
    for cell in cells:
        path = layout.agent(cell.agent) / "card.json"
        card = json.loads(path.read_text())
        card["datasets"] = [d | {"collected": collected(recipes[d["name"]]["collection"])} for d in learned_from(card)]
        path.write_text(json.dumps(card))
    assert all(made(layout, told, cell) for cell in cells)
    other = told.model_copy(update={"datasets": {"Pong": told.datasets["Pong"].model_copy(update={"epsilon": 0.1})}})
    recipes["Pong"]["collection"]["epsilon"] = 0.1  # the mix has been made anew, the students have not
    write_recipes(layout.recipes("pong"), recipes)
    assert not any(made(layout, other, cell) for cell in cells)
    assert all(outdated(layout, other, cell) for cell in cells)
