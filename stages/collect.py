"""collect: a teacher, or a student in its place, plays on a Dask cluster and everything it sees becomes a labelled dataset."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.agents.checkpoints import Agent, gives_q_values, load_agent
from pipeline.atari.envs import fingerprint
from pipeline.atari.games import find_game
from pipeline.collect import BLOCK_EPISODES, DATASET, RECIPE, SLOTS, CollectConfig, Collection, estimate
from pipeline.cores import core_count
from pipeline.datasets.compare import differing
from pipeline.datasets.describe import UNTOLD, licence_of
from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import Dataset, open_dataset, read_manifest
from pipeline.datasets.schema import MANIFEST, Manifest
from stages import params as settings
from stages.cluster import cluster
from stages.paths import Layout
from stages.publish import alone_in, check_target, replace_folder, upload_folder
from stages.runlog import duration, say, show

SETTINGS: Final = "settings.json"
"""Lies in the folder of a collection that is unfinished: what decides its records, and its URL if that is where it goes."""
ACTOR: Final = ("digest", "network", "parameters")
"""What a dataset says of the agent that acted in its teacher's place."""
PROBE_SECONDS: Final = 10.0
"""How long --dry-run plays."""


def run(
    layout: Layout,
    params: settings.Params,
    *,
    game: str | None,
    dataset: str | None,
    states: int | None,
    episodes: int | None,
    epsilon: float | None,
    seed: int | None,
    actor: str | None,
    labels_from: Path | None,
    workers: int | None,
    scheduler: str | None,
    out: str | None,
    licence: str | None,
    dry_run: bool,
) -> str:
    """Collect or go on collecting `datasets.NAME` of params.yaml, which options override. Returns where the dataset is.

    NAME is `dataset`, or the game's. `actor`, an agent's name or folder, acts in the teacher's place. `out` is a folder or an
    fsspec URL; into a URL, workers write what they play beside the dataset, so they need not share a disk. What is there
    already is not played again. `dry_run` only tells what it would be.
    """
    name, config = _config(params, game, dataset, states, episodes, epsilon, seed)
    teacher_folder = labels_from or layout.teacher(config.game)
    teacher = _agent("teacher", teacher_folder, config)
    if not gives_q_values(teacher.card):
        raise ValueError(f"teacher {teacher_folder} gives a policy's logits, not Q-values: it may act (--actor), but not label")
    actor = actor or (params.datasets[name].actor if name in params.datasets else None)
    actor_folder = layout.agent(actor) if actor else None
    acting = _agent("actor", actor_folder, config) if actor_folder else None
    if acting is not None:
        config = replace(config, actor={key: acting.card.get(key) for key in ACTOR})
    target = Folder((out.rstrip("/") or out) if out else layout.dataset(name))
    target.check_writable()
    count = workers or core_count()
    if dry_run:
        _tell(config, teacher, acting, target, count)
        return str(target)
    how = {**config.as_json(), "teacher": teacher.digest, "environment": teacher.world(config.game)}
    there = _there(target, how, config)
    decides = how if target.local is not None else how | {"out": target.url}
    work, shared = _workplace(layout, target, decides, beside=out is not None)
    if there is not None and _held(there, config) == (config.states or config.episodes):
        if work.exists() and _finished(work, there):  # by a collection that was killed before it had tidied up
            with alone_in(work):
                _discard(work, shared)
        say(f"{target} has been collected already, digest {there.manifest.digest[:12]}: remove it to play it again")
        return target.url
    _check_unfinished(work, decides)
    unfinished = (work / SETTINGS).is_file()
    if not unfinished:  # else it may be our own upload that was killed
        check_target(target, MANIFEST, "a dataset")
    with alone_in(work), cluster(scheduler, count) as client:
        if not unfinished:
            shutil.rmtree(work / DATASET, ignore_errors=True)  # what a killed `_discard` left of it
        collection = Collection(config, teacher_folder, teacher, work, shared, actor_folder)
        (work / SETTINGS).write_text(json.dumps(decides, indent=2, sort_keys=True) + "\n")
        if there is not None:
            collection.extend(there)
            say(f"going on from the {len(there):,} states in {target}")
        for _ in show(collection.run(client), f"collect {config.game}", ("blocks", "return")):
            pass
        licence = licence or (licence_of([there]) if there is not None else UNTOLD)
        manifest = _publish(collection, target, licence)
        _discard(work, shared)
    say(f"collected {manifest.states:,} states in {manifest.episodes} episodes into {target}, digest {manifest.digest[:12]}")
    return target.url


