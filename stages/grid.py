"""Which games the mixes and agents of a params file's grid are of: what is on disk tells, or else what it will be."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.agents.checkpoints import CARD, Agent, games_of, load_card
from pipeline.atari.games import find_game
from pipeline.datasets.mix import read_mix
from pipeline.datasets.reader import read_manifest
from pipeline.datasets.schema import MANIFEST
from stages import params as settings
from stages.paths import Layout


def games_of_mix(layout: Layout, params: settings.Params, mix: str) -> list[str]:
    """The games of a mix, in the order of its datasets. ValueError if nothing tells what a dataset is of."""
    made = read_mix(layout.mix(mix)) if layout.mix(mix).is_file() else {}
    told = {ingredient.dataset: game for game, ingredients in made.items() for ingredient in ingredients}

    def game_of(name: str) -> str:
        described = params.datasets[name].game or name if name in params.datasets else None
        if game := told.get(name) or described:
            return game
        if (layout.dataset(name) / MANIFEST).is_file():
            return read_manifest(layout.dataset(name)).game
        return find_game(name).name  # it will be named after its game

    return list(dict.fromkeys(game_of(name) for name in settings.pick(params.mixes, mix, "mix")))


def games_of_cell(layout: Layout, params: settings.Params, cell: settings.Cell) -> list[str]:
    """The games that an agent of the grid plays: those of its mix, and those of the agent that it begins with."""
    folder = layout.agent(cell.agent)
    if (folder / CARD).is_file():
        return list(games_of(load_card(folder)))
    variant = params.students.get(cell.variant) if cell.kind == "students" else None
    start = beginning(params, cell.mix, variant) if variant else None
    begun = _games_of_agent(layout, params, start) if start else []
    return list(dict.fromkeys([*begun, *games_of_mix(layout, params, cell.mix)]))


def beginning(params: settings.Params, mix: str, variant: settings.StudentParams) -> str | None:
    """The agent that a student of the mix begins with, by name, if any: of `actor`, who acts in the mix's last dataset."""
    if variant.begins_with != settings.ACTOR:
        return variant.begins_with
    newest = settings.pick(params.mixes, mix, "mix")[-1]
    return params.datasets[newest].actor if newest in params.datasets else None


def chosen_game(agent: str, loaded: Agent, game: str | None) -> str:
    """The game that `agent` is to play: `game`, or its only one. ValueError if it plays another, or several."""
    games = list(games_of(loaded.card))
    if not games or not set(games) <= loaded.network.actions.keys():
        raise ValueError(f"the card of agent {agent} names no game that its network plays: restore it")
    game = find_game(game).name if game else None
    if game is None and len(games) > 1:
        raise ValueError(f"agent {agent} plays {', '.join(games)}: choose one with --game")
    if game not in (None, *games):
        raise ValueError(f"agent {agent} plays {', '.join(games)}, not {game}")
    return game or games[0]


def scored_as(agent: str, games: Sequence[str], game: str) -> str:
    """What an agent's episodes and scores of a game are called: AGENT, or AGENT/GAME where it plays several."""
    return f"{agent}/{game}" if len(games) > 1 else agent


def _games_of_agent(layout: Layout, params: settings.Params, agent: str) -> list[str]:
    """The games of an agent by its name or folder; none where nothing tells."""
    if (layout.agent(agent) / CARD).is_file():
        return list(games_of(load_card(layout.agent(agent))))
    match agent.split("/"):
        case ["teachers", game]:
            return [find_game(game).name]
        case ["students" | "multitask" as kind, mix, name]:
            variant, _, seed = name.rpartition("-")
            return games_of_cell(layout, params, settings.Cell(kind, mix, variant, int(seed) if seed.isdigit() else 0))
        case _:
            return []
