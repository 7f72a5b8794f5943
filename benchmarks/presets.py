"""What a setting of a student's preset does: short trainings on the same states that differ in these settings alone, one seed.

    python -m benchmarks.presets DATASET [--params experiments/paper/params.yaml] [--network net2] [--states 768000] CHANGES ...

CHANGES are as 'optimizer=adam batch=256 learning_rate=4e-3', or '' for none. A schedule ends with its states.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from ruamel.yaml import YAML

from pipeline.agents.device import learning, prepare_to_learn
from pipeline.agents.networks import NETWORKS
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.distill.offline import DistillConfig, Objective, Student, train
from stages import params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--params", type=Path, default=Path("experiments/paper/params.yaml"))
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--network", default="net2", choices=NETWORKS)
    parser.add_argument("--states", type=int, default=768_000, help="that are learned from, the same one as often as it comes")
    parser.add_argument("changes", nargs="+")
    options = parser.parse_args()
    prepare_to_learn()
    dataset, preset = open_dataset(options.dataset), params.load(options.params).presets[options.preset]
    print(f"{options.network} from {options.states:,} of {len(dataset):,} states of {dataset.game}, one core", flush=True)
    for change in options.changes:
        print(f"{change or 'as it is':50} {_train(dataset, preset, options.network, options.states, change)}", flush=True)


def _train(dataset: Dataset, preset: DistillConfig, network: str, states: int, change: str) -> str:
    """What a student came to by these settings."""
    parse = YAML(typ="safe", pure=True).load
    changes = {name: parse(value) for name, value in (pair.split("=") for pair in change.split())}
    config = replace(preset, **changes)
    updates = states // config.batch
    config = replace(config, validate_every=updates)
    compute = learning(torch.device("cpu"), config.precision)
    student = Student(config, Objective(loss="kl", temperature=0.01), NETWORKS[network], [dataset], updates, compute, 0)
    began = time.process_time()
    *_, last = train(student)
    held_out, agreement = last.metrics["kl"], last.metrics["agreement"]
    return f"held-out KL {held_out:.3f}, agreement {agreement:.1%}, {time.process_time() - began:,.0f} s of a core"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
