"""new: an experiment for any game, from the quick road; and docs/tutorial.md, whose commands are run as printed."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from stages.cli import main
from stages.params import load

ROOT = Path(__file__).parent.parent.parent
SMALLER = {
    "steps": "2048",
    "select_every": "1024",
    "select_episodes": "2",
    "gate_return": "-100.0",
    "gate_episodes": "2",
    "envs": "8",
    "horizon": "16",
    "minibatch": "64",
    "states": "4000",
    "episodes": "2",
    "updates": "20",
    "validate_every": "10",
    "validation_states": "64",
    "warmup_updates": "2",
}


WORSE = """
import pyarrow.parquet as pq
path = "data/episodes/random/Boxing.parquet"
table = pq.read_table(path)
at = table.schema.get_field_index("episode_return")
worse = pq.read_table(path)["episode_return"].to_numpy() - 200.0
pq.write_table(table.set_column(at, "episode_return", [worse]), path)
"""
"""A teacher of two seconds has learned nothing, and the report refuses one that is no better than chance."""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What of a clone is wanted: the quick road and the examples."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def new(clone: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--params", str(clone / "params.yaml"), "new", *arguments])


def test_everything_is_of_the_game(clone: Path) -> None:
    done = new(clone, "mspacman", "--steps", "80000", "--gate", "250")
    assert done.exit_code == 0, done.output
    folder = clone / "experiments/mspacman"
    assert done.stdout == f"{folder}\n"
    params, road = load(folder / "params.yaml"), load(clone / "params.yaml")
    teacher = params.teachers["MsPacman"]
    assert (teacher.steps, teacher.select_every, teacher.gate_return) == (80_000, 10_000, 250)
    assert params.mixes == {"mspacman": ["MsPacman"]}
    assert params.students == road.students
    (pqn,), (theirs,) = ([preset.pqn for preset in p.teacher_presets.values()] for p in (params, road))
    assert pqn is not None
    assert theirs is not None
    assert pqn == replace(theirs, average_decay=0.998, stagger=2000)
    for name in ("params.yaml", "dvc.yaml"):
        assert not re.search(r"\bpong\b", (folder / name).read_text(), re.IGNORECASE)
    stages = YAML(typ="safe", pure=True).load((folder / "dvc.yaml").read_text())["stages"]
    code = [dep for dep in stages["report"]["deps"] if not dep.startswith("data/")]
    assert code
    assert all((ROOT / os.path.normpath(f"experiments/mspacman/{dep}")).exists() for dep in code)


def test_the_default_gate_is_what_chance_reaches(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.contest.CHANCE_EPISODES", 6)
    assert new(clone, "Breakout").exit_code == 0
    assert 0.5 < load(clone / "experiments/breakout/params.yaml").teachers["Breakout"].gate_return < 4  # the literature: 1.7


def test_nothing_is_replaced_and_nothing_guessed(clone: Path) -> None:
    assert "unknown game" in new(clone, "Boxin").stderr
    assert new(clone, "Boxing", "--gate", "1").exit_code == 0
    again = new(clone, "Boxing", "--gate", "1")
    assert (again.exit_code, "is there already: choose another --out" in again.stderr) == (1, True)
    nested = CliRunner().invoke(main, ["--params", str(clone / "experiments/boxing/params.yaml"), "new", "Pong", "--gate", "1"])
    assert (nested.exit_code, "in the repository's root" in nested.stderr) == (1, True)
    for gate in ("nan", "inf"):
        assert new(clone, "Freeway", "--gate", gate).exit_code == 1
    assert new(clone, "Freeway", "--gate", "1").exit_code == 0
    (clone / "dvc.yaml").unlink()
    assert "not the quick road" in new(clone, "Pong", "--gate", "1").stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs_as_printed(clone: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    edits = "; ".join(f"s/\\b{key}: [0-9.e+-]*/{key}: {value}/" for key, value in SMALLER.items())
    script = "".join(blocks).replace("cd experiments/boxing\n", f"cd experiments/boxing\nsed -i '{edits}' params.yaml\n")
    script = script.replace("pd-pipeline report", f"{sys.executable} -c '{WORSE}'\npd-pipeline report")
    assert (script.count("sed -i"), script.count(WORSE)) == (1, 1)
    (clone / "bin").mkdir()
    (clone / "bin/pd-pipeline").write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c "from stages.cli import main; main()" "$@"\n'
    )
    (clone / "bin/pd-pipeline").chmod(0o755)
    environment = os.environ | {"PATH": f"{clone / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=clone, check=True)
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^Boxing: return -?\d", done.stdout, re.MULTILINE)
    folder = clone / "experiments/boxing"
    assert (folder / "data/report/index.html").stat().st_size > 10_000
    assert (folder / "both.mp4").stat().st_size > 10_000
