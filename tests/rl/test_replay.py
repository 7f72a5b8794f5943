"""A sampled transition is exactly what was played, also across episode starts and the ring's seam."""

import itertools
from typing import Any

import numpy as np
import pytest

from pipeline.agents.policies import EpsilonGreedy, uniform_random
from pipeline.atari.rollout import Step, rollout
from pipeline.rl.replay import Replay
from tests.fakes import Corridor


def played(width: int, steps: int) -> list[Step]:
    policy = EpsilonGreedy(uniform_random(2), 1.0)
    return list(itertools.islice(rollout(Corridor(width), policy, itertools.count()), steps))


@pytest.mark.parametrize("steps", [20, 31, 64])
def test_samples_are_what_was_played(steps: int) -> None:
    replay = Replay(3 * 24, 3)
    history = played(3, steps)
    for step in history:
        replay.add(step, step.reward_B, step.terminated_B | step.truncated_B)
    known: dict[bytes, set[tuple[Any, ...]]] = {}
    for step in history[-24:]:
        for slot in range(3):
            done = bool(step.terminated_B[slot] or step.truncated_B[slot])
            following = b"" if done else step.next_obs_BCHW[slot].tobytes()
            row = (int(step.action_B[slot]), float(step.reward_B[slot]), done, following)
            known.setdefault(step.obs_BCHW[slot].tobytes(), set()).add(row)
    batch = replay.sample(400, np.random.default_rng(0))
    for i in range(400):
        done = bool(batch.done_M[i])
        following = b"" if done else batch.next_obs_MCHW[i].tobytes()
        row = (int(batch.action_M[i]), float(batch.reward_M[i]), done, following)
        assert row in known[batch.obs_MCHW[i].tobytes()]


def test_its_length_and_least_size() -> None:
    replay = Replay(30, 3)
    for step in played(3, 12):
        replay.add(step, step.reward_B, step.terminated_B)
    assert len(replay) == 30
    with pytest.raises(ValueError, match="keep at least 18"):
        Replay(10, 3)
