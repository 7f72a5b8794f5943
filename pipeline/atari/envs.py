"""EnvConfig -> a world of emulators, every argument explicit, and the fingerprint that says which world a score came from.

The vector environment's defaults are traps: rewards clipped, sticky actions that differ between constructors, whole-game
resets at every lost life (`episodic_life=True`). We always take raw rewards and whole games; a learner that wants
clipping or life-loss terminals derives them from `reward` and `lives`.

Two worlds with one behaviour: `VectorWorld` steps all its slots together, fastest while all of them play (learning);
`SlotWorld` steps only the slots that play, so a finite set of whole episodes costs no idle emulation (data, scores).

Dimensions: B slots, C stacked frames, H W pixels.
"""

from __future__ import annotations

import atexit
import functools
import weakref
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import ale_py
import numpy as np
import numpy.typing as npt
from ale_py import AtariVectorEnv

from pipeline.atari.games import GameSpec, find_game, rom_md5
from pipeline.atari.rollout import World
from pipeline.cores import cores


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvConfig:
    """The world as the agent meets it.

    `frame_skip` emulator frames per agent step; `stack` frames per state; `noop_max` null-op actions at most at the
    start; `max_episode_frames` emulator frames before truncation (108,000 = 30 minutes at 60 Hz);
    `sticky` probability that the emulator repeats the last action; `fire_reset` presses FIRE after a reset;
    `full_action_space` 18 actions instead of the game's minimal set.
    """

    frame_skip: int
    stack: int
    noop_max: int
    max_episode_frames: int
    sticky: float
    fire_reset: bool
    full_action_space: bool

    def __post_init__(self) -> None:
        if self.stack != 4:
            raise ValueError(f"stack is {self.stack}: the networks see 4 frames")
        if self.frame_skip < 1 or self.max_episode_frames < 1 or self.noop_max < 0:
            raise ValueError("frame_skip and max_episode_frames are at least 1, noop_max at least 0")
        if not 0 <= self.sticky <= 1:
            raise ValueError(f"sticky is a probability, not {self.sticky:g}")


def _arguments(game: GameSpec, config: EnvConfig) -> dict[str, Any]:
    return {  # every one of them, so that no default of ale-py can change a dataset
        "game": game.rom,
        "max_num_frames_per_episode": config.max_episode_frames,
        "repeat_action_probability": config.sticky,
        "full_action_space": config.full_action_space,
        "continuous": False,
        "continuous_action_threshold": 0.5,
        "autoreset_mode": "NextStep",
        "img_height": 84,
        "img_width": 84,
        "grayscale": True,
        "stack_num": config.stack,
        "frameskip": config.frame_skip,
        "maxpool": True,
        "noop_max": config.noop_max,
        "episodic_life": False,
        "life_loss_info": False,
        "reward_clipping": False,
        "use_fire_reset": config.fire_reset,
    }


class WorldStep(NamedTuple):
    """What every slot shows after a step; rows of slots that rested are stale. `reward_B` is raw."""

    obs_BCHW: npt.NDArray[np.uint8]
    reward_B: npt.NDArray[np.float32]
    terminated_B: npt.NDArray[np.bool_]
    truncated_B: npt.NDArray[np.bool_]
    lives_B: npt.NDArray[np.int32]


