"""`pd-pipeline dataset` as people and scripts call it: text, --json, exit codes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline.datasets import edit
from pipeline.datasets.folders import Folder
from pipeline.progress import Progress
from stages.cli import main
from tests.browser import look
from tests.fakes import corridor_dataset, corridor_episode, write_dataset

SAMPLE = "data/samples/Pong"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["dataset", *arguments])


def facts(*arguments: str, code: int = 0) -> dict[str, object]:
    result = call(*arguments, "--json")
    assert result.exit_code == code, result.output
    loaded: dict[str, object] = json.loads(result.stdout)
    return loaded


def test_info_and_stats_read_a_little() -> None:
    known = facts("info", SAMPLE)
    assert {"digest", "game", "states", "episodes", "bytes", "format_version", "teacher"} <= known.keys()
    result = call("info", SAMPLE, "-v")
    read, of = (int(word.replace(",", "")) for word in result.stderr.split() if word[0].isdigit())
    assert read < of / 10
    assert of == known["bytes"]
    measured = facts("stats", SAMPLE)
    assert measured["episodes"] == known["episodes"]
    shares = measured["action_share"]
    assert isinstance(shares, dict)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_validate_and_verify(tmp_path: Path) -> None:
    assert facts("validate", SAMPLE)["ok"] is True
    assert "make sense" in call("validate", SAMPLE).stdout
    corridor_dataset(tmp_path / "set", 3)
    assert facts("verify", str(tmp_path / "set"))["ok"] is True
    Folder(tmp_path / "set").write("notes.txt", b"mine")
    found = facts("verify", str(tmp_path / "set"), code=1)
    assert found["faults"] == [f"dataset {tmp_path / 'set'}: notes.txt is not in the manifest: remove it"]


def test_a_dataset_that_cannot_be_opened_is_a_verdict_in_json(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set", 3)
    (tmp_path / "set/episodes.parquet").unlink()
    for command in ("validate", "verify"):
        found = facts(command, str(tmp_path / "set"), code=1)
        assert (found["ok"], found["digest"]) == (False, None)
        assert "episodes.parquet is missing" in str(found["faults"])
        text = call(command, str(tmp_path / "set"))
        assert text.exit_code == 1
        assert text.output.startswith("Error: dataset ")


def test_a_stranger_writes_nothing_to_the_terminal(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", [corridor_episode(0, np.random.default_rng(0))], environment={"ale_py": "\x1b[2J"})
    corridor_dataset(tmp_path / "other", 3)
    for arguments in (("info", str(tmp_path / "set")), ("compare", str(tmp_path / "other"), str(tmp_path / "set"))):
        output = call(*arguments).output
        assert "\\x1b[2J" in output
        assert "\x1b" not in output
    manifest, array = (tmp_path / "other" / name for name in ("manifest.json", "states.zarr/q/zarr.json"))
    for path, change in (
        (array, {"data_type": "\x1b[2J"}),
        (manifest, {"\x1b[2J": 0}),
        (manifest, {"format_version": "\x1b[2J"}),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        result = call("info", str(tmp_path / "other"))
        assert result.exit_code == 1
        assert "\\x1b[2J" in result.output
        assert "\x1b" not in result.output


@pytest.mark.parametrize("percent", ["0%", "101", "some"])
def test_a_percentage_is_one(percent: str) -> None:
    result = call("verify", SAMPLE, "--rederive", percent)
    assert result.exit_code == 1
    assert "is not a percentage above 0% and up to 100%" in result.output


def test_options_that_would_do_nothing_are_refused() -> None:
    for arguments, said in (
        (("verify", SAMPLE, "--seed", "3"), "add --rederive PERCENT"),
        (("export", SAMPLE, "--to", "npz", "--out", "s3://bucket/x"), "is a URL: write to a folder here"),
    ):
        result = call(*arguments)
        assert result.exit_code == 1
        assert said in result.output


def test_what_git_keeps_itself_is_read_too() -> None:
    result = call("info", "git+.@HEAD:data/samples/Pong")
    assert "game                    Pong" in result.stdout, result.output


def test_verify_plays_again_with_the_right_teacher_only(breakout_teacher: Path) -> None:
    result = call("verify", SAMPLE, "--rederive", "1%", "--teacher", str(breakout_teacher))
    assert result.exit_code == 1
    assert "the dataset was labelled by" in result.output
    known = facts("verify", SAMPLE, "--rederive", "1%", "--seed", "0")
    rederived = known["rederived"]
    assert isinstance(rederived, dict)
    assert (rederived["episodes"], rederived["labels"]) == (1, True)


def test_compare(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "a", 8)
    corridor_dataset(tmp_path / "b", 8)
    corridor_dataset(tmp_path / "c", 6)
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert facts("compare", a, b) == {
        "same_data": True,
        "same_encoding": True,
        "episodes": {"both": 8, "only_a": 0, "only_b": 0},
        "differences": [],
        "faults": [],
    }
    found = facts("compare", a, c, code=1)
    assert found["episodes"] == {"both": 6, "only_a": 2, "only_b": 0}
    text = call("compare", a, c).stdout
    assert text.startswith("other data, other files\nepisodes: 6 in both, 2 only in A, 0 only in B\nstates: ")
    assert "collection.seed: 99 in A, nothing in B" not in call("compare", SAMPLE, SAMPLE).stdout
    assert "collection.epsilon: nothing in A, 0.05 in B" in call("compare", a, SAMPLE).stdout


def test_compare_does_not_take_a_dataset_at_its_word(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE, tmp_path / "set")
    shard = tmp_path / "set/states.zarr/q/c/0/0"
    data = shard.read_bytes()
    shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    found = facts("compare", SAMPLE, str(tmp_path / "set"), code=2)
    assert (found["same_data"], found["same_encoding"]) == (None, None)
    assert "states.zarr/q/c/0/0 is damaged" in str(found["faults"])
    (tmp_path / "set/manifest.json").unlink()
    assert "has no manifest.json" in str(facts("compare", SAMPLE, str(tmp_path / "set"), code=2)["faults"])
    text = call("compare", str(tmp_path / "set"), SAMPLE)
    assert (text.exit_code, text.stdout.splitlines()[0].split(":")[0]) == (
        2,
        f"dataset {tmp_path / 'set'} has no manifest.json",
    )


def test_cut_and_join(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set", 20)
    source, parts = str(tmp_path / "set"), str(tmp_path / "parts")
    result = call("split", source, "--into", "train=80", "--into", "test=20%", "--out", parts)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [f"{parts}/train", f"{parts}/test"]
    result = call("merge", f"{parts}/train", f"{parts}/test", "--out", str(tmp_path / "joined"))
    assert result.exit_code == 0, result.output
    found = facts("compare", source, str(tmp_path / "joined"), code=1)
    assert found["episodes"] == {"both": 20, "only_a": 0, "only_b": 0}
    result = call("subset", source, "--episodes", "3", "--out", str(tmp_path / "few"))
    assert result.exit_code == 0, result.output
    assert facts("info", str(tmp_path / "few"))["episodes"] == 3
    assert not list(tmp_path.glob(".*.part"))


def test_all_parts_of_a_split_appear_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corridor_dataset(tmp_path / "set", 20)
    write = edit.write

    def full(folder: Path, parts: list[edit.Part], made_by: dict[str, Any], licence: str | None) -> Iterator[Progress]:
        if made_by["part"] == "test":
            raise OSError(28, "No space left on device")
        return write(folder, parts, made_by, licence)

    arguments = ("split", str(tmp_path / "set"), "--into", "train=80", "--into", "test=20", "--out", str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        patch.setattr(edit, "write", full)
        assert call(*arguments).exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert call(*arguments).exit_code == 0
    assert "exists already: choose another --out" in call(*arguments).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["subset", SAMPLE], "say which episodes"),
        (["subset", SAMPLE, "--min-return", "21"], "no episode of its 4 fits"),
        (["subset", SAMPLE, "--max-return", "inf"], "--max-return inf is no bound: give a number"),
        (["subset", SAMPLE, "--episodes", "1", "--license", "a\nb: c"], "is not a licence's short name: write it as SPDX does"),
        (["split", SAMPLE, "--into", "train"], "--into train is not NAME=PERCENT"),
        (["split", SAMPLE, "--into", "../x=100"], "is not NAME=PERCENT"),
        (["split", SAMPLE, "--into", "a=50", "--into", "a=50"], "is not NAME=PERCENT"),
    ],
)
def test_what_cannot_be_cut_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = call(*arguments, "--out", str(tmp_path / "new"))
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    result = call("subset", SAMPLE, "--episodes", "1", "--out", str(tmp_path / "mine"))
    assert result.exit_code == 1
    assert "exists already: choose another --out" in result.output


def test_a_page_to_look_at(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = call("view", SAMPLE, "--episode", "1", "--out", str(page))
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.count("<svg") == 4 + 2
    assert "Episode 1 (seed 99000001)" in text
    assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons", ""
    )
    seen = look(page, tmp_path)
    assert len({tuple(colour) for colour in seen[::7, ::7].reshape(-1, 3).tolist()}) > 20
    result = call("view", SAMPLE, "--episode", "4", "--out", str(page))
    assert result.exit_code == 1
    assert "has episodes 0 to 3, not 4" in result.output


def test_a_page_reads_less_than_the_dataset(tmp_path: Path) -> None:
    result = call("view", SAMPLE, "-v", "--out", str(tmp_path / "page.html"))
    read, of = (int(word.replace(",", "")) for word in result.stderr.split() if word[0].isdigit())
    assert read < of


def test_no_page_of_actions_that_do_not_exist(tmp_path: Path) -> None:
    odd = corridor_episode(0, np.random.default_rng(0))
    odd.action_N[1] = 200
    write_dataset(tmp_path / "set", [odd])
    result = call("view", str(tmp_path / "set"), "--out", str(tmp_path / "page.html"))
    assert result.exit_code == 1
    assert "has action 200, there are 2: look at it with `pd-pipeline dataset validate`" in result.output


def test_export_and_import_in_one_go(tmp_path: Path) -> None:
    result = call("export", SAMPLE, "--to", "minari", "--frames", "--out", str(tmp_path / "minari"))
    assert result.exit_code == 0, result.output
    (place,) = (tmp_path / "minari/pong").iterdir()
    result = call("import", str(place), "--from", "minari", "--out", str(tmp_path / "again"))
    assert result.exit_code == 0, result.output
    assert facts("compare", SAMPLE, str(tmp_path / "again"))["same_encoding"] is True
    for arguments, said in (
        (("export", SAMPLE, "--to", "npz", "--out", str(place)), "exists already: choose another --out"),
        (("export", SAMPLE, "--to", "npz", "--frames", "--out", str(tmp_path / "npz")), "--frames is for --to minari"),
        (("import", str(tmp_path), "--from", "minari", "--out", str(tmp_path / "no")), "No data found"),
    ):
        result = call(*arguments)
        assert result.exit_code == 1
        assert said in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "minari"]
