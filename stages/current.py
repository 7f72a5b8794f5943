"""Whether what there is, is what a params file would make: of as many states, the same settings and data, scored since."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from pipeline.agents.checkpoints import CARD, games_of, load_card
from pipeline.datasets.compare import differing
from pipeline.datasets.mix import read_mix, read_recipes
from pipeline.datasets.reader import read_manifest
from pipeline.report.online import RETURNS
from pipeline.report.scores import learned_from, read_curve
from pipeline.seeding import episode_seeds
from stages import params as settings
from stages.grid import beginning, games_of_cell, games_of_mix, scored_as
from stages.paths import CURVE, Layout
from stages.runlog import say

WATCHING: Final = ("validate_every", "validation_states", "memory_gb")
"""Settings of a student's preset that another machine may want otherwise: when it is looked at, and so which of its weights are
published, and in which order it sees its states. An agent is not made anew for them.
"""


def too_few_states(layout: Layout, params: settings.Params, name: str) -> tuple[int, int] | None:
    """The states of a dataset that is there, and those asked for, where they are more; else None."""
    if (recipe := settings.recipe_of(layout, params, name)) is None:
        return None
    there = read_manifest(layout.dataset(name)).states
    return (there, recipe.states) if there < recipe.states else None


def made(layout: Layout, params: settings.Params, cell: settings.Cell) -> bool:
    """Whether an agent is there that learned by the settings of today, from its mix's datasets and as many states."""
    folder = layout.agent(cell.agent)
    if not (folder / CARD).is_file() or earlier_settings(layout, params, cell):
        return False
    learned = {told["name"]: told["states"] for told in learned_from(load_card(folder))}
    if cell.kind == "students" and learned.keys() != set(settings.pick(params.mixes, cell.mix, "mix")):
        return False
    recipes = {name: settings.recipe_of(layout, params, name) for name in learned}
    if any(recipe is not None and recipe.states != learned[name] for name, recipe in recipes.items()):
        return False
    return cell.kind != "students" or not collected_otherwise(layout, params, cell)


def collected_otherwise(layout: Layout, params: settings.Params, cell: settings.Cell) -> list[str]:
    """The datasets that a student learned from and that were collected by another recipe than params.yaml has now, but for how
    many states. Older cards do not tell: then it is what the mix has.
    """
    recipes = read_recipes(layout.recipes(cell.mix))
    found = []
    for told in learned_from(load_card(layout.agent(cell.agent))):
        name = told["name"]
        recipe = settings.recipe_of(layout, params, name)
        then = told.get("collected") or recipes.get(name, {}).get("collection")
        if recipe is not None and then is not None and collected(recipe.model_dump()) != collected(then):
            found.append(name)
    return found