class VectorWorld:
    """`width` emulators of one game stepped together by `threads` threads (0: one per core). Resting slots are stepped too.

    With `seed_once` only a slot's first episode is played under its seed; the later ones go on from the emulator's random
    state. To seed an emulator it must load its game again, which costs as much as 600 frames: a learner whose episodes are
    short spends half its time on it.
    """

    def __init__(self, game: str, config: EnvConfig, *, width: int, threads: int = 0, seed_once: bool = False) -> None:
        self.width, self._seed_once = width, seed_once
        self._env = AtariVectorEnv(**_arguments(find_game(game), config), num_envs=width, batch_size=0, num_threads=threads)
        self._started = False

    def reset(
        self, seed_B: npt.NDArray[np.int64], mask_B: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Start the episode of `seed_B` in each slot of `mask_B`; returns all slots' states and lives."""
        if not self._started:  # the emulators want one full reset first
            self._env.reset(seed=seed_B)
        seed = None if self._seed_once and self._started else seed_B[mask_B]
        self._started = True
        obs_BCHW, info = self._env.reset(seed=seed, options={"reset_mask": mask_B})
        return obs_BCHW, info["lives"].copy()

    def step(self, action_B: npt.NDArray[np.int64], playing_B: npt.NDArray[np.bool_]) -> WorldStep:
        """One agent step in every slot."""
        del playing_B
        obs_BCHW, reward_B, terminated_B, truncated_B, info = self._env.step(action_B)
        return WorldStep(obs_BCHW, reward_B.astype(np.float32), terminated_B, truncated_B, info["lives"].copy())


_idle: Final[defaultdict[tuple[Any, ...], list[AtariVectorEnv]]] = defaultdict(list)
"""Emulators of one slot that nobody uses, by their arguments and the cores that their threads may use. To make one takes as
long as 600 frames, most of it a table of blended colours that is not read, and a score wants 64.
"""
atexit.register(_idle.clear)  # nanobind calls a leak what is still there when Python has ended


def _waiting(arguments: dict[str, Any]) -> list[AtariVectorEnv]:
    return _idle[(*arguments.values(), *cores())]


def _emulator(arguments: dict[str, Any], idle: list[AtariVectorEnv]) -> AtariVectorEnv:
    try:
        return idle.pop()
    except IndexError:
        return AtariVectorEnv(**arguments, num_envs=1, batch_size=0, num_threads=1)


@contextmanager
def _borrowed(arguments: dict[str, Any]) -> Iterator[AtariVectorEnv]:
    """An emulator, left to others after use; not where a step failed, as it may owe an answer."""
    idle = _waiting(arguments)
    env = _emulator(arguments, idle)
    try:
        yield env
    except GeneratorExit:  # between two steps
        idle.append(env)
        raise
    idle.append(env)


def _give_back(slots: dict[int, AtariVectorEnv], idle: list[AtariVectorEnv]) -> None:
    idle.extend(slots.values())


AHEAD: Final = 4
"""Slots that are stepped at once, for each core: enough to keep it busy, and whatever else runs there has its turn."""


class SlotWorld:
    """`width` emulators of one game, each with a thread of its own, of which only the playing ones are stepped.

    A slot that first plays takes an emulator that an earlier world of this process has left, or else makes one: a seed begins
    an episode afresh in either.
    """

    def __init__(self, game: str, config: EnvConfig, *, width: int) -> None:
        self.width = width
        self._arguments = _arguments(find_game(game), config)
        self._idle = _waiting(self._arguments)
        self._slots: dict[int, AtariVectorEnv] = {}
        self._ahead = AHEAD * len(cores())
        weakref.finalize(self, _give_back, self._slots, self._idle).atexit = False
        self._obs_BCHW = np.zeros((width, config.stack, 84, 84), dtype=np.uint8)
        self._reward_B = np.zeros(width, dtype=np.float32)
        self._terminated_B = np.zeros(width, dtype=np.bool_)
        self._truncated_B = np.zeros(width, dtype=np.bool_)
        self._lives_B = np.zeros(width, dtype=np.int32)

    def reset(
        self, seed_B: npt.NDArray[np.int64], mask_B: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Start the episode of `seed_B` in each slot of `mask_B`; returns all slots' states and lives."""
        self._obs_BCHW = self._obs_BCHW.copy()  # what was handed out stays as it was
        for slot in np.flatnonzero(mask_B).tolist():
            if slot not in self._slots:
                self._slots[slot] = _emulator(self._arguments, self._idle)
            obs_1CHW, info = self._slots[slot].reset(seed=seed_B[slot : slot + 1])
            self._obs_BCHW[slot] = obs_1CHW[0]
            self._lives_B[slot] = info["lives"][0]
        return self._obs_BCHW, self._lives_B.copy()

    def step(self, action_B: npt.NDArray[np.int64], playing_B: npt.NDArray[np.bool_]) -> WorldStep:
        """One agent step in every playing slot."""
        playing = np.flatnonzero(playing_B).tolist()
        self._obs_BCHW = np.empty_like(self._obs_BCHW)
        try:
            for slot in playing[: self._ahead]:
                self._slots[slot].send(action_B[slot : slot + 1])
            for number, slot in enumerate(playing, start=self._ahead):
                if number < len(playing):
                    later = playing[number]
                    self._slots[later].send(action_B[later : later + 1])
                obs_1CHW, reward_1, terminated_1, truncated_1, info = self._slots[slot].recv()
                self._obs_BCHW[slot] = obs_1CHW[0]
                self._reward_B[slot] = reward_1[0]
                self._terminated_B[slot], self._truncated_B[slot] = terminated_1[0], truncated_1[0]
                self._lives_B[slot] = info["lives"][0]
        except BaseException:
            self._slots.clear()  # some owe an answer, which the next world would take for its own
            raise
        return WorldStep(
            self._obs_BCHW, self._reward_B.copy(), self._terminated_B.copy(), self._truncated_B.copy(), self._lives_B.copy()
        )


class Staggered:
    """A world whose slots' first episodes are cut, one after another over the first `steps` steps (truncated, then begun anew),
    where they have not ended by then.

    Where all episodes are of one length, as in Freeway, slots that begin together stay together for ever, and what a learner
    sees at a time is one moment of the game.
    """

    def __init__(self, world: World, steps: int) -> None:
        self.width, self._world = world.width, world
        self._cut_B = np.arange(world.width) * steps // world.width  # after so many steps; 0: never
        self._first_B = np.ones(world.width, dtype=np.bool_)  # still in the slot's first episode
        self._taken = 0

    def reset(
        self, seed_B: npt.NDArray[np.int64], mask_B: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        return self._world.reset(seed_B, mask_B)

    def step(self, action_B: npt.NDArray[np.int64], playing_B: npt.NDArray[np.bool_]) -> WorldStep:
        moment = self._world.step(action_B, playing_B)
        self._taken += 1
        cut_B = (self._cut_B == self._taken) & self._first_B & ~moment.terminated_B
        truncated_B = moment.truncated_B | cut_B
        self._first_B &= ~(moment.terminated_B | truncated_B)
        return WorldStep(moment.obs_BCHW, moment.reward_B, moment.terminated_B, truncated_B, moment.lives_B)


def replay(
    game: str, config: EnvConfig, seed: int, actions: Iterable[int]
) -> Generator[tuple[npt.NDArray[np.uint8], float], None, None]:
    """Play stored actions under the stored seed again: yields (RGB frame (210, 160, 3) before the action, raw reward).

    The emulator is deterministic, so this is the very episode that was played.
    """
    arguments = _arguments(find_game(game), config) | {"img_height": 210, "img_width": 160, "grayscale": False, "stack_num": 1}
    with _borrowed(arguments) as env:
        obs, _ = env.reset(seed=np.array([seed]))
        for action in actions:
            frame_HW3 = obs[0, -1]
            obs, reward_1, *_ = env.step(np.array([action]))
            yield frame_HW3, float(reward_1[0])


def action_meanings(game: str, config: EnvConfig) -> list[str]:
    """What each action index means, e.g. ["NOOP", "FIRE", "RIGHT", ...]; its length is the number of actions."""
    return list(_action_meanings(find_game(game), config))


@functools.lru_cache(maxsize=256)
def _action_meanings(game: GameSpec, config: EnvConfig) -> tuple[str, ...]:
    with _borrowed(_arguments(game, config)) as env:
        return tuple(action.name for action in env.ale.get_action_set())


def fingerprint(game: str, config: EnvConfig) -> dict[str, Any]:
    """Everything that decides what an agent sees, as plain JSON: two equal fingerprints are the same world."""
    spec = find_game(game)
    return {
        "game": spec.name,
        "rom_md5": rom_md5(spec),
        "ale_py": ale_py.__version__,
        "actions": action_meanings(game, config),
        "config": asdict(config),
        "vector_env": {k: v for k, v in _arguments(spec, config).items() if k != "game"},
    }
