"""Teacher + world -> dataset, block by block, on Dask. A student may act in the teacher's place; the labels are the teacher's.

Block b is episodes b*E to (b+1)*E - 1, played under the seeds of the same numbers: a pure function of the teacher and the
settings. A task is a run of blocks, so that the free slots of a block that ends begin the next one. Workers play tasks in any
order and write blocks beside each other; one coordinator packs finished blocks, in block order, into shards. So 1 or N
workers, killed or not, end in the same bytes.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from distributed import Client, Future

from pipeline.agents.checkpoints import CARD, WEIGHTS, Agent, load_files, read_files
from pipeline.agents.device import exact, one_thread, take_one_core
from pipeline.agents.policies import EpsilonGreedy, Labelled, q_function
from pipeline.atari.envs import EnvConfig, SlotWorld, fingerprint
from pipeline.atari.rollout import Policy, rollout
from pipeline.cores import cores
from pipeline.datasets import blocks, schema
from pipeline.datasets.compare import differing
from pipeline.datasets.describe import UNTOLD, card
from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import Dataset
from pipeline.datasets.schema import EpisodeRow, Flag, Manifest, Records
from pipeline.datasets.writer import Writer
from pipeline.progress import Progress
from pipeline.seeding import episode_seeds

RECIPE: Final = 1
"""Bump when what a collection does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""

DATASET: Final = "dataset"
"""Where in its folder a collection makes the dataset."""

BLOCK_EPISODES: Final = 16
"""Episodes of a block: what is written at once, small enough to lose."""

SLOTS: Final = 32
"""Episodes that a worker plays at once: two forward passes of 16 in a row, the second with the weights in the cache."""

LONGEST_TASK: Final = 16
"""Blocks of a task at most: what workers that come late must wait for."""

LOOK_SECONDS: Final = 1.0
"""How often the coordinator looks for the blocks of unfinished tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    """Exactly `states` states (the last episode is cut there) or `episodes` whole ones; one of them is None.

    `actor` is what the manifest says of the agent that acts, its "digest" at least; None: the teacher acts.
    """

    game: str
    environment: EnvConfig
    epsilon: float
    seed: int
    states: int | None
    episodes: int | None
    recipe: int
    actor: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.states is None) == (self.episodes is None):
            raise ValueError("say how much to collect: either a number of states or a number of episodes")
        if (self.states or self.episodes or 0) < 1:
            raise ValueError("collect at least one state or episode")

    def as_json(self) -> dict[str, Any]:
        """What decides the records, for manifest and resume: how much is told by the dataset itself."""
        return {
            "policy": "epsilon-greedy",
            "epsilon": self.epsilon,
            "seed": self.seed,
            "block_episodes": BLOCK_EPISODES,
            "recipe": self.recipe,
            **({"actor": dict(self.actor)} if self.actor else {}),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Play `blocks` of `config` with the agents beside them and write them into the folder at `url` (`folders.Folder`).

    `world` is the fingerprint that the dataset's manifest will have.
    """

    blocks: range
    config: CollectConfig
    world: Mapping[str, Any]
    teacher_digest: str
    url: str


UNDERWAY: Final = f"teacher/{CARD}"
"""A file that lies beside the blocks for as long as a collection goes on."""


def send_agent(agent: Path, folder: Folder, role: str) -> None:
    """Put the agent that is "teacher" or "actor" beside the blocks, where every worker finds it."""
    for name, data in read_files(agent).items():
        folder.write(f"{role}/{name}", data)


@functools.lru_cache(maxsize=2)
def _agent(url: str, role: str, digest: str) -> Agent:
    take_one_core()
    folder = Folder(url)
    try:
        files = {name: folder.read(f"{role}/{name}") for name in (WEIGHTS, CARD)}
    except FileNotFoundError:
        raise ValueError(f"a worker on {platform.node()} does not see {folder}: {_SHARE}") from None
    agent = load_files(files, torch.device("cpu"))
    if agent.digest != digest:
        raise ValueError(
            f"the {role} in {folder} changed during the collection: it is {agent.digest[:12]}, expected {digest[:12]}"
        )
    return agent


