"""PQN: Q-learning on a vector environment, with LayerNorm in place of replay and target network (Gallici et al. 2024).

Each iteration plays `horizon` steps in every environment, computes Q(lambda) targets, and makes `epochs` passes over them.

Dimensions: T horizon, B environments, N = T*B, C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.agents.device import Compute
from pipeline.agents.networks import NetworkSpec, new_network
from pipeline.agents.policies import EpsilonGreedy, EzGreedy
from pipeline.atari.envs import Staggered
from pipeline.atari.rollout import World, rollout
from pipeline.progress import Progress
from pipeline.rl.learner import Learner, Weights, finite, learning_signal
from pipeline.seeding import episode_seeds, integer


@dataclass(frozen=True, kw_only=True, slots=True)
class PqnConfig:
    """Settings of PQN; the step budget is given apart.

    `learning_rate` falls linearly to `learning_rate_end`. Epsilon falls linearly from 1 over the first
    `exploration_fraction` of the steps to a ladder over the environments, log-spaced from `epsilon_low` to
    `epsilon_high`: data and scores are taken at epsilon = 0.05, so the teacher must have met its own mistakes.
    With `hold_exponent` a random action is held (ez-greedy, see `policies.EzGreedy`), until the fraction `hold_until` of the
    steps is spent: holding finds the way, but a fifth of what is then lived through is noise.
    `target_epsilon` is the epsilon whose epsilon-greedy policy the targets value (Expected SARSA); 0 is Q-learning, whose
    policy counts on never slipping and keeps no margin for it. `average_decay` is the decay, per update, of the moving
    average of the weights that is evaluated and published (Polyak and Juditsky 1992): the last minibatches sway a policy
    whose actions lie this close in value, their average much less. 0 publishes the weights as they are.
    `stagger` spreads the environments over the first so many steps of an episode (`envs.Staggered`), for games whose
    episodes are all of one length.
    """

    envs: int
    horizon: int
    epochs: int
    minibatch: int
    learning_rate: float
    learning_rate_end: float
    gamma: float
    trace_lambda: float
    max_grad_norm: float
    epsilon_low: float
    epsilon_high: float
    exploration_fraction: float
    hold_exponent: float | None = None
    hold_until: float | None = None
    stagger: int | None = None
    target_epsilon: float
    average_decay: float
    clip_rewards: bool
    life_loss_ends: bool

    def __post_init__(self) -> None:
        if min(self.envs, self.horizon, self.epochs, self.minibatch) < 1:
            raise ValueError("envs, horizon, epochs and minibatch are at least 1")
        if not 0 < self.epsilon_low <= self.epsilon_high <= 1:
            raise ValueError("epsilons are 0 < epsilon_low <= epsilon_high <= 1")
        if self.hold_until is not None and (self.hold_exponent is None or not 0 < self.hold_until <= 1):
            raise ValueError(f"hold_until is {self.hold_until:g}: a fraction of the steps, of a preset with a hold_exponent")
        if self.stagger is not None and self.stagger < 1:
            raise ValueError(f"stagger is {self.stagger}: the steps of an episode, or leave it out")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}, not in [0, 1): 0.999 averages about 1,000 updates")
        if (self.envs * self.horizon) % self.minibatch:
            raise ValueError(
                f"minibatch {self.minibatch} does not divide envs x horizon = {self.envs * self.horizon}: choose a divisor"
            )


def lambda_targets(reward_TB: Tensor, done_TB: Tensor, next_value_TB: Tensor, gamma: float, trace_lambda: float) -> Tensor:
    """Q(lambda) targets (Gallici et al. 2024): G_t = r_t + gamma (lambda G_{t+1} + (1 - lambda) V(s_{t+1})).

    `next_value_TB[t]` is V(s_{t+1}), in Q-learning max_a Q(s_{t+1}, a); a `done` step's target is its reward alone.
    """
    assert reward_TB.shape == done_TB.shape == next_value_TB.shape
    target_TB = torch.empty_like(reward_TB)
    following_B = next_value_TB[-1]
    for t in reversed(range(len(reward_TB))):
        mixed_B = trace_lambda * following_B + (1.0 - trace_lambda) * next_value_TB[t]
        following_B = reward_TB[t] + gamma * (1.0 - done_TB[t]) * mixed_B
        target_TB[t] = following_B
    return target_TB


def epsilon_greedy_value(q_BA: npt.NDArray[np.float32], epsilon: float) -> npt.NDArray[np.float32]:
    """The value of states under the epsilon-greedy policy of their Q-values: (1 - epsilon) max_a Q + epsilon mean_a Q."""
    return np.asarray((1.0 - epsilon) * q_BA.max(axis=1) + epsilon * q_BA.mean(axis=1), dtype=np.float32)


class PqnWeights(Weights):
    """What a PQN agent has learned."""

    def __init__(self, config: PqnConfig, spec: NetworkSpec, heads: Mapping[str, int], compute: Compute, seed: int) -> None:
        network = new_network(spec, heads, compute.device, integer(seed, "pqn", "weights"))
        optimizer = torch.optim.RAdam(network.parameters(), lr=config.learning_rate, foreach=True)
        super().__init__(network, optimizer, config.average_decay)


class PqnLearner(Learner):
    """A learning PQN agent: weights, counters, and the states of its horizon. Its environments live in `train`.

    `budget` is also what the schedules span.
    """

    def __init__(
        self,
        config: PqnConfig,
        budget: int,
        spec: NetworkSpec,
        heads: Mapping[str, int],
        compute: Compute,
        seed: int,
        *,
        weights: PqnWeights | None = None,
        game: str | None = None,
    ) -> None:
        weights = weights or PqnWeights(config, spec, heads, compute, seed)
        super().__init__(config.envs, config.envs * config.horizon, budget, compute, seed, weights, game)
        self.config = config
        names = (game,) if game else ()
        self.shuffle = torch.Generator().manual_seed(integer(seed, "pqn", "minibatches", *names))
        self._obs_TBCHW = torch.empty(
            (config.horizon + 1, config.envs, spec.stack, 84, 84), dtype=torch.uint8, device=compute.device
        )
        self._action_N = self._target_N = torch.empty(0)

    def train(self, world: World) -> Iterator[Progress]:
        """`train` of this module, on this learner."""
        return train(self, world)

    def own_state(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights."""
        return {"shuffle": self.shuffle.get_state(), **super().own_state()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.shuffle.set_state(state["shuffle"])
        super().load_own_state(state)

    def remaining(self) -> float:
        """Fraction of the step budget still ahead."""
        return max(0.0, 1.0 - self.tally.steps / self.budget)

    def epsilon_B(self) -> npt.NDArray[np.float64]:
        """This moment's exploration rate of each environment."""
        c = self.config
        final_B = np.geomspace(c.epsilon_low, c.epsilon_high, c.envs)
        annealed = min(1.0, self.tally.steps / max(1.0, c.exploration_fraction * self.budget))
        return np.asarray(1.0 + annealed * (final_B - 1.0))

    def holding(self) -> bool:
        """Whether random actions are held at this moment."""
        return self.config.hold_until is None or self.tally.steps < self.config.hold_until * self.budget

    def q_values(self, obs_BCHW: npt.NDArray[np.uint8], t: int) -> Tensor:
        """Q-values of the states of step t of the horizon; keeps the states on the device for `update`."""
        kept_BCHW = self._obs_TBCHW[t]
        kept_BCHW.copy_(torch.from_numpy(obs_BCHW))
        with torch.no_grad(), self.compute.autocast():
            q_BA: Tensor = self.network(kept_BCHW, self.game)
        return q_BA

    def _loss(self, pick_M: Tensor) -> Tensor:
        """Mean of (Q(s, a) - target)^2 / 2 over these states of the horizon."""
        with self.compute.autocast():
            q_MA = self.network(self._obs_TBCHW[:-1].flatten(0, 1).index_select(0, pick_M), self.game)
        chosen_M = q_MA.gather(1, self._action_N[pick_M].unsqueeze(1)).squeeze(1)
        loss_M = 0.5 * (chosen_M - self._target_N[pick_M]).square()
        assert loss_M.shape == pick_M.shape
        loss: Tensor = loss_M.mean()
        return loss

    def sample_loss(self) -> Tensor | None:
        """The loss of a minibatch of the last horizon, to look at its gradient; None before the first."""
        if not len(self._action_N):
            return None
        step = max(1, len(self._action_N) // self.config.minibatch)
        return self._loss(torch.arange(0, len(self._action_N), step, device=self.compute.device))

    def update(self, action_TB: Tensor, target_TB: Tensor) -> dict[str, float]:
        """`epochs` passes over the horizon in minibatches."""
        c = self.config
        self._action_N, self._target_N = action_TB.flatten(), target_TB.flatten()
        for group in self.weights.optimizer.param_groups:
            group["lr"] = c.learning_rate_end + (c.learning_rate - c.learning_rate_end) * self.remaining()
        losses = []
        for _ in range(c.epochs):
            order_N = torch.randperm(len(self._action_N), generator=self.shuffle).to(self.compute.device)
            for pick_M in torch.split(order_N, c.minibatch):
                self.weights.optimizer.zero_grad(set_to_none=True)
                loss = self._loss(pick_M)
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), c.max_grad_norm, foreach=True)
                self.weights.step()
                self.tally.updates += 1
                losses.append(loss.detach())
        return {"loss": finite(torch.stack(losses).mean(), self.tally.steps)}


