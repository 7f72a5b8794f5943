"""Teacher + world -> dataset, block by block, on Dask.

Block b is episodes b*E to (b+1)*E - 1, played under the seeds of the same numbers: a pure function of the teacher and the
settings. Workers play blocks in any order and write them beside each other; one coordinator packs finished blocks, in block
order, into shards. So 1 or N workers, killed or not, end in the same bytes.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from distributed import Client, as_completed

from pipeline.agents.checkpoints import Agent, load_agent
from pipeline.agents.device import exact
from pipeline.agents.policies import EpsilonGreedy, q_function
from pipeline.atari.envs import EnvConfig, SlotWorld, fingerprint
from pipeline.atari.rollout import rollout
from pipeline.datasets import blocks, schema
from pipeline.datasets.schema import EpisodeRow, Flag, Manifest, Records
from pipeline.datasets.writer import Writer
from pipeline.progress import Progress
from pipeline.seeding import episode_seeds

BLOCK_EPISODES: Final = 16
"""Episodes of a block, all played at once: wide enough for the matrix kernels, small enough to lose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    """Exactly `states` states (the last episode is cut there) or `episodes` whole ones; one of them is None."""

    game: str
    environment: EnvConfig
    epsilon: float
    seed: int
    states: int | None
    episodes: int | None
    recipe: int

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
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One task: play block `index` of `config` with the teacher in `teacher_folder` and write it into `folder`."""

    index: int
    config: CollectConfig
    teacher_folder: Path
    teacher_digest: str
    folder: Path


@functools.lru_cache(maxsize=1)
def _teacher(folder: Path, digest: str) -> Agent:
    torch.set_num_threads(1)  # one worker, one core
    agent = load_agent(folder, torch.device("cpu"))
    if agent.digest != digest:
        raise ValueError(
            f"the teacher in {folder} changed during the collection: it is {agent.digest[:12]}, expected {digest[:12]}"
        )
    return agent


_worlds = threading.local()


def _world(game: str, environment: EnvConfig) -> SlotWorld:
    """This thread's emulators: a worker of several threads plays several blocks at once."""
    key = (game, environment)
    if getattr(_worlds, "key", None) != key:
        _worlds.key, _worlds.world = key, SlotWorld(game, environment, width=BLOCK_EPISODES)
    world: SlotWorld = _worlds.world
    return world


def play_block(block: Block) -> list[EpisodeRow]:
    """Play and write one block; returns its receipt. Idempotent: a block that is there already is not played again."""
    receipt = blocks.read_receipt(block.folder, block.index)
    if receipt is not None and blocks.has_data(block.folder, block.index):
        return receipt
    config = block.config
    agent = _teacher(block.teacher_folder, block.teacher_digest)
    policy = EpsilonGreedy(q_function(agent.network, exact(torch.device("cpu")), config.game), config.epsilon)
    first = episode_seeds("collect", config.seed) + block.index * BLOCK_EPISODES
    recorders = {first + i: blocks.Recorder(first + i) for i in range(BLOCK_EPISODES)}
    finished = []
    for step in rollout(_world(config.game, config.environment), policy, iter(recorders)):
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
                finished.append(done.finish(terminated=bool(step.terminated_B[slot]), truncated=bool(step.truncated_B[slot])))
    return blocks.write_block(block.folder, block.index, finished)


