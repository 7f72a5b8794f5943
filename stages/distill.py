"""distill: one student variant, one seed, from the stored datasets of a mix."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from pipeline.agents.checkpoints import CARD, load_agent, save_agent
from pipeline.agents.device import Compute, keep_freed_memory, pick_device
from pipeline.agents.networks import QNetwork
from pipeline.datasets.mix import Joined, open_ingredients, read_mix
from pipeline.distill.offline import Objective, Student, train
from stages import params as settings
from stages.paths import Layout
from stages.publish import alone_in, load_state, replace_folder, save_state, write_csv
from stages.runlog import say, show

CHECKPOINT_EVERY_SECONDS = 60.0


RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""


def run(layout: Layout, params: settings.Params, name: str, seed: int, device_name: str) -> Path:
    """Train or go on training student `MIX/VARIANT`; returns its folder."""
    mix_name, _, variant_name = name.partition("/")
    if not variant_name:
        raise ValueError(f"student {name!r} names no mix: write MIX/VARIANT, for example {next(iter(params.mixes))}/{name}")
    variant: settings.StudentParams = settings.pick(params.students, variant_name, "student")
    settings.check_recipe(f"students.{variant_name}", variant.recipe, RECIPE)
    config = settings.pick(params.presets, variant.preset, "preset")
    spec = settings.network(variant.network)
    mix = read_mix(layout.mix(mix_name))
    if len(mix) != 1:
        raise ValueError(f"mix {mix_name} has {len(mix)} games: single-game students take one")
    (ingredients,) = mix.values()
    dataset = open_ingredients({i.dataset: layout.dataset(i.dataset) for i in ingredients}, ingredients, mix_name)
    manifest = dataset.parts[0].manifest
    agent = f"{mix_name}/{variant_name}-{seed}"
    decides = {
        "variant": variant.model_dump(),
        "preset": asdict(config),
        "seed": seed,
        "digests": [i.digest for i in ingredients],
    }
    work = layout.work("distill", agent, decides)
    with alone_in(work):
        keep_freed_memory()
        compute = Compute(pick_device(device_name), config.precision)
        objective = Objective(
            loss=variant.loss,
            temperature=variant.temperature,
            per_gap=variant.per_gap,
            feature_weight=variant.feature_weight,
        )
        teacher = _teacher(layout, dataset, compute) if objective.feature_weight else None
        student = Student(config, objective, spec, dataset, variant.updates, compute, seed, teacher)
        checkpoint = work / "checkpoint.pt"
        state = load_state(checkpoint)
        if state is not None:
            student.load_state_dict(state)
            say(f"resuming {agent} at {student.updates:,} updates")
        saved = time.monotonic()
        with closing(show(train(student), f"distill {agent}", ("loss", "kl", "agreement", "regret"))) as progress:
            try:
                for p in progress:
                    if time.monotonic() - saved > CHECKPOINT_EVERY_SECONDS and p.done < p.total:
                        save_state(checkpoint, student.state_dict())
                        saved = time.monotonic()
            except KeyboardInterrupt:
                save_state(checkpoint, student.state_dict())
                say(f"stopped at {student.updates:,} updates; the same command goes on from there")
                raise
        network = QNetwork(spec, {dataset.game: dataset.actions})
        network.load_state_dict(student.best_weights)
        folder = work / "publish"
        best = next(point for point in student.curve if point["updates"] == student.best_updates)
        card = save_agent(
            folder,
            network,
            {
                "role": "student",
                "game": dataset.game,
                "variant": variant_name,
                "mix": mix_name,
                "seed": seed,
                "objective": asdict(objective),
                "updates": variant.updates,
                "best_updates": student.best_updates,
                "samples": variant.updates * config.batch,
                "held_out": {key: best[key] for key in ("held_out_loss", "kl", "agreement", "regret")},
                "settings": {"preset": variant.preset, **asdict(config)},
                "datasets": [
                    {"name": i.dataset, "digest": i.digest, "states": len(part)}
                    for i, part in zip(ingredients, dataset.parts, strict=True)
                ],
                "teacher": manifest.teacher,
                "environment": manifest.environment,
                "recipe": variant.recipe,
            },
        )
        write_csv(folder / "curve.csv", student.curve)
        target = layout.student(agent)
        replace_folder(folder, target)
        checkpoint.unlink(missing_ok=True)
        held_out = f"held-out KL {best['kl']:.4f}, agreement {best['agreement']:.1%}"
        say(f"published {target / CARD}: {card['parameters']:,} parameters, {held_out}")
        return target


def _teacher(layout: Layout, dataset: Joined, compute: Compute) -> QNetwork:
    """The network that labelled the dataset. ValueError if it is not in the zoo."""
    folder, wanted = layout.teacher(dataset.game), dataset.parts[0].manifest.teacher["digest"]
    agent = load_agent(folder, compute.device)
    if agent.digest != wanted:
        raise ValueError(
            f"feature regression wants the teacher that labelled {dataset} ({wanted[:12]}), "
            f"{folder} is another ({agent.digest[:12]}): bring that, or set feature_weight to 0"
        )
    return agent.network