def train(learner: PqnLearner, world: World) -> Iterator[Progress]:
    """Learn until the step budget is spent, yielding after every iteration.

    Metrics: `return` (mean of the last 100 full episodes, raw reward, at the exploration rates of the ladder), `loss`, `q`,
    `epsilon`, `learning_rate`, and the seconds this iteration spent in the environment, the forward pass and the updates.
    """
    c, device = learner.config, learner.compute.device
    assert world.width == c.envs
    seconds = {"environment": 0.0, "forward": 0.0, "update": 0.0}
    tally = learner.tally
    tally.begin(c.envs, staggered=bool(c.stagger))
    first = episode_seeds("train", learner.seed) + tally.episodes
    slot = 0  # position in the horizon

    def q_values(obs_BCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        start = time.perf_counter()
        q_BA = learner.q_values(obs_BCHW, slot).cpu().numpy()
        seconds["forward"] += time.perf_counter() - start
        return np.asarray(q_BA)

    policy: EpsilonGreedy | EzGreedy
    if c.hold_exponent is None:
        policy = EpsilonGreedy(q_values, learner.epsilon_B())
    else:
        policy = EzGreedy(q_values, learner.epsilon_B(), c.hold_exponent, c.envs)
        policy.holding = learner.holding()
    action_TB = torch.zeros((c.horizon, c.envs), dtype=torch.int64)
    reward_TB = torch.zeros((c.horizon, c.envs))
    done_TB = torch.zeros((c.horizon, c.envs))
    value_TB = torch.zeros((c.horizon + 1, c.envs))
    began = time.perf_counter()
    for step in rollout(Staggered(world, c.stagger) if c.stagger else world, policy, itertools.count(first)):
        tally.add(step)
        reward_B, done_B = learning_signal(step, clip_rewards=c.clip_rewards, life_loss_ends=c.life_loss_ends)
        action_TB[slot] = torch.from_numpy(step.action_B)
        reward_TB[slot] = torch.from_numpy(reward_B)
        done_TB[slot] = torch.from_numpy(done_B.astype(np.float32))
        value_TB[slot] = torch.from_numpy(epsilon_greedy_value(step.q_BA, c.target_epsilon))
        tally.steps += c.envs
        slot += 1
        if slot < c.horizon:
            continue

        value_TB[-1] = torch.from_numpy(epsilon_greedy_value(q_values(step.next_obs_BCHW), c.target_epsilon))
        target_TB = lambda_targets(reward_TB, done_TB, value_TB[1:], c.gamma, c.trace_lambda)
        start = time.perf_counter()
        metrics = learner.update(action_TB.to(device), target_TB.to(device))
        seconds["update"] = time.perf_counter() - start
        seconds["environment"] = time.perf_counter() - began - seconds["forward"] - seconds["update"]
        slot = 0
        policy.epsilon = learner.epsilon_B()
        if isinstance(policy, EzGreedy):
            policy.holding = learner.holding()
        yield Progress(
            done=tally.steps,
            total=learner.budget,
            unit="steps",
            metrics={
                **tally.metrics(),
                **metrics,
                "q": float(value_TB.mean()),
                "epsilon": float(np.mean(policy.epsilon)),
                "learning_rate": float(learner.weights.optimizer.param_groups[0]["lr"]),
                **{f"seconds_{name}": value for name, value in seconds.items()},
            },
        )
        if tally.steps >= learner.budget:
            return
        seconds.update(environment=0.0, forward=0.0, update=0.0)
        began = time.perf_counter()
