"""Who plays, in which world and how; whole episodes by them, for scores, gates and the choice of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from pipeline.agents.checkpoints import CARD, games_of, load_agent
from pipeline.agents.device import Compute, exact
from pipeline.agents.networks import QNetwork
from pipeline.agents.policies import EpsilonGreedy, q_function, uniform_random
from pipeline.atari.envs import EnvConfig, SlotWorld, action_meanings, fingerprint
from pipeline.atari.games import find_game
from pipeline.datasets.compare import differing
from pipeline.evaluate import Episode, Protocol, play
from pipeline.progress import Progress
from pipeline.report.bootstrap import interval
from pipeline.seeding import episode_seeds
from stages import params as settings
from stages.grid import chosen_game, scored_as
from stages.paths import Layout
from stages.runlog import show

CHANCE_EPISODES: Final = 30
"""Of the random agent, which say what a teacher must beat."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who plays what, in which world, how, and what its card says. `agent` is what its results are called: AGENT, or the name
    of a folder that is no agent's, with /GAME where it plays several, and @PROTOCOL where that is not the params' own.

    `elsewhere` names what differs, there and here, between the world that it was made for and the one of the params.
    """

    agent: str
    game: str
    environment: EnvConfig
    policy: EpsilonGreedy
    card: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def epsilon(self) -> float:
        return float(np.max(self.policy.epsilon))


def find_contestant(
    layout: Layout,
    params: settings.Params,
    agent: str,
    device: torch.device,
    game: str | None = None,
    protocol: Protocol | None = None,
    *,
    elsewhere: bool = False,
) -> Contestant:
    """The agent by name or folder, under a protocol, by default that of the params.

    ValueError where it is unknown, or was made in another world than the params' (unless `elsewhere` allows it).
    """
    protocol = protocol or params.protocol()
    named = "" if protocol == params.protocol() else f"@{protocol.name}"
    kind, _, name = agent.partition("/")
    game = find_game(game).name if game else None
    if kind == "random" and name:
        found = find_game(name).name
        if game not in (None, found):
            raise ValueError(f"agent {agent} plays {found}, not {game}")
        policy = new_policy(None, found, protocol, device)
        card = {"role": "random", "network": "none", "parameters": 0}
        return Contestant(f"random/{found}{named}", found, protocol.environment, policy, card)
    folder = layout.agent(agent)
    if folder == Path(agent) and not (folder / CARD).is_file():
        reason = f"its folder has no {CARD}" if folder.is_dir() else "there is no such folder"
        raise ValueError(
            f"unknown agent {agent!r}, {reason}: write teachers/GAME, students/MIX/VARIANT-SEED, multitask/MIX/VARIANT-SEED, "
            f"online/GAME-SEED, history/GAME-SEED/best (or /last), followers/GAME-SEED/NNN, random/GAME or an agent's folder"
        )
    loaded = load_agent(folder, device)
    game = chosen_game(agent, loaded, game)
    made, here = loaded.world(game), fingerprint(game, params.environment)
    differences = {key: (x, y) for key, x, y in differing(made if isinstance(made, dict) else {}, here)}
    if differences and not elsewhere:
        told = ", ".join(f"{key}: {x} there, {y} here" for key, (x, y) in differences.items())
        raise ValueError(
            f"agent {agent} was made in another environment than params.yaml's ({told}): restore the environment section "
            f"(or the versions in constraints.txt), make the agent again, or let it play all the same with --other-environment"
        )
    if loaded.network.actions[game] != len(here["actions"]):
        raise ValueError(
            f"agent {agent} has {loaded.network.actions[game]} actions in {game}, here it has {len(here['actions'])}: "
            f"restore full_action_space in params.yaml"
        )
    policy = new_policy(loaded.network, game, protocol, device)
    return Contestant(
        scored_as(layout.called(agent), list(games_of(loaded.card)), game) + named,
        game,
        protocol.environment,
        policy,
        loaded.card,
        differences,
    )


def new_policy(network: QNetwork | None, game: str, protocol: Protocol, device: torch.device) -> EpsilonGreedy:
    """How a network plays under a protocol; None is the random agent."""
    if network is None:
        return EpsilonGreedy(uniform_random(len(action_meanings(game, protocol.environment))), 1.0)
    return EpsilonGreedy(q_function(network, exact(device), game), protocol.epsilon)


class Notes:
    """The episodes that an evaluation has finished, a line each, so that a killed one goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: list[Episode] = []
        if path.exists():
            whole, newline, torn = path.read_text().rpartition("\n")
            if torn:  # a kill did that
                os.truncate(path, len(f"{whole}{newline}".encode()))
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
        world = SlotWorld(contestant.game, contestant.environment, width=min(len(ahead), params.evaluation.width))
        for episode in play(world, contestant.policy, ahead):
            if notes:
                notes.add(episode)
            finished.append(episode)
            yield Progress(done=len(finished), total=episodes, unit="episodes", metrics={"return": mean_return(finished)})

    if ahead:
        for _ in show(progress(), f"{purpose} {contestant.agent}", ("return",)):
            pass
    return sorted(finished)


def tried(
    network: QNetwork,
    compute: Compute,
    params: settings.Params,
    game: str,
    purpose: str,
    seed: int,
    episodes: int,
    *,
    name: str,
    notes: Notes | None = None,
) -> list[Episode]:
    """As `played`, with the params' epsilon, by a network that is no agent of the layout yet; `name` is shown."""
    policy = EpsilonGreedy(q_function(network, compute, game), params.evaluation.epsilon)
    return played(Contestant(name, game, params.environment, policy), params, purpose, seed, episodes, notes)


def chance_returns(layout: Layout, params: settings.Params, game: str) -> list[float]:
    """What the random agent returns in a few episodes, on the seeds of gates."""
    contestant = find_contestant(layout, params, f"random/{game}", torch.device("cpu"))
    return [episode.episode_return for episode in played(contestant, params, "gate", 0, CHANCE_EPISODES)]


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
