"""What README and docs/ say: their commands exist, their Python runs as printed, their links lead somewhere."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from pipeline.atari.envs import EnvConfig
from pipeline.datasets.reader import open_dataset
from pipeline.distill.offline import DistillConfig
from pipeline.rl.dqn import DqnConfig
from pipeline.rl.pqn import PqnConfig
from stages import params
from stages.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(page, code) for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[page.name for page, _ in BLOCKS])
def test_python_runs_as_printed(page: Path, code: str) -> None:
    assert re.search(r"\b[0-9a-f]{64}\b", run(code)), page


def test_the_reader_of_the_format_page_reads_what_ours_does() -> None:
    (code,) = [code for page, code in BLOCKS if page.name == "dataset-format.md"]
    assert len(code.splitlines()) <= 30
    assert "pipeline" not in code
    ours = open_dataset(ROOT / "data/samples/Pong")
    steps = [0, 1, 2, 3, 100, ours.episodes[1].start, ours.episodes[1].start + 2]
    theirs = eval(run(f"{code}\nprint([int(state(t).astype('int64').sum()) for t in {steps}])").splitlines()[-1])  # noqa: S307
    assert theirs == [int(s.astype(np.int64).sum()) for s in (ours.stacks([t])[0] for t in steps)]


def test_the_digest_of_the_format_page_is_the_samples() -> None:
    page = (ROOT / "docs/dataset-format.md").read_text()
    (text,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    digest = hashlib.sha256(text.replace("\n", "").encode()).hexdigest()
    assert digest == open_dataset(ROOT / "data/samples/Pong").manifest.digest
    assert f"`{digest}`" in page


def test_the_readmes_first_table_is_of_the_scores_in_git() -> None:
    def score(agent: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((ROOT / f"data/scores/{agent}.json").read_text())
        return told

    table = next(part for part in (ROOT / "README.md").read_text().split("\n\n") if "| normalised % of teacher" in part)
    rows = [[cell.strip() for cell in line.split("|")[2:5]] for line in table.splitlines()[2:]]
    students = [f"students/pong/{name}-0" for name in ("kl-dqn", "kl-net1", "kl-net2", "nll-net2", "mse-net2")]
    teacher, random = score("teachers/Pong"), score("random/Pong")["mean"]
    assert len(rows) == 1 + len(students)
    for (parameters, mean_return, normalised), told in zip(rows, [teacher, *map(score, students)], strict=True):
        assert parameters == f"{told['parameters']:,}"
        low, high = told["ci95"]
        assert mean_return == f"{told['mean']:.2f} [{low:.1f}, {high:.1f}]"
        share = 100 * (told["mean"] - random) / (teacher["mean"] - random)
        assert float(normalised.split()[0]) == round(share, 1)


def test_the_readmes_ladder_is_the_pages() -> None:
    """No number is typed by hand: copy the rows of docs/reproducing-the-paper.md, Compression, all but their names."""

    def rows(text: str) -> list[list[str]]:
        table = next(part for part in text.split("\n\n") if "| geometric mean" in part and "| parameters | " in part)
        return [line.split("|")[2:] for line in table.splitlines()[2:]]

    page = rows((ROOT / "docs/reproducing-the-paper.md").read_text().split("## Compression")[1])
    readme = rows((ROOT / "README.md").read_text())
    assert len(readme) == 6
    for row in readme:
        assert row in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    dataset = main.commands["dataset"]
    assert isinstance(dataset, click.Group)
    options = {option for parameter in main.params for option in parameter.opts}
    for option, command, word in re.findall(
        r"pd-pipeline (?:(--[a-z]+) \S+ )?([a-z][a-z-]*)?(?: ([a-z]+)\b)?", page.read_text()
    ):
        assert not option or option in options, option
        assert command in main.commands or command in ("", "pipeline"), command
        assert command != "dataset" or word in dataset.commands, f"dataset {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)|^    make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= {
        *((target, "") for target in targets),
        *(("", target) for target in targets),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


KEYS: dict[str, type[Any]] = {
    "The file": params.Params,
    "environment": EnvConfig,
    "teachers": params.TeacherParams,
    "teacher_presets": params.TeacherPreset,
    "pqn": PqnConfig,
    "dqn": DqnConfig,
    "datasets": params.DatasetParams,
    "students": params.StudentParams,
    "presets": DistillConfig,
    "multitask": params.MultitaskParams,
    "history": params.HistoryParams,
    "online": params.OnlineParams,
    "grid": params.GridParams,
    "evaluation": params.EvaluationParams,
}


def defaults(section: type[Any]) -> dict[str, Any]:
    """Keys of a section and what they are where they are left out: "" where they may not be."""
    if dataclasses.is_dataclass(section):
        return {key.name: "" if key.default is dataclasses.MISSING else key.default for key in dataclasses.fields(section)}
    return {name: "" if key.is_required() else key.default for name, key in section.model_fields.items()}


def test_the_page_of_params_has_every_key_and_its_default() -> None:
    chapters = re.split(r"^##+ (.+)\n", (ROOT / "docs/params.md").read_text(), flags=re.MULTILINE)[1:]
    told = {
        title: dict(re.findall(r"^\| `(\w+)` \| ?(.*?) ?\|", text, flags=re.MULTILINE))
        for title, text in zip(chapters[::2], chapters[1::2], strict=True)
    }
    assert told.keys() == KEYS.keys()
    instead = {("teacher_presets", "seed_once"): "false", ("teacher_presets", "precision"): "bfloat16"}  # none means these
    for title, section in KEYS.items():
        own = {
            key: instead.get((title, key))
            or ("none" if value in (None, [], {}) else str(value).lower() if isinstance(value, bool) else str(value))
            for key, value in defaults(section).items()
        }
        assert told[title] == own, title