def collected(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a dataset's recipe decides its records, beside teacher and environment."""
    return {key: recipe.get(key) for key in ("epsilon", "seed", "actor", "recipe")}


def earlier_settings(layout: Layout, params: settings.Params, cell: settings.Cell) -> str:
    """How an agent learned, where that is not how its settings are now; '' if it is, or if there is no agent."""
    folder = layout.agent(cell.agent)
    if not (folder / CARD).is_file():
        return ""
    card = load_card(folder)
    if cell.kind == "multitask":
        return _told(_otherwise(*_baseline_settings(layout, params, cell, card)))
    variant = settings.pick(params.students, cell.variant, "student")
    different = _student_differences(params, variant, card)
    begun, start = card.get("begins_with"), beginning(params, cell.mix, variant)
    gone = start is not None and not (layout.agent(start) / CARD).is_file()  # nothing tells whether it is the same
    if not gone and begun != (load_card(layout.agent(start))["digest"] if start else None):
        different["begins_with"] = str(begun)[:12]
    return _told(different)


def earlier_following(layout: Layout, params: settings.Params, game: str, seed: int) -> str:
    """How a student followed its learning teacher, and how that learned, as `earlier_settings`."""
    folder = layout.online(f"{game}-{seed}")
    if not (folder / CARD).is_file():
        return ""
    card, online = load_card(folder), params.online[game]
    variant: settings.StudentParams = settings.pick(params.students, online.student, "student")
    if (told := card.get("following")) is None or "teacher" not in told:
        return "how it followed, or how its teacher was made, is not recorded"
    different = _student_differences(params, variant, card | {"updates": told["updates"]})
    if not (folder / CURVE).is_file():
        return f"{CURVE} is missing"
    steps = int(read_curve(folder / CURVE)[-1]["steps"])
    if steps < settings.pick(params.history, game, "history").steps:
        different["steps"] = steps
    different |= _otherwise(followed(params, game), told)
    return _told(different)


def episodes_at_points(folder: Path) -> int:
    """How many episodes the scores of a follower and its teacher are of, at each point; 0 where nothing tells."""
    if not (folder / RETURNS).is_file():
        return 0
    return min(Counter(row["point"] for row in read_curve(folder / RETURNS)).values(), default=0)


def followed(params: settings.Params, game: str) -> dict[str, Any]:
    """What a card records of how a student followed: all but which seeds there are and by how many episodes they are judged,
    the updates at each point, and how its teacher was made.
    """
    online = params.online[game]
    return online.following() | {"updates": params.students[online.student].updates, "teacher": made_with(params, game)}


def made_with(params: settings.Params, game: str) -> dict[str, Any]:
    """All that decides a game's history but seed and versions: also, if the learner's settings heed the budget, its steps."""
    told: settings.HistoryParams = settings.pick(params.history, game, "history")
    preset: settings.TeacherPreset = settings.pick(params.teacher_presets, told.preset, "teacher preset")
    return {
        "history": told.model_dump(exclude=set() if preset.heeds_budget else {"steps"}),
        "preset": preset.model_dump(exclude_none=True),
        "environment": asdict(params.environment),
        "epsilon": params.evaluation.epsilon,
    }


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
    different = _otherwise(*({k: v for k, v in told.items() if k not in WATCHING} for told in (now, then)))
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
        return {"games": ", ".join(sorted(of_games)), **more, **by_game}

    selection = {"select_every": baseline.select_every, "select_episodes": baseline.select_episodes}
    now = {game: preset.settings() for game, preset in presets.items()}
    return (
        told(now, network=baseline.network, steps=baseline.steps, **selection),
        told(last["settings"], network=card["network"], steps=last["budget"], **card["selection"]),
    )


def _otherwise(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """What was another then, as it was."""
    return {name: earlier for name, _, earlier in differing(now, then)}


def _told(different: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {'not set' if value is None else value}" for name, value in different.items())


def scored_otherwise(layout: Layout, params: settings.Params, agent: str, name: str, game: str) -> bool:
    """Whether the scores of that name are of the agent as it was before it changed, or of another protocol or other seeds than
    the params' (as far as they tell). The versions of ale-py may be those of today or those that the agent was made with.
    """
    if not layout.scores(name).is_file():
        return False
    scores = json.loads(layout.scores(name).read_text())
    played = layout.teacher(game) if agent.startswith("random/") else layout.agent(agent)
    card = load_card(played) if (played / CARD).is_file() else {}
    protocol = scores.get("protocol")
    if isinstance(protocol, dict) and protocol.get("digest") not in _protocols(params, game, card):
        return True
    if layout.episodes(name).is_file():
        seeds = pq.read_table(layout.episodes(name), columns=["seed"])["seed"].to_numpy()
        if len(seeds) and seeds.min() != episode_seeds("evaluate", params.evaluation.seed):
            return True
    told = scores.get("agent_digest")
    return told is not None and bool(card) and told != card["digest"]


def _protocols(params: settings.Params, game: str, card: Mapping[str, Any]) -> set[str]:
    """Digests of the params' protocol: with what is installed, and with what the agent of this card was made with."""
    rules, made = params.protocol(), games_of(card).get(game, {}).get("environment")
    found = {rules.digest(game)}
    if isinstance(made, dict) and made.get("config") == asdict(params.environment):
        found.add(rules.digest_in(made))
    return found


def old_scores(layout: Layout, params: settings.Params, cell: settings.Cell) -> list[str]:
    """Which scores that a cell is measured by, its own and its teachers' and the random agents', are `scored_otherwise`."""
    games = games_of_cell(layout, params, cell)
    theirs = [(cell.agent, scored_as(cell.agent, games, game), game) for game in games]
    theirs += [(agent, agent, game) for game in games for agent in (f"teachers/{game}", f"random/{game}")]
    return [name for agent, name, game in theirs if scored_otherwise(layout, params, agent, name, game)]


def finished(
    layout: Layout, params: settings.Params, cells: Sequence[settings.Cell], *, others: bool, where: str = ""
) -> list[settings.Cell]:
    """Those of the cells that have been evaluated, as have their teachers and the random agents; says which have not.

    ValueError if none has, and there is nothing else to report on.
    """

    def evaluated(agent: str) -> bool:
        return all(path.is_file() for path in (layout.episodes(agent), layout.scores(agent), layout.clip(agent)))

    def whole(cell: settings.Cell) -> bool:
        if not (layout.agent(cell.agent) / CARD).is_file():  # it is being made anew
            return False
        games = games_of_cell(layout, params, cell)
        mixed = cell.kind == "multitask" or layout.mix(cell.mix).is_file()
        measured = all(evaluated(f"{kind}/{game}") for game in games for kind in ("teachers", "random"))
        return mixed and measured and all(evaluated(scored_as(cell.agent, games, game)) for game in games)

    found = [cell for cell in cells if whole(cell)]
    if missing := [cell.name for cell in cells if cell not in found]:
        say(f"left out, not evaluated yet{where}: {', '.join(missing)}")
    done = [cell for cell in found if not outdated(layout, params, cell)]
    if len(done) < len(found):
        say(f"left out, {told_outdated(layout, params, [cell for cell in found if cell not in done])}{where}")
    if not done and not others:
        raise ValueError("no student of the params' grid has been evaluated yet: run `dvc repro`")
    return done


def outdated(layout: Layout, params: settings.Params, cell: settings.Cell) -> bool:
    """Whether there is a student that learned from other data than its mix names now, or scores that it is measured by are old
    (`old_scores`).
    """
    if not (layout.agent(cell.agent) / CARD).is_file():
        return False
    return bool(old_scores(layout, params, cell)) or other_collections(layout, params, cell) is None


def told_outdated(layout: Layout, params: settings.Params, cells: Sequence[settings.Cell]) -> str:
    """What is wrong with cells that are `outdated`."""
    scores = sorted({name for cell in cells for name in old_scores(layout, params, cell)})
    others = [cell.name for cell in cells if other_collections(layout, params, cell) is None]
    told = [f"learned from other data than their mixes name now: {', '.join(others)}"] if others else []
    if scores:
        names = ", ".join(cell.name for cell in cells if cell.name not in others)
        told.append(f"measured by scores of other agents, seeds or protocols than today's ({', '.join(scores)}): {names}")
    return "; ".join(told)


def other_collections(layout: Layout, params: settings.Params, cell: settings.Cell) -> list[str] | None:
    """The datasets, by name and digest, that a student learned from where its mix names another collection by the same recipe:
    on another make of CPU the last bits of a Q-value differ, in time an action, and then the episode. None where it learned
    from anything else than its mix names; none where there is no student.
    """
    if cell.kind != "students" or not (layout.agent(cell.agent) / CARD).is_file():
        return []
    card = load_card(layout.agent(cell.agent))
    taught = [told for told in games_of(card).values() if "teacher" in told]  # not what it has of a teacher that it began with
    teachers = {told["teacher"]["digest"] for told in taught}
    named = {i.dataset: i for of in read_mix(layout.mix(cell.mix)).values() for i in of}
    learned = {told["name"]: told for told in learned_from(card)}
    if named.keys() != learned.keys() or collected_otherwise(layout, params, cell):
        return None
    others = [name for name, told in learned.items() if told["digest"] != named[name].digest]
    for name in others:
        recipe = settings.recipe_of(layout, params, name)
        if recipe is None or recipe.states != learned[name]["states"] or named[name].teacher not in teachers:
            return None
    return [f"{name} {learned[name]['digest'][:12]}" for name in others]
