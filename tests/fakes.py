"""A tiny vector world whose optimal Q-values are known, and small agents and datasets made from it.

A corridor of `LENGTH` cells, drawn as a bright bar over an 84x84 frame: action 1 goes right, action 0 left, stepping past the
right end gives reward 1 and ends the episode. From cell c the optimal return is gamma ** (LENGTH - 1 - c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from ruamel.yaml import YAML

from pipeline import collect as collecting
from pipeline.agents.networks import NetworkSpec
from pipeline.atari.envs import EnvConfig, WorldStep
from pipeline.datasets import schema
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.schema import EpisodeRow, Flag, Manifest, Records
from pipeline.datasets.writer import Writer
from stages import collect as stage

LENGTH = 4
CAP = 60
SMALL = NetworkSpec(channels=(4, 4, 4), hidden=16)
SMALL_NORM = NetworkSpec(channels=(4, 4, 4), hidden=16, layer_norm=True)
ENVIRONMENT = EnvConfig(
    frame_skip=4, stack=4, noop_max=30, max_episode_frames=108_000, sticky=0.0, fire_reset=True, full_action_space=False
)
"""The standard Atari world, as params.yaml has it."""


@contextmanager
def edited_params(folder: Path, source: Path = Path("params.yaml")) -> Iterator[dict[str, Any]]:
    """A params.yaml, by default the repository's, as a mapping to edit; what it has become is written to `folder`."""
    yaml = YAML(typ="safe", pure=True)
    raw: dict[str, Any] = yaml.load(source.read_text())
    yield raw
    folder.mkdir(parents=True, exist_ok=True)
    yaml.dump(raw, folder / "params.yaml")


