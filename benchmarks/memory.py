"""The memory that ten datasets of 540,000 states each take while a student learns from them, against the 2 GiB they are given.

The datasets are real ones of cheap content: the sample's episodes again and again, with Q-values of the full action space.
`multi10` learns from them until each game is in its third window. Beside it the same student learns from next to nothing: what
it takes itself (weights, optimiser, activations) is not the loader's.

    python -m benchmarks.memory
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import command
from pipeline.agents.device import learning, prepare_to_learn
from pipeline.agents.networks import NETWORKS
from pipeline.atari.envs import fingerprint
from pipeline.datasets.loader import BLOCK, Source
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.schema import EpisodeRow, episode_digest, layouts
from pipeline.datasets.writer import Writer
from pipeline.distill.offline import DistillConfig, Objective, Student, train
from stages import params

TEN = Path("experiments/ten/params.yaml")
SAMPLE = Path("data/samples/Pong")
STATES = 540_000
ACTIONS = 18
MEMORY = 2 * 2**30
WINDOWS = 2
"""Of each game that are learned from whole; it ends in the next, and the one after that is being read."""


@dataclass(frozen=True)
class Nothing:
    """A `loader.Source` of two black episodes, of which one is held out: so many states as a student is measured on."""

    game: str
    length: int
    actions: int = ACTIONS

    @property
    def episodes(self) -> tuple[EpisodeRow, ...]:
        return tuple(EpisodeRow(i, self.length * i, self.length, 0.0, True, False, True, "") for i in range(2))

    def __len__(self) -> int:
        return 2 * self.length

    def read(self, name: str, start: int, stop: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        layout = layouts(self.actions)[name]
        found = np.zeros((stop - start, *layout.trailing), dtype=layout.dtype) if out is None else out
        found[:] = 0
        return found


def main() -> None:
    ten = params.load(TEN)
    config = replace(ten.presets["fast"], memory_gb=MEMORY / 1e9)
    games = {game: fingerprint(game, replace(ten.environment, full_action_space=True)) for game in ten.mixes["ten"]}
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        apart(write, Path(name), games, STATES)
        print(f"{len(games)} datasets of {STATES:,} states, written in {time.perf_counter() - began:.0f} s", flush=True)
        frames = 2 * config.validation_states * 84 * 84  # its black ones
        nothing = apart(peak, None, list(games), config) - frames
        began = time.perf_counter()
        loaded = apart(peak, Path(name), list(games), config)
        took = time.perf_counter() - began
    print(f"{WINDOWS} windows of each in {took:.0f} s: peak of memory {loaded / 1e9:.2f} GB more than at the start, ", end="")
    print(f"{nothing / 1e9:.2f} the student's; the data's {(loaded - nothing) / 1e9:.2f} GB of {MEMORY / 1e9:.2f} given")
    if loaded - nothing > MEMORY:
        raise SystemExit("more than was given")


def apart(task: Any, *arguments: Any) -> Any:
    """What the function returns in a process of its own, whose memory begins anew."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(task, *arguments).result()


def write(folder: Path, games: Mapping[str, dict[str, Any]], states: int) -> None:
    """A dataset for each game, in its environment, all of the same episodes."""
    sample = open_dataset(SAMPLE)
    episodes = []
    for index, row in enumerate(sample.episodes):
        records = sample.episode(index).owned()
        records = records._replace(q_NA=np.pad(records.q_NA, ((0, 0), (0, ACTIONS - sample.actions)), mode="wrap"))
        episodes.append((row._replace(sha256=episode_digest(records)), records))
    rows: list[EpisodeRow] = []
    played, start = [], 0
    while start < states:
        row, records = episodes[len(rows) % len(episodes)]
        rows.append(row._replace(seed=len(rows), start=start))
        played.append(records)
        start += records.steps
    first = folder / next(iter(games))
    for game, environment in games.items():
        if first.exists():
            shutil.copytree(first, folder / game)
        writer = Writer(folder / game, ACTIONS)
        begin = writer.packed  # it goes on behind whole shards
        for row, records in zip(rows, played, strict=True):
            if row.start + row.length > begin:
                writer.append(records.cut(max(0, begin - row.start), row.length))
        told = sample.manifest
        writer.finish(rows, game=game, teacher=told.teacher, environment=environment, collection=told.collection)


def peak(folder: Path | None, games: Sequence[str], config: DistillConfig) -> int:
    """The most memory, in bytes, that learning from these datasets, or from nothing, adds to this process."""
    prepare_to_learn()
    before = peak_memory()
    held_out = config.validation_states // len(games)
    sources: list[Source] = [open_dataset(folder / g, check_files=True) if folder else Nothing(g, held_out) for g in games]
    window = BLOCK // (config.batch // len(games)) + 1  # updates are of all games, as many states of each
    updates = window * WINDOWS if folder else len(games)
    compute = learning(torch.device("cpu"), config.precision)
    objective = Objective(loss="kl", temperature=0.01)
    student = Student(config, objective, NETWORKS["multi10"], sources, updates, compute, 0)
    for _ in train(student):
        pass
    if folder:
        assert all(lesson.loader.place(window * WINDOWS - 1)[0].number >= WINDOWS for lesson in student.lessons.values())
    return peak_memory() - before


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    command.run(main, __doc__)
