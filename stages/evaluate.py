"""evaluate: agents play whole episodes on fresh seeds; one row per episode is kept, and a clip of the first."""

from __future__ import annotations

import json
import math
import platform
import shutil
import time
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
from pipeline.agents.device import pick_device, take_one_core
from pipeline.atari.envs import SlotWorld, fingerprint
from pipeline.cores import core_count
from pipeline.evaluate import Episode, Protocol, play
from pipeline.progress import Progress
from pipeline.report.bootstrap import interval
from pipeline.seeding import episode_seeds
from stages import params as settings
from stages.cluster import cluster
from stages.contest import Contestant, Notes, find_contestant, mean_return, new_policy, played
from stages.paths import Layout
from stages.publish import alone_in, replaced_file
from stages.runlog import say, show
from stages.video import CLIP_STEPS, Reel, write_video

RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""
PART_EPISODES: Final = 16
"""What a worker plays at once, at most, and what is lost of it when it is killed."""
NOTES: Final = "episodes.jsonl"
LOOK_SECONDS: Final = 1.0
"""How often one looks whether workers have finished something."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluation: who, from which folder, under which protocol, how many episodes, and where they are noted as they end."""

    folder: Path | None
    contestant: Contestant
    protocol: Protocol
    episodes: int
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
    several episodes and agents are played at once, with the same result. What has been published of the same agent under the
    same protocol and seeds is not played again.
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
    trials = list({(trial.contestant.agent, trial.folder): trial for trial in trials}.values())
    names = [trial.contestant.agent for trial in trials]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"several of {', '.join(agents)} would have results called {twice[0]}: rename a folder")
    with ExitStack() as stack:
        for trial in trials:
            stack.enter_context(alone_in(trial.work))
            _take_up(layout, trial)
        if spread:
            client = stack.enter_context(cluster(scheduler, workers or core_count()))
            written = _spread(layout, params, trials, client)
        else:
            written = [_publish(layout, trial, _played(params, trial)) for trial in trials]
        for trial in trials:  # not before: what is noted of one is not played again if a later one is killed
            shutil.rmtree(trial.work)
        return written


def _played(params: settings.Params, trial: Trial) -> list[Episode]:
    return played(trial.contestant, params, "evaluate", params.evaluation.seed, trial.episodes, Notes(trial.work / NOTES))


def _trial(layout: Layout, params: settings.Params, contestant: Contestant, agent: str, protocol: Protocol) -> Trial:
    decides = {
        "agent": contestant.card.get("digest"),
        "environment": fingerprint(contestant.game, contestant.environment),
        "epsilon": contestant.epsilon,
        "seed": params.evaluation.seed,
        "recipe": RECIPE,
    }
    role = contestant.card["role"]
    folder = None if role == "random" else layout.agent(agent)
    work = layout.work("evaluate", contestant.agent, decides)
    return Trial(folder, contestant, protocol, params.evaluation.episodes_of(role, contestant.game), work)


def _take_up(layout: Layout, trial: Trial) -> None:
    """Note what has been published of the trial, unless a killed one has notes: a longer evaluation goes on from a shorter."""
    who, notes = trial.contestant, Notes(trial.work / NOTES)
    if notes.finished:
        return
    try:
        scores = json.loads(layout.scores(who.agent).read_text())
        found = (scores["agent_digest"], scores["protocol"]["digest"], scores.get("recipe", 1))
        rows = pq.read_table(layout.episodes(who.agent), columns=list(Episode._fields)).to_pylist()
    except (OSError, ValueError, KeyError, TypeError):  # nothing there, or nothing of ours: it is made anew
        return
    if found == (who.card.get("digest"), trial.protocol.digest(who.game), RECIPE):
        for row in rows:
            notes.add(Episode(**row))
        say(f"{who.agent}: {len(rows)} episodes have been played before")


class Part(NamedTuple):
    """Episodes that a worker plays: those of `seeds`, by the agent of that digest, whose files are sent beside it (None: the
    random one), in the world of that digest.
    """

    game: str
    protocol: Protocol
    world_digest: str
    agent_digest: str | None
    seeds: list[int]


Files = tuple[tuple[str, bytes], ...]
"""An agent's files as one value: of a dictionary, Dask would take the keys for names of its own, those of all agents alike."""


