"""DQN as published (Mnih et al. 2015), on a vector environment; Double DQN (van Hasselt et al. 2016) as an option.

The ratio of updates to steps is the published one whatever the number of environments: after each vector step of B steps,
B / `steps_per_update` updates are made.

Dimensions: B environments, M minibatch, C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.agents.device import Compute
from pipeline.agents.networks import NetworkSpec, new_network
from pipeline.agents.policies import EpsilonGreedy, q_function
from pipeline.agents.rmsprop import CenteredRmsProp
from pipeline.atari.rollout import World, rollout
from pipeline.progress import Progress
from pipeline.rl.learner import Learner, Weights, finite, learning_signal
from pipeline.rl.replay import Replay, Transitions
from pipeline.seeding import episode_seeds, integer, stream


@dataclass(frozen=True, kw_only=True, slots=True)
class DqnConfig:
    """Settings of DQN (Mnih et al. 2015, Extended Data Table 1); the step budget is given apart.

    `replay` and `replay_start` are steps, `target_every` is updates, epsilon falls linearly from 1 to `epsilon_final` over the
    first `epsilon_steps` steps: the paper's begins to fall after `replay_start`, when ours has done a twentieth of its fall.
    `squared_decay` and `gradient_decay` are RMSProp's averages of squared and plain gradients, `squared_minimum` what is added
    under its root: gradients are means over the minibatch here, in the paper sums over 32 states, so that its 0.01 is
    0.01 / 32^2 here. `double` picks the next action with the online network. With
    `learning_rate_end` the learning rate falls linearly to it by the end of the budget, else it is constant, as published. With
    `average_decay` what is evaluated and published is a moving average of the weights, else the weights, as published. With
    `target_epsilon` a state is worth what it is to the policy that is epsilon-greedy with it, which keeps a margin for slips
    (expected Sarsa, van Seijen et al. 2009), else what it is to the greedy one, as published.
    """

    envs: int
    replay: int
    replay_start: int
    minibatch: int
    steps_per_update: int
    target_every: int
    learning_rate: float
    squared_decay: float
    gradient_decay: float
    squared_minimum: float
    gamma: float
    epsilon_final: float
    epsilon_steps: int
    double: bool
    clip_rewards: bool
    life_loss_ends: bool
    learning_rate_end: float | None = None
    average_decay: float | None = None
    target_epsilon: float | None = None

    def __post_init__(self) -> None:
        if min(self.envs, self.minibatch, self.steps_per_update, self.target_every, self.epsilon_steps) < 1:
            raise ValueError("envs, minibatch, steps_per_update, target_every and epsilon_steps are at least 1")
        if self.envs % self.steps_per_update:
            raise ValueError(
                f"envs {self.envs} is not a multiple of steps_per_update {self.steps_per_update}: "
                f"a vector step must hold a whole number of updates"
            )
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}, not in (0, 1): 0.9999 averages about 10,000 updates")
        if self.target_epsilon is not None and not 0 < self.target_epsilon < 1:
            raise ValueError(
                f"target_epsilon is {self.target_epsilon}, not in (0, 1): leave it out for the greedy policy's value"
            )
        most = self.replay // self.envs * self.envs
        if not 2 * self.envs <= self.replay_start <= most:
            raise ValueError(
                f"replay_start {self.replay_start:,} is not between {2 * self.envs}, two steps of each environment, "
                f"and {most:,}, as many of each as replay, {self.replay:,}, has room for"
            )


class DqnWeights(Weights):
    """What a DQN agent has learned: its target network as well, and after how many updates."""

    def __init__(self, config: DqnConfig, spec: NetworkSpec, heads: Mapping[str, int], compute: Compute, seed: int) -> None:
        network = new_network(spec, heads, compute.device, integer(seed, "dqn", "weights"))
        optimizer = CenteredRmsProp(
            network.parameters(),
            lr=config.learning_rate,
            squared_decay=config.squared_decay,
            gradient_decay=config.gradient_decay,
            minimum=config.squared_minimum,
        )
        super().__init__(network, optimizer, config.average_decay)
        self.target = copy.deepcopy(network)
        self.updates = 0

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from these; the optimiser begins anew."""
        super().begin_with(weights)
        self.target.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "target": self.target.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.target.load_state_dict(state["target"])
        self.updates = state["updates"]