class Collection:
    """A collection in `work`, a folder of its own: `run` yields progress until `dataset` is complete. Resumes by itself."""

    def __init__(self, config: CollectConfig, teacher_folder: Path, teacher: Agent, work: Path) -> None:
        self.config, self.teacher_folder, self.teacher = config, teacher_folder, teacher
        self.work = work
        self.dataset = work / "dataset"
        self.blocks = work / "blocks"
        self.writer = Writer(self.dataset, teacher.network.actions[config.game])
        self._rows: list[EpisodeRow] = []  # of packed and pending steps, in order
        self._next = 0  # the next block to pack
        self._ends: list[int] = []  # where each packed block ends
        self._dropped = 0  # blocks whose files are gone, being in whole shards

    def _states(self) -> int:
        return self._rows[-1].start + self._rows[-1].length if self._rows else 0

    def _enough(self) -> bool:
        if self.config.states is not None:
            return self._states() >= self.config.states
        assert self.config.episodes is not None
        return len(self._rows) >= self.config.episodes

    def run(self, client: Client) -> Iterator[Progress]:
        """Play what is missing on the client's workers and pack it; yields after every block."""
        receipts: dict[int, list[EpisodeRow]] = {}
        index = 0
        while not self._enough():  # blocks that an earlier sitting finished
            receipt = blocks.read_receipt(self.blocks, index)
            if receipt is None or not (blocks.has_data(self.blocks, index) or self._covered(receipt)):
                break
            self._pack(receipt)
            index += 1
        yield self._progress(0)

        pending = as_completed()
        submitted, flying = index, 0

        def submit() -> None:
            nonlocal submitted, flying
            job = Block(
                index=submitted,
                config=self.config,
                teacher_folder=self.teacher_folder.resolve(),
                teacher_digest=self.teacher.digest,
                folder=self.blocks.resolve(),
            )
            pending.add(client.submit(play_block, job, key=f"block-{submitted}-{os.getpid()}", pure=False))
            submitted, flying = submitted + 1, flying + 1

        workers = max(1, sum(client.nthreads().values()))
        while not self._enough():
            # One block waits behind those that run, once the first ones tell how long blocks are.
            while flying < workers + bool(self._rows) and not self._expected(receipts, flying):
                submit()
            future = next(pending)
            flying -= 1
            receipt = future.result()
            receipts[int(str(future.key).split("-")[1])] = receipt
            while self._next in receipts and not self._enough():
                self._pack(receipts.pop(self._next))
            yield self._progress(sum(row.length for rows in receipts.values() for row in rows))
        for future in list(pending.futures):
            future.cancel()

    def _expected(self, waiting: dict[int, list[EpisodeRow]], flying: int) -> bool:
        """Whether what is packed, waiting and in flight will probably do (blocks in flight: as long as the average so far)."""
        rows = [*self._rows, *(row for receipt in waiting.values() for row in receipt)]
        if flying == 0 or not rows:
            return False
        if self.config.episodes is not None:
            return len(rows) + flying * BLOCK_EPISODES >= self.config.episodes
        mean = sum(row.length for row in rows) / len(rows)
        return sum(row.length for row in rows) + flying * BLOCK_EPISODES * mean >= (self.config.states or 0)

    def _covered(self, receipt: list[EpisodeRow]) -> bool:
        """Whether the next block lies in whole shards already."""
        return self._states() + sum(row.length for row in receipt) <= self.writer.packed

    def _pack(self, receipt: list[EpisodeRow]) -> None:
        """Append the next block's episodes, as far as they are wanted and not yet in whole shards."""
        if self._covered(receipt):
            for row in receipt:
                self._rows.append(row._replace(start=self._states()))
        else:
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
        start = self._states()
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
        packed = max(0, min(row.length, self.writer.packed - start))
        if start + row.length > self.writer.packed:
            self.writer.append(records.cut(packed, row.length))

    def _progress(self, waiting: int) -> Progress:
        whole = [row.episode_return for row in self._rows if row.complete]
        metrics = {"return": float(np.mean(whole))} if whole else {}
        if self.config.episodes is not None:
            return Progress(len(self._rows), self.config.episodes, "episodes", metrics)
        assert self.config.states is not None
        return Progress(min(self._states() + waiting, self.config.states), self.config.states, "states", metrics)

    def discard(self) -> None:
        """Drop the work files, once the dataset lies where it belongs."""
        shutil.rmtree(self.work, ignore_errors=True)

    def finish(self) -> Manifest:
        """Seal the dataset: last shard, episode table, card, manifest."""
        known = ("game", "algorithm", "network", "parameters")
        teacher = {"digest": self.teacher.digest} | {k: self.teacher.card[k] for k in known if k in self.teacher.card}
        return self.writer.finish(
            self._rows,
            game=self.config.game,
            teacher=teacher,
            environment=fingerprint(self.config.game, self.config.environment),
            collection=self.config.as_json(),
        )