def play_part(part: Part, files: Files | None) -> list[Episode]:
    """What a worker does. ValueError if its agent or its world is not the one that was asked for."""
    take_one_core()
    agent = load_files(dict(files), torch.device("cpu")) if files else None
    if (agent.digest if agent else None) != part.agent_digest:
        raise ValueError(f"a worker on {platform.node()} was sent another agent than was asked for: run the same command again")
    if part.protocol.digest(part.game) != part.world_digest:
        raise ValueError(f"a worker on {platform.node()} has another ale-py or ROM: install there what constraints.txt names")
    world = SlotWorld(part.game, part.protocol.environment, width=len(part.seeds))
    network = agent.network if agent else None
    return list(play(world, new_policy(network, part.game, part.protocol, torch.device("cpu")), part.seeds))


def _spread(layout: Layout, params: settings.Params, trials: Sequence[Trial], client: Client) -> list[Path]:
    """Play all the trials on a cluster, one after another, and publish each as it is complete."""
    first = episode_seeds("evaluate", params.evaluation.seed)
    seeds = {trial.contestant.agent: range(first, first + trial.episodes) for trial in trials}
    notes = {trial.contestant.agent: Notes(trial.work / NOTES) for trial in trials}
    total = sum(map(len, seeds.values()))

    def finished(trial: Trial) -> list[Episode]:
        name = trial.contestant.agent
        return sorted(e for e in notes[name].finished if e.seed in seeds[name])

    def reached() -> Progress:
        found = {trial.contestant.agent: finished(trial) for trial in trials}
        means = {agent: mean_return(episodes) for agent, episodes in found.items() if episodes}
        return Progress(done=sum(map(len, found.values())), total=total, unit="episodes", metrics=means)

    def progress() -> Iterator[Progress]:
        while not client.nthreads():
            yield reached()
            time.sleep(LOOK_SECONDS)
        ahead = {name: sorted(set(seeds[name]) - {e.seed for e in notes[name].finished}) for name in seeds}
        pending = _submit(client, trials, ahead)
        while len(written) < len(trials):
            _collect(pending, notes)
            for trial in trials:
                if trial.contestant.agent not in written and len(episodes := finished(trial)) == trial.episodes:
                    written[trial.contestant.agent] = _publish(layout, trial, episodes)
            yield reached()
            with suppress(TimeoutError):
                wait(list(pending), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")

    written: dict[str, Path] = {}
    for _ in show(progress(), f"evaluate {len(trials)} agents"):
        pass
    return [written[trial.contestant.agent] for trial in trials]


def _collect(pending: dict[Any, str], notes: Mapping[str, Notes]) -> None:
    """Note the episodes of the parts that have been played, and forget these."""
    for future in [future for future in pending if future.done()]:
        name = pending.pop(future)
        for episode in future.result():
            notes[name].add(episode)


def _submit(client: Client, trials: Sequence[Trial], ahead: Mapping[str, Sequence[int]]) -> dict[Any, str]:
    """The seeds `ahead` of each agent, in parts: future -> the agent's name."""
    share = math.ceil(sum(map(len, ahead.values())) / sum(client.nthreads().values()))
    size = max(1, min(PART_EPISODES, share))
    pending: dict[Any, str] = {}
    for trial in trials:
        who = trial.contestant
        files: Files | None = tuple(read_files(trial.folder).items()) if trial.folder else None
        sent = client.scatter([files], hash=False, broadcast=True)[0] if files and ahead[who.agent] else None
        digest = trial.protocol.digest(who.game)
        for start in range(0, len(ahead[who.agent]), size):
            part = Part(who.game, trial.protocol, digest, who.card.get("digest"), list(ahead[who.agent][start : start + size]))
            pending[client.submit(play_part, part, sent, pure=False)] = who.agent
    return pending


def _publish(layout: Layout, trial: Trial, episodes: Sequence[Episode]) -> Path:
    """Write episodes, clip and, last, scores; returns where these are."""
    contestant, name = trial.contestant, trial.contestant.agent
    returns = [e.episode_return for e in episodes]
    low, high = interval(returns)
    scores: dict[str, Any] = {
        "agent": name,
        "agent_digest": contestant.card.get("digest"),
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
        "recipe": RECIPE,
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
    say(f"{name}: mean return {scores['mean']:.2f} [{low:.2f}, {high:.2f}], min {scores['min']:g}, {len(episodes)} episodes")
    return layout.scores(name)
