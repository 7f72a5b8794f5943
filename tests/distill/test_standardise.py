"""Why students are standardised: on real Pong a small network fits 64 states in 80 updates with it, and hardly without."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from pipeline.agents.device import Compute
from pipeline.agents.networks import NETWORKS
from pipeline.datasets.reader import open_dataset
from pipeline.distill.offline import Objective, Student
from tests.distill.test_offline import CONFIG

SAMPLE = Path("data/samples/Pong")


def fit(*, standardise: bool) -> tuple[float, float]:
    """KL loss on one batch at the first and the last of 80 updates."""
    config = dataclasses.replace(
        CONFIG, batch=64, learning_rate=1e-3, warmup_updates=20, schedule="constant", standardise=standardise
    )
    objective = Objective(loss="kl", temperature=0.01)
    student = Student(
        config, objective, NETWORKS["net2"], [open_dataset(SAMPLE)], 80, Compute(torch.device("cpu"), "float32"), 0
    )
    batch = student.batches(0)
    losses = [float(student.update(batch)) for _ in range(80)]
    assert np.isfinite(losses).all()
    return losses[0], losses[-1]


def test_a_small_student_fits_a_batch_only_when_standardised() -> None:
    plain_first, plain_last = fit(standardise=False)
    first, last = fit(standardise=True)
    assert last < 0.1 * first
    assert plain_last > 0.5 * plain_first
