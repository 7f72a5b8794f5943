"""export: an agent as one ONNX or TorchScript file, published once it has been seen to do as the agent does."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from pipeline.agents.checkpoints import CARD, Agent, games_of, load_agent, load_card
from pipeline.agents.device import exact
from pipeline.agents.export import SUFFIXES, Form, Parity, described, export, in_torch, latencies, load_exported, parity
from pipeline.agents.policies import QFunction, q_function
from pipeline.atari.games import find_game
from pipeline.datasets.mix import read_mix
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.schema import MANIFEST
from stages.grid import chosen_game, scored_as
from stages.paths import Layout
from stages.publish import replaced_file
from stages.runlog import say
from stages.versions import code_version

SAME_ACTIONS: Final = 0.999
"""The share of states in which a file must choose as the agent does: less is another policy, not another rounding."""
STRETCHES: Final = 16
"""Of a dataset, evenly apart, from which states are taken."""


def run(
    layout: Layout, agent: str, *, to: Form, out: Path | None, game: str | None, states: int, dataset: str | None, as_json: bool
) -> str:
    """Export `agent`'s head of `game`, compare it with the agent on so many states of `dataset` (a path or URL), time both and
    their teacher, and publish the file. Returns what to print.

    ValueError, and no file, where fewer than 99.9 % of the actions are the same.
    """
    if agent.partition("/")[0] == "random":
        raise ValueError(f"agent {agent} has no network to export: choose another")
    loaded = load_agent(layout.agent(agent), torch.device("cpu"))
    game = chosen_game(agent, loaded, game)
    target = out or _target(layout, agent, loaded, game, to)
    if target.is_dir():
        raise ValueError(f"--out {target} is a folder: name a file in it, for example {target / game}{SUFFIXES[to]}")
    opened = _datasets(layout, loaded, game, dataset)
    state_SCHW = _spread(opened, states)
    with replaced_file(target) as part:
        export(loaded.network, game, to, part, _record(loaded, game))
        exported = load_exported(part, to)
        found = parity(q_function(loaded.network, exact(torch.device("cpu")), game), exported.q_values, state_SCHW)
        if found.same_actions < SAME_ACTIONS:
            raise ValueError(
                f"{to} of agent {agent} chooses the agent's action in {found.same_actions:.2%} of {found.states:,} states, "
                f"less than {SAME_ACTIONS:.1%}: not published, use another --to"
            )
        players = {"file": exported.q_values, "agent": in_torch(partial(loaded.network, game=game))}
        taken = latencies(players | _teacher(layout, loaded, game, to), state_SCHW)
    say(f"published {target}: {game}, {found.same_actions:.2%} of the agent's actions in {found.states:,} states")
    facts = {
        "file": str(target),
        "bytes": target.stat().st_size,
        "game": game,
        "agent": loaded.digest,
        "parity": found._asdict() | {"datasets": [str(part) for part in opened]},
        "latency_ms": taken,
    }
    return json.dumps(facts, indent=2) if as_json else _table(target, to, found, taken)


def _table(target: Path, to: Form, found: Parity, taken: dict[str, float]) -> str:
    rows = {
        "file": str(target),
        "bytes": f"{target.stat().st_size:,}",
        "states compared": f"{found.states:,}",
        "same actions": f"{found.same_actions:.2%}",
        "largest |dq|": f"{found.max_abs_dq:.2g}",
    }
    names = {"file": to, "agent": "agent in torch", "teacher_file": f"teacher in {to}", "teacher": "teacher in torch"}
    lines = [f"{key:24}{value}" for key, value in rows.items()]
    for key, name in names.items():
        if key in taken:
            # A share is of the teacher in the same runtime: runtimes differ by more than networks do.
            base = taken.get("teacher_file" if key == "file" else "teacher" if key == "agent" else "")
            share = f", {taken[key] / base:.0%} of its teacher's" if base else ""
            lines.append(f"{name:24}{taken[key]:.3f} ms a state on one core{share}")
    return "\n".join(lines)


def _target(layout: Layout, agent: str, loaded: Agent, game: str, to: Form) -> Path:
    """data/exports/AGENT.onnx, or AGENT/GAME.onnx of an agent of several games."""
    return layout.data / "exports" / f"{scored_as(layout.called(agent), list(games_of(loaded.card)), game)}{SUFFIXES[to]}"


def _record(loaded: Agent, game: str) -> dict[str, Any]:
    """What the file says of itself; `vector_env` are the arguments of ale_py.AtariVectorEnv that make the agent's world."""
    record = described(loaded, game) | {"code": code_version()}
    world = record.get("environment")
    if isinstance(world, dict) and isinstance(world.get("vector_env"), dict):
        record["vector_env"] = {"game": find_game(game).rom, **world["vector_env"]}
    return record


