"""mix: freeze which datasets, by digest, the students of a mix learn from."""

from __future__ import annotations

from pathlib import Path

from pipeline.agents.checkpoints import CARD, load_card
from pipeline.datasets.mix import make_mix, write_mix
from stages import params as settings
from stages.paths import Layout


def run(layout: Layout, params: settings.Params, mix: str) -> Path:
    """Write data/mixes/MIX.json; refuses datasets that were not labelled by the zoo's teacher, where that is at hand."""
    names = settings.pick(params.mixes, mix, "mix")

    def teacher_of(game: str) -> str | None:
        folder = layout.teacher(game)
        return str(load_card(folder)["digest"]) if (folder / CARD).is_file() else None

    path = layout.mix(mix)
    write_mix(path, make_mix({name: layout.dataset(name) for name in names}, teacher_of))
    return path