_SHARE: Final = "collect into a folder that every worker shares with this machine, or into a bucket: --out s3://BUCKET/NAME"


def _policy(config: CollectConfig, teacher: Agent, actor: Agent | None) -> Policy:
    """Acts epsilon-greedily and labels with the teacher's Q-values."""
    labels = q_function(teacher.network, exact(torch.device("cpu")), config.game)
    if actor is None:
        return EpsilonGreedy(labels, config.epsilon)
    return Labelled(EpsilonGreedy(q_function(actor.network, exact(torch.device("cpu")), config.game), config.epsilon), labels)


def _check_world(task: Task) -> None:
    """ValueError if this worker would play something else than the manifest will say."""
    config = task.config
    wanted = {"recipe": config.recipe, "environment": task.world}
    here = {"recipe": RECIPE, "environment": fingerprint(config.game, config.environment)}
    if told := ", ".join(f"{key}: {x} there, {y} here" for key, x, y in differing(here, wanted)):
        raise ValueError(
            f"the worker on {platform.node()} plays another world than this machine ({told}): "
            f"install the same versions there, or stop that worker"
        )


def play(task: Task) -> dict[int, list[EpisodeRow]]:
    """Play the task's blocks and write each as it ends; returns their receipts. A block that has one is not played again.

    ValueError if what is installed here plays another world than the task's.
    """
    _check_world(task)
    folder = Folder(task.url)
    receipts = blocks.receipts(folder, task.blocks)
    missing = [index for index in task.blocks if index not in receipts]
    config = task.config
    teacher = _agent(task.url, "teacher", task.teacher_digest)
    policy = _policy(config, teacher, _agent(task.url, "actor", config.actor["digest"]) if config.actor else None)
    first = episode_seeds("collect", config.seed)
    seeds = [first + index * BLOCK_EPISODES + i for index in missing for i in range(BLOCK_EPISODES)]
    recorders = {seed: blocks.Recorder(seed) for seed in seeds}
    finished: dict[int, list[tuple[EpisodeRow, dict[str, Any]]]] = {index: [] for index in missing}
    for step in rollout(SlotWorld(config.game, config.environment, width=SLOTS), policy, iter(seeds)):
        flags_B = (
            (step.step_B == 0) * Flag.EPISODE_START
            + step.terminated_B * Flag.TERMINATED
            + step.truncated_B * Flag.TRUNCATED
            + step.random_B * Flag.RANDOM_ACTION
            + step.life_lost_B * Flag.LIFE_LOST
        )
        for slot in np.flatnonzero(step.active_B):
            seed = int(step.seed_B[slot])
            recorders[seed].add(
                step.obs_BCHW[slot, -1],
                step.q_BA[slot],
                int(step.action_B[slot]),
                float(step.reward_B[slot]),
                int(flags_B[slot]),
            )
            if step.terminated_B[slot] or step.truncated_B[slot]:
                done = recorders.pop(seed)
                index = (seed - first) // BLOCK_EPISODES
                finished[index].append(
                    done.finish(terminated=bool(step.terminated_B[slot]), truncated=bool(step.truncated_B[slot]))
                )
                if len(finished[index]) == BLOCK_EPISODES:
                    if not folder.exists(UNDERWAY):
                        return receipts  # the collection is over and its folder gone: nothing is left behind there
                    receipts[index] = blocks.write_block(folder, index, finished.pop(index))
    return receipts


@contextmanager
def one_core() -> Iterator[None]:
    """Whatever begins in here shares one core, as a worker of a busy machine has it: emulators and matrix kernels too."""
    before = cores()
    _keep_to(before[:1])
    try:
        with one_thread():
            yield
    finally:
        _keep_to(before)


def _keep_to(numbers: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):  # where it is not (macOS), emulators spread
        os.sched_setaffinity(0, numbers)