class DqnLearner(Learner):
    """A learning DQN agent: weights, replay, counters.

    A run that begins from another's weights, without their replay, first fills it as far as it had been, with its own policy,
    and counts none of that: learning on from a few thousand steps would narrow what it knows to them. What one policy
    fills it with is narrow, too, so a resumed run has the replay that it had.
    """

    weights: DqnWeights

    def __init__(
        self,
        config: DqnConfig,
        budget: int,
        spec: NetworkSpec,
        heads: Mapping[str, int],
        compute: Compute,
        seed: int,
        *,
        weights: DqnWeights | None = None,
        game: str | None = None,
    ) -> None:
        weights = weights or DqnWeights(config, spec, heads, compute, seed)
        super().__init__(config.envs, config.envs, budget, compute, seed, weights, game)
        self.config = config
        self.replay = Replay(config.replay, config.envs, spec.stack)

    def own_state(self) -> dict[str, Any]:
        return {**super().own_state(), "replay": self.replay.state_dict()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        super().load_own_state(state)
        if "replay" in state:  # of the newer checkpoints
            self.replay.load_state_dict(state["replay"])

    def train(self, world: World) -> Iterator[Progress]:
        """`train` of this module, on this learner."""
        return train(self, world)

    def random(self) -> np.random.Generator:
        """The stream that minibatches are drawn from, from this update on."""
        names = (self.game,) if self.game else ()
        return stream(self.seed, "dqn", "minibatches", *names, self.tally.updates)

    def epsilon(self) -> float:
        """This moment's exploration rate."""
        c = self.config
        return 1.0 + min(1.0, self.tally.steps / c.epsilon_steps) * (c.epsilon_final - 1.0)

    def learning_rate(self) -> float:
        """This moment's."""
        c = self.config
        if c.learning_rate_end is None:
            return c.learning_rate
        return c.learning_rate + min(1.0, self.tally.steps / self.budget) * (c.learning_rate_end - c.learning_rate)

    def targets(self, batch: Transitions) -> Tensor:
        """r + gamma max_a Q'(s', a), or with `double` Q'(s', argmax_a Q(s', a)); r alone where s' has no value. With a
        `target_epsilon` that share of the value is the mean over actions.
        """
        device = self.compute.device
        next_obs_MCHW = torch.from_numpy(batch.next_obs_MCHW).to(device)
        with torch.no_grad(), self.compute.autocast():
            next_MA = self.weights.target(next_obs_MCHW, self.game)
            chooser_MA = self.network(next_obs_MCHW, self.game) if self.config.double else next_MA
        value_M = next_MA.gather(1, chooser_MA.argmax(dim=1, keepdim=True)).squeeze(1)
        slip = self.config.target_epsilon or 0.0
        value_M = (1.0 - slip) * value_M + slip * next_MA.mean(dim=1)
        reward_M, done_M = (torch.from_numpy(x).to(device) for x in (batch.reward_M, batch.done_M))
        target_M: Tensor = reward_M + self.config.gamma * (1.0 - done_M) * value_M
        return target_M

    def _loss(self, batch: Transitions) -> Tensor:
        """The mean of the clipped temporal-difference error."""
        target_M = self.targets(batch)
        device = self.compute.device
        with self.compute.autocast():
            q_MA = self.network(torch.from_numpy(batch.obs_MCHW).to(device), self.game)
        chosen_M = q_MA.gather(1, torch.from_numpy(batch.action_M).to(device).unsqueeze(1)).squeeze(1)
        loss_M = nn.functional.smooth_l1_loss(chosen_M, target_M, reduction="none")  # error clipped to [-1, 1]
        assert loss_M.shape == (len(batch.action_M),)
        return loss_M.mean()

    def sample_loss(self) -> Tensor | None:
        """The loss of a minibatch, to look at its gradient; None before the replay has enough to learn from."""
        if len(self.replay) < self.config.replay_start:
            return None
        return self._loss(self.replay.sample(self.config.minibatch, self.random()))

    def update(self, batch: Transitions) -> Tensor:
        """One gradient step; returns the minibatch's mean loss, on the device."""
        weights = self.weights
        loss = self._loss(batch)
        weights.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for group in weights.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        weights.step()
        self.tally.updates += 1
        weights.updates += 1
        if weights.updates % self.config.target_every == 0:
            weights.target.load_state_dict(weights.network.state_dict())
        return loss.detach()


def train(learner: DqnLearner, world: World) -> Iterator[Progress]:
    """Learn until the step budget is spent, yielding about every 2,000 steps. Metrics as `pqn.train`'s; while a run that
    began without its replay fills it again, `refilled` alone, the part that is done.
    """
    c = learner.config
    assert world.width == c.envs
    tally = learner.tally
    tally.begin(c.envs)
    rng = learner.random()
    policy = EpsilonGreedy(q_function(learner.network, learner.compute, learner.game), learner.epsilon())
    every = max(1, 2048 // c.envs)
    losses: list[Tensor] = []
    spent = {"update": 0.0}
    began = time.perf_counter()
    refilled = min(tally.steps, learner.replay.length * c.envs)  # as far as it had been, by so many steps
    first = episode_seeds("train", learner.seed) + tally.episodes + tally.refills
    for turn, step in enumerate(rollout(world, policy, itertools.count(first)), start=1):
        reward_B, done_B = learning_signal(step, clip_rewards=c.clip_rewards, life_loss_ends=c.life_loss_ends)
        learner.replay.add(step, reward_B, done_B)
        filling = len(learner.replay) < refilled
        tally.add(step, refill=filling)
        if not filling and len(learner.replay) >= c.replay_start:
            start = time.perf_counter()
            for _ in range(c.envs // c.steps_per_update):
                losses.append(learner.update(learner.replay.sample(c.minibatch, rng)))
            spent["update"] += time.perf_counter() - start
        if not filling:
            tally.steps += c.envs
            policy.epsilon = learner.epsilon()
        if turn % every and tally.steps < learner.budget:
            continue
        metrics = {
            **tally.metrics(),
            **({"loss": finite(torch.stack(losses).mean(), tally.steps)} if losses else {}),
            "q": float(step.q_BA.mean()),
            "epsilon": float(np.max(policy.epsilon)),
            "learning_rate": learner.learning_rate(),
            "seconds_update": spent["update"],
            "seconds_play": time.perf_counter() - began - spent["update"],
        }
        yield Progress(
            done=tally.steps,
            total=learner.budget,
            unit="steps",
            metrics={"refilled": len(learner.replay) / refilled} if filling else metrics,
        )
        losses, spent["update"], began = [], 0.0, time.perf_counter()
        if tally.steps >= learner.budget:
            return