def _workplace(layout: Layout, target: Folder, decides: dict[str, Any], *, beside: bool) -> tuple[Path, Folder | None]:
    """Where the collection works, in the layout or `beside` its target, and where its workers write if not there too."""
    name = target.url.split("/")[-1]
    if target.local is not None:
        root = Layout(root=target.local.resolve().parent, zoo=layout.zoo) if beside else layout
        return root.work("collect", name, decides), None
    if re.fullmatch(r"[^:]+://[^/]+", target.url):
        raise ValueError(f"{target} is a whole bucket: name a folder in it, {target.url}/NAME")
    work = layout.work("collect", name, decides)
    return work, Folder(f"{target.url}.blocks/{work.name}")


def _check_unfinished(work: Path, decides: dict[str, Any]) -> None:
    """ValueError if a collection into the same place with other settings is unfinished: it is not forgotten by accident."""
    name = work.name.rpartition("-")[0]
    for other in sorted(work.parent.glob(f"{name}-*")):
        ours = re.fullmatch(re.escape(name) + "-[0-9a-f]+", other.name)  # and not NAME-BEST-DIGEST
        if not ours or other == work or not (other / SETTINGS).is_file():
            continue
        theirs = json.loads((other / SETTINGS).read_text())
        if theirs.get("out") == decides.get("out"):
            raise ValueError(
                f"an unfinished collection of {name} has other settings ({_differences(theirs, decides)}): "
                f"finish it with those, or remove {other}"
            )


def _finished(work: Path, there: Dataset) -> bool:
    """Whether nothing in `work` is wanted any more: the dataset that it was for is `there`. Else that is to have more."""
    made = work / DATASET
    if not (work / SETTINGS).is_file() or not made.exists():  # it is being discarded; it was moved to where it belongs
        return True
    return (made / MANIFEST).is_file() and read_manifest(made).digest == there.manifest.digest


def _discard(work: Path, shared: Folder | None) -> None:
    """Drop what a collection worked with, once the dataset lies where it belongs; it is no unfinished one from the start."""
    (work / SETTINGS).unlink(missing_ok=True)
    if shared is not None:
        shared.clear()
    shutil.rmtree(work, ignore_errors=True)


def _publish(collection: Collection, target: Folder, licence: str) -> Manifest:
    """Finish the dataset and bring it to where it belongs."""
    manifest = collection.finish(licence)
    if target.local is not None:
        replace_folder(collection.dataset, target.local)
        return manifest
    for _ in show(upload_folder(collection.dataset, target, MANIFEST), f"upload {target}"):
        pass
    return manifest


def _config(
    params: settings.Params,
    game: str | None,
    dataset: str | None,
    states: int | None,
    episodes: int | None,
    epsilon: float | None,
    seed: int | None,
) -> tuple[str, CollectConfig]:
    """The dataset's name and what to collect: the options, and params.yaml's `datasets.NAME` where they say nothing."""
    if game is None and dataset is None:
        raise ValueError("say what to collect: --game GAME, or --dataset NAME of params.yaml")
    name = dataset or find_game(game or "").name
    defaults = params.datasets.get(name)
    if dataset is not None and defaults is None:
        settings.pick(params.datasets, dataset, "dataset")
    found = find_game(game or (defaults.game if defaults and defaults.game else name)).name
    if defaults is not None and found != find_game(defaults.game or name).name:
        raise ValueError(f"datasets.{name} is of {defaults.game or name}, not of {found}: leave --game out")
    if defaults is None and states is None and episodes is None:
        raise ValueError(f"params.yaml has no dataset {name!r}: give --states or --episodes, or add datasets.{name}")
    if states is None and episodes is None and defaults is not None:
        states = defaults.states
    if defaults is not None:
        settings.check_recipe(f"datasets.{name}", defaults.recipe, RECIPE)
    return name, CollectConfig(
        game=found,
        environment=params.environment,
        epsilon=epsilon if epsilon is not None else defaults.epsilon if defaults else 0.05,
        seed=seed if seed is not None else defaults.seed if defaults else 0,
        states=states,
        episodes=episodes,
        recipe=RECIPE,
    )


