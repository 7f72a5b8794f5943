"""Team A collects, tags and pushes, twice; team B, with an empty repository and no teacher, looks, imports, checks, distils."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

from pipeline.datasets import schema
from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import open_dataset
from stages.cli import main
from tests.fakes import blocks_of_four, edited_params
from tests.repositories import add_remotes, new_repository, publish, run

pytestmark = pytest.mark.end_to_end

SHARD = 256
STATES = {"v1": 600, "v2": 800}


def pd_pipeline(folder: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), *arguments])
    assert result.exit_code == 0, result.output
    return result


def point_at(folder: Path, remote: str, disk: str, cloud: str) -> None:
    add_remotes(folder, remote, disk={"url": disk}, cloud={"url": cloud, "endpointurl": os.environ["AWS_ENDPOINT_URL"]})


class TeamA(NamedTuple):
    """A repository with a dataset tagged v1 and, with more states, v2, in a folder and a bucket, and gone from this machine.

    `v1` and `v2` are what the dataset's files were, by their SHA-256; `pushed` is what the folder had after each push.
    """

    folder: Path
    v1: dict[str, str]
    v2: dict[str, str]
    pushed: list[dict[str, int]]


@pytest.fixture(scope="module")
def team_a(
    tmp_path_factory: pytest.TempPathFactory, breakout_teacher: Path, bucket: str, on_one_worker: tuple[str, str]
) -> TeamA:
    folder = new_repository(tmp_path_factory.mktemp("teams") / "a")
    storage = Folder(folder.parent / "storage")
    with edited_params(folder) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    point_at(folder, "disk", storage.url, f"{bucket}/team-a")
    files, pushed = [], []
    for tag, states in STATES.items():
        with blocks_of_four(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(schema, "SHARD", SHARD)
            patch.setattr(schema, "SMALL_CHUNK", SHARD // 2)
            pd_pipeline(folder, "collect", "--game", "Breakout", "--states", str(states), *on_one_worker)
        publish(folder, "data/datasets/Breakout", tag)
        run(folder, "dvc", "push", "-q")
        files.append(open_dataset(folder / "data/datasets/Breakout").manifest.files)
        pushed.append(storage.sizes())
    pd_pipeline(folder, "dataset", "validate", str(folder / "data/datasets/Breakout"))
    run(folder, "dvc", "push", "-q", "-r", "cloud", "--all-tags")
    run(folder, "rm", "-r", "data/datasets/Breakout", ".dvc/cache")
    return TeamA(folder, files[0], files[1], pushed)


def test_a_push_sends_only_what_is_new(team_a: TeamA) -> None:
    kept = [name for name, sha256 in team_a.v1.items() if team_a.v2[name] == sha256]
    assert {name for name in kept if "/c/" in name} == {
        name for name in team_a.v1 if (shard := re.search(r"/c/(\d+)", name)) and int(shard[1]) < STATES["v1"] // SHARD
    }
    new = team_a.pushed[1].keys() - team_a.pushed[0].keys()
    listing_and_manifest = 2
    assert len(new) == len(set(team_a.v2.values()) - set(team_a.v1.values())) + listing_and_manifest


@pytest.mark.parametrize("remote", [pytest.param("disk", marks=pytest.mark.slow), "cloud"])
def test_team_b_distils_from_what_it_imported(team_a: TeamA, tmp_path: Path, remote: str) -> None:
    folder = new_repository(tmp_path / "b")
    (folder / "data/datasets").mkdir(parents=True)
    theirs, name = str(team_a.folder), "data/datasets/Breakout"
    run(folder, "git", "clone", "-q", "--no-checkout", theirs, "theirs")
    run(folder, "git", "-C", "theirs", "show", "v1:.dvc/config")
    run(folder, "dvc", "import", "-q", theirs, name, "--rev", "v1", "--remote", remote, "-o", name)
    with edited_params(folder) as raw:
        raw["mixes"] = {"theirs": ["Breakout"]}
        raw["students"] = {"kl": raw["students"]["kl-net2"] | {"network": "net3", "updates": 20}}
        raw["presets"]["fast"] |= {"batch": 32, "validate_every": 10, "validation_states": 64, "warmup_updates": 5}
        raw["grid"] = {"theirs": {"students": ["kl"], "seeds": [0]}}
        raw["evaluation"]["episodes"] = 2
    dataset = folder / name
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
    if remote == "disk":
        pd_pipeline(folder, "evaluate", "students/theirs/kl-0")
        run(folder, "dvc", "update", "-q", "--rev", "v2", f"{name}.dvc")
        assert open_dataset(dataset, check_files=True).manifest.files == team_a.v2


@pytest.mark.parametrize("remote", [pytest.param("disk", marks=pytest.mark.slow), "cloud"])
def test_a_tag_is_looked_into_without_being_fetched(team_a: TeamA, bucket: str, tmp_path: Path, remote: str) -> None:
    point_at(team_a.folder, remote, str(team_a.folder.parent / "storage"), f"{bucket}/team-a")
    run(team_a.folder, "git", "commit", "-q", "--allow-empty", "-am", f"Default to {remote}")
    run(team_a.folder, "git", "tag", f"on-{remote}")
    place = f"git+{team_a.folder}@on-{remote}:data/datasets/Breakout"
    result = pd_pipeline(team_a.folder, "dataset", "info", "-v", place)
    assert "game                    Breakout" in result.stdout
    read, of, by_git = (int(word.replace(",", "")) for word in result.stderr.split() if word[0].isdigit())
    assert read < 20_000 < of
    assert by_git < 2_000
    opened = open_dataset(place)
    assert opened.stacks(range(700, 764)).shape == (64, 4, 84, 84)
    assert opened.folder.bytes_read - read < 4_000
    if remote == "disk":
        pd_pipeline(team_a.folder, "dataset", "view", place, "--out", str(tmp_path / "view.html"))
