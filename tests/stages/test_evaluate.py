"""evaluate on a real ROM: an evaluation that was killed goes on where it was and ends with the same scores and clip."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.evaluate import play as play_episodes
from stages import evaluate
from stages.cli import main
from tests.fakes import edited_params

SCORES = "data/scores/random/Pong.json"


def project(folder: Path) -> Path:
    with edited_params(folder) as raw:
        raw["evaluation"] |= {"episodes": 5, "width": 2}
    return folder


def call(folder: Path) -> Result:
    return CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), "evaluate", "random/Pong"])


def test_a_killed_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = project(tmp_path / "whole"), project(tmp_path / "cut")
    first = call(whole)
    assert first.exit_code == 0, (first.output, first.exc_info)

    played: list[int] = []

    def killed_after(events: int) -> Any:
        def play(*arguments: Any) -> Iterator[Any]:
            for event in play_episodes(*arguments):
                yield event
                played.append(event.seed)
                if len(played) == events:
                    raise KeyboardInterrupt

        return play

    monkeypatch.setattr(evaluate, "play", killed_after(3))
    assert call(cut).exit_code == 130
    (notes,) = (cut / ".work/evaluate").rglob("episodes.jsonl")
    with notes.open("a") as file:
        file.write('{"seed": 1')  # the line that a kill tore
    before = len(notes.read_text().splitlines())
    assert not (cut / SCORES).exists()

    played.clear()
    monkeypatch.setattr(evaluate, "play", killed_after(10**9))
    assert call(cut).exit_code == 0
    assert 0 < len(played) < 5  # of five
    assert before > 1
    assert json.loads((cut / SCORES).read_text()) == json.loads((whole / SCORES).read_text())
    for made in ("data/clips/random/Pong.mp4", "data/episodes/random/Pong.parquet"):
        assert (cut / made).read_bytes() == (whole / made).read_bytes()
    assert not notes.parent.exists()
