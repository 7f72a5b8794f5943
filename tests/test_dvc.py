"""dvc.yaml says what the commands do: real commands, recipes in params, the report listing its code."""

import ast
from pathlib import Path
from typing import Any

import pytest
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage
from ruamel.yaml import YAML

from stages import plan
from stages.cli import main
from stages.params import OnlineParams, load_project

ROOT = Path(__file__).parent.parent
FILES = sorted(p for p in ROOT.glob("**/dvc.yaml") if ".venv" not in p.parts)
REPORT = "stages/report.py"
SHELL = {f"stages/{name}.py" for name in ("params", "paths", "publish", "runlog", "versions", "cluster")}
"""What decides nothing that the report shows."""


def stages_of(path: Path) -> dict[str, dict[str, Any]]:
    raw = YAML(typ="safe", pure=True).load(path.read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in raw.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_every_stage_runs_a_command_of_ours(path: Path) -> None:
    for name, stage in stages_of(path).items():
        words = stage["cmd"].split()
        assert words[0] == "pd-pipeline", name
        assert words[1] in main.commands, name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_only_reports_have_code_among_their_dependencies(path: Path) -> None:
    for name, stage in stages_of(path).items():
        code = [d for d in stage.get("deps", []) if d.endswith(".py") or "pipeline/" in d]
        assert bool(code) == (stage["cmd"].split()[1] == "report"), name


def imported(path: Path, top: str = "pipeline") -> set[str]:
    """Files of the library, or of `stages`, that this file imports."""
    modules = {node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    modules |= {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    files = {f"{m.replace('.', '/')}.py" for m in modules if m.startswith(top)}
    return {f for f in files if (ROOT / f).is_file()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_the_report_lists_the_code_it_runs(path: Path) -> None:
    """The stage's own modules, the library modules they import, and what those of pipeline.report import."""
    up = Path(*[".."] * len(path.parent.relative_to(ROOT).parts))
    own = {REPORT}
    while more := {file for module in own for file in imported(ROOT / module, "stages")} - SHELL - own:
        own |= more
    needed = own | {file for module in own for file in imported(ROOT / module)}
    for file in [f for f in needed if f.startswith("pipeline/report")]:
        needed |= {f for f in imported(ROOT / file) if f != "pipeline/datasets/schema.py"}
    found = [stage for stage in stages_of(path).values() if stage["cmd"].split()[1] == "report"]
    assert found or "distill" not in stages_of(path)
    for stage in found:
        listed = [(path.parent / d).resolve().relative_to(ROOT).as_posix() for d in stage["deps"]]
        missing = {f for f in needed if not any(f == d or f.startswith(d + "/") for d in listed)}
        assert not missing, f"report: add {sorted((up / m).as_posix() for m in missing)} to its deps"


def test_rounds_wait_for_who_acts_and_for_every_dataset_of_their_mix() -> None:
    """DVC is told in dvc.yaml what params.yaml says of the rounds: the same."""
    folder = ROOT / "experiments/paper"
    raw = YAML(typ="safe", pure=True).load((folder / "params.yaml").read_text())
    stages = YAML(typ="safe", pure=True).load((folder / "dvc.yaml").read_text())["stages"]
    rounds = {name: (d["game"], d["actor"].removeprefix("students/")) for name, d in raw["datasets"].items() if "actor" in d}
    assert rounds == {name: (r["game"], r["actor"]) for name, r in stages["collect-round"]["foreach"].items()}
    mixes: dict[str, list[str]] = {}
    for name in ("mix", "mix-round1", "mix-round2"):
        deps = [d.removeprefix("data/datasets/") for d in stages[name]["do"]["deps"] if d.startswith("data/datasets/")]
        mixes |= {mix: [d.replace("${item}", game) for d in deps] for mix, game in stages[name]["foreach"].items()}
    assert mixes == raw["mixes"]


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != ROOT], ids=lambda p: p.parent.name)
def test_students_of_an_experiment_wait_for_no_dataset(path: Path) -> None:
    """Their mix names the datasets' digests: a fresh clone, which has no datasets, skips what is finished."""
    for name, stage in stages_of(path).items():
        if stage["cmd"].split()[1] == "distill":
            assert not [dep for dep in stage["deps"] if dep.startswith("data/datasets")], name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_params_are_tracked_as_narrowly_as_they_decide(path: Path) -> None:
    raw = YAML(typ="safe", pure=True).load((path.parent / "params.yaml").read_text())
    for name, stage in stages_of(path).items():
        told = stage.get("params", [])
        params = {param for param in told if isinstance(param, str)}
        params |= {param for file in told if not isinstance(file, str) for param in file.get("params.yaml", [])}
        command = stage["cmd"].split()[1]
        assert not params & {"presets", "students", "teachers", "teacher_presets", "datasets", "evaluation"}, name
        if command == "distill":
            block = stage["matrix"]["student"].removeprefix("${grid.").removesuffix(".students}")
            presets = {f"presets.{raw['students'][student]['preset']}" for student in raw["grid"][block]["students"]}
            assert {p for p in params if p.startswith("presets.")} == presets
        if command == "train-multitask":
            grid = stage["matrix"]["baseline"].removeprefix("${grid.").removesuffix(".baselines}")
            baselines = [raw["multitask"][name] for name in raw["grid"][grid]["baselines"]]
            presets = {p for b in baselines for p in (b["preset"], *b.get("presets", {}).values())}
            assert {p for p in params if p.startswith("teacher_presets.")} == {f"teacher_presets.{p}" for p in presets}
            assert {"mixes.${item.mix}", "multitask.${item.baseline}", "environment", "evaluation.epsilon"} <= params
            (mix,) = stage["matrix"]["mix"]
            cards = [f"../../data/teachers/{game}/card.json" for game in raw["mixes"][mix]]
            assert [p for p in told if not isinstance(p, str)] == [{card: ["evaluation.mean_return"]} for card in cards]
            assert "deps" not in stage  # a card says more of its teacher than decides here
        if command == "distill-online":
            deciding = OnlineParams.model_fields.keys() - {"seeds"}  # of others: a new one reruns nobody
            assert {p for p in params if p.startswith("online")} == {f"online.${{item.game}}.{key}" for key in deciding}
            students = [raw["online"][game]["student"] for game in stage["matrix"]["game"]]
            assert {p for p in params if p.startswith("students.")} == {f"students.{student}" for student in students}
            presets = {raw["students"][student]["preset"] for student in students}
            assert {p for p in params if p.startswith("presets.")} == {f"presets.{preset}" for preset in presets}
        if command == "evaluate":
            deciding = set(raw["evaluation"]) - {"width"}  # slots at once; episodes do not depend on it
            if " teachers/" not in stage["cmd"]:
                deciding -= {"teacher_episodes"}
            assert params == {"environment", *(f"evaluation.{key}" for key in deciding)}


@pytest.fixture(scope="module")
def index() -> list[PipelineStage]:
    """Every stage, as DVC reads dvc.yaml and dvc.lock."""
    with Repo(str(ROOT)) as repo:
        return [stage for stage in repo.index.stages if isinstance(stage, PipelineStage)]


@pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # DVC's
def test_what_is_made_is_locked_with_every_param_that_decides(index: list[PipelineStage]) -> None:
    """A param that dvc.yaml names since, and dvc.lock does not, makes finished students anew in a clone."""
    made = [stage for stage in index if any(out.hash_info for out in stage.outs)]
    assert len(made) > 100
    for stage in made:
        for dependency in stage.deps:
            if isinstance(dependency, ParamsDependency):
                assert set(dependency.params) <= set(dependency.hash_info.value or ()), stage.addressing


@pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # DVC's
def test_the_plan_knows_every_dear_stage(index: list[PipelineStage]) -> None:
    """By the command that it runs, so that what is to be run can be told to take so long. Collections and teachers are planned
    where they are missing.
    """
    commands = [(Path(stage.path), str(stage.cmd)) for stage in index if isinstance(stage.cmd, str)]
    assert all(any(where == path for where, _ in commands) for path in FILES)
    for path in FILES:
        known = {job[:2] for job in plan.jobs(*load_project(path.with_name("params.yaml")), wanted=[])}
        jobs = {plan.job_of(cmd) for where, cmd in commands if where == path}
        dear = {job for job in jobs if job[0] in plan.DEAR and job[0] not in ("collect", "train-teacher")}
        assert dear <= known, path
