"""Collection on a real ROM: the same bytes from any number of workers, killed or not; exactly what the teacher saw."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from distributed import Client, LocalCluster

from pipeline import collect as collecting
from pipeline.agents.checkpoints import Agent, load_agent, save_agent
from pipeline.agents.device import exact
from pipeline.agents.networks import NETWORKS, QNetwork
from pipeline.agents.policies import EpsilonGreedy, q_function
from pipeline.atari.envs import VectorWorld, fingerprint
from pipeline.atari.rollout import rollout
from pipeline.collect import BLOCK_EPISODES, LONGEST_TASK, CollectConfig, Collection, Task
from pipeline.cores import cores
from pipeline.datasets import blocks, schema
from pipeline.datasets.blocks import Recorder, stored_bytes
from pipeline.datasets.describe import size
from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.schema import EpisodeRow, Flag, Records
from pipeline.datasets.verify import verify
from pipeline.rederive import rederive
from stages.cli import main
from tests import processes
from tests.fakes import ENVIRONMENT, blocks_of_four, edited_params

STATES = 2300
"""More than sixteen episodes have: a second block even where blocks are not small."""


def config(states: int | None = STATES, episodes: int | None = None) -> CollectConfig:
    return CollectConfig(
        game="Breakout", environment=ENVIRONMENT, epsilon=0.2, seed=0, states=states, episodes=episodes, recipe=1
    )


@pytest.fixture(scope="module")
def teacher(breakout_teacher: Path) -> Agent:
    return load_agent(breakout_teacher, torch.device("cpu"))


@pytest.fixture(scope="module")
def collected(breakout_teacher: Path, teacher: Agent, one_worker: Client, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    collection = Collection(config(), breakout_teacher, teacher, tmp_path_factory.mktemp("one"))
    with blocks_of_four(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collection, "_share", lambda *_: 1)
        progress = list(collection.run(one_worker))
    assert progress[0].done == 0
    assert progress[-1].done == STATES
    with blocks_of_four():
        collection.finish()
    return open_dataset(collection.dataset, check_files=True)


def test_exactly_that_many_states_in_whole_episodes_but_the_last(collected: Dataset) -> None:
    assert len(collected) == STATES
    assert all(row.complete for row in collected.episodes[:-1])
    assert [row.seed for row in collected.episodes] == list(range(len(collected.episodes)))
    flags_N = collected.records(0, STATES).flags_N
    starts = np.flatnonzero(flags_N & Flag.EPISODE_START)
    assert starts.tolist() == [row.start for row in collected.episodes]
    assert 0.1 < np.mean((flags_N & Flag.RANDOM_ACTION) != 0) < 0.3
    found: list[str] = []
    list(verify(collected, found))
    assert found == []


def test_the_stored_states_and_q_values_are_what_the_teacher_saw(collected: Dataset, teacher: Agent) -> None:
    policy = EpsilonGreedy(q_function(teacher.network, exact(torch.device("cpu")), "Breakout"), 0.2)
    for step in rollout(VectorWorld("Breakout", ENVIRONMENT, width=3), policy, iter(range(3))):
        for slot in np.flatnonzero(step.active_B):
            row = collected.episodes[int(step.seed_B[slot])]
            at = row.start + int(step.step_B[slot])
            assert np.array_equal(collected.stacks([at])[0], step.obs_BCHW[slot])
            assert np.array_equal(np.asarray(collected.arrays["q"][at]), step.q_BA[slot])
            assert int(np.asarray(collected.arrays["action"][at])) == step.action_B[slot]


def test_no_length_bias(collected: Dataset, teacher: Agent) -> None:
    """Stored states lie where they would if the same episodes were played one by one: as many at each position."""
    policy = EpsilonGreedy(q_function(teacher.network, exact(torch.device("cpu")), "Breakout"), 0.2)
    count = 5
    alone = [int(s.step_B[0]) for s in rollout(VectorWorld("Breakout", ENVIRONMENT, width=1), policy, iter(range(count)))]
    stored = [step for row in collected.episodes[:count] for step in range(row.length)]
    assert np.array_equal(np.bincount(stored), np.bincount(alone))


def test_an_abandoned_collection_goes_on(
    collected: Dataset, breakout_teacher: Path, teacher: Agent, one_worker: Client, small_blocks: None, tmp_path: Path
) -> None:
    first = Collection(config(), breakout_teacher, teacher, tmp_path)
    for p in first.run(one_worker):
        if p.done:
            break
    second = Collection(config(), breakout_teacher, teacher, tmp_path)
    progress = list(second.run(one_worker))
    assert progress[0].done > 0
    assert second.finish() == collected.manifest
    third = Collection(config(), breakout_teacher, teacher, tmp_path)  # killed between the last shard and the manifest
    list(third.run(one_worker))
    assert third.finish() == collected.manifest


@pytest.fixture
def small_shards(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that blocks are packed, dropped and half packed again within a few hundred states."""
    monkeypatch.setattr(collecting, "BLOCK_EPISODES", 2)
    monkeypatch.setattr(schema, "SHARD", 256)
    monkeypatch.setattr(schema, "SMALL_CHUNK", 128)


