"""A sampled transition is exactly what was played, also across episode starts and the ring's seam."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.agents.policies import EpsilonGreedy, uniform_random
from pipeline.atari.rollout import Step, rollout
from pipeline.rl.replay import Replay
from tests.fakes import Corridor


def played(width: int, steps: int) -> list[Step]:
    policy = EpsilonGreedy(uniform_random(2), 1.0)
    return list(itertools.islice(rollout(Corridor(width), policy, itertools.count()), steps))


def fill(replay: Replay, steps: list[Step]) -> None:
    for step in steps:
        replay.add(step, step.reward_B, step.terminated_B | step.truncated_B)


def check(replay: Replay, steps: list[Step], cut: Step | None = None) -> None:
    """Whatever is sampled is one of the transitions of these steps, of which nothing follows on `cut`."""
    known: dict[bytes, set[tuple[Any, ...]]] = {}
    for step in steps:
        for slot in range(3):
            done = bool(step.terminated_B[slot] or step.truncated_B[slot]) or step is cut
            following = b"" if done else step.next_obs_BCHW[slot].tobytes()
            row = (int(step.action_B[slot]), float(step.reward_B[slot]), done, following)
            known.setdefault(step.obs_BCHW[slot].tobytes(), set()).add(row)
    batch = replay.sample(400, np.random.default_rng(0))
    for i in range(400):
        done = bool(batch.done_M[i])
        following = b"" if done else batch.next_obs_MCHW[i].tobytes()
        row = (int(batch.action_M[i]), float(batch.reward_M[i]), done, following)
        assert row in known[batch.obs_MCHW[i].tobytes()]


@pytest.mark.parametrize("steps", [20, 31, 64])
def test_samples_are_what_was_played(steps: int) -> None:
    replay = Replay(3 * 24, 3)
    history = played(3, steps)
    fill(replay, history)
    check(replay, history[-24:])


@pytest.mark.parametrize("length", [24, 12, 70])  # of as many, of fewer, of more
@pytest.mark.parametrize("steps", [20, 64])
@pytest.mark.parametrize("more", [1, 9])
def test_a_replay_that_was_saved_goes_on_in_another(steps: int, length: int, more: int, tmp_path: Path) -> None:
    first, again = Replay(3 * 24, 3), Replay(3 * length, 3)
    before, after = played(3, steps), played(3, more)
    fill(first, before)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    kept = before[-min(24, length) :]
    assert len(again) == 3 * len(kept)
    fill(again, after)
    there = [*kept, *after][-length:]
    assert len(again) == 3 * len(there)
    check(again, there, cut=before[-1])


def test_one_of_other_slots_begins_empty() -> None:
    first, again = Replay(3 * 24, 3), Replay(96, 4)
    fill(first, played(3, 20))
    again.load_state_dict(first.state_dict())
    assert len(again) == 0


def test_its_length_and_least_size() -> None:
    replay = Replay(30, 3)
    for step in played(3, 12):
        replay.add(step, step.reward_B, step.terminated_B)
    assert len(replay) == 30
    with pytest.raises(ValueError, match="keep at least 18"):
        Replay(10, 3)
