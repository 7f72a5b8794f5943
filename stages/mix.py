"""mix: freeze which datasets, by digest, the students of a mix learn from, and how these were collected."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.agents.checkpoints import CARD, load_card
from pipeline.datasets.mix import make_mix, recipe_of, write_mix, write_recipes
from pipeline.datasets.reader import read_manifest
from stages import params as settings
from stages.current import too_few_states
from stages.paths import Layout
from stages.runlog import say


def run(layout: Layout, params: settings.Params, mix: str) -> Path:
    """Write data/mixes/MIX.json and MIX.recipes.json.

    Refuses datasets that were not labelled by the zoo's teacher, where that is at hand.
    """
    names = settings.pick(params.mixes, mix, "mix")

    def teacher_of(game: str) -> str | None:
        folder = layout.teacher(game)
        return str(load_card(folder)["digest"]) if (folder / CARD).is_file() else None

    path, made = layout.mix(mix), make_mix({name: layout.dataset(name) for name in names}, teacher_of)
    for name in names:
        if few := too_few_states(layout, params, name):
            described = os.path.relpath(settings.described_in(layout, params, name))
            command = f"pd-pipeline --params {described} collect --dataset {name}"
            say(f"dataset {name} has {few[0]:,} states of the {few[1]:,} asked for: `{command}` goes on")
    asked = {name: settings.recipe_of(layout, params, name) for name in names}
    recipes = {name: recipe_of(read_manifest(layout.dataset(name)), it.actor if it else None) for name, it in asked.items()}
    write_recipes(layout.recipes(mix), recipes)
    write_mix(path, made)
    return path
