"""evaluate: agents play whole episodes on fresh seeds; one row per episode is kept, and a clip of the first."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from distributed import Client, wait

from pipeline.agents.checkpoints import load_files, read_files
from pipeline.agents.device import pick_device
from pipeline.atari.envs import SlotWorld, fingerprint
from pipeline.evaluate import Episode, Protocol, play
from pipeline.progress import Progress
from pipeline.report.bootstrap import interval
from pipeline.seeding import episode_seeds
from stages import params as settings
from stages.cluster import cluster
from stages.contest import Contestant, Notes, find_contestant, new_policy, played
from stages.paths import Layout
from stages.publish import alone_in, replaced_file
from stages.runlog import say, show
from stages.video import CLIP_STEPS, Reel, write_video

RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""
PART_EPISODES: Final = 32
"""What a worker plays at once, and what is lost of it when it is killed."""
LOOK_SECONDS: Final = 1.0
"""How often one looks whether workers have finished something."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluation: who, from which folder, under which protocol, and where it notes what has been played."""

    folder: Path | None
    contestant: Contestant
    protocol: Protocol
    work: Path


def run(
    layout: Layout,
    params: settings.Params,
    agents: Sequence[str],
    *,
    game: str | None = None,
    protocol: str | None = None,
    other_environment: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    device_name: str = "auto",
) -> list[Path]:
    """Evaluate `teachers/GAME`, `random/GAME`, `students/MIX/VARIANT-SEED`, `multitask/MIX/VARIANT-SEED`, ...; returns their
    scores.

    `game` says which one where agents play several; the scores are then those of AGENT/GAME. `protocol` is a name in
    `pipeline.evaluate.PROTOCOLS`, or None for that of the params. With `workers`, or at the Dask cluster of `scheduler`,
    several episodes and agents are played at once, with the same result.
    """
    settings.check_recipe("evaluation", params.evaluation.recipe, RECIPE)
    spread = workers is not None or scheduler is not None
    if spread and device_name not in ("auto", "cpu"):
        raise ValueError(f"workers play on the CPU: leave --device {device_name} out, or --workers and --scheduler")
    device = torch.device("cpu") if spread else pick_device(device_name)
    rules = params.protocol(protocol)
    trials = [
        _trial(
            layout,
            params,
            find_contestant(layout, params, agent, device, game, rules, elsewhere=other_environment),
            agent,
            rules,
        )
        for agent in dict.fromkeys(agents)
    ]
    with ExitStack() as stack:
        for trial in trials:
            stack.enter_context(alone_in(trial.work))
        if spread:
            client = stack.enter_context(cluster(scheduler, workers or os.cpu_count() or 1))
            return _spread(layout, params, trials, client)
        sizes = params.evaluation
        return [
            _publish(
                layout,
                trial,
                played(trial.contestant, params, "evaluate", sizes.seed, sizes.episodes, Notes(trial.work / NOTES)),
            )
            for trial in trials
        ]


NOTES: Final = "episodes.jsonl"


def _trial(layout: Layout, params: settings.Params, contestant: Contestant, agent: str, protocol: Protocol) -> Trial:
    decides = {
        "agent": contestant.card.get("digest"),
        "environment": fingerprint(contestant.game, contestant.environment),
        "epsilon": contestant.epsilon,
        "seed": params.evaluation.seed,
        "recipe": RECIPE,
    }
    folder = None if contestant.card["role"] == "random" else layout.agent(agent)
    return Trial(folder, contestant, protocol, layout.work("evaluate", contestant.agent, decides))


class Part(NamedTuple):
    """Episodes that a worker plays: those of `seeds`, by the agent sent beside it."""

    game: str
    protocol: Protocol
    seeds: list[int]


def play_part(part: Part, files: Mapping[str, bytes] | None) -> list[Episode]:
    """What a worker does; `files` are those of the agent, None the random one."""
    torch.set_num_threads(1)  # one worker, one core
    device = torch.device("cpu")
    network = load_files(files, device).network if files else None
    world = SlotWorld(part.game, part.protocol.environment, width=len(part.seeds))
    return list(play(world, new_policy(network, part.game, part.protocol, device), part.seeds))