def estimate(config: CollectConfig, teacher: Agent, actor: Agent | None, seconds: float) -> dict[str, float]:
    """Play the first `SLOTS` episodes on one core for so long and tell: `states_per_second`, `bytes_per_state`, how many
    episodes `ended`, and their mean `episode_length`, which is more where not all have ended. Nothing is kept.
    """
    policy = _policy(config, teacher, actor)
    first = episode_seeds("collect", config.seed)
    recorders = {first + i: blocks.Recorder(first + i) for i in range(SLOTS)}
    records = []
    states = 0
    began = time.perf_counter()
    with one_core():
        for step in rollout(SlotWorld(config.game, config.environment, width=SLOTS), policy, iter(recorders.copy())):
            if not states:
                began = time.perf_counter()  # the emulators have started
            for slot in np.flatnonzero(step.active_B):
                seed = int(step.seed_B[slot])
                recorders[seed].add(
                    step.obs_BCHW[slot, -1], step.q_BA[slot], int(step.action_B[slot]), float(step.reward_B[slot]), 0
                )
                states += 1
                if step.terminated_B[slot] or step.truncated_B[slot]:
                    records.append(recorders.pop(seed).finish(terminated=True, truncated=False)[1])
            if time.perf_counter() - began > seconds:
                break
        rate = states / (time.perf_counter() - began)
    records += [recorder.finish(terminated=False, truncated=True)[1] for recorder in recorders.values()]
    return {
        "states_per_second": rate,
        "bytes_per_state": sum(map(blocks.stored_bytes, records)) / states,
        "ended": SLOTS - len(recorders),
        "episode_length": states / SLOTS,
    }