@pytest.mark.slow
def test_abandoned_after_every_block_with_whole_shards_on_disk(
    breakout_teacher: Path,
    teacher: Agent,
    one_worker: Client,
    small_shards: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small shards: blocks are packed, dropped and half packed again, and the bytes are those of one undisturbed run."""
    whole = Collection(config(700), breakout_teacher, teacher, tmp_path / "whole")
    list(whole.run(one_worker))
    manifest = whole.finish()
    monkeypatch.setattr(Collection, "_share", lambda *_: 1)
    sittings = 0
    while True:
        sittings += 1
        again = Collection(config(700), breakout_teacher, teacher, tmp_path / "again")
        for debris in ("q/0.killed.partial", "frame/.0.killed.part"):
            (tmp_path / "again/dataset/states.zarr" / debris).write_bytes(b"debris of a killed write")
        begun = again.writer.packed
        start = None
        for p in again.run(one_worker):
            start = p.done if start is None else start
            if start < p.done < 700:
                break
        else:
            break
        assert begun % 256 == 0
    assert sittings > 2
    assert begun > 0
    assert not list(tmp_path.glob("again/blocks/000000.arrow"))
    again = Collection(config(700), breakout_teacher, teacher, tmp_path / "again")
    list(again.run(one_worker))
    assert again.finish() == manifest
    assert _tree(again.dataset) == _tree(whole.dataset)


def test_what_was_damaged_between_two_sittings_gets_no_digest(
    breakout_teacher: Path,
    teacher: Agent,
    one_worker: Client,
    small_shards: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Collection, "_share", lambda *_: 1)
    begun = Collection(config(700), breakout_teacher, teacher, tmp_path)
    for _ in begun.run(one_worker):
        if begun.writer.packed and not blocks.has_data(begun.blocks, 0):  # it lies in whole shards
            break
    shard = begun.dataset / "states.zarr/frame/c/0/0/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ValueError, match=r"the episode of seed \d+ in .* is damaged: remove .*, it is collected anew"):
        list(Collection(config(700), breakout_teacher, teacher, tmp_path).run(one_worker))


def _tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_two_threads_of_a_worker_do_not_share_emulators(
    collected: Dataset, breakout_teacher: Path, teacher: Agent, small_blocks: None, tmp_path: Path
) -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        collection = Collection(config(None, 8), breakout_teacher, teacher, tmp_path)
        list(collection.run(client))
    collection.finish()
    assert open_dataset(collection.dataset).episodes == collected.episodes[:8]


def test_a_task_is_a_share_of_what_is_missing(breakout_teacher: Path, teacher: Agent, tmp_path: Path) -> None:
    collection = Collection(config(None, 60 * BLOCK_EPISODES), breakout_teacher, teacher, tmp_path)
    row = EpisodeRow(0, 0, 10, 0.0, terminated=True, truncated=False, complete=True, sha256="")
    first = {0: [row] * BLOCK_EPISODES}
    assert collection._share({}, 0, 2) == 1  # nobody knows yet how long blocks are
    assert collection._share(first, 2, 2) == LONGEST_TASK
    assert collection._share(first, 40, 2) == 10
    assert collection._share(first, 59, 2) == 1
    states = Collection(config(60 * BLOCK_EPISODES * 10), breakout_teacher, teacher, tmp_path)
    assert states._share(first, 40, 2) == 10


def test_blocks_that_a_worker_wrote_elsewhere_are_missed(
    breakout_teacher: Path, teacher: Agent, one_worker: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = EpisodeRow(0, 0, 10, 0.0, terminated=True, truncated=False, complete=True, sha256="")
    monkeypatch.setattr(collecting, "play", lambda task: {i: [row] for i in task.blocks})  # on a disk of its own
    with pytest.raises(ValueError, match=r"has played block 0.*every worker shares"):
        list(Collection(config(), breakout_teacher, teacher, tmp_path).run(one_worker))


def test_a_folder_of_blocks_that_is_removed_meanwhile_ends_it(
    breakout_teacher: Path, teacher: Agent, one_worker: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "play", lambda task: {})  # it has seen that there is nothing to write beside any more
    with pytest.raises(ValueError, match=r"blocks was emptied while blocks were played into it: run this again"):
        list(Collection(config(), breakout_teacher, teacher, tmp_path).run(one_worker))


def test_a_number_of_episodes_in_one_task_of_two_blocks(
    collected: Dataset,
    breakout_teacher: Path,
    teacher: Agent,
    one_worker: Client,
    small_blocks: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fixture played its blocks one by one; in a run, free slots begin the next block's episodes. Same episodes."""
    monkeypatch.setattr(Collection, "_share", lambda *_: 2)
    collection = Collection(config(None, 5), breakout_teacher, teacher, tmp_path)
    list(collection.run(one_worker))
    assert collection.finish().episodes == 5
    rows = open_dataset(collection.dataset).episodes
    assert all(row.complete for row in rows)
    assert list(rows) == list(collected.episodes[: len(rows)])


def test_more_is_added_to_a_dataset_without_playing_its_whole_shards_again(
    breakout_teacher: Path,
    teacher: Agent,
    one_worker: Client,
    small_shards: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    def collect(name: str, states: int, *, begin_with: Dataset | None = None) -> Dataset:
        collection = Collection(config(states), breakout_teacher, teacher, tmp_path / name)
        if begin_with is not None:
            collection.extend(begin_with)
        list(collection.run(one_worker))
        collection.finish()
        return open_dataset(collection.dataset, check_files=True)

    small, large = collect("small", 700), collect("large", 900)
    played: list[int] = []
    play = collecting.play

    def watched(task: Task) -> dict[int, list[EpisodeRow]]:
        played.extend(task.blocks)
        return play(task)

    monkeypatch.setattr(collecting, "play", watched)
    extended = collect("extended", 900, begin_with=small)
    assert extended.manifest == large.manifest
    lasts = [(b, small.episodes[2 * b + 1]) for b in range(len(small.episodes) // 2)]
    whole = [b for b, last in lasts if last.start + last.length <= 512]
    assert whole
    assert not set(played) & set(whole)
    with pytest.raises(ValueError, match="768 states already: ask for more"):
        collect("extended", 600)


def test_what_comes_out_otherwise_is_not_added_to_a_dataset(
    breakout_teacher: Path,
    teacher: Agent,
    one_worker: Client,
    small_shards: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on another make of CPU, whose Q-values have other last bits."""
    small = Collection(config(700), breakout_teacher, teacher, tmp_path / "small")
    list(small.run(one_worker))
    small.finish()
    larger = Collection(config(900), breakout_teacher, teacher, tmp_path / "larger")
    larger.extend(open_dataset(small.dataset))

    def elsewhere(*of: Any) -> Any:
        q_values = q_function(*of)
        return lambda obs_BCHW: q_values(obs_BCHW) * np.float32(1 + 1e-6)

    monkeypatch.setattr(collecting, "q_function", elsewhere)
    with pytest.raises(ValueError, match=r"the episode of seed \d+ comes out otherwise on .* go on there, or collect the rest"):
        list(larger.run(one_worker))


def test_a_damaged_block_is_not_packed(
    breakout_teacher: Path,
    teacher: Agent,
    one_worker: Client,
    small_blocks: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_block = blocks.read_block

    def damaged(folder: Folder, block: int) -> Iterator[Records]:
        for records in read_block(folder, block):
            yield records._replace(reward_N=records.reward_N + 1)

    monkeypatch.setattr(blocks, "read_block", damaged)
    collection = Collection(config(700), breakout_teacher, teacher, tmp_path)
    with pytest.raises(ValueError, match=r"block 0 in .* is damaged, .*: remove its two files, it is played again"):
        list(collection.run(one_worker))


def task_in(folder: Path, teacher: Agent) -> Task:
    world = fingerprint("Breakout", ENVIRONMENT)
    return Task(blocks=range(1), config=config(), world=world, teacher_digest=teacher.digest, url=str(folder))


def test_a_worker_of_another_version_plays_nothing(teacher: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_in(tmp_path, teacher)
    monkeypatch.setattr("ale_py.__version__", "0.0.1")
    with pytest.raises(
        ValueError, match=r"the worker on \S+ plays another .*\(environment.ale_py: 0.0.1 there, .* here\): install"
    ):
        collecting.play(task)
    monkeypatch.undo()
    monkeypatch.setattr(collecting, "RECIPE", 2)
    with pytest.raises(ValueError, match=r"\(recipe: 2 there, 1 here\)"):
        collecting.play(task)


def test_a_worker_that_does_not_see_the_blocks_says_so(teacher: Agent, tmp_path: Path) -> None:
    task = task_in(tmp_path / "elsewhere", teacher)
    with pytest.raises(ValueError, match=r"does not see .*elsewhere: collect into a folder that every worker shares"):
        collecting.play(task)


def test_a_student_acts_and_the_teacher_labels(
    breakout_teacher: Path, teacher: Agent, one_worker: Client, small_blocks: None, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    card = save_agent(tmp_path / "student", QNetwork(NETWORKS["tiny"], {"Breakout": 4}), {"role": "student"})
    driven = replace(config(None, 4), actor={"digest": card["digest"]})
    collection = Collection(driven, breakout_teacher, teacher, tmp_path / "work", actor_folder=tmp_path / "student")
    list(collection.run(one_worker))
    assert collection.finish().collection["actor"] == {"digest": card["digest"]}
    data = open_dataset(collection.dataset)
    student = load_agent(tmp_path / "student", torch.device("cpu"))
    states, records = data.stacks(range(48)), data.records(0, 48)
    acting, labelling = (q_function(a.network, exact(torch.device("cpu")))(states) for a in (student, teacher))
    greedy = (records.flags_N & Flag.RANDOM_ACTION) == 0
    assert np.array_equal(records.q_NA, labelling)
    assert np.array_equal(records.action_N[greedy], acting.argmax(axis=1)[greedy])
    assert (acting.argmax(axis=1) != labelling.argmax(axis=1)).any()
    found: list[str] = []
    theirs, other = (q_function(a.network, exact(torch.device("cpu"))) for a in (student, teacher))
    list(rederive(data, [0, 1], other, found, theirs))
    assert found == []
    list(rederive(data, [0, 1], other, found, other))  # had the teacher acted, it would have done something else
    assert all(re.search(r"step \d+: the actor's action is \d, stored is \d", fault) for fault in found)
    assert len(found) == 2


def test_by_default_workers_are_as_many_as_the_cores_it_may_use(
    breakout_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(scheduler: str | None, workers: int) -> None:
        raise ValueError(f"{workers} workers")

    monkeypatch.setattr("stages.collect.core_count", lambda: 7)
    monkeypatch.setattr("stages.collect.cluster", asked)
    with edited_params(tmp_path) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
    command = ["--params", str(tmp_path / "params.yaml"), "collect", "--game", "Breakout", "--states", "9"]
    assert "7 workers" in CliRunner().invoke(main, command).output


def test_an_estimate_is_of_one_core_and_of_the_datasets_own_compression(
    teacher: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    before, seen = cores(), set()

    def rollout_seen(*arguments: Any) -> Iterator[Any]:
        seen.add((torch.get_num_threads(), len(cores())))
        yield from rollout(*arguments)

    monkeypatch.setattr(collecting, "rollout", rollout_seen)
    monkeypatch.setattr(collecting, "SLOTS", 2)
    found = collecting.estimate(config(), teacher, None, 0.1)
    assert seen == {(1, 1)}
    assert (torch.get_num_threads(), cores()) == (2, before)
    assert found["ended"] < 2
    sample = open_dataset("data/samples/Pong")
    records = sample.episode(0)
    recorder = Recorder(0)
    for frame, q, action, reward, flags in zip(*records, strict=True):
        recorder.add(frame, q, int(action), float(reward), int(flags))
    assert stored_bytes(recorder.finish(terminated=True, truncated=False)[1]) / records.steps == pytest.approx(
        size(sample) / len(sample), rel=0.1
    )


def test_how_much_must_be_said_once() -> None:
    with pytest.raises(ValueError, match="either a number of states or"):
        config(10, 10)
    with pytest.raises(ValueError, match="at least one"):
        config(0)


@pytest.fixture
def project(breakout_teacher: Path, tmp_path: Path) -> Path:
    """A folder with params.yaml and the teacher, for the command line."""
    text = Path("params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    shutil.copytree(breakout_teacher, tmp_path / "data/teachers/Breakout")
    return tmp_path


@pytest.mark.slow
def test_sigkill_in_the_middle_loses_nothing(project: Path, collected: Dataset, on_one_worker: tuple[str, str]) -> None:
    command = ["collect", "--game", "breakout", "--states", str(STATES), "--epsilon", "0.2"]
    processes.kill(project, *command, "--workers", "1", once=".work/collect/*/blocks/*.json")
    assert not (project / "data/datasets/Breakout").exists()
    result = CliRunner().invoke(main, ["--params", str(project / "params.yaml"), *command, *on_one_worker])
    assert result.exit_code == 0, result.output
    assert "2,300/2,300 states" in result.stderr
    made = open_dataset(project / "data/datasets/Breakout", check_files=True)
    assert made.episodes == collected.episodes
    differ = {name for name, sha256 in made.manifest.files.items() if collected.manifest.files.get(name) != sha256}
    assert differ == {schema.CARD}  # which says how large its blocks were
    assert made.manifest.files.keys() == collected.manifest.files.keys()
