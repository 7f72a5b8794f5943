"""A student copies a known teacher exactly; a resumed run is the undisturbed run, to the bit."""

import dataclasses
import gc
import weakref
from typing import Any, get_args

import numpy as np
import pytest
import torch

from pipeline.agents.device import Compute
from pipeline.agents.networks import NetworkSpec, new_network
from pipeline.datasets import loader
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.distill.losses import LossName
from pipeline.distill.offline import DistillConfig, Objective, Student, learning_rate, train
from tests.fakes import LENGTH, SMALL, corridor_dataset, draw, optimal_q

CPU = Compute(torch.device("cpu"), "float32")
CONFIG = DistillConfig(
    batch=32,
    optimizer="adam",
    learning_rate=3e-3,
    schedule="cosine",
    warmup_updates=5,
    max_grad_norm=10.0,
    precision="float32",
    standardise=True,
    held_out=0.1,
    validate_every=20,
    validation_states=1000,
)
OTHERS: list[dict[str, Any]] = [
    {"optimizer": "muon"},
    {
        "optimizer": "rmsprop",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "squared_decay": 0.95,
        "gradient_decay": 0.95,
        "squared_minimum": 1e-5,
    },
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("corridor") / "set"
    corridor_dataset(folder, 60)
    return open_dataset(folder)


def student(dataset: Dataset, loss: LossName = "kl", updates: int = 60, **changes: Any) -> Student:
    config = dataclasses.replace(CONFIG, **changes)
    return Student(
        config,
        Objective(loss=loss, temperature=0.05),
        SMALL,
        [dataset],
        updates,
        Compute(torch.device("cpu"), config.precision),
        0,
    )


def test_a_loss_that_is_lost_ends_the_run_before_it_is_saved(dataset: Dataset) -> None:
    lost = student(dataset, updates=200, validate_every=200)
    with torch.no_grad():
        next(lost.network.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss is not finite after 50 updates: lower the learning rate"):
        next(train(lost))


@pytest.mark.parametrize("loss", get_args(LossName))
def test_the_student_prefers_what_the_teacher_prefers(dataset: Dataset, loss: LossName) -> None:
    learned = student(dataset, loss, updates=150)
    *_, last = train(learned)
    assert last.metrics["agreement"] == 1.0
    assert last.metrics["regret"] == 0.0


def test_a_temperature_may_be_in_gaps(dataset: Dataset) -> None:
    made = [
        Student(CONFIG, Objective(loss="kl", temperature=t, per_gap=per), SMALL, [dataset], 9, CPU, 0)
        for t, per in ((0.5, True), (0.05, False))
    ]
    assert made[0].temperatures["Corridor"] == pytest.approx(0.5 * made[0].lessons["Corridor"].scale.gap)
    assert made[1].temperatures["Corridor"] == 0.05


def test_feature_regression_brings_the_students_features_to_the_teachers(dataset: Dataset) -> None:
    teacher = new_network(NetworkSpec(channels=(4, 4, 4), hidden=24), {"Corridor": 2}, CPU.device, 5)
    objective = Objective(loss="kl", temperature=0.05, feature_weight=0.1)
    learned = Student(
        dataclasses.replace(CONFIG, schedule="constant"), objective, SMALL, [dataset], 200, CPU, 0, teacher=teacher
    )
    obs = learned.batches(0)[0].obs_BCHW

    def distance() -> float:
        assert learned.bridge is not None
        with torch.inference_mode():
            return float((learned.bridge(learned.network.features(obs)) - teacher.features(obs)).square().sum(1).mean())

    before = distance()
    *_, last = train(learned)
    assert distance() < before / 10
    assert last.metrics["agreement"] == 1.0
    again = Student(learned.config, objective, SMALL, [dataset], 200, CPU, 1, teacher=teacher)
    again.load_state_dict(learned.state_dict())
    assert again.bridge is not None
    assert learned.bridge is not None
    assert torch.equal(again.bridge.weight, learned.bridge.weight)


def test_an_mse_student_has_the_teachers_q_values(dataset: Dataset) -> None:
    learned = student(dataset, "mse", updates=300)
    list(train(learned))
    states = np.stack([np.stack([draw(c)] * 4) for c in range(LENGTH)])
    with torch.inference_mode():
        q = learned.network(torch.from_numpy(states)).numpy()
    stood_long = np.stack([optimal_q(c, 0.9) for c in range(LENGTH)])
    assert np.abs(q - stood_long).max() < 0.15


@pytest.mark.parametrize("chosen", [{}, *OTHERS])
def test_resume_gives_the_same_weights(dataset: Dataset, chosen: dict[str, Any]) -> None:
    undisturbed = student(dataset, **chosen)
    list(train(undisturbed))
    first = student(dataset, **chosen)
    for p in train(first):
        if p.done >= 20:
            break
    second = student(dataset, **chosen)
    second.load_state_dict(first.state_dict())
    list(train(second))
    assert second.curve == undisturbed.curve
    assert second.best_updates == undisturbed.best_updates
    for name, value in undisturbed.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name])