def _agent(role: str, folder: Path, config: CollectConfig) -> Agent:
    """The agent in `folder`. ValueError if it does not play the game or learned in another world."""
    agent = load_agent(folder, torch.device("cpu"))
    if config.game not in agent.network.actions:
        raise ValueError(f"{role} {folder} plays {', '.join(agent.network.actions)}, not {config.game}")
    environment = fingerprint(config.game, config.environment)
    if agent.world(config.game) != environment:
        raise ValueError(
            f"{role} {folder} was trained in another environment than params.yaml's "
            f"({_differences(agent.world(config.game), environment)}): "
            f"restore the environment section or train the {role} again"
        )
    return agent


def _there(target: Folder, how: dict[str, Any], config: CollectConfig) -> Dataset | None:
    """The dataset of these settings that lies at the target; None if there is none, or if it is damaged and will be made again.

    ValueError if it is of other settings or holds more: nobody's data is replaced by accident.
    """
    if not target.exists(MANIFEST):
        return None
    manifest = read_manifest(target)
    made = manifest.collection | {"teacher": manifest.teacher["digest"], "environment": manifest.environment}
    if made != how:
        told = _differences(made, how)
        raise ValueError(f"{target} holds a dataset of other settings ({told}): choose another --out, or remove it first")
    try:
        dataset = open_dataset(target, check_files=True)
    except ValueError as error:
        if target.local is None or set(target.files()) - {*manifest.files, MANIFEST}:  # somebody's file would go with it
            raise
        say(f"{str(error).splitlines()[0]}; it is collected again")
        return None
    if (wanted := config.states or config.episodes or 0) < _held(dataset, config):
        held = f"{manifest.states:,} states in {manifest.episodes:,} episodes"
        raise ValueError(
            f"{target} holds {held}, more than the {wanted:,} asked for: cut it with `dataset subset`, or remove it"
        )
    return dataset


def _held(dataset: Dataset, config: CollectConfig) -> float:
    """How much of what is wanted, states or whole episodes, a dataset of the same settings has."""
    if config.states is not None:
        return len(dataset)
    whole = [row for row in dataset.episodes if row.complete]
    return len(whole) + 0.5 * (len(whole) < len(dataset.episodes))  # with a cut one it is no number of whole episodes


def _tell(config: CollectConfig, teacher: Agent, actor: Agent | None, target: Folder, workers: int) -> None:
    """What a collection would be, from a few seconds of play."""
    say(f"playing for {PROBE_SECONDS:g} seconds ...")
    found = estimate(config, teacher, actor, PROBE_SECONDS)
    rate, size, length = found["states_per_second"], found["bytes_per_state"], found["episode_length"]
    least = "" if found["ended"] == SLOTS else "at least "
    say(f"{rate:,.0f} states/s with one worker, {size:.0f} bytes a state, episodes of {least}{length:,.0f} states")
    states = config.states or (config.episodes or 0) * length
    blocks = math.ceil((config.episodes or states / length) / BLOCK_EPISODES)
    most = "at most" if least and config.states else "about"
    took = duration(states / rate / workers)
    say(
        f"{least if config.episodes else ''}{states:,.0f} states into {target}: {most} {blocks:,} blocks of {BLOCK_EPISODES} "
        f"episodes, {states * size / 1e6:,.0f} MB, {took} with {workers} workers"
    )


def _differences(theirs: object, ours: dict[str, Any]) -> str:
    if not isinstance(theirs, dict):
        return "its card names none"
    return ", ".join(f"{key}: {_short(y)} there, {_short(x)} here" for key, x, y in differing(ours, theirs))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
