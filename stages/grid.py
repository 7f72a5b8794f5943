"""Which games the mixes and agents of a params file's grid are of: what is on disk tells, or else what it will be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from pipeline.agents.checkpoints import CARD, Agent, games_of, load_card
from pipeline.atari.games import find_game
from pipeline.datasets.mix import read_mix
from pipeline.datasets.reader import read_manifest
from pipeline.datasets.schema import MANIFEST
from stages import params as settings
from stages.paths import Layout

WATCHING: Final = ("validate_every", "validation_states", "memory_gb")
"""Settings of a student's preset that do not change what it learns."""


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


def too_few_states(layout: Layout, params: settings.Params, name: str) -> tuple[int, int] | None:
    """The states of a dataset that is there, and those asked for, where they are more; else None."""
    recipe, there = settings.recipe_of(layout, params, name), read_manifest(layout.dataset(name)).states
    return (there, recipe.states) if recipe is not None and there < recipe.states else None


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


def earlier_settings(layout: Layout, params: settings.Params, cell: settings.Cell) -> str:
    """How an agent learned, where that is not how its settings are now; '' if it is, or if there is no agent."""
    folder = layout.agent(cell.agent)
    if not (folder / CARD).is_file():
        return ""
    card = load_card(folder)
    if cell.kind == "multitask":
        return _told(_differing(*_baseline_settings(layout, params, cell, card)))
    variant = settings.pick(params.students, cell.variant, "student")
    different = _student_differences(params, variant, card)
    begun, start = card.get("begins_with"), beginning(params, cell.mix, variant)
    gone = start is not None and not (layout.agent(start) / CARD).is_file()  # nothing tells whether it is the same
    if not gone and begun != (load_card(layout.agent(start))["digest"] if start else None):
        different["begins_with"] = str(begun)[:12]
    return _told(different)


def earlier_following(layout: Layout, params: settings.Params, game: str, seed: int) -> str:
    """How a student followed its learning teacher, as `earlier_settings`."""
    folder = layout.online(f"{game}-{seed}")
    if not (folder / CARD).is_file():
        return ""
    card, online = load_card(folder), params.online[game]
    variant: settings.StudentParams = settings.pick(params.students, online.student, "student")
    if (told := card.get("following")) is None:
        return "how it followed is not recorded"
    different = _student_differences(params, variant, card | {"updates": told["updates"]})
    return _told(different | _differing(followed(online, variant), told))


def followed(online: settings.OnlineParams, variant: settings.StudentParams) -> dict[str, Any]:
    """What a card records of how a student followed: all but who is shown, and the updates at each point."""
    return online.model_dump(exclude={"seeds", "recipe"}) | {"updates": variant.updates}


def _student_differences(params: settings.Params, variant: settings.StudentParams, card: Mapping[str, Any]) -> dict[str, Any]:
    """What of a student's settings was another when it learned."""
    objective = asdict(variant.objective())
    now = {
        "preset": variant.preset,
        **settings.pick(params.presets, variant.preset, "preset").settings(),
        **objective,
        "network": variant.network,
        **({"interleave": variant.interleave} if "interleave" in card else {}),
        **({"frozen": variant.frozen} if "frozen" in card else {}),
        "updates": variant.updates,
    }
    then = {**objective, **card["objective"], **card["settings"]}  # older cards lack what there was not
    then |= {name: card[name] for name in ("network", "interleave", "frozen", "updates") if name in card}
    different = _differing(*({k: v for k, v in told.items() if k not in WATCHING} for told in (now, then)))
    if different.keys() > {"updates"}:  # of other settings another number goes without saying
        del different["updates"]
    return different


def _baseline_settings(
    layout: Layout, params: settings.Params, cell: settings.Cell, card: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How a baseline learns now, and how it learned at last."""
    baseline: settings.MultitaskParams = settings.pick(params.multitask, cell.variant, "baseline")
    games = games_of_mix(layout, params, cell.mix)
    chosen = {game: baseline.presets.get(game, baseline.preset) for game in games}
    presets = {game: settings.pick(params.teacher_presets, name, "teacher preset") for game, name in chosen.items()}
    last = card["history"][-1]
    both = presets.keys() & last["settings"].keys()

    def told(of_games: Mapping[str, Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        by_game = {f"{name} of {game}": value for game in both for name, value in of_games[game].items()}
        return {"games": ", ".join(of_games), **more, **by_game}

    selection = {"select_every": baseline.select_every, "select_episodes": baseline.select_episodes}
    now = {game: preset.settings() for game, preset in presets.items()}
    return (
        told(now, network=baseline.network, steps=baseline.steps, **selection),
        told(last["settings"], network=card["network"], steps=last["budget"], **card["selection"]),
    )


def _differing(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """What was another then."""
    return {name: then.get(name) for name in sorted(now.keys() | then.keys()) if now.get(name) != then.get(name)}


def _told(different: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in different.items())


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


def scored_before(layout: Layout, agent: str, name: str) -> bool:
    """Whether the scores of that name are of the agent as it was before it changed."""
    if not layout.scores(name).is_file() or not (layout.agent(agent) / CARD).is_file():
        return False
    told = json.loads(layout.scores(name).read_text()).get("agent_digest")
    return told is not None and told != load_card(layout.agent(agent))["digest"]


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
