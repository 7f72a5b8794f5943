"""collect: a teacher plays its game on a Dask cluster and everything it sees becomes a dataset."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import dask
import torch
from distributed import CancelledError, Client, KilledWorker, LocalCluster
from distributed.comm.core import CommClosedError

from pipeline.agents.checkpoints import Agent, load_agent
from pipeline.atari.envs import fingerprint
from pipeline.atari.games import find_game
from pipeline.collect import BLOCK_EPISODES, CollectConfig, Collection, estimate
from pipeline.datasets.folders import Folder
from pipeline.datasets.schema import MANIFEST
from stages import params as settings
from stages.paths import Layout
from stages.publish import check_target, replace_folder, upload_folder
from stages.runlog import duration, say, show

RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""

CONNECT_SECONDS = 30.0
PROBE_SECONDS: Final = 10.0
"""How long --dry-run plays."""


def run(
    layout: Layout,
    params: settings.Params,
    game: str,
    *,
    states: int | None,
    episodes: int | None,
    epsilon: float | None,
    seed: int | None,
    workers: int | None,
    scheduler: str | None,
    out: str | None,
    dry_run: bool,
) -> str:
    """Collect or go on collecting; options override params.yaml's `datasets.GAME`. Returns where the dataset is.

    `out` is a folder or an fsspec URL; into a URL, workers write what they play beside the dataset, so they need not share
    a disk. `dry_run` only tells what it would be.
    """
    config = _config(params, find_game(game).name, states, episodes, epsilon, seed)
    teacher = _teacher(layout, config)
    target = Folder(out or layout.dataset(config.game))
    target.check_writable()
    check_target(target, MANIFEST, "a dataset")
    count = workers or os.cpu_count() or 1
    if dry_run:
        _tell(config, teacher, target, count)
        return str(target)
    how = {
        **config.as_json(),
        "states": config.states,
        "episodes": config.episodes,
        "teacher": teacher.digest,
        "environment": teacher.card["environment"],
    }
    name = target.url.rstrip("/").split("/")[-1]
    if target.local is None:
        if re.fullmatch(r"[^:]+://[^/]+/*", target.url):
            raise ValueError(f"{target} is a whole bucket: name a folder in it, {target.url.rstrip('/')}/{config.game}")
        work = layout.work("collect", name, how | {"out": target.url})
        shared = Folder(f"{target.url.rstrip('/')}.blocks/{work.name}")
    else:
        root = layout if out is None else Layout(root=target.local.resolve().parent, zoo=layout.zoo)
        work, shared = root.work("collect", name, how), None
    _refuse_other_settings(work, name, how)
    with _client(scheduler, count) as client:
        collection = Collection(config, layout.teacher(config.game), teacher, work, shared)
        (work / SETTINGS).write_text(json.dumps(how, indent=2, sort_keys=True) + "\n")
        try:
            for _ in show(collection.run(client), f"collect {config.game}", ("blocks", "return")):
                pass
        except KilledWorker:
            raise ValueError("a worker died again and again, most likely for want of memory: use fewer --workers") from None
        except (CancelledError, CommClosedError):
            where = scheduler or "on this machine"
            raise ValueError(f"the Dask scheduler {where} went away: start it again, the same command goes on") from None
        manifest = collection.finish()
    if target.local is None:
        for _ in show(upload_folder(collection.dataset, target, MANIFEST), f"upload {target}"):
            pass
    else:
        replace_folder(collection.dataset, target.local)
    collection.discard()
    say(f"collected {manifest.states:,} states in {manifest.episodes} episodes into {target}, digest {manifest.digest[:12]}")
    return target.url


def _config(
    params: settings.Params, game: str, states: int | None, episodes: int | None, epsilon: float | None, seed: int | None
) -> CollectConfig:
    """What to collect: the options, and params.yaml's `datasets.GAME` where they say nothing."""
    defaults = params.datasets.get(game)
    if defaults is None and states is None and episodes is None:
        raise ValueError(f"params.yaml has no dataset {game!r}: give --states or --episodes, or add datasets.{game}")
    if states is None and episodes is None and defaults is not None:
        states = defaults.states
    if defaults is not None:
        settings.check_recipe(f"datasets.{game}", defaults.recipe, RECIPE)
    return CollectConfig(
        game=game,
        environment=params.environment,
        epsilon=epsilon if epsilon is not None else defaults.epsilon if defaults else 0.05,
        seed=seed if seed is not None else defaults.seed if defaults else 0,
        states=states,
        episodes=episodes,
        recipe=RECIPE,
    )


