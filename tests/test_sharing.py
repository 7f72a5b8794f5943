"""Team A collects, tags and pushes; team B, with an empty repository and no teacher, imports, verifies and distils."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.datasets.reader import open_dataset
from stages.cli import main
from tests.fakes import blocks_of_four, edited_params
from tests.repositories import new_repository, publish, run


def pd_pipeline(folder: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), *arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def team_a(
    tmp_path_factory: pytest.TempPathFactory, breakout_teacher: Path, bucket: str, on_one_worker: tuple[str, str]
) -> Path:
    """A repository with a dataset tagged v1, pushed to a folder and to a bucket, and then gone from this machine."""
    folder = new_repository(tmp_path_factory.mktemp("teams") / "a")
    with edited_params(folder) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    with blocks_of_four():
        pd_pipeline(folder, "collect", "--game", "Breakout", "--states", "1200", *on_one_worker)
    run(folder, "dvc", "remote", "add", "-q", "-d", "disk", str(folder.parent / "storage"))
    run(folder, "dvc", "remote", "add", "-q", "cloud", f"{bucket}/team-a")
    run(folder, "dvc", "remote", "modify", "-q", "cloud", "endpointurl", os.environ["AWS_ENDPOINT_URL"])
    publish(folder, "data/datasets/Breakout", "v1")
    run(folder, "dvc", "push", "-q")
    run(folder, "dvc", "push", "-q", "-r", "cloud")
    run(folder, "rm", "-r", "data/datasets/Breakout", ".dvc/cache")
    return folder


@pytest.mark.parametrize("remote", ["disk", "cloud"])
def test_team_b_distils_from_what_it_imported(team_a: Path, tmp_path: Path, remote: str) -> None:
    folder = new_repository(tmp_path / "b")
    (folder / "data/datasets").mkdir(parents=True)
    run(
        folder,
        *(
            "dvc",
            "import",
            "-q",
            str(team_a),
            "data/datasets/Breakout",
            "--rev",
            "v1",
            "--remote",
            remote,
            "-o",
            "data/datasets",
        ),
    )
    with edited_params(folder) as raw:
        raw["mixes"] = {"theirs": ["Breakout"]}
        raw["students"] = {"kl": raw["students"]["kl-net2"] | {"network": "net3", "updates": 20}}
        raw["presets"]["fast"] |= {"batch": 32, "validate_every": 10, "validation_states": 64, "warmup_updates": 5}
        raw["grid"] = {"theirs": {"students": ["kl"], "seeds": [0]}}
    dataset = folder / "data/datasets/Breakout"
    pd_pipeline(folder, "dataset", "validate", str(dataset))
    said = pd_pipeline(folder, "dataset", "verify", str(dataset), "--rederive", "20%")
    assert "Q-values are not checked: no teacher of theirs is at hand" in said.stderr
    assert "played again, came out the same" in said.stdout
    pd_pipeline(folder, "mix", "--mix", "theirs")
    pd_pipeline(folder, "distill", "--student", "theirs/kl")
    card = json.loads((folder / "data/students/theirs/kl-0/card.json").read_text())
    assert card["datasets"][0]["digest"] == open_dataset(dataset).manifest.digest
    assert card["teacher"] == open_dataset(dataset).manifest.teacher
    assert not (folder / "data/teachers").exists()


@pytest.mark.parametrize("remote", ["disk", "cloud"])
def test_a_tag_is_looked_into_without_being_fetched(team_a: Path, remote: str) -> None:
    run(team_a, "dvc", "remote", "default", "-q", remote)
    run(team_a, "git", "commit", "-q", "--allow-empty", "-am", f"Default to {remote}")
    run(team_a, "git", "tag", f"on-{remote}")
    place = f"git+{team_a}@on-{remote}:data/datasets/Breakout"
    result = pd_pipeline(team_a, "dataset", "info", "-v", place)
    assert "game                    Breakout" in result.stdout
    read, of = (int(word.replace(",", "")) for word in result.stderr.split() if word[0].isdigit())
    assert read < of
    opened = open_dataset(place)
    assert opened.stacks(range(1000, 1064)).shape == (64, 4, 84, 84)
    assert opened.folder.bytes_read < of
