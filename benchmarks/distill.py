"""Distillation samples/s from a stored dataset, against the same gradient step on one fixed batch and against a plain loop.

The difference to the fixed batch is what data costs: sampling, gathering stacks, moving them. The plain loop is what one writes
first: float32, a DataLoader over the same states, Adam, in a process that keeps no freed memory. They take turns in one run.
Prints a line per network.

    python -m benchmarks.distill [DATASET [PARAMS]]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks import command
from benchmarks.timing import rates
from pipeline.agents.device import keep_freed_memory, learning
from pipeline.agents.networks import NETWORKS
from pipeline.datasets.reader import Dataset, episode_of, open_dataset, stack
from pipeline.distill import losses
from pipeline.distill.offline import Objective, Student, train
from stages import params

UPDATES = 100
PLAIN_UPDATES = 10
ASKED: Final = {"dqn": (0.95, 4.0), "net1": (None, None), "net2": (None, None), "net3": (0.9, 2.0)}
"""At least what share of the fixed batch's rate, and how many times the plain loop's."""


class States(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """(state in [0, 1], Q-vector) of a dataset's first steps, the frames in memory."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.frame_NHW = dataset.read("frame", 0, count)
        self.q_NA = torch.from_numpy(dataset.read("q", 0, count))
        self.start_N = episode_of(dataset.episodes, np.arange(count)).start_N

    def __len__(self) -> int:
        return len(self.q_NA)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        at = np.array([index])
        (state_CHW,) = stack(self.frame_NHW, at, self.start_N[at], 4)
        return torch.from_numpy(state_CHW).float() / 255.0, self.q_NA[index]


def plain_loop(path: Path, name: str, batch: int) -> Iterator[int]:
    """Makes `PLAIN_UPDATES` updates of the plain loop, and yields how many samples these were, for ever."""
    dataset, spec = open_dataset(path), NETWORKS[name]
    first, second, third = spec.channels
    network = torch.nn.Sequential(
        *(torch.nn.Conv2d(4, first, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(first, second, 4, 2), torch.nn.ReLU()),
        *(torch.nn.Conv2d(second, third, 3), torch.nn.ReLU(), torch.nn.Flatten()),
        *(torch.nn.Linear(third * 49, spec.hidden), torch.nn.ReLU(), torch.nn.Linear(spec.hidden, dataset.actions)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(States(dataset, min(len(dataset), 20_000)), batch, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    while True:
        for state_BCHW, q_BA in itertools.islice(batches, PLAIN_UPDATES):
            loss = losses.kl(network(state_BCHW), q_BA, 0.01).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield PLAIN_UPDATES * batch


class Apart:
    """`plain_loop` in a process of its own, which has none of our settings."""

    loop: Iterator[int]

    @contextmanager
    @staticmethod
    def running(path: Path, name: str, batch: int) -> Iterator[Callable[[], int]]:
        """A task that lets it go on for as long as it takes to yield."""
        with ProcessPoolExecutor(1, get_context("spawn"), Apart.begin, (path, name, batch)) as process:
            yield lambda: process.submit(Apart.go_on).result()

    @staticmethod
    def begin(path: Path, name: str, batch: int) -> None:
        Apart.loop = plain_loop(path, name, batch)

    @staticmethod
    def go_on() -> int:
        return next(Apart.loop)


def main(path: Path, settings: Path) -> None:
    keep_freed_memory()  # as `distill` does
    config = replace(params.load(settings).presets["fast"], validate_every=10**9)
    dataset = open_dataset(path)
    compute = learning(torch.device("cpu"), config.precision)
    print(f"{path}, batch {config.batch}, {config.optimizer}, {compute.precision}")
    for name, (share_asked, times_asked) in ASKED.items():
        student = Student(config, Objective(loss="kl", temperature=0.01), NETWORKS[name], [dataset], 10**9, compute, 0)
        steps = train(student)
        fixed = student.batches(0)

        def stored() -> int:
            for _ in itertools.islice(steps, UPDATES // 50):
                pass
            return UPDATES * config.batch

        def in_memory() -> int:
            for _ in range(UPDATES):
                student.update(fixed)
            return UPDATES * config.batch

        with Apart.running(path, name, config.batch) as plain:
            found = rates({"stored": stored, "fixed": in_memory, "plain": plain}, rounds=5)
        share, times = found["stored"] / found["fixed"], found["stored"] / found["plain"]
        fixed_told = f"fixed batch {found['fixed']:,.0f}: {share:.1%}{_asked(share_asked, '.0%')}"
        plain_told = f"plain loop {found['plain']:,.0f}: {times:.1f} x{_asked(times_asked, '.0f')}"
        print(f"{name}: {found['stored']:,.0f} samples/s, {fixed_told}; {plain_told}", flush=True)


def _asked(least: float | None, how: str) -> str:
    return "" if least is None else f" (asked: {least:{how}})"


if __name__ == "__main__":
    command.run(main, __doc__, path=Path("data/datasets/Pong"), settings=Path("params.yaml"))
