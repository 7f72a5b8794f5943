"""How Q-values become actions.

Dimensions: B batch (slots), C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pipeline.agents.device import Compute, one_thread
from pipeline.agents.networks import QNetwork
from pipeline.seeding import uniform

QFunction = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""States (B, C, H, W) -> Q-values (B, A)."""


CHUNK: Final = 16
"""Forward passes for labels and scores, those in float32, are of exactly this many states."""


class Decision(NamedTuple):
    """Executed actions, the Q-values they were chosen from, and where chance chose instead."""

    action_B: npt.NDArray[np.int64]
    q_BA: npt.NDArray[np.float32]
    random_B: npt.NDArray[np.bool_]


def q_function(network: QNetwork, compute: Compute, game: str | None = None) -> QFunction:
    """The network as a plain function from numpy states to numpy Q-values, without gradients.

    In float32, states go through in chunks of exactly 16, the last one padded: which matrix kernel runs, and so the last bit,
    depends on the size of the batch, and a state's label must not depend on how many others were asked about at once; nor on
    the number of threads, so a CPU takes one. In bfloat16, which serves learning alone, they go through together.
    """
    alone = one_thread if compute.precision == "float32" and compute.device.type == "cpu" else nullcontext

    def q_values(obs_BCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        count = len(obs_BCHW)
        size = CHUNK if compute.precision == "float32" else count
        if count % size:
            padding = np.zeros((size - count % size, *obs_BCHW.shape[1:]), dtype=np.uint8)
            obs_BCHW = np.concatenate([obs_BCHW, padding])
        with alone(), torch.inference_mode(), compute.autocast():
            chunks = torch.split(torch.from_numpy(obs_BCHW).to(compute.device), size)
            q_BA = torch.cat([network(chunk, game) for chunk in chunks])
        return np.asarray(q_BA[:count].cpu().numpy(), dtype=np.float32)

    return q_values


def explore(
    epsilon: float | npt.NDArray[np.float64], actions: int, seed_B: npt.NDArray[np.int64], step_B: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Where the seeded epsilon-greedy policy takes a random action at these steps, and which: a pure function of the seeds."""
    random_B = uniform(seed_B, step_B, 0) < epsilon
    return random_B, (uniform(seed_B, step_B, 1) * actions).astype(np.int64)


class EpsilonGreedy:
    """With probability `epsilon` a uniform action, else the one of maximal Q (ties: the lowest index).

    `epsilon` may be one number or one per slot, and may be changed between steps (annealing). Zero is the greedy policy.
    """

    def __init__(self, q_values: QFunction, epsilon: float | npt.NDArray[np.float64]) -> None:
        self.q_values = q_values
        self.epsilon = epsilon

    def __call__(
        self, obs_BCHW: npt.NDArray[np.uint8], seed_B: npt.NDArray[np.int64], step_B: npt.NDArray[np.int64]
    ) -> Decision:
        q_BA = self.q_values(obs_BCHW)
        random_B, chance_B = explore(self.epsilon, q_BA.shape[1], seed_B, step_B)
        return Decision(np.where(random_B, chance_B, q_BA.argmax(axis=1)), q_BA, random_B)


class Labelled:
    """Acts as `actor` does; the Q-values that are recorded are those of `labels` (DAgger, Ross et al. 2011)."""

    def __init__(self, actor: EpsilonGreedy, labels: QFunction) -> None:
        self.actor, self.labels = actor, labels

    def __call__(
        self, obs_BCHW: npt.NDArray[np.uint8], seed_B: npt.NDArray[np.int64], step_B: npt.NDArray[np.int64]
    ) -> Decision:
        return self.actor(obs_BCHW, seed_B, step_B)._replace(q_BA=self.labels(obs_BCHW))


LONGEST_HOLD: Final = 10_000


class EzGreedy:
    """Temporally extended epsilon-greedy, ez-greedy (Dabney, Ostrovski and Barreto 2020): for learning only.

    A free slot begins, with probability `epsilon`, to repeat a uniform action for n steps, P(n) ~ n ** -exponent (the zeta
    distribution, cut at 10,000), so that games in which a single random action leads nowhere are explored at all. Slots keep
    what they hold from step to step, so every call must ask about all of them; a new episode starts free. While `holding` is
    False n is 1, as in epsilon-greedy.
    """

    def __init__(self, q_values: QFunction, epsilon: float | npt.NDArray[np.float64], exponent: float, width: int) -> None:
        if not exponent > 1:
            raise ValueError(f"the exponent of the holding time is {exponent:g}, it must exceed 1: Dabney et al. use 2")
        self.q_values = q_values
        self.epsilon = epsilon
        self.holding = True
        weight = np.arange(1.0, LONGEST_HOLD + 1) ** -exponent
        self._cumulative = np.cumsum(weight / weight.sum())
        self._left_B = np.zeros(width, dtype=np.int64)
        self._held_B = np.zeros(width, dtype=np.int64)

    def __call__(
        self, obs_BCHW: npt.NDArray[np.uint8], seed_B: npt.NDArray[np.int64], step_B: npt.NDArray[np.int64]
    ) -> Decision:
        assert len(seed_B) == len(self._left_B)
        q_BA = self.q_values(obs_BCHW)
        self._left_B[step_B == 0] = 0
        begins_B, chance_B = explore(self.epsilon, q_BA.shape[1], seed_B, step_B)
        begins_B &= self._left_B == 0
        hold_B = 1 + np.searchsorted(self._cumulative, uniform(seed_B, step_B, 2)).clip(max=LONGEST_HOLD - 1)
        self._left_B = np.where(begins_B, hold_B if self.holding else 1, self._left_B)
        self._held_B = np.where(begins_B, chance_B, self._held_B)
        random_B = self._left_B > 0
        self._left_B -= random_B
        return Decision(np.where(random_B, self._held_B, q_BA.argmax(axis=1)), q_BA, random_B)


def uniform_random(actions: int) -> QFunction:
    """The random agent: indifferent Q-values; play it with epsilon = 1."""
    return lambda obs_BCHW: np.zeros((len(obs_BCHW), actions), dtype=np.float32)
