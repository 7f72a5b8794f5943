"""mix: freeze which datasets, by digest, the students of a mix learn from."""

from __future__ import annotations

from pathlib import Path

from pipeline.agents.checkpoints import CARD, load_card
from pipeline.datasets.mix import make_mix, write_mix
from pipeline.datasets.reader import read_manifest
from stages import params as settings
from stages.paths import Layout
from stages.runlog import say


def run(layout: Layout, params: settings.Params, mix: str) -> Path:
    """Write data/mixes/MIX.json; refuses datasets that were not labelled by the zoo's teacher, where that is at hand."""
    names = settings.pick(params.mixes, mix, "mix")

    def teacher_of(game: str) -> str | None:
        folder = layout.teacher(game)
        return str(load_card(folder)["digest"]) if (folder / CARD).is_file() else None

    path = layout.mix(mix)
    write_mix(path, make_mix({name: layout.dataset(name) for name in names}, teacher_of))
    for name in names:
        recipe, states = settings.recipe_of(layout, params, name), read_manifest(layout.dataset(name)).states
        if recipe and states < recipe.states:
            say(f"dataset {name} has {states:,} states, params.yaml asks for {recipe.states:,}: `pd-pipeline collect` goes on")
    return path
