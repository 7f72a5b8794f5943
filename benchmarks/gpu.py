"""What a student's update takes on a GPU, its kernels launched one by one and recorded (`pipeline.agents.device.Recorded`).

python -m benchmarks.gpu [DATASET] [--params experiments/paper/params.yaml]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.agents.device import Compute, name_of
from pipeline.agents.networks import NETWORKS
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.distill.offline import DistillConfig, Objective, Student
from stages import params

UPDATES = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", type=Path, nargs="?", default=Path("data/samples/Pong"))
    parser.add_argument("--params", type=Path, default=Path("experiments/paper/params.yaml"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this machine has no GPU")
    preset, dataset = params.load(options.params).presets["fast"], open_dataset(options.dataset)
    print(
        f"{name_of(torch.device('cuda'))}, batch {preset.batch}, {preset.optimizer}; milliseconds an update, gathering included"
    )
    for network in ("dqn", "net1", "net2", "net3", "multi3"):
        one_by_one = _milliseconds(preset, dataset, network, recording=False)
        recorded = _milliseconds(preset, dataset, network, recording=True)
        print(f"{network:8} one by one {one_by_one:5.2f}, recorded {recorded:5.2f}: {one_by_one / recorded:.1f} times as fast")


def _milliseconds(preset: DistillConfig, dataset: Dataset, network: str, recording: bool) -> float:
    """An update's mean time, after the first thirty."""
    compute = Compute(torch.device("cuda"), preset.precision)
    config = replace(preset, validate_every=10**9)
    student = Student(config, Objective(loss="kl", temperature=0.01), NETWORKS[network], [dataset], 10**9, compute, 0)
    if not recording:
        student._recorded = lambda function, *arguments: function(*arguments)  # type: ignore[assignment]
    for update in range(30):
        student.update(student.batches(update))
    torch.cuda.synchronize()
    began = time.perf_counter()
    for update in range(30, 30 + UPDATES):
        student.update(student.batches(update))
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / UPDATES * 1e3


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
