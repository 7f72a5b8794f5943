"""Learn a student from a stored dataset alone: no teacher weights, no environment.

Dimensions: B batch, C stacked frames, H W pixels, A actions, M frames in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.agents.device import Compute, Precision
from pipeline.agents.initialise import standardise
from pipeline.agents.networks import NetworkSpec, QNetwork, new_network
from pipeline.datasets.loader import Frames, Loader, Source, Window
from pipeline.distill import losses
from pipeline.distill.losses import LossName
from pipeline.progress import Progress
from pipeline.seeding import integer

INITIAL_STATES: Final = 1024
"""States that the data-dependent initialisation looks at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How a student learns, whatever its loss and size.

    The learning rate rises linearly over `warmup_updates`, then falls to zero: `cosine` over the rest, or stays (`constant`).
    Every `validate_every` updates the student is measured on up to `validation_states` states of held-out episodes
    (`held_out` is their fraction); the weights of the lowest held-out loss, its own, are the result (a student of NLL moves
    away from the teacher's tempered policy while it learns). `standardise` starts from the data-dependent initialisation of
    `agents.initialise`. Frames take at most `memory_gb` of memory: a dataset that does not fit is read in windows, whose order
    is another (`datasets.loader`).
    """

    batch: int
    optimizer: Literal["adam", "rmsprop"]
    learning_rate: float
    schedule: Literal["cosine", "constant"]
    warmup_updates: int
    max_grad_norm: float
    precision: Precision
    standardise: bool
    held_out: float
    validate_every: int
    validation_states: int
    memory_gb: float = 8.0

    def __post_init__(self) -> None:
        if min(self.batch, self.validate_every, self.validation_states) < 1 or self.warmup_updates < 0:
            raise ValueError("batch, validate_every and validation_states are at least 1, warmup_updates at least 0")
        if not 0 < self.held_out <= 0.5:
            raise ValueError(f"held_out is {self.held_out:g}: hold out a fraction of the episodes between 0 and 0.5")


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """Which loss, with which temperature: for the KL losses, and for the held-out KL that every student is measured by.

    With `per_gap` the temperature is in units of the dataset's median gap between the best two actions, which differs between
    games by hundreds. `feature_weight` adds Actor-Mimic's feature regression (Parisotto et al. 2016, eq. 5): the squared
    distance of the teacher's last hidden layer from a linear map of the student's.
    """

    loss: LossName
    temperature: float
    per_gap: bool = False
    feature_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature:g} is not positive: the paper's is 0.01")
        if self.feature_weight < 0:
            raise ValueError(f"feature_weight {self.feature_weight:g} is negative: Actor-Mimic's is 0.01, 0 is none")


class Student:
    """A learning student: network, optimiser, best weights so far, and the data it learns from.

    `teacher` is the network that labelled the dataset; only feature regression wants it.
    """

    def __init__(
        self,
        config: DistillConfig,
        objective: Objective,
        spec: NetworkSpec,
        dataset: Source,
        updates: int,
        compute: Compute,
        seed: int,
        teacher: QNetwork | None = None,
    ) -> None:
        self.config, self.objective, self.compute, self.seed = config, objective, compute, seed
        self.budget = updates
        self.updates = 0
        memory = int(config.memory_gb * 1e9)
        self._loader = Loader(dataset, batch=config.batch, held_out=config.held_out, seed=seed, memory=memory, depth=spec.stack)
        self._q_NA = torch.from_numpy(self._loader.q_NA).to(compute.device)
        self._window: Window | None = None
        self._frames: Frames | None = None
        self._frame_MHW = torch.empty(0)
        held_out_N = self._loader.held_out_N
        self._held_out_N = held_out_N[:: max(1, math.ceil(len(held_out_N) / config.validation_states))]
        self._held_out_NCHW = None if self._loader.resident else torch.from_numpy(self._loader.states(self._held_out_N))
        self.scale = losses.scale(self._q_NA[torch.from_numpy(self._loader.train_N)])
        self.temperature = objective.temperature * (self.scale.gap if objective.per_gap else 1.0)
        if not self.temperature > 0:
            raise ValueError(f"dataset {dataset}: its median Q-gap is 0, so no temperature can be relative to it")
        game = dataset.game
        heads = {game: dataset.actions}
        self.network = new_network(spec, heads, compute.device, integer(seed, "student", "weights"))
        if config.standardise:
            obs_BCHW, q_BA = self.gather(*self._loader.order(INITIAL_STATES))
            outputs = {"mse": q_BA, "normalised-mse": (q_BA - self.scale.mean) / self.scale.deviation}
            standardise(self.network, game, obs_BCHW, outputs.get(objective.loss))
        self.bridge, self._teacher = None, None
        if objective.feature_weight:
            assert teacher is not None, "feature regression wants the teacher"
            self._teacher = teacher.eval()
            with torch.random.fork_rng():
                torch.manual_seed(integer(seed, "student", "bridge"))
                self.bridge = torch.nn.Linear(spec.hidden, teacher.spec.hidden).to(compute.device)
        learned = [self.network] if self.bridge is None else [self.network, self.bridge]
        self._parameters = [parameter for module in learned for parameter in module.parameters()]
        self.optimizer = _optimizer(config, self._parameters)
        self.best_loss = math.inf
        self.best_updates = 0
        self.best_weights: dict[str, Tensor] = {}
        self.curve: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; plain tensors and numbers."""
        return {
            "network": self.network.state_dict(),
            "bridge": self.bridge.state_dict() if self.bridge else {},
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "best": [self.best_loss, self.best_updates],
            "best_weights": self.best_weights,
            "curve": self.curve,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.bridge is not None:
            self.bridge.load_state_dict(state["bridge"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.best_weights, self.curve = state["updates"], state["best_weights"], state["curve"]
        self.best_loss, self.best_updates = state["best"]

    def gather(self, window: Window, step_B: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """States (B, C, H, W) and Q-values (B, A) at these steps of a window, on the device."""
        if self._frames is None or (window != self._window and not self._loader.resident):
            self._frames, self._frame_MHW = None, torch.empty(0)  # or two windows would be here when the third is begun
            self._frames, self._window = self._loader.frames(window), window
            self._frame_MHW = torch.from_numpy(self._frames.frame_MHW).to(self.compute.device)
        index_BC = torch.from_numpy(self._frames.stack_index(step_B)).to(self.compute.device)
        obs_BCHW = self._frame_MHW.index_select(0, index_BC.flatten()).view(*index_BC.shape, 84, 84)
        return obs_BCHW, self._labels(step_B)

    def _labels(self, step_B: npt.NDArray[np.int64]) -> Tensor:
        return self._q_NA.index_select(0, torch.from_numpy(step_B).to(self.compute.device))

    def batch(self, update: int) -> tuple[Tensor, Tensor]:
        """States and Q-values of minibatch `update`."""
        return self.gather(*self._loader.place(update))

    def _held_out(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        step_B = self._held_out_N[start:stop]
        if self._held_out_NCHW is None:
            return self.gather(Window(0, 0), step_B)
        return self._held_out_NCHW[start:stop].to(self.compute.device), self._labels(step_B)

    def update(self, obs_BCHW: Tensor, q_BA: Tensor) -> Tensor:
        """One gradient step; returns the batch's mean loss, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.updates, self.budget)
        with self.compute.autocast():
            features_BF = self.network.features(obs_BCHW)
        student_BA = self.network.values(features_BF)
        loss_B = losses.loss_B(self.objective.loss, student_BA, q_BA, self.temperature, self.scale)
        if self._teacher is not None and self.bridge is not None:
            with torch.no_grad(), self.compute.autocast():
                wanted_BF = self._teacher.features(obs_BCHW)
            loss_B = loss_B + self.objective.feature_weight * (self.bridge(features_BF) - wanted_BF).square().sum(dim=1)
        assert loss_B.shape == (len(q_BA),)
        loss = loss_B.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm, foreach=True)
        self.optimizer.step()
        self.updates += 1
        return loss.detach()

    def validate(self) -> dict[str, float]:
        """On held-out episodes: the student's own loss, KL at the objective's temperature (nats), how often it prefers the
        teacher's action, and the mean regret of its choices (Q units)."""
        sums = torch.zeros(4, dtype=torch.float64)
        name, temperature = self.objective.loss, self.temperature
        for start in range(0, len(self._held_out_N), 512):
            obs_BCHW, q_BA = self._held_out(start, start + 512)
            with torch.inference_mode():
                student_BA = self.network(obs_BCHW)
            logits_BA = losses.policy_logits(name, student_BA, temperature, self.scale)
            rows_B4 = torch.stack(
                [
                    losses.loss_B(name, student_BA, q_BA, temperature, self.scale),
                    losses.kl(logits_BA, q_BA, temperature),
                    (student_BA.argmax(1) == q_BA.argmax(1)).float(),
                    losses.regret(student_BA, q_BA),
                ],
                dim=1,
            )
            sums += rows_B4.double().sum(dim=0).cpu()
        loss, kl, agreement, regret = (sums / len(self._held_out_N)).tolist()
        return {"held_out_loss": loss, "kl": kl, "agreement": agreement, "regret": regret}

    def keep_if_best(self, held_out_loss: float) -> None:
        if held_out_loss < self.best_loss:
            self.best_loss, self.best_updates = held_out_loss, self.updates
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}


def learning_rate(config: DistillConfig, update: int, budget: int) -> float:
    """The rate of update number `update`, from 0."""
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    if config.schedule == "constant":
        return config.learning_rate
    done = (update - config.warmup_updates) / max(1, budget - config.warmup_updates)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def _optimizer(config: DistillConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=config.learning_rate, alpha=0.95, eps=0.01, foreach=True)


def train(student: Student) -> Iterator[Progress]:
    """Learn until the budget of updates is spent; yields every 50 updates and after every validation.

    Metrics: `loss` (mean since the last yield), `learning_rate`, and after a validation what `Student.validate` gives.
    """
    config = student.config
    recent: list[Tensor] = []
    while student.updates < student.budget:
        recent.append(student.update(*student.batch(student.updates)))
        done = student.updates
        validating = done % config.validate_every == 0 or done == student.budget
        if not validating and done % 50:
            continue
        metrics = {
            "loss": float(torch.stack(recent).mean()),
            "learning_rate": float(student.optimizer.param_groups[0]["lr"]),
        }
        recent = []
        if validating:
            metrics |= student.validate()
            if not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["held_out_loss"]):
                raise ValueError(f"the loss is not finite after {done:,} updates: lower the learning rate")
            student.keep_if_best(metrics["held_out_loss"])
            student.curve.append({"updates": done, **metrics})
        yield Progress(done=done, total=student.budget, unit="updates", metrics=metrics)
