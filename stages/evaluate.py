"""evaluate: an agent plays whole episodes on fresh seeds; one row per episode is kept, and a clip of the first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.agents.checkpoints import games_of, load_agent
from pipeline.agents.device import exact, pick_device
from pipeline.agents.policies import EpsilonGreedy, q_function, uniform_random
from pipeline.atari.envs import SlotWorld, action_meanings, fingerprint
from pipeline.atari.games import find_game
from pipeline.evaluate import Episode, play
from pipeline.progress import Progress
from pipeline.report.bootstrap import interval
from pipeline.seeding import episode_seeds
from stages import params as settings
from stages.grid import scored_as
from stages.paths import Layout
from stages.publish import alone_in, replaced_file
from stages.runlog import say, show
from stages.video import CLIP_STEPS, Reel, write_video


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who plays what, how, and what its card says."""

    agent: str
    game: str
    policy: EpsilonGreedy
    card: dict[str, Any]


RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""


def run(layout: Layout, params: settings.Params, agent: str, device_name: str, game: str | None = None) -> Path:
    """Evaluate `teachers/GAME`, `random/GAME`, `students/MIX/VARIANT-SEED` or `multitask/MIX/VARIANT-SEED`; returns the scores.

    `game` says which one where the agent plays several; the scores are then those of AGENT/GAME.
    """
    contestant = find_contestant(layout, params, agent, pick_device(device_name), game)
    agent = contestant.agent
    protocol = params.evaluation
    settings.check_recipe("evaluation", protocol.recipe, RECIPE)
    decides = {
        "agent": contestant.card.get("digest"),
        "environment": fingerprint(contestant.game, params.environment),
        "epsilon": _epsilon(contestant.policy),
        "seed": protocol.seed,
        "recipe": RECIPE,
    }
    work = layout.work("evaluate", agent, decides)
    with alone_in(work):
        notes = Notes(work / "episodes.jsonl")
        episodes = played(contestant, params, "evaluate", protocol.seed, protocol.episodes, notes)
        returns = [e.episode_return for e in episodes]
        low, high = interval(returns)
        scores = {
            "agent": agent,
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
            "epsilon": _epsilon(contestant.policy),
        }
        table = pa.table(
            {
                "game": [contestant.game] * len(episodes),
                "seed": [e.seed for e in episodes],
                "episode_return": returns,
                "steps": [e.steps for e in episodes],
                "stalled": [e.stalled for e in episodes],
            }
        )
        with replaced_file(layout.episodes(agent)) as part:
            pq.write_table(table, part, compression="zstd")
        with replaced_file(layout.clip(agent)) as part:
            for _ in write_video(part, [reel(contestant, params, episodes[0].seed)], steps=CLIP_STEPS):
                pass
        with replaced_file(layout.scores(agent)) as part:
            part.write_text(json.dumps(scores, indent=2, sort_keys=True) + "\n")
        shutil.rmtree(work)
        reached = f"mean return {scores['mean']:.2f} [{low:.2f}, {high:.2f}], min {scores['min']:g}"
        say(f"{agent}: {reached}, {len(episodes)} episodes")
        return layout.scores(agent)


def find_contestant(
    layout: Layout, params: settings.Params, agent: str, device: torch.device, game: str | None = None
) -> Contestant:
    """The agent by name, in the environment that it was made for. ValueError where it is unknown or its world differs."""
    kind, _, name = agent.partition("/")
    game = find_game(game).name if game else None
    if kind == "random" and name:
        found = find_game(name).name
        if game not in (None, found):
            raise ValueError(f"agent {agent} plays {found}, not {game}")
        actions = len(action_meanings(found, params.environment))
        return Contestant(
            agent, found, EpsilonGreedy(uniform_random(actions), 1.0), {"role": "random", "network": "none", "parameters": 0}
        )
    if kind not in ("teachers", "students", "multitask", "online", "history") or not name:
        raise ValueError(
            f"unknown agent {agent!r}: write teachers/GAME, students/MIX/VARIANT-SEED, multitask/MIX/VARIANT-SEED, "
            f"online/GAME-SEED, history/GAME-SEED or random/GAME"
        )
    loaded = load_agent(layout.agent(agent), device)
    games = list(games_of(loaded.card))
    if not games or not set(games) <= loaded.network.actions.keys():
        raise ValueError(f"the card of agent {agent} names no game that its network plays: restore it")
    if game is None and len(games) > 1:
        raise ValueError(f"agent {agent} plays {', '.join(games)}: choose one with --game")
    game = game or games[0]
    if game not in games:
        raise ValueError(f"agent {agent} plays {', '.join(games)}, not {game}")
    if loaded.world(game) != fingerprint(game, params.environment):
        raise ValueError(
            f"agent {agent} was made in another environment than params.yaml's: restore the environment section "
            f"(or the versions in constraints.txt) that its card names, or make the agent again"
        )
    policy = EpsilonGreedy(q_function(loaded.network, exact(device), game), params.evaluation.epsilon)
    return Contestant(scored_as(agent, games, game), game, policy, loaded.card)


class Notes:
    """The episodes that an evaluation has finished, a line each, so that a killed one goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: list[Episode] = []
        if path.exists():
            whole, newline, _ = path.read_text().rpartition("\n")  # a kill may tear the last line
            path.write_text(whole + newline)
            self.finished = [Episode(**json.loads(line)) for line in whole.splitlines()]

    def add(self, episode: Episode) -> None:
        """Remember what has just been played."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(episode._asdict()) + "\n")
        self.finished.append(episode)


def played(
    contestant: Contestant, params: settings.Params, purpose: str, seed: int, episodes: int, notes: Notes | None = None
) -> list[Episode]:
    """`episodes` whole episodes on the seeds of `purpose`, in seed order; what `notes` hold is not played again."""
    first = episode_seeds(purpose, seed)
    seeds = range(first, first + episodes)
    finished = [e for e in notes.finished if e.seed in seeds] if notes else []
    ahead = sorted(set(seeds) - {e.seed for e in finished})

    def progress() -> Iterator[Progress]:
        world = SlotWorld(contestant.game, params.environment, width=min(len(ahead), params.evaluation.width))
        for episode in play(world, contestant.policy, ahead):
            if notes:
                notes.add(episode)
            finished.append(episode)
            yield Progress(done=len(finished), total=episodes, unit="episodes", metrics={"return": mean_return(finished)})

    if ahead:
        for _ in show(progress(), f"{purpose} {contestant.agent}", ("return",)):
            pass
    return sorted(finished)


def reel(contestant: Contestant, params: settings.Params, seed: int, title: str = "") -> Reel:
    """The episode of `seed`, to be looked at."""
    return Reel(contestant.game, params.environment, contestant.policy, contestant.card, seed, title)


def record(returns: list[float], params: settings.Params) -> dict[str, Any]:
    """What a teacher's card says of the evaluation that accepted it."""
    return {
        "mean_return": float(np.mean(returns)),
        "ci95": list(interval(returns)),
        "min_return": min(returns),
        "episodes": len(returns),
        "epsilon": params.evaluation.epsilon,
        "protocol": f"up to {params.environment.noop_max} null-ops, raw full-game return, fresh seeds",
    }


def mean_return(episodes: list[Episode]) -> float:
    return float(np.mean([e.episode_return for e in episodes]))


def _epsilon(policy: EpsilonGreedy) -> float:
    return float(np.max(policy.epsilon))
