"""Distillation samples/s from a stored dataset, against the same gradient step on one fixed batch and against a plain loop.

The difference to the fixed batch is what data costs: sampling, gathering stacks, moving them. The plain loop is what one writes
first: float32, a DataLoader over the same states, Adam; freed memory is kept for it as well. Interleaved
in one run; prints a line per network.

    python -m benchmarks.distill [DATASET [PARAMS]]
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import rates
from pipeline.agents.device import keep_freed_memory, learning
from pipeline.agents.networks import NETWORKS
from pipeline.datasets.reader import Dataset, episode_of, open_dataset, stack
from pipeline.distill import losses
from pipeline.distill.offline import Objective, Student, train
from stages import params

UPDATES = 100
PLAIN_UPDATES = 10


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


def plain_loop(dataset: Dataset, name: str, batch: int) -> Callable[[], int]:
    """A task that makes `PLAIN_UPDATES` updates of the plain loop."""
    spec = NETWORKS[name]
    first, second, third = spec.channels
    network = torch.nn.Sequential(
        *(torch.nn.Conv2d(4, first, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(first, second, 4, 2), torch.nn.ReLU()),
        *(torch.nn.Conv2d(second, third, 3), torch.nn.ReLU(), torch.nn.Flatten()),
        *(torch.nn.Linear(third * 49, spec.hidden), torch.nn.ReLU(), torch.nn.Linear(spec.hidden, dataset.actions)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(States(dataset, min(len(dataset), 20_000)), batch, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def run() -> int:
        for state_BCHW, q_BA in itertools.islice(batches, PLAIN_UPDATES):
            loss = losses.kl(network(state_BCHW), q_BA, 0.01).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return PLAIN_UPDATES * batch

    return run


def main(path: Path, settings: Path) -> None:
    keep_freed_memory()  # as `distill` does
    config = replace(params.load(settings).presets["fast"], validate_every=10**9)
    print(f"{path}, batch {config.batch}, {config.optimizer}, {config.precision}")
    dataset = open_dataset(path)
    for name in ("dqn", "net1", "net2", "net3"):
        compute = learning(torch.device("cpu"), config.precision)
        student = Student(config, Objective(loss="kl", temperature=0.01), NETWORKS[name], [dataset], 10**9, compute, 0)
        steps = train(student)
        fixed = student.batch(0)

        def stored() -> int:
            for _ in itertools.islice(steps, UPDATES // 50):
                pass
            return UPDATES * config.batch

        def in_memory() -> int:
            for _ in range(UPDATES):
                student.update(fixed)
            return UPDATES * config.batch

        tasks = {"stored": stored, "fixed": in_memory, "plain": plain_loop(dataset, name, config.batch)}
        found = rates(tasks, rounds=5)
        share, times = found["stored"] / found["fixed"], found["stored"] / found["plain"]
        print(
            f"{name}: {found['stored']:,.0f} samples/s, fixed batch {found['fixed']:,.0f}: {share:.1%}; "
            f"plain loop {found['plain']:,.0f}: {times:.1f} x"
        )


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*(given + [Path("data/datasets/Pong"), Path("params.yaml")][len(given) :]))
