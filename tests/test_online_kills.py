"""A student follows a teacher that learns, and both are killed: nothing is lost before the last point."""

import csv
import os
import random
import re
import shutil
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stages.history import History
from stages.publish import load_state
from tests import processes
from tests.fakes import edited_params
from tests.rl.test_dqn import CONFIG

POINTS = 5
MOMENTS = 5
FOLLOW = ("distill-online", "--game", "Breakout")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def on_disk(project: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Points of the unfinished history, rows of the unfinished student."""
    points = [str(point) for folder in project.glob(".work/train-history/*/history") for point in History(folder).points]
    states = (load_state(path) for path in project.glob(".work/distill-online/*/checkpoint.pt"))
    rows = [row for state in states if state for row in state["rows"] if row["student_return"] is not None]
    return points, [{key: str(value) for key, value in row.items()} for row in rows]


def check_whole(project: Path, before: tuple[list[str], list[dict[str, str]]]) -> None:
    """What is published has a row for every point, and begins with what there was before."""
    points, rows = History(project / "data/history/Breakout-0").points, table(project / "data/online/Breakout-0/curve.csv")
    assert len(points) == POINTS
    assert [row["snapshot"] for row in rows] == [point.digest for point in points]
    assert [str(point) for point in points][: len(before[0])] == before[0]
    assert rows[: len(before[1])] == before[1]
    index = table(project / "data/versions/Breakout-0/index.csv")
    assert [row["dataset_digest"] for row in index][:-1] == [row["dataset"] for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_moments(tmp_path: Path) -> None:
    with edited_params(tmp_path) as raw:
        raw["environment"]["max_episode_frames"] = 400
        small = replace(CONFIG, minibatch=8, steps_per_update=8)
        dqn = {key: value for key, value in asdict(small).items() if value is not None}
        raw["teacher_presets"]["dqn"] = {"algorithm": "dqn", "dqn": dqn}
        told = {"preset": "dqn", "network": "net3", "steps": 2048 * POINTS, "every": 2048, "select_episodes": 2, "recipe": 1}
        raw["history"] = {"Breakout": told}
        sizes = {"states": 300, "window": 2, "score_episodes": 2, "final_states": 300, "final_updates": 20}
        raw["online"] = {"Breakout": {"student": "kl-net2", "epsilon": 0.05, **sizes, "seeds": [0], "recipe": 1}}
        raw["students"]["kl-net2"]["updates"] = 20
        raw["presets"]["fast"] |= {"batch": 32, "schedule": "constant", "validation_states": 64}
    began = time.monotonic()
    processes.run(tmp_path, *FOLLOW)
    seconds = time.monotonic() - began
    check_whole(tmp_path, ([], []))
    choose = random.Random(0)
    moments, before, published = 0, on_disk(tmp_path), True
    while moments < MOMENTS or not published:
        if published:  # sooner than it was to be killed: afresh
            for folder in (".work", "data"):
                shutil.rmtree(tmp_path / folder)
            before = ([], [])
        running = processes.start(tmp_path, FOLLOW)
        if moments < MOMENTS:
            time.sleep(choose.uniform(0, seconds))
            if running.poll() is None:
                moments += 1
                os.killpg(running.pid, signal.SIGKILL)
        _, said = running.communicate()
        announced = (said.count("on the seeds that choose"), len(re.findall(r": teacher -?[0-9.]+, student", said)))
        published = (tmp_path / "data/online/Breakout-0/card.json").is_file()
        if published:
            check_whole(tmp_path, before)
            continue
        assert running.returncode == -signal.SIGKILL, said
        found = on_disk(tmp_path)
        assert found[0][: len(before[0])] == before[0]
        assert found[1][: len(before[1])] == before[1]
        points, rows = len(found[0]) - len(before[0]), len(found[1]) - len(before[1])
        assert points - announced[0] in (0, 1)  # what was saved last may not have been told of any more
        assert rows - announced[1] in (0, 1)
        before = found