def test_in_windows_it_learns_and_resumes_too(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "BLOCK", 32)
    frames = 5 * 35 + 8 * 4  # windows of two blocks, and the stacks to be measured on
    little = (len(dataset) * (4 * 2 + 16) + frames * 84 * 84) / 1e9
    undisturbed = student(dataset, updates=150, memory_gb=little, validation_states=8)
    assert not undisturbed.lessons["Corridor"].loader.resident
    *_, last = train(undisturbed)
    assert last.metrics["agreement"] == 1.0
    first = student(dataset, updates=150, memory_gb=little, validation_states=8)
    for p in train(first):
        if p.done >= 100:
            break
    second = student(dataset, updates=150, memory_gb=little, validation_states=8)
    second.load_state_dict(first.state_dict())
    list(train(second))
    assert second.curve == undisturbed.curve


@pytest.mark.parametrize("chosen", OTHERS)
def test_it_learns_by_other_optimisers_too(dataset: Dataset, chosen: dict[str, Any]) -> None:
    *_, last = train(student(dataset, updates=150, **chosen))
    assert last.metrics["agreement"] == 1.0


@pytest.mark.parametrize("chosen", [{}, *OTHERS])
def test_matrices_decay_and_biases_do_not(dataset: Dataset, chosen: dict[str, Any]) -> None:
    begun, plain, decayed = (student(dataset, **chosen, weight_decay=decay) for decay in (None, None, 5.0))
    for learned in (plain, decayed):
        learned.update(learned.batches(0))
    rate = learning_rate(plain.config, 0, plain.budget)
    for before, without, after in zip(*(s.network.parameters() for s in (begun, plain, decayed)), strict=True):
        lost = 5.0 * rate * before if before.ndim > 1 else torch.zeros_like(before)
        torch.testing.assert_close(after, without - lost, rtol=0, atol=1e-6)
    assert any(p.ndim > 1 for p in plain.network.parameters())


def test_a_decay_that_would_take_all_is_refused() -> None:
    for decay in (0.0, -1.0, 1 / CONFIG.learning_rate):
        with pytest.raises(ValueError, match=r"weight_decay is .*: leave it out"):
            dataclasses.replace(CONFIG, weight_decay=decay)


def test_a_student_is_freed_when_it_is_done_with(dataset: Dataset) -> None:
    """At once, not when the collector of cycles comes: it may hold gigabytes of states."""
    learned = student(dataset)
    list(train(learned))
    gone = weakref.ref(learned)
    gc.disable()
    try:
        del learned
        assert gone() is None
    finally:
        gc.enable()


def test_seeds_differ(dataset: Dataset) -> None:
    one = student(dataset)
    other = Student(CONFIG, one.objective, SMALL, [dataset], 10, one.compute, 1)
    assert not torch.equal(next(one.network.parameters()), next(other.network.parameters()))


def test_the_schedule() -> None:
    rates = [learning_rate(CONFIG, u, 100) for u in range(100)]
    assert rates[0] == pytest.approx(CONFIG.learning_rate / 5)
    assert max(rates) == pytest.approx(CONFIG.learning_rate, rel=1e-2)
    assert rates[-1] < 0.01 * CONFIG.learning_rate
    constant = dataclasses.replace(CONFIG, schedule="constant")
    assert learning_rate(constant, 99, 100) == CONFIG.learning_rate


def test_an_exploding_run_says_so(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="lower the learning rate"):
        list(train(student(dataset, "mse", learning_rate=1e20, max_grad_norm=1e30)))


def test_a_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="not positive"):
        Objective(loss="kl", temperature=0.0)


def test_the_result_is_the_best_by_its_own_held_out_loss(dataset: Dataset) -> None:
    one = student(dataset, "nll", 60)
    list(train(one))
    best = min(one.curve, key=lambda point: point["held_out_loss"])
    assert one.best_updates == best["updates"]
    assert best["kl"] > min(point["kl"] for point in one.curve)  # the tempered policy is not what it learns
