"""Workers that share no disk: a real scheduler, two worker processes in folders of their own, a bucket on loopback."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from distributed import Client

from pipeline import collect as collecting
from pipeline.agents.checkpoints import save_agent
from pipeline.agents.networks import NETWORKS, QNetwork
from pipeline.atari.envs import fingerprint
from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.verify import verify
from stages.cli import main
from tests.fakes import ENVIRONMENT, edited_params
from tests.processes import Cluster

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def scheduler(tmp_path: Path, bucket: str, small_blocks: None) -> Iterator[str]:
    """The address of a cluster of two workers, which play small blocks too."""

    def play_few(name: str, number: int) -> None:
        setattr(collecting, name, number)

    with Cluster(tmp_path) as cluster, Client(cluster.address) as client:
        client.wait_for_workers(2)
        for name in ("BLOCK_EPISODES", "SLOTS"):
            client.run(play_few, name, getattr(collecting, name))
        yield cluster.address


STATES = "800"
"""Of two blocks: each worker plays one."""


def collect(folder: Path, *options: str) -> Result:
    arguments = ["--params", str(folder / "params.yaml"), "collect", "--game", "Breakout", "--states", STATES, *options]
    return CliRunner().invoke(main, arguments)


@contextmanager
def killed_in(function: str) -> Iterator[None]:
    """Collections are killed where they call it."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, killed)
        yield


def test_a_bucket_is_all_that_they_share(
    tmp_path: Path, breakout_teacher: Path, bucket: str, scheduler: str, on_one_worker: tuple[str, str]
) -> None:
    with edited_params(tmp_path) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    url = f"{bucket}/sets/Breakout"
    with killed_in("pipeline.datasets.folders.Folder.clear"):
        result = collect(tmp_path, "--scheduler", scheduler, "--out", url)
    assert result.exit_code == 130, result.output
    assert Folder(f"{url}.blocks").files()
    again = collect(tmp_path, *on_one_worker, "--out", f"{url}/")
    assert again.exit_code == 0, again.output
    assert "has been collected already" in again.stderr
    assert again.stdout.strip() == url
    assert "2 workers, dashboard http://" in result.stderr
    there = open_dataset(url, check_files=True)
    assert len(there.episodes) > 4
    found: list[str] = []
    list(verify(there, found))
    assert found == []
    assert not Folder(f"{url}.blocks").files()
    assert not list(tmp_path.glob(".work/collect/*"))
    assert collect(tmp_path, *on_one_worker).exit_code == 0
    assert open_dataset(tmp_path / "data/datasets/Breakout").manifest == there.manifest
    Folder(url).remove("manifest.json")
    refused = collect(tmp_path, *on_one_worker, "--out", url)
    assert refused.exit_code == 1
    assert "holds something that is not a dataset" in refused.output


