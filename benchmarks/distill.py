"""Distillation samples/s from a stored dataset against the same gradient step on one fixed batch in memory.

The difference is what data costs: sampling, gathering stacks, moving them. Prints a line per network.

    python -m benchmarks.distill [DATASET]
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.timing import rates
from pipeline.agents.device import Compute
from pipeline.agents.networks import NETWORKS
from pipeline.datasets.reader import open_dataset
from pipeline.distill.offline import Objective, Student, train
from stages import params

UPDATES = 100


def main(path: Path) -> None:
    config = replace(params.load(Path("params.yaml")).presets["fast"], validate_every=10**9)
    dataset = open_dataset(path)
    for name in ("dqn", "net1", "net2", "net3"):
        compute = Compute(torch.device("cpu"), config.precision)
        student = Student(config, Objective(loss="kl", temperature=0.01), NETWORKS[name], dataset, 10**9, compute, 0)
        steps = train(student)
        fixed = student.batch(0)

        def stored() -> int:
            for _ in itertools.islice(steps, UPDATES // 50):
                pass
            return UPDATES * config.batch

        def in_memory() -> int:
            for _ in range(UPDATES):
                student.update(*fixed)
            return UPDATES * config.batch

        found = rates({"stored": stored, "fixed": in_memory}, rounds=5)
        share = found["stored"] / found["fixed"]
        print(f"{name}: {found['stored']:,.0f} samples/s, fixed batch {found['fixed']:,.0f}: {share:.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/datasets/Pong"))
