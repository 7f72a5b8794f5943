"""One episode looked at step by step: what is on the screen, what the agent makes of it, what it does.

Dimensions: C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.atari.envs import EnvConfig, SlotWorld, replay
from pipeline.atari.rollout import Policy, Step, rollout


class Sight(NamedTuple):
    """One agent step: the screen (210, 160, 3) in colour, the state the agent saw, its outputs, the executed action, whether
    chance chose it, the raw reward that followed, and, at an episode's last step, whether the frame cap cut it.
    """

    frame_HW3: npt.NDArray[np.uint8]
    obs_CHW: npt.NDArray[np.uint8]
    value_A: npt.NDArray[np.float32]
    action: int
    random: bool
    reward: float
    stalled: bool


def watch(game: str, environment: EnvConfig, policy: Policy, seed: int) -> Iterator[Sight]:
    """The episode of `seed`: the one that an evaluation plays under it, whatever else that plays at the same time."""
    seen: deque[Step] = deque()

    def actions() -> Iterator[int]:
        for step in rollout(SlotWorld(game, environment, width=1), policy, iter([seed])):
            seen.append(step)
            yield int(step.action_B[0])

    for frame_HW3, reward in replay(game, environment, seed, actions()):
        step = seen.popleft()
        yield Sight(
            frame_HW3=frame_HW3,
            obs_CHW=step.obs_BCHW[0],
            value_A=step.q_BA[0],
            action=int(step.action_B[0]),
            random=bool(step.random_B[0]),
            reward=reward,
            stalled=bool(step.truncated_B[0]),
        )