@contextmanager
def blocks_of_four() -> Iterator[None]:
    """Collect in blocks of four episodes, four at once, if in this process: a small collection is mostly starting emulators."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (collecting, stage):  # which imports them by name
            patch.setattr(module, "BLOCK_EPISODES", 4)
            patch.setattr(module, "SLOTS", 4)
        yield


def draw(cell: int) -> npt.NDArray[np.uint8]:
    """Cell -> frame (84, 84)."""
    frame = np.zeros((84, 84), dtype=np.uint8)
    width = 84 // LENGTH
    frame[:, cell * width : (cell + 1) * width] = 255
    return frame


def optimal_q(cell: int, gamma: float) -> npt.NDArray[np.float64]:
    """Q*(cell, [left, right])."""
    value = gamma ** np.arange(LENGTH - 1, -1, -1)  # of each cell
    return np.array([gamma * value[max(cell - 1, 0)], 1.0 if cell == LENGTH - 1 else gamma * value[cell + 1]])


class Corridor:
    """`pipeline.atari.rollout.World` over the corridor; the seed picks the first cell."""

    def __init__(self, width: int, life_steps: int | None = None) -> None:
        self.width = width
        self.life_steps = life_steps  # a life is lost every so many steps
        self.cell_B = np.zeros(width, dtype=np.int64)
        self.age_B = np.zeros(width, dtype=np.int64)
        self.obs_BCHW = np.zeros((width, 4, 84, 84), dtype=np.uint8)
        self.played: list[int] = []

    def reset(self, seed_B: Any, mask_B: Any) -> tuple[Any, Any]:
        self.obs_BCHW = self.obs_BCHW.copy()
        for slot in np.flatnonzero(mask_B):
            self.played.append(int(seed_B[slot]))
            self.cell_B[slot] = seed_B[slot] % LENGTH
            self.age_B[slot] = 0
            self.obs_BCHW[slot] = 0
            self.obs_BCHW[slot, -1] = draw(self.cell_B[slot])
        return self.obs_BCHW, np.zeros(self.width, dtype=np.int32)

    def step(self, action_B: Any, playing_B: Any) -> WorldStep:
        self.obs_BCHW = self.obs_BCHW.copy()
        reward_B = np.zeros(self.width, dtype=np.float32)
        terminated_B = np.zeros(self.width, dtype=np.bool_)
        for slot in np.flatnonzero(playing_B):
            self.age_B[slot] += 1
            moved = self.cell_B[slot] + (1 if action_B[slot] == 1 else -1)
            if moved == LENGTH:
                reward_B[slot], terminated_B[slot] = 1.0, True
            self.cell_B[slot] = np.clip(moved, 0, LENGTH - 1)
            self.obs_BCHW[slot, :-1] = self.obs_BCHW[slot, 1:]
            self.obs_BCHW[slot, -1] = draw(self.cell_B[slot])
        truncated_B = (self.age_B >= CAP) & ~terminated_B
        lives_B = -(self.age_B // self.life_steps) if self.life_steps else np.zeros(self.width)
        return WorldStep(self.obs_BCHW, reward_B, terminated_B, truncated_B, lives_B.astype(np.int32))


def corridor_episode(start: int, rng: np.random.Generator, gamma: float = 0.9) -> Records:
    """One episode of a half-random walker, labelled with the optimal Q-values."""
    cell = start
    frames, qs, actions, rewards = [], [], [], []
    flags: list[int] = []
    while True:
        action = 1 if rng.random() < 0.6 else int(rng.integers(2))
        over = cell == LENGTH - 1 and action == 1
        frames.append(draw(cell))
        qs.append(optimal_q(cell, gamma))
        actions.append(action)
        rewards.append(float(over))
        flags.append((Flag.EPISODE_START if len(flags) == 0 else 0) | (Flag.TERMINATED if over else 0))
        if over:
            break
        cell = int(np.clip(cell + (1 if action == 1 else -1), 0, LENGTH - 1))
    return Records(
        frame_NHW=np.stack(frames),
        q_NA=np.stack(qs).astype(np.float32),
        action_N=np.array(actions, dtype=np.uint8),
        reward_N=np.array(rewards, dtype=np.float32),
        flags_N=np.array(flags, dtype=np.uint8),
    )


def rows_of(episodes: Sequence[Records]) -> list[EpisodeRow]:
    """The episode table of these episodes, stored one after another."""
    starts = np.cumsum([0, *(e.steps for e in episodes)])
    return [
        EpisodeRow(
            seed=i,
            start=int(starts[i]),
            length=e.steps,
            episode_return=float(e.reward_N.sum()),
            terminated=True,
            truncated=False,
            complete=True,
            sha256=schema.episode_digest(e),
        )
        for i, e in enumerate(episodes)
    ]


def write_dataset(
    folder: Path,
    episodes: Sequence[Records],
    *,
    game: str = "Corridor",
    teacher: str = "t" * 64,
    environment: Any = None,
    collection: Any = None,
) -> Manifest:
    """A dataset of these episodes, through the real writer."""
    writer = Writer(folder, episodes[0].q_NA.shape[1])
    for episode in episodes:
        writer.append(episode)
    return writer.finish(
        rows_of(episodes),
        game=game,
        teacher={"digest": teacher, "name": "optimal"},
        environment=environment or {"game": game},
        collection=collection or {"policy": "half-random", "seed": 0},
    )


def rewritten(source: Dataset, folder: Path, edit: Callable[[int, Records], Records]) -> Dataset:
    """A dataset with the same provenance whose records were edited, every digest recomputed: what a forger would hand on."""
    manifest = source.manifest
    writer = Writer(folder, manifest.actions)
    rows, start = [], 0
    for index, row in enumerate(source.episodes):
        records = edit(index, source.episode(index).owned())
        writer.append(records)
        total = float(records.reward_N.sum(dtype=np.float64))
        digest = schema.episode_digest(records)
        rows.append(row._replace(start=start, length=records.steps, episode_return=total, sha256=digest))
        start += records.steps
    writer.finish(
        rows,
        game=manifest.game,
        teacher=manifest.teacher,
        environment=manifest.environment,
        collection=manifest.collection,
    )
    return open_dataset(folder, check_files=True)


def cut_short(source: Dataset, folder: Path, *, episodes: int) -> Dataset:
    """Its first episodes, the last without its last step: a collection of an exact number of states."""
    rows = list(source.episodes[:episodes])
    records = [source.episode(index) for index in range(episodes)]
    records[-1] = records[-1].cut(0, records[-1].steps - 1)
    digest = schema.episode_digest(records[-1])
    rows[-1] = rows[-1]._replace(length=records[-1].steps, terminated=False, complete=False, sha256=digest)
    told, writer = source.manifest, Writer(folder, source.actions)
    for part in records:
        writer.append(part)
    writer.finish(rows, game=told.game, teacher=told.teacher, environment=told.environment, collection=told.collection)
    return open_dataset(folder)


def corridor_dataset(folder: Path, episodes: int = 40) -> Manifest:
    """A dataset of the corridor."""
    rng = np.random.default_rng(0)
    return write_dataset(folder, [corridor_episode(i % LENGTH, rng) for i in range(episodes)])


def mirror_dataset(folder: Path, episodes: int = 40) -> Manifest:
    """The corridor as another game, Mirror: action 0 does what 1 did, 1 what 0 did, a third is as bad, rewards are tenfold."""
    rng = np.random.default_rng(1)
    records = [corridor_episode(i % LENGTH, rng) for i in range(episodes)]
    mirrored = [r._replace(q_NA=10 * r.q_NA[:, [1, 0, 0]], action_N=1 - r.action_N, reward_N=10 * r.reward_N) for r in records]
    return write_dataset(folder, mirrored, game="Mirror")