def _teacher(layout: Layout, config: CollectConfig) -> Agent:
    """The zoo's teacher of the game. ValueError if it learned in another world."""
    folder = layout.teacher(config.game)
    teacher = load_agent(folder, torch.device("cpu"))
    environment = fingerprint(config.game, config.environment)
    if teacher.card.get("environment") != environment:
        raise ValueError(
            f"teacher {folder} was trained in another environment than params.yaml's "
            f"({_differences(teacher.card.get('environment'), environment)}): "
            f"restore the environment section or train the teacher again"
        )
    return teacher


@contextmanager
def _client(scheduler: str | None, workers: int) -> Iterator[Client]:
    """A client of the cluster at `scheduler`, or of one on this machine. Tells where it can be watched."""
    with ExitStack() as stack:
        # Blocks dropped at the end, blocks that failed and lost connections are told by us, in one line.
        for name in ("distributed", "distributed.client", "distributed.core"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if scheduler is None:
            quiet = {"distributed.admin.tick.limit": "1h", "logging.distributed": "critical"}
            stack.enter_context(dask.config.set(quiet))
            cluster = LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
            )
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        else:
            try:
                client = stack.enter_context(Client(scheduler, timeout=CONNECT_SECONDS))
            except (OSError, ValueError) as error:
                remedy = "start one with `dask scheduler`"
                raise ValueError(f"no Dask scheduler answers at {scheduler} ({error}): {remedy}") from None
        threads = sum(client.nthreads().values())
        say(f"{threads or 'no'} workers{'' if threads else ' yet'}, dashboard {client.dashboard_link}")
        yield client


SETTINGS: Final = "settings.json"


def _refuse_other_settings(work: Path, name: str, how: dict[str, Any]) -> None:
    """ValueError if a collection of the same name with other settings is unfinished: it is not forgotten by accident."""
    for other in sorted(work.parent.glob(f"{name}-*")):
        ours = re.fullmatch(re.escape(name) + "-[0-9a-f]+", other.name)  # and not NAME-BEST-DIGEST
        if ours and other != work and (other / SETTINGS).is_file():
            told = _differences(json.loads((other / SETTINGS).read_text()), how)
            raise ValueError(
                f"an unfinished collection of {name} has other settings ({told}): finish it with those, or remove {other}"
            )


def _tell(config: CollectConfig, teacher: Agent, target: Folder, workers: int) -> None:
    """What a collection would be, from a few seconds of play."""
    say(f"playing for {PROBE_SECONDS:g} seconds ...")
    found = estimate(config, teacher, PROBE_SECONDS)
    rate, size, length = found["states_per_second"], found["bytes_per_state"], found["episode_length"]
    ended = "episodes of" if found["ended"] else "no episode ended, they are longer than"
    say(f"{rate:,.0f} states/s with one worker, {size:.0f} bytes a state, {ended} {length:,.0f} states")
    states = config.states or (config.episodes or 0) * length
    about, least = ("about", "") if found["ended"] else ("at most", "at least ")
    blocks = max(1, round((config.episodes or states / length) / BLOCK_EPISODES))
    took = duration(states / rate / workers)
    say(
        f"{least if config.episodes else ''}{states:,.0f} states into {target}: {about} {blocks:,} blocks of {BLOCK_EPISODES} "
        f"episodes, {states * size / 1e6:,.0f} MB, {took} with {workers} workers"
    )


def _differences(theirs: object, ours: dict[str, Any]) -> str:
    if not isinstance(theirs, dict):
        return "its card names none"
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return ", ".join(
        f"{key}: {theirs.get(key)} there, {ours.get(key)} here" for key in keys if theirs.get(key) != ours.get(key)
    )
