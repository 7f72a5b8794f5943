"""On a GPU a student takes the CPU's first steps: the same states, gathered there, and equal losses within tolerance."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.agents.device import Compute, exact
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.distill.losses import LossName
from pipeline.distill.offline import Objective, Student, train
from stages.publish import load_state, save_state
from tests.distill.test_multigame import SPEC as SEVERAL
from tests.distill.test_offline import CONFIG
from tests.fakes import SMALL, corridor_dataset, mirror_dataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

DECAYS = {"squared_decay": 0.95, "gradient_decay": 0.95, "squared_minimum": 1e-5}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("corridor") / "set"
    corridor_dataset(folder, 60)
    return open_dataset(folder)


def student(dataset: Dataset, compute: Compute, updates: int = 60, **changes: Any) -> Student:
    return Student(
        dataclasses.replace(CONFIG, **changes), Objective(loss="kl", temperature=0.05), SMALL, [dataset], updates, compute, 0
    )


def flat(learned: Student) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learned.network.parameters()])


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "adam"}, {"optimizer": "muon", "weight_decay": 5.0}, {"optimizer": "rmsprop", **DECAYS}],
)
def test_a_gpu_learns_what_a_cpu_learns(dataset: Dataset, changes: dict[str, Any]) -> None:
    learning = [student(dataset, exact(torch.device(name)), **changes) for name in ("cuda", "cpu")]
    losses = np.array([[float(s.update(s.batches(update))) for update in range(10)] for s in learning])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)


@pytest.mark.parametrize("loss", ["kl", "nll", "normalised-mse"])
def test_a_gpu_learns_two_games_together_as_a_cpu_does(dataset: Dataset, loss: LossName, tmp_path: Path) -> None:
    mirror_dataset(tmp_path / "mirror", 60)
    pair = [dataset, open_dataset(tmp_path / "mirror")]
    learning = [
        Student(CONFIG, Objective(loss=loss, temperature=0.05), SEVERAL, pair, 60, exact(torch.device(name)), 0)
        for name in ("cuda", "cpu")
    ]
    losses = np.array([[float(s.update(s.batches(update))) for update in range(10)] for s in learning])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)


def test_stacks_are_gathered_on_the_device(dataset: Dataset) -> None:
    there, here = (student(dataset, exact(torch.device(name))).batches(3)[0] for name in ("cuda", "cpu"))
    assert there.obs_BCHW.device.type == there.q_BA.device.type == "cuda"
    torch.testing.assert_close(there.obs_BCHW.cpu(), here.obs_BCHW, rtol=0, atol=0)
    torch.testing.assert_close(there.q_BA.cpu(), here.q_BA, rtol=0, atol=0)


def test_bfloat16_learns_it_too_and_a_killed_student_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    compute = Compute(torch.device("cuda"), "bfloat16")
    learned = student(dataset, compute, updates=150, optimizer="muon")
    for _ in train(learned):
        if learned.updates == 100:
            save_state(tmp_path / "checkpoint.pt", learned.state_dict())
            then = flat(learned)
    resumed = student(dataset, compute, updates=150, optimizer="muon")
    state = load_state(tmp_path / "checkpoint.pt")
    assert state is not None
    resumed.load_state_dict(state)
    *_, last = train(resumed)
    assert (flat(resumed) - flat(learned)).norm() < 0.1 * (then - flat(learned)).norm()  # a GPU adds in another order each time
    assert last.metrics["agreement"] >= 0.99
    assert all(weights.device.type == "cpu" for weights in resumed.best_weights.values())
