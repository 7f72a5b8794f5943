"""distill: one student variant, one seed, from the stored datasets of a mix."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.agents.checkpoints import CARD, Agent, games_of, load_agent, save_agent
from pipeline.agents.device import Compute, learning, name_of, pick_device, prepare_to_learn
from pipeline.agents.networks import QNetwork
from pipeline.datasets.mix import Ingredient, Joined, open_ingredients, read_mix, read_recipes
from pipeline.distill.offline import MEASURES, Student, train
from pipeline.rederive import driven
from pipeline.report.scores import learned_from
from stages import params as settings
from stages.contest import mean_return, tried
from stages.current import collected
from stages.grid import beginning
from stages.paths import CURVE, Layout
from stages.publish import alone_in, load_state, replace_folder, resuming, save_state, write_csv
from stages.runlog import mark, saved_when_stopped, say, show

CHECKPOINT_EVERY_SECONDS = 60.0


RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""


def run(layout: Layout, params: settings.Params, name: str, seed: int, device_name: str) -> Path:
    """Train or go on training student `MIX/VARIANT`; returns its folder."""
    mix_name, variant_name = params.mix_and_variant(name, "student")
    variant: settings.StudentParams = settings.pick(params.students, variant_name, "student")
    settings.check_recipe(f"students.{variant_name}", variant.recipe, RECIPE)
    config = settings.pick(params.presets, variant.preset, "preset")
    spec = settings.network(variant.network)
    if not layout.mix(mix_name).is_file():
        settings.pick(params.mixes, mix_name, "mix")
    mix, recipes = read_mix(layout.mix(mix_name)), read_recipes(layout.recipes(mix_name))
    datasets = {
        game: open_ingredients({i.dataset: layout.dataset(i.dataset) for i in ingredients}, ingredients, mix_name)
        for game, ingredients in mix.items()
    }
    compute = learning(pick_device(device_name), config.precision)
    start = _start(layout, params, variant, mix_name, mix, datasets, seed, compute)
    agent = f"{mix_name}/{variant_name}-{seed}"
    decides = {
        "variant": variant.model_dump(exclude={"play_episodes"}),
        "preset": config.settings(),
        "seed": seed,
        "digests": [i.digest for ingredients in mix.values() for i in ingredients],
        "start": start.digest if start else None,
        **({"played": [asdict(params.environment), params.evaluation.epsilon]} if variant.play_episodes else {}),
    }
    work = layout.work("distill", agent, decides)
    with alone_in(work):
        prepare_to_learn()
        objective = variant.objective()
        student = Student(
            config,
            objective,
            spec,
            list(datasets.values()),
            variant.updates,
            compute,
            seed,
            interleave=variant.interleave,
            start=start.network if start else None,
            frozen=variant.frozen,
            teacher=_teacher(layout, datasets, compute) if objective.feature_weight else None,
            splits={game: joined.split(config.held_out, [seed] * len(joined.parts)) for game, joined in datasets.items()},
        )
        checkpoint = work / "checkpoint.pt"
        title = f"distill {agent}"
        take_up(student, checkpoint, agent)
        if student.curve and not _played(student):
            _play(params, student, variant.play_episodes, title)  # what the last sitting did not finish
        learn(student, checkpoint, title, lambda: _play(params, student, variant.play_episodes, title))
        network = QNetwork(spec, student.network.actions)
        network.load_state_dict(student.best_weights)
        folder = work / "publish"
        best = next(point for point in student.curve if point["updates"] == student.best_updates)
        games = _games(best, datasets, start, frozen=variant.frozen)
        card = save_agent(
            folder,
            network,
            {
                "role": "student",
                **({"games": games} if len(games) > 1 else {"game": (game := next(iter(games))), **games[game]}),
                "variant": variant_name,
                "mix": mix_name,
                "seed": seed,
                "objective": asdict(objective),
                "updates": variant.updates,
                "best_updates": student.best_updates,
                "samples": variant.updates * student.states_per_update,
                "held_out": {key: best[key] for key in MEASURES},
                "settings": {"preset": variant.preset, **config.settings()},
                "device": name_of(compute.device),
                "precision": compute.precision,
                "datasets": [
                    {"name": i.dataset, "digest": i.digest, "states": len(part), **_collected(recipes.get(i.dataset))}
                    for game, ingredients in mix.items()
                    for i, part in zip(ingredients, datasets[game].parts, strict=True)
                ],
                **({"interleave": variant.interleave} if len(datasets) > 1 else {}),
                **(
                    {"begins_with": start.digest, "learned_before": _learned(start.card), "frozen": variant.frozen}
                    if start
                    else {}
                ),
                "recipe": variant.recipe,
            },
        )
        write_csv(folder / CURVE, student.curve)
        target = layout.student(agent)
        replace_folder(folder, target)
        checkpoint.unlink(missing_ok=True)
        held_out = f"held-out KL {best['kl']:.4f}, agreement {best['agreement']:.1%}"
        say(f"published {target / CARD}: {card['parameters']:,} parameters, {held_out}")
        return target


def take_up(student: Student, checkpoint: Path, name: str) -> None:
    """Go on from what `learn` has left of it, if anything."""
    state = load_state(checkpoint)
    if state is not None:
        with resuming(checkpoint):
            student.load_state_dict(state)
        say(f"resuming {name} at {student.updates:,} updates")


def learn(student: Student, checkpoint: Path, title: str, validated: Callable[[], None] = lambda: None) -> None:
    """Train it to the end, saving it in `checkpoint` every minute and where the user stops."""
    saved = time.monotonic()
    shown = show(train(student), title, ("loss", "kl", "agreement", "regret"), learning=True)
    stopped = saved_when_stopped(lambda: save_state(checkpoint, student.state_dict()), lambda: f"{student.updates:,} updates")
    with stopped, closing(shown) as progress:
        for p in progress:
            if "kl" in p.metrics:
                validated()
            if time.monotonic() - saved > CHECKPOINT_EVERY_SECONDS and p.done < p.total:
                save_state(checkpoint, student.state_dict())
                saved = time.monotonic()


def _start(
    layout: Layout,
    params: settings.Params,
    variant: settings.StudentParams,
    mix_name: str,
    mix: Mapping[str, Sequence[Ingredient]],
    datasets: Mapping[str, Joined],
    seed: int,
    compute: Compute,
) -> Agent | None:
    """The agent that the student begins with, if any. ValueError where it is the actor and nothing tells who, or where what it
    has learned from might be held out now: it learned from a dataset that has other episodes here, or holds out others of it.
    """
    name = beginning(params, mix_name, variant)
    acted = _acted(params, mix_name, name, datasets) if variant.begins_with == settings.ACTOR else None
    if name is None:
        return None
    agent = load_agent(layout.agent(name), compute.device)
    if acted and agent.digest != acted:
        newest = params.mixes[mix_name][-1]
        raise ValueError(
            f"dataset {newest} was played by agent {acted[:12]}, {layout.agent(name)} is {agent.digest[:12]}: "
            f"collect it again, or restore the agent"
        )
    mixed = {i.digest: i.dataset for ingredients in mix.values() for i in ingredients}
    own = {told["digest"] for told in learned_from(agent.card)} if acted else set()
    known = own | mixed.keys()
    learned = [told for told in _learned(agent.card) if told["digest"] in known or told["name"] in mixed.values()]
    ours = (seed, params.presets[variant.preset].held_out)
    for theirs in {(told["seed"], told["held_out"]) for told in learned} - {ours}:
        told = " and ".join("seed {}, held_out {}".format(*each) for each in (theirs, ours))
        raise ValueError(
            f"{name} and this student hold out other episodes ({told}): give both the same, "
            f"or it would be measured on what that has learned from"
        )
    if lost := dict.fromkeys(told["name"] for told in learned if told["digest"] not in mixed):
        raise ValueError(
            f"{name} learned from {', '.join(lost)} as it was, mix {mix_name} has other episodes and might hold out "
            f"what that learned from: make {name} and its round anew"
        )
    return agent


def _learned(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What an agent, and whoever it began with, has learned from, and what decided which episodes of it were held out."""
    decided = {"seed": card.get("seed"), "held_out": card.get("settings", {}).get("held_out")}
    return [*(told | decided for told in learned_from(card)), *card.get("learned_before", [])]


