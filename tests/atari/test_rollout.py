"""Every seed is played once, whole, whatever the width; idle slots cost nothing."""

import hashlib
import itertools
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ale_py import AtariVectorEnv

from pipeline.agents.policies import EpsilonGreedy, uniform_random
from pipeline.atari import envs
from pipeline.atari.envs import SlotWorld, Staggered, VectorWorld, action_meanings, fingerprint, replay
from pipeline.atari.rollout import World, rollout
from pipeline.collect import one_core
from pipeline.cores import cores
from pipeline.evaluate import play
from pipeline.rl.learner import Tally
from tests.fakes import CAP, ENVIRONMENT, LENGTH, Corridor


def walk(width: int, seeds: range) -> list[Any]:
    policy = EpsilonGreedy(uniform_random(2), 1.0)
    return sorted(play(Corridor(width), policy, seeds))


@pytest.mark.parametrize("width", [1, 2, 5, 16])
def test_an_episode_is_its_seed_alone(width: int) -> None:
    assert walk(width, range(11)) == [episode for seed in range(11) for episode in walk(1, range(seed, seed + 1))]


def test_slots_of_a_staggered_world_end_their_equally_long_episodes_one_after_another() -> None:
    stay = EpsilonGreedy(uniform_random(2), 0.0)  # to the left until the cap: every episode is of `CAP` steps
    tally = Tally()
    tally.begin(4, staggered=True)
    ends: dict[int, list[int]] = {}
    for t, step in enumerate(rollout(Staggered(Corridor(4), CAP), stay, itertools.count()), start=1):
        tally.add(step)
        for slot in np.flatnonzero(step.terminated_B | step.truncated_B).tolist():
            ends.setdefault(slot, []).append(t)
        if t == 3 * CAP:
            break
    quarter = CAP // 4
    assert ends == {0: [CAP, 2 * CAP, 3 * CAP]} | {
        k: [k * quarter, CAP + k * quarter, 2 * CAP + k * quarter] for k in (1, 2, 3)
    }
    assert len(tally.recent_returns) == 8  # the first episode of a slot is no whole one
    assert tally.episodes == 12


def test_a_staggered_world_cuts_no_episode_but_a_slots_first() -> None:
    stay = EpsilonGreedy(uniform_random(2), 0.0)
    world = Staggered(Corridor(4), 4 * CAP + 2)  # every slot's first episode ends by itself before its turn
    lengths = [episode.steps for episode in itertools.islice(play(world, stay, itertools.count()), 12)]
    assert lengths == [CAP] * 12


def test_every_seed_is_started_once() -> None:
    world = Corridor(3)
    list(play(world, EpsilonGreedy(uniform_random(2), 1.0), range(10)))
    assert sorted(world.played) == list(range(10))


def test_no_seeds_no_steps() -> None:
    assert list(rollout(Corridor(2), EpsilonGreedy(uniform_random(2), 1.0), iter([]))) == []


def test_the_policy_is_asked_only_about_playing_slots() -> None:
    asked = []

    def q_values(obs: Any) -> Any:
        asked.append(len(obs))
        return np.tile(np.array([0.0, 1.0], dtype=np.float32), (len(obs), 1))

    episodes = list(play(Corridor(LENGTH), EpsilonGreedy(q_values, 0.0), range(LENGTH)))
    assert [e.steps for e in sorted(episodes)] == [4, 3, 2, 1]
    assert asked == [4, 3, 2, 1]


def test_next_obs_is_the_new_episodes_first_state() -> None:
    steps = list(
        itertools.islice(
            rollout(Corridor(1), EpsilonGreedy(lambda o: np.array([[0.0, 1.0]], np.float32), 0.0), itertools.count(3)), 3
        )
    )
    assert steps[0].terminated_B[0]
    assert steps[0].next_obs_BCHW[0, :-1].max() == 0
    assert np.array_equal(steps[1].obs_BCHW, steps[0].next_obs_BCHW)
    assert steps[1].seed_B[0] == 4
    assert steps[1].step_B[0] == 0


def seen(world: World, actions: int, seeds: range) -> dict[tuple[int, int], tuple[str, float, bool, bool, bool]]:
    """(seed, step) -> what was shown and what happened there."""
    events = {}
    for step in rollout(world, EpsilonGreedy(uniform_random(actions), 1.0), iter(seeds)):
        for slot in np.flatnonzero(step.active_B):
            shown = hashlib.sha256(step.obs_BCHW[slot].tobytes()).hexdigest()
            ends = (bool(step.terminated_B[slot]), bool(step.truncated_B[slot]), bool(step.life_lost_B[slot]))
            events[int(step.seed_B[slot]), int(step.step_B[slot])] = (shown, float(step.reward_B[slot]), *ends)
    return events


