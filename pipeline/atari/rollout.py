"""A policy meets a world: the only code that steps an environment.

Episode i is played under environment seed i, whole, whatever slot or batch width it lands in: a finished slot is refilled
by an explicit masked reset with the next seed, so autoreset rows never exist and "the first n to finish" is never a sample.

Dimensions: B batch (slots), C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class Decision(Protocol):
    """What a policy answers for a batch of states."""

    @property
    def action_B(self) -> npt.NDArray[np.int64]: ...
    @property
    def q_BA(self) -> npt.NDArray[np.float32]: ...
    @property
    def random_B(self) -> npt.NDArray[np.bool_]: ...


class Policy(Protocol):
    """Acts on states; `seed_B` and `step_B` name each slot's episode and the step within it, for its exploration."""

    def __call__(
        self, obs_BCHW: npt.NDArray[np.uint8], seed_B: npt.NDArray[np.int64], step_B: npt.NDArray[np.int64]
    ) -> Decision: ...


class Moment(Protocol):
    """What a world shows after a step (`envs.WorldStep`)."""

    @property
    def obs_BCHW(self) -> npt.NDArray[np.uint8]: ...
    @property
    def reward_B(self) -> npt.NDArray[np.float32]: ...
    @property
    def terminated_B(self) -> npt.NDArray[np.bool_]: ...
    @property
    def truncated_B(self) -> npt.NDArray[np.bool_]: ...
    @property
    def lives_B(self) -> npt.NDArray[np.int32]: ...


class World(Protocol):
    """Slots that play episodes by seed: `envs.VectorWorld`, `envs.SlotWorld`, or a test's tiny world."""

    width: int

    def reset(
        self, seed_B: npt.NDArray[np.int64], mask_B: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]: ...
    def step(self, action_B: npt.NDArray[np.int64], playing_B: npt.NDArray[np.bool_]) -> Moment: ...


class Step(NamedTuple):
    """One vector step. Where `active_B` is False the slot has run out of episodes and its entries mean nothing.

    `obs_BCHW` is what the policy saw, `next_obs_BCHW` what it sees next (already the new episode's first state where
    one ended). `reward_B` is raw. `life_lost_B` is set where lives fell, the game's last life included.
    """

    obs_BCHW: npt.NDArray[np.uint8]
    next_obs_BCHW: npt.NDArray[np.uint8]
    action_B: npt.NDArray[np.int64]
    q_BA: npt.NDArray[np.float32]
    random_B: npt.NDArray[np.bool_]
    reward_B: npt.NDArray[np.float32]
    terminated_B: npt.NDArray[np.bool_]
    truncated_B: npt.NDArray[np.bool_]
    life_lost_B: npt.NDArray[np.bool_]
    active_B: npt.NDArray[np.bool_]
    seed_B: npt.NDArray[np.int64]
    step_B: npt.NDArray[np.int64]


def rollout(world: World, policy: Policy, seeds: Iterator[int]) -> Iterator[Step]:
    """Play the episodes named by `seeds`, each to its end, `world.width` at a time; stops when all have ended.

    The policy is asked afresh at every step and only about slots that play, so a learner may change it between two steps
    and the end of a finite set of episodes costs no wasted forward passes.
    """
    start = [next(seeds, None) for _ in range(world.width)]
    active_B = np.array([s is not None for s in start])
    if not active_B.any():
        return
    seed_B = np.array([0 if s is None else s for s in start], dtype=np.int64)
    step_B = np.zeros(world.width, dtype=np.int64)
    obs_BCHW, lives_B = world.reset(seed_B, active_B)

    while active_B.any():
        action_B, q_BA, random_B = _decide(policy, obs_BCHW, seed_B, step_B, active_B)
        moment = world.step(action_B, active_B)
        ended_B = (moment.terminated_B | moment.truncated_B) & active_B
        life_lost_B = (moment.lives_B < lives_B) | moment.terminated_B
        next_obs_BCHW, lives_B = moment.obs_BCHW, moment.lives_B

        next_active_B, next_seed_B, next_step_B = active_B.copy(), seed_B.copy(), step_B + 1
        for slot in np.flatnonzero(ended_B):
            following = next(seeds, None)
            next_active_B[slot] = following is not None
            next_seed_B[slot] = 0 if following is None else following
            next_step_B[slot] = 0
        refill_B = ended_B & next_active_B
        if refill_B.any():
            next_obs_BCHW, lives_B = world.reset(next_seed_B, refill_B)

        yield Step(
            obs_BCHW=obs_BCHW,
            next_obs_BCHW=next_obs_BCHW,
            action_B=action_B,
            q_BA=q_BA,
            random_B=random_B,
            reward_B=moment.reward_B,
            terminated_B=moment.terminated_B & active_B,
            truncated_B=moment.truncated_B & active_B,
            life_lost_B=life_lost_B & active_B,
            active_B=active_B,
            seed_B=seed_B,
            step_B=step_B,
        )
        obs_BCHW, active_B, seed_B, step_B = next_obs_BCHW, next_active_B, next_seed_B, next_step_B


def _decide(
    policy: Policy,
    obs_BCHW: npt.NDArray[np.uint8],
    seed_B: npt.NDArray[np.int64],
    step_B: npt.NDArray[np.int64],
    active_B: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Ask the policy about the active slots; resting slots get action 0, zero Q-values."""
    if active_B.all():
        decision = policy(obs_BCHW, seed_B, step_B)
        return decision.action_B, decision.q_BA, decision.random_B
    decision = policy(obs_BCHW[active_B], seed_B[active_B], step_B[active_B])
    action_B = np.zeros(len(active_B), dtype=np.int64)
    q_BA = np.zeros((len(active_B), decision.q_BA.shape[1]), dtype=np.float32)
    random_B = np.zeros(len(active_B), dtype=np.bool_)
    action_B[active_B], q_BA[active_B], random_B[active_B] = decision.action_B, decision.q_BA, decision.random_B
    return action_B, q_BA, random_B
