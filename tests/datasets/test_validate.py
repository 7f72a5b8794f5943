"""validate: sense without digests; every fault is named with its episode."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.schema import Flag, Records
from pipeline.datasets.validate import validate
from pipeline.datasets.verify import verify
from tests.fakes import corridor_dataset, rewritten


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("good") / "set"
    corridor_dataset(folder, 12)
    return open_dataset(folder)


def faults_of(dataset: Dataset) -> list[str]:
    found: list[str] = []
    *_, last = validate(dataset, found)
    assert last.done == len(dataset.episodes)
    return found


def repeated(found: list[str]) -> list[str]:
    """The corridor is small: walks of equal length repeat each other."""
    return [line for line in found if "same records as" not in line]


def test_the_committed_sample_makes_sense() -> None:
    assert faults_of(open_dataset("data/samples/Pong")) == []


def test_repeated_episodes_are_named(good: Dataset) -> None:
    found = faults_of(good)
    assert found
    assert repeated(found) == []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.flags_N.__setitem__(1, Flag.EPISODE_START), "EPISODE_START is set at steps [0, 1], should be at [0]"),
        (lambda r: r.flags_N.__setitem__(-1, 0), "TERMINATED is set at steps [], should be at ["),
        (lambda r: r.flags_N.__setitem__(1, 128), "step 1 has unknown flags 0x80"),
        (lambda r: r.q_NA.__setitem__((1, 0), np.nan), "step 1 has a Q-value that is not finite"),
        (lambda r: r.q_NA.__setitem__(slice(None), 0.5), "has one Q-value for all actions in every state"),
        (lambda r: r.q_NA.__setitem__(slice(None), [0.1, 0.2]), "has the same Q-values in every state"),
        (lambda r: r.action_N.__setitem__(1, 2), "step 1 has action 2, there are 2"),
        (lambda r: r.reward_N.__setitem__(1, np.inf), "step 1 has a reward that is not finite"),
        (lambda r: r.frame_NHW.__setitem__(slice(None), 7), "shows the same frame at every step"),
    ],
)
def test_a_fault_is_named_with_its_episode(good: Dataset, tmp_path: Path, edit: Callable[[Records], Any], message: str) -> None:
    def in_the_fifth(index: int, records: Records) -> Records:
        if index == 4:
            edit(records)
        return records

    (line,) = repeated(faults_of(rewritten(good, tmp_path / "bad", in_the_fifth)))
    assert f"episode 4 (seed 4): {message}" in line


def test_a_return_that_its_rewards_do_not_give(good: Dataset, tmp_path: Path) -> None:
    rows = list(good.episodes)
    rows[3] = rows[3]._replace(episode_return=7.0)
    (line,) = repeated(faults_of(replace(good, episodes=tuple(rows))))
    assert "episode 3 (seed 3): its rewards sum to 1, the table says 7" in line
    agreed: list[str] = []
    list(verify(replace(good, episodes=tuple(rows)), agreed))
    (line,) = agreed
    assert re.search(r"episode 3 \(seed 3, .*\): its rewards sum to 1, the table says 7", line)
    rows[3] = good.episodes[3]._replace(complete=False)
    (line,) = repeated(faults_of(replace(good, episodes=tuple(rows))))
    assert "complete is False, but terminated is True and truncated is False" in line
    rows[3] = good.episodes[3]._replace(terminated=False)
    found = repeated(faults_of(replace(good, episodes=tuple(rows))))
    assert any("TERMINATED is set" in line for line in found)
    assert any("complete is True, but terminated is False and truncated is False" in line for line in found)
