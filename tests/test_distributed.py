"""Workers that share no disk: a real scheduler, two worker processes in folders of their own, a bucket on loopback."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.verify import verify
from stages.cli import main
from tests.fakes import edited_params
from tests.processes import Cluster


@pytest.fixture
def scheduler(tmp_path: Path, bucket: str) -> Iterator[str]:
    """The address of a cluster of two workers."""
    with Cluster(tmp_path) as cluster:
        yield cluster.address


def collect(folder: Path, *options: str) -> Result:
    arguments = ["--params", str(folder / "params.yaml"), "collect", "--game", "Breakout", "--states", "2900", *options]
    return CliRunner().invoke(main, arguments)


def test_a_bucket_is_all_that_they_share(
    tmp_path: Path, breakout_teacher: Path, bucket: str, scheduler: str, on_one_worker: tuple[str, str]
) -> None:
    with edited_params(tmp_path) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    url = f"{bucket}/sets/Breakout"
    result = collect(tmp_path, "--scheduler", scheduler, "--out", url)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == url
    assert re.search(r"(no|1|2) workers( yet)?, dashboard http://", result.stderr)
    there = open_dataset(url, check_files=True)
    found: list[str] = []
    list(verify(there, found))
    assert found == []
    assert not Folder(f"{bucket}/sets/Breakout.blocks").files()
    assert not list(tmp_path.glob(".work/collect/*"))
    assert collect(tmp_path, *on_one_worker).exit_code == 0
    assert open_dataset(tmp_path / "data/datasets/Breakout").manifest == there.manifest
    again = collect(tmp_path, *on_one_worker, "--out", url)  # another collection takes its place
    assert again.exit_code == 0, again.output
    Folder(url).remove("manifest.json")
    refused = collect(tmp_path, *on_one_worker, "--out", url)
    assert refused.exit_code == 1
    assert "holds something that is not a dataset" in refused.output


def test_nobody_answers(tmp_path: Path, breakout_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.collect.CONNECT_SECONDS", 1.0)
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
    (unfinished / "settings.json").write_text(json.dumps({"epsilon": 0.1, "states": 2900}))
    result = collect(tmp_path, *on_one_worker)
    assert result.exit_code == 1
    assert "an unfinished collection of Breakout has other settings" in result.output
    assert "epsilon: 0.1 there, 0.05 here" in result.output
    assert "states" not in result.output
    assert f"or remove {unfinished}" in result.output


def test_a_dry_run_writes_nothing(tmp_path: Path, breakout_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edited_params(tmp_path) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    monkeypatch.setattr("stages.collect.PROBE_SECONDS", 0.5)
    result = collect(tmp_path, "--dry-run", "--workers", "3")
    assert result.exit_code == 0, result.output
    assert "2,900 states into" in result.stderr
    assert "blocks of 16 episodes" in result.stderr
    assert "with 3 workers" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["params.yaml"]