class Collection:
    """A collection in `work`, a folder of its own: `run` yields progress until `dataset` is complete. Resumes by itself.

    `actor_folder` has the agent of `config.actor`. `shared` is where workers put their blocks, if they do not share this
    machine's disk: a folder or bucket of its own.
    """

    def __init__(
        self,
        config: CollectConfig,
        teacher_folder: Path,
        teacher: Agent,
        work: Path,
        shared: Folder | None = None,
        actor_folder: Path | None = None,
    ) -> None:
        assert (config.actor is None) == (actor_folder is None)
        self.config, self.teacher_folder, self.teacher, self.actor_folder = config, teacher_folder, teacher, actor_folder
        self.world = fingerprint(config.game, config.environment)
        self.work = work
        self.dataset = work / DATASET
        self.blocks = shared or Folder(work.resolve() / "blocks")
        self.writer = Writer(self.dataset, teacher.network.actions[config.game])
        self._rows: list[EpisodeRow] = []  # of packed and pending steps, in order
        self._next = 0  # the next block to pack
        self._ends: list[int] = []  # where each packed block ends
        self._dropped = 0  # blocks whose files are gone, being in whole shards
        self._known: list[str] = []  # digests of the first episodes, in the dataset that is gone on from

    def _states(self) -> int:
        return self._rows[-1].start + self._rows[-1].length if self._rows else 0

    def _enough(self) -> bool:
        if self.config.states is not None:
            return self._states() >= self.config.states
        assert self.config.episodes is not None
        return len(self._rows) >= self.config.episodes

    def extend(self, dataset: Dataset) -> None:
        """Begin with what a smaller dataset of the same settings holds: its whole shards, and the receipts of its whole blocks.

        What lies in no whole shard is played again. What an earlier sitting has is kept.
        """
        if self.writer.encodes_as(dataset):
            for shard in range(self.writer.packed // schema.SHARD, len(dataset) // schema.SHARD):
                self.writer.adopt(dataset, shard)
        rows = [row._replace(start=0) for row in dataset.episodes if row.complete]
        self._known = [row.sha256 for row in rows]
        there = set(self.blocks.files())
        for index in range(len(rows) // BLOCK_EPISODES):
            if not blocks.finished(there, index):
                blocks.write_receipt(self.blocks, index, rows[index * BLOCK_EPISODES : (index + 1) * BLOCK_EPISODES])

    def run(self, client: Client) -> Iterator[Progress]:
        """Play what is missing on the client's workers and pack it; yields after every block, and every second between.

        ValueError if an earlier sitting, which was to collect more, has gone beyond what is wanted.
        """
        if self.actor_folder is not None:
            send_agent(self.actor_folder, self.blocks, "actor")
        send_agent(self.teacher_folder, self.blocks, "teacher")
        receipts: dict[int, list[EpisodeRow]] = {}  # of blocks that wait to be packed
        index = 0
        while not self._enough():  # blocks that an earlier sitting finished
            receipt = blocks.read_receipt(self.blocks, index)
            if receipt is None or not (blocks.has_data(self.blocks, index) or self._covered(receipt)):
                break
            self._pack(receipt)
            yield self._progress(0)
            index += 1
        held = max(self.writer.packed, self._states())
        most = self.config.states or self._states()
        if self._enough() and (held > most or len(self._rows) > (self.config.episodes or math.inf)):
            raise ValueError(
                f"the unfinished collection in {self.work} has {held:,} states already: ask for more, or remove that folder"
            )
        yield self._progress(0)

        submitted = index
        flying: dict[Future[dict[int, list[EpisodeRow]]], Task] = {}
        landed = threading.Event()
        try:
            while not self._enough():
                workers = max(1, sum(client.nthreads().values()))
                # One task waits behind those that run, once the first ones tell how long blocks are.
                while len(flying) < workers + bool(self._rows) and (not flying or self._missing(receipts, submitted) > 0):
                    task = self._task(submitted, self._share(receipts, submitted, workers))
                    submitted = task.blocks.stop
                    future = client.submit(play, task, pure=False)
                    future.add_done_callback(lambda _: landed.set())
                    flying[future] = task
                if self._next not in receipts:
                    landed.wait(LOOK_SECONDS)
                    landed.clear()
                found = self._landed(flying)
                wanted = [i for task in flying.values() for i in task.blocks if i >= self._next and i not in receipts]
                found |= blocks.receipts(self.blocks, wanted)
                receipts.update({i: receipt for i, receipt in found.items() if i >= self._next})
                if self._next in receipts:
                    self._pack(receipts.pop(self._next))
                yield self._progress(sum(row.length for rows in receipts.values() for row in rows))
        finally:
            client.cancel(list(flying))

    def _landed(self, flying: dict[Future[dict[int, list[EpisodeRow]]], Task]) -> dict[int, list[EpisodeRow]]:
        """The receipts of the tasks that have ended, which are taken out."""
        found: dict[int, list[EpisodeRow]] = {}
        for future in [future for future in flying if future.done()]:
            played, task = future.result(), flying.pop(future)
            if any(index not in played for index in task.blocks):
                raise ValueError(f"{self.blocks} was emptied while blocks were played into it: run this again")
            found |= played
        return found

    def _task(self, first: int, count: int) -> Task:
        """The task of the next `count` blocks, none of which has a receipt without data."""
        for index in range(first, first + count):
            blocks.forget_without_data(self.blocks, index)
        return Task(
            blocks=range(first, first + count),
            config=self.config,
            world=self.world,
            teacher_digest=self.teacher.digest,
            url=self.blocks.url,
        )

    def _missing(self, waiting: dict[int, list[EpisodeRow]], submitted: int) -> float:
        """Blocks still to be submitted, those in flight being as long as the average so far; infinite before the first."""
        rows = [*self._rows, *(row for receipt in waiting.values() for row in receipt)]
        if not rows:
            return math.inf
        flying = submitted - self._next - len(waiting)
        if self.config.episodes is not None:
            return (self.config.episodes - len(rows)) / BLOCK_EPISODES - flying
        states = sum(row.length for row in rows)
        return ((self.config.states or 0) - states) * len(rows) / states / BLOCK_EPISODES - flying

    def _share(self, waiting: dict[int, list[EpisodeRow]], submitted: int, workers: int) -> int:
        """Blocks of the next task: guided self-scheduling, a share of what is missing (Polychronopoulos and Kuck 1987)."""
        missing = self._missing(waiting, submitted)
        return 1 if math.isinf(missing) else min(LONGEST_TASK, max(1, math.ceil(missing / workers)))

    def _covered(self, receipt: list[EpisodeRow]) -> bool:
        """Whether the next block lies in whole shards already."""
        return self._states() + sum(row.length for row in receipt) <= self.writer.packed

    def _pack(self, receipt: list[EpisodeRow]) -> None:
        """Append the next block's episodes, as far as they are wanted and not yet in whole shards."""
        if self._covered(receipt):
            for row in receipt:
                self._rows.append(row._replace(start=self._states()))
                if not self.writer.holds_episode(self._rows[-1]):
                    raise ValueError(
                        f"the episode of seed {row.seed} in {self.dataset} is damaged: remove {self.work}, it is collected anew"
                    )
        else:
            if not blocks.has_data(self.blocks, self._next):
                raise ValueError(f"a worker has played block {self._next}, but it is not in {self.blocks}: {_SHARE}")
            for row, records in zip(receipt, blocks.read_block(self.blocks, self._next), strict=True):
                if self._enough():
                    break
                self._append(row, records)
        self._next += 1
        self._ends.append(self._states())
        while self._dropped < self._next and self._ends[self._dropped] <= self.writer.packed:
            blocks.drop_data(self.blocks, self._dropped)
            self._dropped += 1

    def _append(self, row: EpisodeRow, records: Records) -> None:
        """The next episode, as far as it is wanted and not yet packed. ValueError if it is damaged, or not what is packed."""
        start = self._states()
        if schema.episode_digest(records) != row.sha256:
            raise ValueError(
                f"block {self._next} in {self.blocks} is damaged, its episodes are not those of its digests: "
                f"remove its two files, it is played again"
            )
        packed = max(0, min(row.length, self.writer.packed - start))
        number = len(self._rows)
        if (number < len(self._known) and row.sha256 != self._known[number]) or (
            packed and not self.writer.holds(start, records.cut(0, packed))
        ):
            raise ValueError(
                f"the episode of seed {row.seed} comes out otherwise on {platform.node()} or its workers than where the states "
                f"that are there were played (another make of CPU or torch): go on there, or collect the rest with another "
                f"--seed and --out and join both by `dataset merge`; then remove {self.work}"
            )
        if self.config.states is not None and start + row.length > self.config.states:
            records = records.cut(0, self.config.states - start)
            row = row._replace(
                length=records.steps,
                episode_return=float(records.reward_N.sum(dtype=np.float64)),
                terminated=False,
                truncated=False,
                complete=False,
                sha256=schema.episode_digest(records),
            )
        self._rows.append(row._replace(start=start))
        packed = min(packed, row.length)
        if start + row.length > self.writer.packed:
            self.writer.append(records.cut(packed, row.length))

    def _progress(self, waiting: int) -> Progress:
        whole = [row.episode_return for row in self._rows if row.complete]
        metrics = {"blocks": float(self._next)} | ({"return": float(np.mean(whole))} if whole else {})
        if self.config.episodes is not None:
            return Progress(len(self._rows), self.config.episodes, "episodes", metrics)
        assert self.config.states is not None
        played = min(self._states() + waiting, self.config.states - (not self._enough()))
        return Progress(played, self.config.states, "states", metrics)

    def finish(self, licence: str = UNTOLD) -> Manifest:
        """Seal the dataset: last shard, episode table, card, which names the licence, manifest."""
        known = ("game", "algorithm", "network", "parameters")
        teacher = {"digest": self.teacher.digest} | {k: self.teacher.card[k] for k in known if k in self.teacher.card}
        return self.writer.finish(
            self._rows,
            game=self.config.game,
            teacher=teacher,
            environment=self.world,
            collection=self.config.as_json(),
            card=functools.partial(card, licence=licence),
        )
