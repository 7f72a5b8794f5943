"""Learn a student from stored datasets alone, one a game: no teacher weights, no environment.

A student of several games has one trunk and one head a game. Each minibatch is of one game (`lesson.Turns`), or has as many
states of each (`together`).

Dimensions: B batch, C stacked frames, H W pixels, A actions, F features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.agents.device import Compute, Precision, Recorded
from pipeline.agents.gradients import trunk_cosines
from pipeline.agents.initialise import standardise
from pipeline.agents.muon import Muon
from pipeline.agents.networks import NetworkSpec, QNetwork, new_network
from pipeline.agents.rmsprop import CenteredRmsProp
from pipeline.datasets.loader import Loader, Source, Split
from pipeline.distill import losses
from pipeline.distill.lesson import Batch, Interleave, Lesson, Turns
from pipeline.distill.losses import LossName
from pipeline.progress import Progress
from pipeline.seeding import integer

INITIAL_STATES: Final = 1024
"""States that the data-dependent initialisation looks at."""
MEASURES: Final = ("held_out_loss", "kl", "agreement", "regret")
"""What a student is measured by on held-out episodes (`Student.validate`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How a student learns, whatever its loss and size.

    The learning rate rises linearly over `warmup_updates`, then falls to zero: `cosine` over the rest, or stays (`constant`).
    Every `validate_every` updates the student is measured on up to `validation_states` states of held-out episodes
    (`held_out` is their fraction; games share that number); the weights of the lowest held-out loss, its own, averaged over
    games, are the result (a student of NLL moves away from the teacher's tempered policy while it learns). `standardise`
    starts from the data-dependent initialisation of `agents.initialise`. Frames take at most `memory_gb` of memory: datasets
    that do not fit are read in windows, whose order is another (`datasets.loader`). `rmsprop` wants `squared_decay`,
    `gradient_decay` and `squared_minimum`, as DQN's (`rl.dqn`), and nothing else does. Matrices and filters, not biases, lose
    the share `weight_decay`, times the rate, at each update, by any optimiser (Loshchilov and Hutter 2019): where states are
    few and are seen often a student keeps to them less.
    """

    batch: int
    optimizer: Literal["adam", "muon", "rmsprop"]
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
    squared_decay: float | None = None
    gradient_decay: float | None = None
    squared_minimum: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if min(self.batch, self.validate_every, self.validation_states) < 1 or self.warmup_updates < 0:
            raise ValueError("batch, validate_every and validation_states are at least 1, warmup_updates at least 0")
        if not 0 < self.held_out <= 0.5:
            raise ValueError(f"held_out is {self.held_out:g}: hold out a fraction of the episodes between 0 and 0.5")
        constants = (self.squared_decay, self.gradient_decay, self.squared_minimum)
        if any((constant is not None) != (self.optimizer == "rmsprop") for constant in constants):
            raise ValueError(
                f"squared_decay, gradient_decay and squared_minimum are rmsprop's, all three: the optimizer is {self.optimizer}"
            )
        if self.weight_decay is not None and not 0 < self.weight_decay * self.learning_rate < 1:
            raise ValueError(
                f"weight_decay is {self.weight_decay:g}: leave it out, or let it be above 0 and below 1 / learning_rate"
            )

    def settings(self) -> dict[str, Any]:
        """All that is set, as a card records it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """Which loss, with which temperature: for the KL losses, and for the held-out KL that every student is measured by.

    With `per_gap` the temperature is in units of the dataset's median gap between the best two actions, which differs between
    games by hundreds; `temperatures` has those of games that want another. With `balanced` the loss of each game is in units
    of what a student that does not look at the state would have (`losses.blind_loss`), so that games weigh alike.
    `feature_weight` adds Actor-Mimic's feature regression (Parisotto et al. 2016, eq. 5): the squared distance of the teacher's
    last hidden layer from a linear map of the student's; for one game.
    """

    loss: LossName
    temperature: float
    per_gap: bool = False
    temperatures: Mapping[str, float] = field(default_factory=dict)
    balanced: bool = False
    feature_weight: float = 0.0

    def __post_init__(self) -> None:
        for temperature in (self.temperature, *self.temperatures.values()):
            if not temperature > 0:
                raise ValueError(f"temperature {temperature:g} is not positive: the paper's is 0.01")
        if self.feature_weight < 0:
            raise ValueError(f"feature_weight {self.feature_weight:g} is negative: Actor-Mimic's is 0.01, 0 is none")


class Student:
    """A learning student: network, optimiser, best weights so far, and the data it learns from, one source a game.

    It may begin with the weights of an agent, `start`, whose other games it keeps; with `frozen` these stay as they are and
    only the heads of new games learn. With `shrink` below 1 it begins with that share of them and the rest of fresh ones: what
    has learned something else before generalises worse than what begins anew (Ash and Adams 2020, arXiv 1910.08475).
    `teacher` is the network that labelled the dataset; only feature regression wants it. `splits` hold out other episodes of a
    game than `seed` would. ValueError where that does not go together.
    """

    def __init__(
        self,
        config: DistillConfig,
        objective: Objective,
        spec: NetworkSpec,
        sources: Sequence[Source],
        updates: int,
        compute: Compute,
        seed: int,
        *,
        interleave: Interleave = "together",
        start: QNetwork | None = None,
        shrink: float = 1.0,
        frozen: bool = False,
        teacher: QNetwork | None = None,
        splits: Mapping[str, Split] | None = None,
    ) -> None:
        self.config, self.objective, self.compute, self.seed, self.frozen = config, objective, compute, seed, frozen
        self.budget = updates
        self.updates = 0
        together = interleave == "together" and len(sources) > 1
        self._each = config.batch // len(sources) if together else config.batch
        self.states_per_update = self._each * (len(sources) if together else 1)
        if not self._each:
            raise ValueError(f"a batch of {config.batch} has no state for each of {len(sources)} games: raise batch")
        background = ThreadPoolExecutor(1)
        self.lessons = {
            source.game: Lesson(
                source.game,
                Loader(
                    source,
                    batch=self._each,
                    held_out=config.held_out,
                    seed=seed,
                    memory=int(config.memory_gb * 1e9),
                    depth=spec.stack,
                    check=max(1, config.validation_states // len(sources)),
                    split=(splits or {}).get(source.game),
                    sharing=len(sources),
                    background=background,
                ),
                compute.device,
            )
            for source in sources
        }
        if unknown := sorted(objective.temperatures.keys() - self.lessons.keys()):
            raise ValueError(f"temperatures name {', '.join(unknown)}: the mix has {', '.join(self.lessons)}")
        self.temperatures = {game: self._temperature(lesson) for game, lesson in self.lessons.items()}
        self._unit = {game: self._blind_loss(lesson) if objective.balanced else 1.0 for game, lesson in self.lessons.items()}
        steps = {game: lesson.loader.episode_steps for game, lesson in self.lessons.items()}
        self._turns = Turns(steps, interleave, config.batch, seed) if interleave != "together" else None
        heads = {source.game: source.actions for source in sources}
        self.network = self._begin(spec, heads, start)
        if start is not None and shrink < 1:
            self._mix_in(self._begin(spec, heads, None), 1 - shrink)
        self.bridge, self._teacher = None, None
        if objective.feature_weight:
            if len(self.lessons) > 1:
                raise ValueError(f"feature regression is for one game, not for {', '.join(self.lessons)}: leave it out")
            assert teacher is not None, "feature regression wants the teacher"
            self._teacher = teacher.eval()
            with torch.random.fork_rng():
                torch.manual_seed(integer(seed, "student", "bridge"))
                self.bridge = torch.nn.Linear(spec.hidden, teacher.spec.hidden).to(compute.device)
        learned = [self.network] if self.bridge is None else [self.network, self.bridge]
        self._parameters = [p for module in learned for p in module.parameters() if p.requires_grad]
        self._rate = torch.zeros((), device=compute.device) if compute.device.type == "cuda" else config.learning_rate
        self.optimizer = _optimizer(config, self.network, self._parameters, self._rate, compute)
        self._recorded = Recorded(compute.device)
        self.best_loss = math.inf
        self.best_updates = 0
        self.best_weights: dict[str, Tensor] = {}
        self.curve: list[dict[str, float]] = []
        self._since_G2 = torch.zeros((len(self.lessons), 2), dtype=torch.float64, device=compute.device)

    def _temperature(self, lesson: Lesson) -> float:
        objective = self.objective
        temperature = objective.temperatures.get(lesson.game, objective.temperature)
        if objective.per_gap:
            temperature *= lesson.scale.gap
        if not temperature > 0:
            raise ValueError(f"the median Q-gap of {lesson.game}'s dataset is 0: set per_gap to false")
        return temperature

    def _blind_loss(self, lesson: Lesson) -> float:
        name, temperature = self.objective.loss, self.temperatures[lesson.game]
        return losses.blind_loss(name, lesson.train_q_NA, temperature, lesson.scale) or 1.0

    def _begin(self, spec: NetworkSpec, heads: Mapping[str, int], start: QNetwork | None) -> QNetwork:
        """The network as it begins to learn."""
        known = start.actions if start else {}
        for game in heads.keys() & known.keys():
            if heads[game] != known[game]:
                raise ValueError(
                    f"the agent to begin with plays {game} with {known[game]} actions, its dataset has {heads[game]}: "
                    f"begin with one that was made in the dataset's environment"
                )
        new = [game for game in heads if game not in known]
        network = new_network(spec, {**known, **heads}, self.compute.device, integer(self.seed, "student", "weights"))
        if start is not None:
            if start.spec != spec:
                raise ValueError("the agent to begin with has another architecture: give the student its network")
            network.load_state_dict(start.state_dict(), strict=False)
        if self.frozen:
            if start is None or not new:
                raise ValueError(
                    "a frozen student has nothing to learn: add a game that the agent it begins with does not play"
                )
            if old := sorted(heads.keys() & known.keys()):
                raise ValueError(
                    f"a frozen student learns nothing of {', '.join(old)}, which it plays: leave these out of its mix"
                )
            for name, weights in network.named_parameters():
                weights.requires_grad_(name not in start.state_dict())
        if self.config.standardise and new:
            shown = {game: self.lessons[game].first(INITIAL_STATES // len(new)) for game in new}
            targets = {game: target for game in new if (target := self._regressed(shown[game])) is not None}
            standardise(network, {game: batch.obs_BCHW for game, batch in shown.items()}, targets, trunk=start is None)
        return network

    @torch.no_grad()
    def _mix_in(self, fresh: QNetwork, share: float) -> None:
        """Draw the network's weights towards these by that share of the way; heads of games that it does not learn stay."""
        ours = dict(self.network.named_parameters())
        for name, weights in fresh.named_parameters():
            ours[name].lerp_(weights, share)

    def _regressed(self, batch: Batch) -> Tensor | None:
        """The outputs that a student of Q-values should have; None for a student of a policy."""
        match self.objective.loss:
            case "mse":
                return batch.q_BA
            case "normalised-mse":
                scale = self.lessons[batch.game].scale
                return (batch.q_BA - scale.mean) / scale.deviation
            case _:
                return None

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
            "since": self._since_G2,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.bridge is not None:
            self.bridge.load_state_dict(state["bridge"])
        self.load_optimizer(state["optimizer"])
        self.updates, self.best_weights, self.curve = state["updates"], state["best_weights"], state["curve"]
        self.best_loss, self.best_updates = state["best"]
        self._since_G2.copy_(state["since"])

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """Go on from an optimiser's `state_dict`, be it of another device."""
        where = {"capturable": isinstance(self._rate, Tensor)}  # torch's Adam has it, and moves its counts of steps by it
        groups = [group | where if "capturable" in group else group for group in state["param_groups"]]
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        self._recorded = Recorded(self.compute.device)  # what was recorded works on the tensors of before

    def batches(self, update: int) -> list[Batch]:
        """What update number `update` learns from: states and Q-values of the game whose turn it is, or of each."""
        if self._turns is None:
            return [lesson.batch(update) for lesson in self.lessons.values()]
        game, number = self._turns.place(update)
        return [self.lessons[game].batch(number)]

    def _loss_B(self, student_BA: Tensor, batch: Batch) -> Tensor:
        """The objective's loss of these outputs, per example."""
        name, game = self.objective.loss, batch.game
        loss_B = losses.loss_B(name, student_BA, batch.q_BA, self.temperatures[game], self.lessons[game].scale)
        return loss_B / self._unit[game] if self.objective.balanced else loss_B

    def update(self, batches: Sequence[Batch]) -> Tensor:
        """One gradient step from these, a game each, which weigh alike; returns the mean loss, on the device."""
        rate: float | Tensor = learning_rate(self.config, self.updates, self.budget)
        if isinstance(self._rate, Tensor):
            rate = self._rate.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.updates += 1
        tensors = [tensor for batch in batches for tensor in (batch.obs_BCHW, batch.q_BA)]
        return self._recorded(self._step, tuple(batch.game for batch in batches), *tensors)

    def _step(self, games: tuple[str, ...], *tensors: Tensor) -> Tensor:
        """What an update does on the device."""
        batches = [Batch(*of_game) for of_game in zip(tensors[::2], tensors[1::2], games, strict=True)]
        obs_BCHW = torch.cat([batch.obs_BCHW for batch in batches]) if len(batches) > 1 else batches[0].obs_BCHW
        with self.compute.autocast():
            features_BF = self.network.features(obs_BCHW)
        means = []
        for batch, of_game_BF in zip(batches, torch.split(features_BF, [len(b.q_BA) for b in batches]), strict=True):
            loss_B = self._loss_B(self.network.values(of_game_BF, batch.game), batch)
            if self._teacher is not None and self.bridge is not None:
                with torch.no_grad(), self.compute.autocast():
                    wanted_BF = self._teacher.features(batch.obs_BCHW)
                loss_B = loss_B + self.objective.feature_weight * (self.bridge(of_game_BF) - wanted_BF).square().sum(dim=1)
            assert loss_B.shape == (len(batch.q_BA),)
            means.append(loss_B.mean())
        loss = torch.stack(means).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm, foreach=True)
        if self.config.weight_decay:
            moved = [p.detach() for p in self._parameters if p.grad is not None and p.ndim > 1]  # another game's head stays
            torch._foreach_mul_(moved, 1 - self.optimizer.param_groups[0]["lr"] * self.config.weight_decay)
        self.optimizer.step()
        for batch, mean in zip(batches, means, strict=True):
            since_2 = self._since_G2[list(self.lessons).index(batch.game)]
            since_2[0] += mean.detach()
            since_2[1] += 1
        return loss.detach()

    def validate(self) -> dict[str, float]:
        """On held-out episodes: the student's own loss, KL at the objective's temperature (nats), how often it prefers the
        teacher's action, and the mean regret of its choices (Q units).

        Of a student of several games these are means over those it learns; beside them, each game's (`kl_Pong`), and how the
        games' gradients lie to each other (`cosine_Freeway_Pong`, `agents.gradients`).
        """
        if len(self.network.actions) == 1:
            (lesson,) = self.lessons.values()
            return self._measure(lesson)
        measured = {game: self._measure(lesson) for game, lesson in self.lessons.items()}
        means = {key: float(np.mean([found[key] for found in measured.values()])) for key in MEASURES}
        each = {f"{key}_{game}": found[key] for game, found in measured.items() for key in MEASURES}
        return {**means, **each, **({} if self.frozen else self._cosines())}

    def _measure(self, lesson: Lesson) -> dict[str, float]:
        """The held-out numbers of one game."""
        sums = torch.zeros(4, dtype=torch.float64)
        name, temperature = self.objective.loss, self.temperatures[lesson.game]
        for start in range(0, lesson.checked, 512):
            batch = lesson.held_out(slice(start, start + 512))
            with torch.inference_mode():
                student_BA = self.network(batch.obs_BCHW, lesson.game)
            logits_BA = losses.policy_logits(name, student_BA, temperature, lesson.scale)
            rows_B4 = torch.stack(
                [
                    self._loss_B(student_BA, batch),
                    losses.kl(logits_BA, batch.q_BA, temperature),
                    (student_BA.argmax(1) == batch.q_BA.argmax(1)).float(),
                    losses.regret(student_BA, batch.q_BA),
                ],
                dim=1,
            )
            sums += rows_B4.double().sum(dim=0).cpu()
        return dict(zip(MEASURES, (sums / lesson.checked).tolist(), strict=True))

    def _cosines(self) -> dict[str, float]:
        """How the gradients of the games lie to each other on some held-out states."""
        means = {}
        for game, lesson in self.lessons.items():
            batch = lesson.held_out_sample(self.config.batch)
            with self.compute.autocast():
                features_BF = self.network.features(batch.obs_BCHW)
            means[game] = self._loss_B(self.network.values(features_BF, game), batch).mean()
        return trunk_cosines(self.network, means)

    def losses_since(self) -> dict[str, float]:
        """Of the updates since this was asked last: each game's mean loss, its part of the sum of losses, and how many of its
        states have been learned from so far. Nothing for a student of one game.
        """
        sum_G, count_G = self._since_G2.T.tolist()
        self._since_G2.zero_()
        if len(self.network.actions) == 1:
            return {}
        minibatches = self._turns.counts(self.updates) if self._turns else dict.fromkeys(self.lessons, self.updates)
        found = {}
        for game, total, count in zip(self.lessons, sum_G, count_G, strict=True):
            found[f"states_{game}"] = float(minibatches[game] * self._each)
            if count:
                found |= {f"loss_{game}": total / count, f"share_{game}": total / (sum(sum_G) or 1.0)}
        return found

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


def _optimizer(
    config: DistillConfig, network: QNetwork, parameters: list[torch.nn.Parameter], rate: float | Tensor, compute: Compute
) -> torch.optim.Optimizer:
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, fused=True, capturable=isinstance(rate, Tensor))
        case "muon":
            return Muon.of(network, parameters, lr=rate, compute=compute)
        case "rmsprop":
            assert config.squared_decay is not None
            assert config.gradient_decay is not None
            assert config.squared_minimum is not None
            return CenteredRmsProp(
                parameters,
                lr=rate,
                squared_decay=config.squared_decay,
                gradient_decay=config.gradient_decay,
                minimum=config.squared_minimum,
            )


def train(student: Student) -> Iterator[Progress]:
    """Learn until the budget of updates is spent; yields every 50 updates and after every validation.

    Metrics: `loss` (mean since the last yield), `learning_rate`, and after a validation what `Student.validate` and
    `Student.losses_since` give.
    """
    config = student.config
    recent: list[Tensor] = []
    while student.updates < student.budget:
        recent.append(student.update(student.batches(student.updates)))
        done = student.updates
        validating = done % config.validate_every == 0 or done == student.budget
        if not validating and done % 50:
            continue
        metrics = {
            "loss": float(torch.stack(recent).mean()),
            "learning_rate": learning_rate(config, done - 1, student.budget),
        }
        recent = []
        if validating:
            metrics |= student.validate() | student.losses_since()
        if not all(math.isfinite(metrics.get(name, 0.0)) for name in ("loss", "held_out_loss")):  # before it is saved
            raise ValueError(f"the loss is not finite after {done:,} updates: lower the learning rate")
        if validating:
            student.keep_if_best(metrics["held_out_loss"])
            student.curve.append({"updates": done, **metrics})
        yield Progress(done=done, total=student.budget, unit="updates", metrics=metrics)