@pytest.mark.parametrize("game", ["Breakout", "Freeway"])
def test_real_worlds_agree_to_the_byte_and_do_not_depend_on_width(game: str) -> None:
    actions = len(action_meanings(game, ENVIRONMENT))
    config = ENVIRONMENT if game == "Breakout" else replace(ENVIRONMENT, max_episode_frames=402)
    slots = seen(SlotWorld(game, config, width=3), actions, range(5))
    vector = seen(VectorWorld(game, config, width=2, threads=2), actions, range(5))
    assert slots == vector
    assert {seed for seed, _ in slots} == set(range(5))
    if game == "Freeway":
        cut = [key for key, event in slots.items() if event[3]]
        assert len(cut) == 5
        assert {step + 1 for _, step in cut} == {101}  # the step that passes the limit is the last


def test_a_world_takes_the_emulators_that_another_left(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(ENVIRONMENT, max_episode_frames=804)  # nobody else's
    made: list[int] = []

    def counted(**arguments: Any) -> Any:
        made.append(arguments["num_envs"])
        return AtariVectorEnv(**arguments)

    monkeypatch.setattr(envs, "AtariVectorEnv", counted)
    first = seen(SlotWorld("Breakout", config, width=2), 4, range(2))
    world = SlotWorld("Breakout", config, width=2)
    world.reset(np.array([7, 8]), np.array([True, True]))
    world.step(np.array([1, 1]), np.array([True, False]))
    del world  # in the middle of an episode
    assert seen(SlotWorld("Breakout", config, width=2), 4, range(2)) == first
    assert made == [1, 1]


def test_a_film_gives_its_emulator_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is watched to the end or not; not when it stops in the middle of a step."""
    config = replace(ENVIRONMENT, max_episode_frames=806)
    made: list[int] = []

    def counted(**arguments: Any) -> Any:
        made.append(arguments["img_height"])
        return AtariVectorEnv(**arguments)

    def stopped(self: Any, actions: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(envs, "AtariVectorEnv", counted)
    whole = [frame.tobytes() for frame, _ in replay("Breakout", config, 3, [1, 2, 3, 0])]
    begun = replay("Breakout", config, 4, [1, 1])
    next(begun)
    begun.close()
    with monkeypatch.context() as patch:
        patch.setattr(AtariVectorEnv, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            next(replay("Breakout", config, 3, [1]))
    assert made == [210]
    assert [frame.tobytes() for frame, _ in replay("Breakout", config, 3, [1, 2, 3, 0])] == whole
    assert made == [210, 210]


def test_an_emulator_that_owes_an_answer_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(ENVIRONMENT, max_episode_frames=808)
    first = seen(SlotWorld("Breakout", config, width=2), 4, range(2))

    def stopped(self: Any) -> Any:
        raise KeyboardInterrupt

    world = SlotWorld("Breakout", config, width=2)
    world.reset(np.array([7, 8]), np.array([True, True]))
    with monkeypatch.context() as patch:
        patch.setattr(AtariVectorEnv, "recv", stopped)
        with pytest.raises(KeyboardInterrupt):
            world.step(np.array([1, 1]), np.array([True, True]))
    del world
    assert seen(SlotWorld("Breakout", config, width=2), 4, range(2)) == first


def test_on_one_core_emulators_are_others() -> None:
    """Their threads stay on the cores that they were made on."""
    config = replace(ENVIRONMENT, max_episode_frames=812)
    with one_core():
        seen(SlotWorld("Breakout", config, width=1), 4, range(1))
        there = SlotWorld("Breakout", config, width=1)._idle
        assert len(there) == 1
    if len(cores()) > 1:
        assert SlotWorld("Breakout", config, width=1)._idle is not there


def test_where_the_system_tells_no_cores_worlds_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS."""
    there = seen(SlotWorld("Breakout", ENVIRONMENT, width=1), 4, range(1))
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    assert cores() == tuple(range(os.cpu_count() or 1))
    with one_core():
        assert seen(SlotWorld("Breakout", ENVIRONMENT, width=1), 4, range(1)) == there


def test_seeded_once_a_slot_goes_on_as_its_first_seed_decides() -> None:
    once, again = (
        seen(VectorWorld("Breakout", ENVIRONMENT, width=2, threads=2, seed_once=True), 4, range(6)) for _ in range(2)
    )
    seeded = seen(VectorWorld("Breakout", ENVIRONMENT, width=2, threads=2), 4, range(6))
    assert once == again
    first = {key: event for key, event in once.items() if key[0] < 2}
    assert first.items() <= seeded.items()
    starts = [once[seed, 0][0] for seed in range(6)]
    assert len(set(starts)) > 2  # the later episodes have null-op starts of their own
    assert starts[2:] != [seeded[seed, 0][0] for seed in range(2, 6)]


def test_breakout_lives_are_flagged_and_the_game_goes_on() -> None:
    policy = EpsilonGreedy(uniform_random(4), 1.0)
    steps = list(rollout(SlotWorld("Breakout", ENVIRONMENT, width=1), policy, iter([3])))
    assert sum(int(s.life_lost_B[0]) for s in steps) == 5
    assert [bool(s.terminated_B[0]) for s in steps].index(True) == len(steps) - 1


def test_the_fingerprint_names_every_argument() -> None:
    print_ = fingerprint("Pong", ENVIRONMENT)
    assert print_["actions"] == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert print_["vector_env"]["reward_clipping"] is False
    other = replace(ENVIRONMENT, sticky=0.25)
    assert fingerprint("Pong", other) != print_