def _acted(params: settings.Params, mix_name: str, name: str | None, datasets: Mapping[str, Joined]) -> str:
    """The digest of who played the newest dataset of the mix. ValueError if that is no agent, or `name`, what it is called, is
    not told.
    """
    newest = params.mixes[mix_name][-1]
    if len(datasets) > 1:
        raise ValueError(f"mix {mix_name} is of several games: name the agent to begin with in begins_with, not `actor`")
    if name is None:
        raise ValueError(f"params.yaml names no actor of dataset {newest}: add it there, or name an agent in begins_with")
    (joined,) = datasets.values()
    acted = driven(joined.parts[-1])
    if acted is None:
        raise ValueError(f"dataset {newest} was played by its teacher, not by {name}: collect it again")
    return acted


def _collected(recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a card tells of how a dataset was collected, if it was."""
    return {"collected": collected(recipe["collection"])} if recipe and "collection" in recipe else {}


def _games(
    best: Mapping[str, float], datasets: Mapping[str, Joined], start: Agent | None, *, frozen: bool
) -> dict[str, dict[str, Any]]:
    """What the card says of each game that the student plays; `best` is the curve's point of its weights."""
    games: dict[str, dict[str, Any]] = games_of(start.card) if start else {}
    if not frozen:  # what was measured of its other games then is no longer so
        games = {game: {k: v for k, v in told.items() if k != "held_out"} for game, told in games.items()}
    for game, dataset in datasets.items():
        manifest = dataset.parts[0].manifest
        held_out = {key: best.get(f"{key}_{game}", best[key]) for key in MEASURES}
        games[game] = {"teacher": manifest.teacher, "environment": manifest.environment, "held_out": held_out}
    return games


def _played(student: Student) -> bool:
    """Whether the curve's last point has what the student reached in each game."""
    return all(f"return_{game}" in student.curve[-1] for game in _changing(student))


def _changing(student: Student) -> list[str]:
    """The games that it learns, and, unless they are frozen, those that it could play before."""
    return list(student.lessons if student.frozen else student.network.actions)


def _play(params: settings.Params, student: Student, episodes: int, title: str) -> None:
    """Add to the curve's last point, and record, what the student reaches in each game by now, if it is to play any episodes.
    It chooses nothing.
    """
    if not episodes:
        return
    for game in _changing(student):
        network, compute, name = student.network, student.compute, f"student of {game}"
        reached = mean_return(tried(network, compute, params, game, "select", student.seed, episodes, name=name))
        student.curve[-1][f"return_{game}"] = round(reached, 3)
        mark(title, student.updates, {f"return_{game}": reached})


def _teacher(layout: Layout, datasets: Mapping[str, Joined], compute: Compute) -> QNetwork:
    """The network that labelled the only dataset. ValueError if it is not in the zoo."""
    dataset = next(iter(datasets.values()))
    folder, wanted = layout.teacher(dataset.game), dataset.parts[0].manifest.teacher["digest"]
    agent = load_agent(folder, compute.device)
    if agent.digest != wanted:
        raise ValueError(
            f"feature regression wants the teacher that labelled {dataset} ({wanted[:12]}), "
            f"{folder} is another ({agent.digest[:12]}): bring that, or set feature_weight to 0"
        )
    return agent.network