def _datasets(layout: Layout, loaded: Agent, game: str, dataset: str | None) -> list[Dataset]:
    """Where the states come from: `dataset`, or else the game's in the student's mix, the last version that it followed by, the
    game's own, or its sample.

    ValueError where none of them is at hand, or one is of another game.
    """
    if dataset is not None:
        places: list[str | Path] = [dataset]
    else:
        mix = layout.mix(str(loaded.card.get("mix")))
        learned = [layout.dataset(i.dataset) for i in read_mix(mix).get(game, ())] if mix.is_file() else []
        versions = layout.all_versions(f"{game}-{loaded.card['seed']}") if "following" in loaded.card else []
        choices = [learned, versions[-1:], [layout.dataset(game)], [layout.data / "samples" / game]]
        here = (folders for folders in choices if folders and all((folder / MANIFEST).is_file() for folder in folders))
        places = [*next(here, [])]
    if not places:
        raise ValueError(f"no dataset of {game} is at hand to compare the file with the agent on: name one with --dataset")
    opened = [open_dataset(place) for place in places]
    for one in opened:
        if (one.game, one.actions) != (game, loaded.network.actions[game]):
            told = f"of {one.game} with {one.actions} actions, not of {game} with {loaded.network.actions[game]}"
            raise ValueError(f"dataset {one} is {told}: name another with --dataset")
    return opened


def _spread(datasets: list[Dataset], count: int) -> npt.NDArray[np.uint8]:
    """At most `count` states (S, 4, 84, 84): stretches evenly apart in each dataset, as large a share from each."""
    pieces = []
    for dataset, most in zip(datasets, np.diff(np.linspace(0, count, len(datasets) + 1).astype(int)), strict=True):
        edges = np.linspace(0, len(dataset), min(STRETCHES, len(dataset)) + 1).astype(int)
        wanted = np.diff(np.linspace(0, most, len(edges)).astype(int))
        for start, stop, take in zip(edges[:-1], edges[1:], wanted, strict=True):
            pieces.append(dataset.stacks(range(start, min(start + take, stop))))
    return np.concatenate(pieces)


def _teacher(layout: Layout, loaded: Agent, game: str, to: Form) -> dict[str, QFunction]:
    """The agent's teacher, in torch and exported alike: what it replaces. Nothing where it is not the zoo's, or not there."""
    folder = layout.teacher(game)
    told = games_of(loaded.card).get(game, {}).get("teacher", loaded.card.get("teacher"))
    wanted = told.get("digest") if isinstance(told, dict) else None
    if wanted is None:
        return {}
    if not (folder / CARD).is_file() or load_card(folder)["digest"] != wanted:
        say(f"the agent's teacher {wanted[:12]} is not in {folder}: it is not timed")
        return {}
    teacher = load_agent(folder, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"teacher{SUFFIXES[to]}"
        export(teacher.network, game, to, path, {})
        exported = load_exported(path, to)
    return {"teacher_file": exported.q_values, "teacher": in_torch(partial(teacher.network, game=game))}
