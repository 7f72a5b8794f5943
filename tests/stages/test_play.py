"""play on real ROMs: the episode that was scored, as a film whose frames are the game's."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from imageio_ffmpeg import get_ffmpeg_exe

from pipeline.atari.envs import replay
from pipeline.report.film import LINE
from stages.cli import main
from tests.fakes import ENVIRONMENT, edited_params


def call(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), *arguments])


def frames_of(film: Path, height: int, width: int) -> npt.NDArray[np.uint8]:
    """(T, H, W, 3)"""
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-i", film, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, height, width, 3)


def told(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    result = call(folder, "play", *arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exc_info)
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, breakout_teacher: Path) -> Path:
    """Random play and an untrained teacher of Breakout, evaluated."""
    folder = tmp_path_factory.mktemp("play")
    with edited_params(folder) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
        raw["evaluation"] |= {"episodes": 3, "width": 1}
    assert call(folder, "evaluate", "random/Breakout").exit_code == 0
    return folder


def test_an_episode_is_the_one_that_was_scored(project: Path) -> None:
    rows = pq.read_table(project / "data/episodes/random/Breakout.parquet").to_pylist()
    assert len({(row["episode_return"], row["steps"]) for row in rows}) > 1
    for episode, row in enumerate(rows):
        (one,) = told(project, "random/Breakout", "--episode", str(episode))
        assert (one["seed"], one["return"], one["steps"]) == (row["seed"], row["episode_return"], row["steps"])
        assert one["scored"] == row["episode_return"]
    line = call(project, "play", "random/Breakout", "--seed", str(rows[2]["seed"])).stdout
    assert line.endswith(", as scored\n")
    (some,) = told(project, "random/Breakout", "--steps", "5")
    assert ("scored" in some, some["steps"]) == (False, 5)
    assert "scored" not in told(project, "random/Breakout", "--seed", "5")[0]


def test_agents_side_by_side(project: Path) -> None:
    film = project / "films/two.mp4"
    random, teacher = told(project, "random/Breakout", "teachers/Breakout", "--video", str(film), "--scale", "1")
    assert random["seed"] == teacher["seed"]
    frames = frames_of(film, 210 + 5 * LINE, 320)
    assert len(frames) == max(random["steps"], teacher["steps"])
    # Both begin with the same screen, which is the game's.
    (screen, _), *_ = replay("Breakout", ENVIRONMENT, random["seed"], [0])
    for half in (frames[0, :210, :160], frames[0, :210, 160:]):
        assert np.abs(half.astype(int) - screen).mean() < 6  # an MP4 is not exact
    # The shorter episode's side stands still at its end.
    short, long = sorted([random["steps"], teacher["steps"]])
    side = slice(0, 160) if random["steps"] == short else slice(160, 320)
    if short < long:
        assert np.abs(frames[-1, :, side].astype(int) - frames[short - 1, :, side]).mean() < 3
    assert list(film.parent.iterdir()) == [film]


def test_what_cannot_be_played_is_one_line(project: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("random/Breakout", "random/Pong"), "side by side they must play one"),
        (("random/Breakout", "--video", str(tmp_path / "film.gif")), "write --video FILE.mp4"),
        (("random/Brekout",), "unknown game"),
        (("students/breakout/none-0",), "no agent at"),
    ):
        result = call(project, "play", *arguments)
        assert result.exit_code == 1
        assert said in " ".join(result.output.split())
        assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []
