"""Play a dataset's stored actions again: frames and rewards must come out the same, labels must be its teacher's.

What digests cannot tell: whether the records ever happened. Q-values may differ in the last bits between two makes of CPU, and
a near-tie then changes an action; so actions are taken from the dataset, and each must be the seeded random one where the
dataset says so, and else one of largest Q-value within the tolerance: the teacher's, or that of the student that acted.

Dimensions: B slots, T steps of one episode, A actions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.agents.policies import Decision, QFunction, explore
from pipeline.atari.envs import EnvConfig, SlotWorld, WorldStep, fingerprint
from pipeline.atari.rollout import Step, World, rollout
from pipeline.datasets.reader import Dataset
from pipeline.datasets.schema import LONGEST_EPISODE, EpisodeRow, Flag, Records, join
from pipeline.datasets.validate import action_faults, return_faults
from pipeline.progress import Progress
from pipeline.seeding import stream

TOLERANCE: Final = 1e-4
"""By how much a Q-value may differ, as a share of its size or of 1: ten times what two makes of CPU differ by."""
WIDTH: Final = 16
LONGEST_SKIP: Final = 60
MOST_NOOPS: Final = 1_000
"""More than these, and a stranger's dataset could keep us playing for ever."""
MOST_SEEDS: Final = 2**31
LABELS: Final = 512
"""States that the teacher is asked about at once."""
AHEAD: Final = 1_024
"""Steps of an episode that are read at a time."""


class _Replay:
    """`rollout.Policy` that does what was done in the episodes of these seeds; only the steps at hand are in memory."""

    def __init__(self, dataset: Dataset, index_of: dict[int, int]) -> None:
        self.dataset, self.index_of = dataset, index_of
        self._at_hand: dict[int, tuple[int, Records]] = {}

    def stored(self, seed: int, t: int) -> Records:
        """Step `t` of an episode; past a cut, its last one."""
        row = self.dataset.episodes[self.index_of[seed]]
        t = min(t, row.length - 1)
        first = t - t % AHEAD
        if seed not in self._at_hand or self._at_hand[seed][0] != first:
            stop = min(first + AHEAD, row.length)
            self._at_hand[seed] = first, self.dataset.records(row.start + first, row.start + stop)
        return self._at_hand[seed][1].cut(t - first, t - first + 1)

    def __call__(
        self, obs_BCHW: npt.NDArray[np.uint8], seed_B: npt.NDArray[np.int64], step_B: npt.NDArray[np.int64]
    ) -> Decision:
        del obs_BCHW
        self._at_hand = {seed: self._at_hand[seed] for seed in seed_B.tolist() if seed in self._at_hand}
        stored = join(self.stored(seed, t) for seed, t in zip(seed_B.tolist(), step_B.tolist(), strict=True))
        there_B = stored.action_N < self.dataset.manifest.actions  # what no emulator takes is told and not played
        return Decision(
            action_B=np.where(there_B, stored.action_N, 0).astype(np.int64),
            q_BA=stored.q_NA,
            random_B=(stored.flags_N & Flag.RANDOM_ACTION) != 0,
        )


class _WhileWaiting:
    """A world whose slots leave an episode, truncated, when its seed is no longer `waiting`: a faulty one may never end."""

    def __init__(self, world: World, waiting: set[int]) -> None:
        self.width, self._world, self._waiting = world.width, world, waiting
        self._seed_B = np.zeros(world.width, dtype=np.int64)

    def reset(
        self, seed_B: npt.NDArray[np.int64], mask_B: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        self._seed_B = np.where(mask_B, seed_B, self._seed_B)
        return self._world.reset(seed_B, mask_B)

    def step(self, action_B: npt.NDArray[np.int64], playing_B: npt.NDArray[np.bool_]) -> WorldStep:
        left_B = np.array([seed not in self._waiting for seed in self._seed_B.tolist()])
        moment = self._world.step(action_B, playing_B & ~left_B)
        return WorldStep(moment.obs_BCHW, moment.reward_B, moment.terminated_B, moment.truncated_B | left_B, moment.lives_B)


def choose(dataset: Dataset, fraction: float, seed: int) -> list[int]:
    """Indices of about `fraction` of the episodes, at least one: which they are, only the verifier knows."""
    count = len(dataset.episodes)
    return sorted(stream(seed, "rederive").permutation(count)[: max(1, math.ceil(fraction * count))].tolist())


def rederive(
    dataset: Dataset, indices: list[int], q_values: QFunction | None, faults: list[str], acting: QFunction | None = None
) -> Iterator[Progress]:
    """Play these episodes again, appending one line per faulty one to `faults`.

    Without `q_values` of the teacher labels are not checked; nor is what a student chose (`driven`) without `acting`, its own.
    ValueError where this machine's world is another one.
    """
    config = _environment(dataset)
    epsilon, actor = _epsilon(dataset), driven(dataset)
    indices = [index for index in indices if not _unplayable(dataset, index, faults)]
    if not indices:
        return
    world = SlotWorld(dataset.manifest.game, config, width=min(WIDTH, len(indices)))
    total = sum(dataset.episodes[index].length for index in indices)
    done = 0
    for part in _without_equal_seeds(dataset, indices):
        index_of = {dataset.episodes[index].seed: index for index in part}
        replay = _Replay(dataset, index_of)
        waiting = set(index_of)
        for step in rollout(_WhileWaiting(world, waiting), replay, iter(sorted(index_of))):
            for slot in np.flatnonzero(step.active_B).tolist():
                seed, t = int(step.seed_B[slot]), int(step.step_B[slot])
                if seed not in waiting:
                    continue
                row = dataset.episodes[index_of[seed]]
                place = f"dataset {dataset.folder}: episode {index_of[seed]} (seed {seed})"
                fault = next(_faults(step, slot, replay.stored(seed, t), row, epsilon, actor), None)
                if fault:
                    faults.append(f"{place}, step {t:,}: {fault}")
                elif t == row.length - 1:
                    wrong = [*return_faults(row, dataset.read("reward", row.start, row.start + row.length))]
                    wrong += [*_wrong_labels(dataset, row, q_values), *_wrong_choices(dataset, row, acting)]
                    faults += [f"{place}, {what}" for what in wrong]
                done += row.length - t if fault else 1
                if fault or t == row.length - 1:
                    waiting.remove(seed)
            yield Progress(done=done, total=total, unit="states", metrics={})


def _epsilon(dataset: Dataset) -> float | None:
    """The epsilon of the seeded epsilon-greedy policy that acted; None if another one did."""
    collection = dataset.manifest.collection
    epsilon = collection.get("epsilon") if collection.get("policy") == "epsilon-greedy" else None
    if epsilon is not None and not (isinstance(epsilon, int | float) and 0 <= epsilon <= 1):
        raise ValueError(f"dataset {dataset.folder}: its epsilon is {epsilon!r:.40}, not a probability: do not trust it")
    return epsilon


def driven(dataset: Dataset) -> str | None:
    """The digest of the agent that acted in the teacher's place; None if the teacher acted."""
    actor = dataset.manifest.collection.get("actor")
    return str(actor.get("digest")) if isinstance(actor, dict) else None


def _unplayable(dataset: Dataset, index: int, faults: list[str]) -> bool:
    """Whether an episode's seed is none that an environment takes; says so in `faults`."""
    seed = dataset.episodes[index].seed
    if 0 <= seed < MOST_SEEDS:
        return False
    faults.append(f"dataset {dataset.folder}: episode {index} has seed {seed}, under which no episode can be played")
    return True


def _wrong_labels(dataset: Dataset, row: EpisodeRow, q_values: QFunction | None) -> Iterator[str]:
    """Where the teacher says something else now, for the first such step."""
    if q_values is None:
        return
    for start in range(row.start, row.start + row.length, LABELS):
        stop = min(start + LABELS, row.start + row.length)
        q_TA = q_values(dataset.stacks(range(start, stop)))
        stored_TA = dataset.read("q", start, stop)
        off_TA = np.abs(q_TA - stored_TA) / np.maximum(1.0, np.abs(stored_TA))
        wrong_T = np.flatnonzero(~(off_TA <= TOLERANCE).all(axis=1))
        if wrong_T.size:
            t = int(wrong_T[0])
            a = int(off_TA[t].argmax())
            said, stored_q = q_TA[t, a], stored_TA[t, a]
            yield f"step {start - row.start + t:,}: the teacher's Q-value of action {a} is {said:.6f}, stored is {stored_q:.6f}"
            return


def _wrong_choices(dataset: Dataset, row: EpisodeRow, acting: QFunction | None) -> Iterator[str]:
    """Where the student that acted would choose something else, for the first such step."""
    if acting is None:
        return
    for start in range(row.start, row.start + row.length, LABELS):
        stop = min(start + LABELS, row.start + row.length)
        greedy_T = (dataset.read("flags", start, stop) & Flag.RANDOM_ACTION) == 0
        action_T = dataset.read("action", start, stop)
        q_TA = acting(dataset.stacks(range(start, stop)))
        if (wrong_T := np.flatnonzero(greedy_T & ~_greedy(q_TA, action_T))).size:
            t = int(wrong_T[0])
            yield f"step {start - row.start + t:,}: the actor's action is {int(q_TA[t].argmax())}, stored is {action_T[t]}"
            return


def _greedy(q_TA: npt.NDArray[np.float32], action_T: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where the action is one of largest Q-value, within the tolerance."""
    chosen_T = np.take_along_axis(q_TA, action_T[:, None].astype(np.int64), axis=1)[:, 0]
    return np.asarray(chosen_T >= q_TA.max(axis=1) - TOLERANCE * np.maximum(1.0, np.abs(q_TA).max(axis=1)))


def _environment(dataset: Dataset) -> EnvConfig:
    theirs = dataset.manifest.environment
    try:
        config = EnvConfig(**theirs["config"])
        longest = LONGEST_EPISODE * config.frame_skip
        if config.frame_skip > LONGEST_SKIP or config.noop_max > MOST_NOOPS or config.max_episode_frames > longest:
            asked = ("frame_skip", "noop_max", "max_episode_frames")
            raise ValueError(", ".join(f"{name} {getattr(config, name)}" for name in asked))
        ours = fingerprint(dataset.manifest.game, config)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"dataset {dataset.folder}: its environment cannot be made here ({error})") from None
    other = {key: (theirs.get(key), value) for key, value in ours.items() if theirs.get(key) != value}
    if other:
        told = ", ".join(f"{key} {there} there, {here} here" for key, (there, here) in other.items())
        raise ValueError(
            f"dataset {dataset.folder} was played in another world than this machine's ({told}): install its versions"
        )
    return config


def _without_equal_seeds(dataset: Dataset, indices: list[int]) -> list[list[int]]:
    """The indices in parts in which every seed occurs once: joined datasets may hold an episode of the same seed twice."""
    parts: list[list[int]] = []
    seen: Counter[int] = Counter()
    for index in indices:
        seed = dataset.episodes[index].seed
        if seen[seed] == len(parts):
            parts.append([])
        parts[seen[seed]].append(index)
        seen[seed] += 1
    return parts


def _faults(step: Step, slot: int, stored: Records, row: EpisodeRow, epsilon: float | None, actor: str | None) -> Iterator[str]:
    """What is wrong with the stored step, the one of `stored`, that this slot has just played."""
    t = int(step.step_B[slot])
    (frame_HW,), (q_A,), (action,), (reward,) = stored.frame_NHW, stored.q_NA, stored.action_N, stored.reward_N
    flags = Flag(int(stored.flags_N[0]))
    yield from (text for _, text in action_faults(stored.action_N, len(q_A)))
    if (other := int((step.obs_BCHW[slot, -1] != frame_HW).sum())) > 0:
        yield f"the world shows another frame ({other:,} of {frame_HW.size:,} pixels)"
    if step.reward_B[slot] != reward:
        yield f"the world gives reward {step.reward_B[slot]:g}, stored is {reward:g}"
    cut = t == row.length - 1 and not row.complete
    seen = Flag(
        (t == 0) * Flag.EPISODE_START
        | bool(step.terminated_B[slot] and not cut) * Flag.TERMINATED
        | bool(step.truncated_B[slot] and not cut) * Flag.TRUNCATED
        | bool(step.life_lost_B[slot]) * Flag.LIFE_LOST
    )
    if seen != flags & ~Flag.RANDOM_ACTION:
        yield f"the world says {seen!r}, stored is {flags & ~Flag.RANDOM_ACTION!r}"
    if epsilon is not None:
        yield from _wrong_action(step, slot, int(action), q_A, epsilon, actor)


def _wrong_action(
    step: Step, slot: int, action: int, q_A: npt.NDArray[np.float32], epsilon: float, actor: str | None
) -> Iterator[str]:
    """What is wrong with an action of the seeded epsilon-greedy policy; what an `actor` chose, `_wrong_choices` tells."""
    (random,), (chance,) = explore(epsilon, len(q_A), step.seed_B[slot : slot + 1], step.step_B[slot : slot + 1])
    if bool(random) != bool(step.random_B[slot]):
        yield f"the seeded policy acts {'at random' if random else 'greedily'}, stored is the other"
    elif random and action != chance:
        yield f"the seeded random action is {chance}, stored is {action}"
    elif not random and actor is None and not _greedy(q_A[None], np.array([action], dtype=np.uint8))[0]:
        yield f"the greedy action is {int(q_A.argmax())}, stored is {action}"


def described(dataset: Dataset, indices: list[int], q_values: QFunction | None, acting: QFunction | None) -> dict[str, Any]:
    """What was played again, for the record."""
    states = sum(dataset.episodes[index].length for index in indices)
    return {
        "episodes": len(indices),
        "states": states,
        "actions": _epsilon(dataset) is not None and (driven(dataset) is None or acting is not None),
        "labels": q_values is not None,
        "tolerance": TOLERANCE,
    }
