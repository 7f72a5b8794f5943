"""Playing a dataset again: an honest one comes out the same, a forged one whose digests all agree does not."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from distributed import Client

from pipeline import rederive as rederiving
from pipeline.agents.checkpoints import load_agent
from pipeline.agents.device import exact
from pipeline.agents.policies import QFunction, q_function
from pipeline.atari.envs import SlotWorld, WorldStep
from pipeline.collect import CollectConfig, Collection
from pipeline.datasets import edit
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.schema import Flag, Records
from pipeline.datasets.verify import verify
from pipeline.rederive import choose, described, rederive
from tests.fakes import ENVIRONMENT, blocks_of_four, rewritten


@pytest.fixture(scope="module")
def honest(breakout_teacher: Path, one_worker: Client, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = CollectConfig(game="Breakout", environment=ENVIRONMENT, epsilon=0.2, seed=0, states=1000, episodes=None, recipe=1)
    collection = Collection(
        config, breakout_teacher, load_agent(breakout_teacher, torch.device("cpu")), tmp_path_factory.mktemp("honest")
    )
    with blocks_of_four():
        list(collection.run(one_worker))
        collection.finish()
    return open_dataset(collection.dataset)


@pytest.fixture(scope="module")
def teacher(breakout_teacher: Path) -> QFunction:
    return q_function(load_agent(breakout_teacher, torch.device("cpu")).network, exact(torch.device("cpu")))


def faults_of(dataset: Dataset, q_values: QFunction | None, indices: tuple[int, ...] = ()) -> list[str]:
    found: list[str] = []
    *_, last = rederive(dataset, list(indices or range(len(dataset.episodes))), q_values, found)
    assert last.done == last.total
    return found


def test_an_honest_dataset_comes_out_the_same(honest: Dataset, teacher: QFunction) -> None:
    assert not honest.episodes[-1].complete
    assert faults_of(honest, teacher) == []


def frame(records: Records) -> None:
    records.frame_NHW[30, 50, 40] ^= 1


def reward(records: Records) -> None:
    records.reward_N[30] += 1


def ending(records: Records) -> None:
    records.flags_N[30] ^= Flag.LIFE_LOST


def label(records: Records) -> None:
    records.q_NA[30, 2] += 0.01


def chance(records: Records) -> None:
    records.flags_N[np.flatnonzero(records.flags_N & Flag.RANDOM_ACTION)[0]] ^= Flag.RANDOM_ACTION


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (frame, r"step 30: the world shows another frame \(1 of 7,056 pixels\)"),
        (reward, r"step 30: the world gives reward 0, stored is 1"),
        (ending, r"step 30: the world says .*, stored is .*LIFE_LOST"),
        (label, r"step 30: the teacher's Q-value of action 2 is "),
        (chance, r"the seeded policy acts at random, stored is the other"),
    ],
)
def test_a_forged_episode_is_named_though_every_digest_agrees(
    honest: Dataset, teacher: QFunction, tmp_path: Path, forge: Callable[[Records], None], message: str
) -> None:
    def edit(index: int, records: Records) -> Records:
        if index == 2:
            forge(records)
        return records

    forged = rewritten(honest, tmp_path / "forged", edit)
    agreed: list[str] = []
    list(verify(forged, agreed))
    assert agreed == []
    (fault,) = faults_of(forged, teacher, (1, 2))
    assert re.search(rf"episode 2 \(seed 2\).*{message}", fault), fault


def test_a_forged_return_is_named(honest: Dataset) -> None:
    rows = list(honest.episodes)
    rows[1] = rows[1]._replace(episode_return=rows[1].episode_return + 20)
    (fault,) = faults_of(replace(honest, episodes=tuple(rows)), None, (0, 1))
    assert re.search(r"episode 1 \(seed 1\), its rewards sum to \d+, the table says 2\d", fault), fault


def test_without_the_teacher_labels_are_not_checked(honest: Dataset, tmp_path: Path) -> None:
    def edit(index: int, records: Records) -> Records:
        records.q_NA[:] += 0.01
        return records

    assert faults_of(rewritten(honest, tmp_path / "forged", edit), None) == []


def test_who_acted_is_not_lost_in_a_merge(honest: Dataset, teacher: QFunction, tmp_path: Path) -> None:
    def edit_labels(index: int, records: Records) -> Records:
        records.q_NA[:] *= -1  # what was done is not what these labels advise
        return records

    def by(actor: dict[str, str], dataset: Dataset) -> Dataset:
        told = {**honest.manifest.collection, "actor": actor}
        return replace(dataset, manifest=replace(dataset.manifest, collection=told))

    student = rewritten(by({"digest": "s"}, honest), tmp_path / "student", edit_labels)
    for name, parents in (("both", [honest, student]), ("students", [student, by({"digest": "t"}, student)])):
        parts = [(parent, indices[:1]) for parent, indices in edit.merged(parents)]
        list(edit.write(tmp_path / name, parts, {"operation": "merge"}))
        merged = open_dataset(tmp_path / name)
        everything = list(range(len(merged.episodes)))
        assert faults_of(merged, None) == []
        assert described(merged, everything, teacher, None)["actions"] is False


def test_another_world_is_refused(honest: Dataset, tmp_path: Path) -> None:
    honest.manifest.environment["ale_py"], before = "0.1", honest.manifest.environment["ale_py"]
    with pytest.raises(ValueError, match=f"another world than this machine's \\(ale_py 0.1 there, {before} here\\)"):
        faults_of(honest, None)
    honest.manifest.environment["ale_py"] = before


def test_which_episodes_only_the_verifier_knows(honest: Dataset) -> None:
    count = len(honest.episodes)
    assert choose(honest, 1.0, 0) == list(range(count))
    assert len(choose(honest, 0.01, 0)) == 1
    assert len({tuple(choose(honest, 2 / count, seed)) for seed in range(20)}) > 1


def test_what_no_emulator_could_play_is_told_and_not_played(honest: Dataset, tmp_path: Path) -> None:
    def edit(index: int, records: Records) -> Records:
        if index == 0:
            records.action_N[7] = 200
        return records

    forged = rewritten(honest, tmp_path / "forged", edit)
    found: list[str] = []
    *_, last = rederive(forged, [0], None, found)
    assert last.done == last.total
    assert found == [f"dataset {forged.folder}: episode 0 (seed 0), step 7: has action 200, there are 4"]
    rows = (honest.episodes[0]._replace(seed=2**40), *honest.episodes[1:])
    found = []
    list(rederive(replace(honest, episodes=rows), [0], None, found))
    assert "has seed 1099511627776, under which no episode can be played" in found[0]


def test_no_episode_is_in_memory_whole(honest: Dataset, teacher: QFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    records = Dataset.records

    def counted(self: Dataset, start: int, stop: int) -> Records:
        read.append(stop - start)
        return records(self, start, stop)

    monkeypatch.setattr(Dataset, "records", counted)
    monkeypatch.setattr(rederiving, "AHEAD", 16)
    monkeypatch.setattr(rederiving, "LABELS", 16)
    assert faults_of(honest, teacher) == []
    assert max(read) == 16
    assert sum(read) == len(honest)  # and nothing twice


def test_no_step_is_played_for_nothing(honest: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(index: int, records: Records) -> Records:
        if index < 4:
            records.frame_NHW[2, 50, 40] ^= 1
        return records

    played: list[int] = []
    step = SlotWorld.step

    def counted(self: SlotWorld, action_B: npt.NDArray[np.int64], playing_B: npt.NDArray[np.bool_]) -> WorldStep:
        played.append(int(playing_B.sum()))
        return step(self, action_B, playing_B)

    monkeypatch.setattr(SlotWorld, "step", counted)
    monkeypatch.setattr(rederiving, "WIDTH", 2)
    assert len(faults_of(rewritten(honest, tmp_path / "forged", edit), None, (0, 1, 2, 3, 4))) == 4
    assert sum(played) == 4 * 3 + honest.episodes[4].length


@pytest.mark.parametrize(
    ("config", "collection", "message"),
    [
        ({"max_episode_frames": 2**31 - 1}, {}, "cannot be made here .*max_episode_frames 2147483647"),
        ({"sticky": 10**400}, {}, "cannot be made here"),
        ({}, {"epsilon": 10**400}, "its epsilon is 1000.*, not a probability: do not trust it"),
        ({}, {"epsilon": "0.05"}, "its epsilon is '0.05', not a probability: do not trust it"),
    ],
)
def test_what_would_never_end_or_cannot_be_is_one_line(
    honest: Dataset, config: dict[str, Any], collection: dict[str, Any], message: str
) -> None:
    manifest = honest.manifest
    environment = manifest.environment | {"config": manifest.environment["config"] | config}
    told = replace(manifest, environment=environment, collection=manifest.collection | collection)
    with pytest.raises(ValueError, match=message) as caught:
        faults_of(replace(honest, manifest=told), None)
    assert "\n" not in str(caught.value)


def test_equal_seeds_are_parted_in_one_pass(honest: Dataset) -> None:
    rows = tuple(honest.episodes[0]._replace(seed=seed) for seed in (1, 2, 1, 3, 1, 2))
    assert rederiving._without_equal_seeds(replace(honest, episodes=rows), [0, 2, 3, 4, 5]) == [[0, 3, 5], [2], [4]]


def test_it_says_what_it_did_not_check(honest: Dataset) -> None:
    assert described(honest, [0], None, None)["actions"] is True
    other = replace(honest.manifest, collection={**honest.manifest.collection, "policy": "greedy"})
    assert described(replace(honest, manifest=other), [0], None, None)["actions"] is False
    student = replace(honest.manifest, collection={**honest.manifest.collection, "actor": {"digest": "s"}})
    assert described(replace(honest, manifest=student), [0], None, None)["actions"] is False
