"""collect: a teacher plays its game on a Dask cluster and everything it sees becomes a dataset."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path

import dask
import torch
from distributed import Client, KilledWorker, LocalCluster

from pipeline.agents.checkpoints import load_agent
from pipeline.atari.envs import fingerprint
from pipeline.atari.games import find_game
from pipeline.collect import CollectConfig, Collection
from pipeline.datasets.schema import MANIFEST
from stages import params as settings
from stages.paths import Layout
from stages.publish import check_target, replace_folder
from stages.runlog import say, show

RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""


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
    out: Path | None,
) -> Path:
    """Collect or go on collecting; options override params.yaml's `datasets.GAME`. Returns the dataset's folder."""
    game = find_game(game).name
    defaults = params.datasets.get(game)
    if defaults is None and states is None and episodes is None:
        raise ValueError(f"params.yaml has no dataset {game!r}: give --states or --episodes, or add datasets.{game}")
    if states is None and episodes is None and defaults is not None:
        states = defaults.states
    if defaults is not None:
        settings.check_recipe(f"datasets.{game}", defaults.recipe, RECIPE)
    config = CollectConfig(
        game=game,
        environment=params.environment,
        epsilon=epsilon if epsilon is not None else defaults.epsilon if defaults else 0.05,
        seed=seed if seed is not None else defaults.seed if defaults else 0,
        states=states,
        episodes=episodes,
        recipe=RECIPE,
    )
    folder = layout.teacher(game)
    teacher = load_agent(folder, torch.device("cpu"))
    environment = fingerprint(game, params.environment)
    if teacher.card.get("environment") != environment:
        raise ValueError(
            f"teacher {folder} was trained in another environment than params.yaml's "
            f"({_differences(teacher.card.get('environment'), environment)}): "
            f"restore the environment section or train the teacher again"
        )
    target = out or layout.dataset(game)
    check_target(target, MANIFEST, "a dataset")
    root = layout if out is None else Layout(root=target.resolve().parent, zoo=layout.zoo)
    work = root.work(
        "collect",
        target.name,
        {**config.as_json(), "states": states, "episodes": episodes, "teacher": teacher.digest, "environment": environment},
    )
    count = workers or os.cpu_count() or 1
    with ExitStack() as stack:
        if scheduler is None:
            # Blocks dropped at the end and blocks that failed are told by us, in one line.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            quiet = {"distributed.admin.tick.limit": "1h", "logging.distributed": "critical"}
            stack.enter_context(dask.config.set(quiet))
            cluster = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL)
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
        else:
            client = stack.enter_context(Client(scheduler, timeout=30))
        collection = Collection(config, folder, teacher, work)
        try:
            for _ in show(collection.run(client), f"collect {game}", ("return",)):
                pass
        except KilledWorker:
            raise ValueError("a worker died again and again, most likely for want of memory: use fewer --workers") from None
        manifest = collection.finish()
    replace_folder(collection.dataset, target)
    collection.discard()
    say(f"collected {manifest.states:,} states in {manifest.episodes} episodes into {target}, digest {manifest.digest[:12]}")
    return target


def _differences(theirs: object, ours: dict[str, object]) -> str:
    if not isinstance(theirs, dict):
        return "its card names none"
    return ", ".join(f"{key}: {theirs.get(key)} there, {value} here" for key, value in ours.items() if theirs.get(key) != value)