def _spread(layout: Layout, params: settings.Params, trials: Sequence[Trial], client: Client) -> list[Path]:
    """Play all the trials on a cluster, one after another, and publish each as it is complete."""
    sizes = params.evaluation
    first = episode_seeds("evaluate", sizes.seed)
    notes = {trial.contestant.agent: Notes(trial.work / NOTES) for trial in trials}
    pending: dict[Any, str] = {}
    for trial in trials:
        there = {episode.seed for episode in notes[trial.contestant.agent].finished}
        ahead = [seed for seed in range(first, first + sizes.episodes) if seed not in there]
        files = client.scatter(read_files(trial.folder), hash=False) if trial.folder and ahead else None
        for start in range(0, len(ahead), PART_EPISODES):
            part = Part(trial.contestant.game, trial.protocol, ahead[start : start + PART_EPISODES])
            pending[client.submit(play_part, part, files, pure=False)] = trial.contestant.agent
    written: dict[str, Path] = {}

    def progress() -> Iterator[Progress]:
        while len(written) < len(trials):
            for future in [future for future in pending if future.done()]:
                name = pending.pop(future)
                for episode in future.result():
                    notes[name].add(episode)
            for trial in trials:
                episodes = sorted(e for e in notes[trial.contestant.agent].finished if first <= e.seed < first + sizes.episodes)
                if trial.contestant.agent not in written and len(episodes) == sizes.episodes:
                    written[trial.contestant.agent] = _publish(layout, trial, episodes)
            done = sum(len(noted.finished) for noted in notes.values())
            yield Progress(done=done, total=sizes.episodes * len(trials), unit="episodes", metrics={})
            with suppress(TimeoutError):
                wait(list(pending), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")

    for _ in show(progress(), f"evaluate {len(trials)} agents"):
        pass
    return [written[trial.contestant.agent] for trial in trials]


def _publish(layout: Layout, trial: Trial, episodes: Sequence[Episode]) -> Path:
    """Write episodes, clip and, last, scores; returns where these are."""
    contestant, name = trial.contestant, trial.contestant.agent
    returns = [e.episode_return for e in episodes]
    low, high = interval(returns)
    scores: dict[str, Any] = {
        "agent": name,
        "role": contestant.card["role"],
        "game": contestant.game,
        "network": contestant.card.get("network"),
        "parameters": contestant.card.get("parameters"),
        "episodes": len(episodes),
        "mean": float(np.mean(returns)),
        "median": float(np.median(returns)),
        "min": min(returns),
        "max": max(returns),
        "ci95": [low, high],
        "stalled": sum(e.stalled for e in episodes),
        "epsilon": contestant.epsilon,
        "protocol": {"name": trial.protocol.name, "digest": trial.protocol.digest(contestant.game)},
    }
    if contestant.elsewhere:
        scores["made_elsewhere"] = {key: {"there": there, "here": here} for key, (there, here) in contestant.elsewhere.items()}
    table = pa.table(
        {
            "game": [contestant.game] * len(episodes),
            "seed": [e.seed for e in episodes],
            "episode_return": returns,
            "steps": [e.steps for e in episodes],
            "stalled": [e.stalled for e in episodes],
        }
    )
    with replaced_file(layout.episodes(name)) as part:
        pq.write_table(table, part, compression="zstd")
    with replaced_file(layout.clip(name)) as part:
        for _ in write_video(part, [Reel(contestant, episodes[0].seed)], steps=CLIP_STEPS):
            pass
    with replaced_file(layout.scores(name)) as part:
        part.write_text(json.dumps(scores, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(trial.work)
    say(f"{name}: mean return {scores['mean']:.2f} [{low:.2f}, {high:.2f}], min {scores['min']:g}, {len(episodes)} episodes")
    return layout.scores(name)