def test_nobody_answers(tmp_path: Path, breakout_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.cluster.CONNECT_SECONDS", 1.0)
    with edited_params(tmp_path) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    result = collect(tmp_path, "--scheduler", "tcp://127.0.0.1:9")
    assert result.exit_code == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in result.output


def test_other_settings_do_not_forget_what_is_unfinished(
    tmp_path: Path, breakout_teacher: Path, on_one_worker: tuple[str, str]
) -> None:
    with edited_params(tmp_path) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    unfinished = tmp_path / ".work/collect/Breakout-0123"
    unfinished.mkdir(parents=True)
    (unfinished / "settings.json").write_text(json.dumps({"epsilon": 0.1, "policy": "epsilon-greedy"}))
    result = collect(tmp_path, *on_one_worker)
    assert result.exit_code == 1
    assert "an unfinished collection of Breakout has other settings" in result.output
    assert "epsilon: 0.1 there, 0.05 here" in result.output
    assert "policy" not in result.output
    assert f"or remove {unfinished}" in result.output


@pytest.mark.slow
def test_what_is_there_is_not_played_again(
    tmp_path: Path, breakout_teacher: Path, on_one_worker: tuple[str, str], small_blocks: None
) -> None:
    with edited_params(tmp_path) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    manifest = tmp_path / "data/datasets/Breakout/manifest.json"
    elsewhere = tmp_path / ".work/collect/Breakout-0123"  # goes to a bucket
    elsewhere.mkdir(parents=True)
    (elsewhere / "settings.json").write_text(json.dumps({"epsilon": 0.1, "out": "s3://other/Breakout"}))
    with killed_in("stages.collect._discard"):
        assert collect(tmp_path, "--states", "400", *on_one_worker).exit_code == 130
    assert len(list(elsewhere.parent.iterdir())) == 2
    first = json.loads(manifest.read_text())
    again = collect(tmp_path, "--states", "400", *on_one_worker)
    assert again.exit_code == 0, again.output
    assert "has been collected already, digest" in again.stderr
    assert list(elsewhere.parent.iterdir()) == [elsewhere]
    more = collect(tmp_path, "--states", "450", *on_one_worker)
    assert more.exit_code == 0, more.output
    assert "going on from the 400 states" in more.stderr
    assert json.loads(manifest.read_text())["states"] == 450
    for options, told in (
        (("--states", "400"), "holds 450 states in "),
        (("--states", "900", "--seed", "7"), "holds a dataset of other settings (seed: 0 there, 7 here): choose another --out"),
    ):
        refused = collect(tmp_path, *options, *on_one_worker)
        assert refused.exit_code == 1
        assert told in refused.output
    assert json.loads(manifest.read_text())["states"] == 450
    (manifest.parent / "notes.txt").write_text("somebody's")
    refused = collect(tmp_path, "--states", "450", *on_one_worker)
    assert refused.exit_code == 1
    assert "notes.txt is not in the manifest: remove it" in refused.output
    (manifest.parent / "notes.txt").unlink()
    (manifest.parent / "episodes.parquet").write_bytes(b"damage")
    anew = collect(tmp_path, "--states", "400", *on_one_worker)
    assert anew.exit_code == 0, anew.output
    assert "is collected again" in anew.stderr
    assert json.loads(manifest.read_text()) == first


def student_of_two_games(folder: Path, **card: Any) -> Path:
    games = {game: {"environment": fingerprint(game, ENVIRONMENT)} for game in ("Breakout", "Pong")}
    torch.manual_seed(0)
    save_agent(folder, QNetwork(NETWORKS["tiny"], {"Breakout": 4, "Pong": 6}), {"role": "student", "games": games} | card)
    return folder


def test_a_dataset_by_its_name_in_params_with_an_actor_of_its_own(
    tmp_path: Path, breakout_teacher: Path, on_one_worker: tuple[str, str], small_blocks: None
) -> None:
    with edited_params(tmp_path) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
        rounds = {"game": "Breakout", "actor": "students/small/kl-0", "states": 200, "epsilon": 0.1, "seed": 5, "recipe": 1}
        raw["datasets"]["Breakout-1"] = rounds
    student = student_of_two_games(tmp_path / "data/students/small/kl-0")
    policy = student_of_two_games(tmp_path / "policy", objective={"loss": "kl"})

    def call(*options: str) -> Result:
        return CliRunner().invoke(main, ["--params", str(tmp_path / "params.yaml"), "collect", *options, *on_one_worker])

    result = call("--dataset", "Breakout-1", "--license", "cc-by-4.0", "--labels-from", str(student))
    assert result.exit_code == 0, result.output
    assert "license: cc-by-4.0" in (tmp_path / "data/datasets/Breakout-1/README.md").read_text()
    made = open_dataset(tmp_path / "data/datasets/Breakout-1").manifest
    assert made.collection["actor"]["digest"] == made.teacher["digest"]  # it labels what it does itself
    assert made.collection["epsilon"] == 0.1
    for options, told in (
        (("--dataset", "Breakout-2"), "no dataset 'Breakout-2': it has Breakout-1, Pong"),
        (("--dataset", "Breakout-1", "--game", "Pong"), "datasets.Breakout-1 is of Breakout, not of Pong"),
        ((), "say what to collect: --game GAME, or --dataset NAME"),
        (("--game", "Pong", "--labels-from", str(breakout_teacher)), "plays Breakout, not Pong"),
        (("--dataset", "Breakout-1", "--labels-from", str(policy)), "gives a policy's logits, not Q-values"),
    ):
        refused = call(*options)
        assert refused.exit_code == 1
        assert told in refused.output


def test_a_dry_run_writes_nothing(tmp_path: Path, breakout_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edited_params(tmp_path) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    monkeypatch.setattr("stages.collect.PROBE_SECONDS", 0.05)
    monkeypatch.setattr(collecting, "SLOTS", 2)
    result = collect(tmp_path, "--dry-run", "--workers", "3")
    assert result.exit_code == 0, result.output
    assert "episodes of at least " in result.stderr
    assert ": at most " in result.stderr
    assert "800 states into" in result.stderr
    assert "blocks of 16 episodes" in result.stderr
    assert "with 3 workers" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["params.yaml"]
