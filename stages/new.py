"""new: an experiment folder for a game that has none yet, made from the quick road's params.yaml and dvc.yaml."""

from __future__ import annotations

import math
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from pipeline.atari.games import find_game
from pipeline.report.bootstrap import interval
from stages import params as settings
from stages.contest import chance_returns
from stages.paths import Layout
from stages.publish import replaced_file
from stages.runlog import say

SELECTIONS: Final = 8
"""How often a teacher is evaluated while it learns."""
GATE_EPISODES: Final = 100
AVERAGE_DECAY: Final = 0.998
"""Of a teacher that learns for a million steps or two, in updates of 128 steps each: the average lags by 500 of them."""
STAGGER: Final = "stagger: 2000           # spreads the environments over an episode: its moments are seen mixed"
"""The game's episodes may all be of one length."""


def run(
    layout: Layout, params: settings.Params, source: Path, *, game: str, steps: int, gate: float | None, out: Path | None
) -> Path:
    """Write params.yaml and dvc.yaml of `game`'s experiment into `out`, by default experiments/GAME beside `source`, the params
    file whose roads are followed. Its teacher learns for `steps` and must beat `gate`, by default whatever the random agent
    reaches. Returns the folder.
    """
    found = find_game(game).name
    pipeline = source.with_name("dvc.yaml")
    stages = _without_heading(pipeline.read_text()) if pipeline.is_file() else ""
    if len(params.teachers) != 1 or len(params.mixes) != 1 or not re.search(r"^\s+- pipeline/", stages, re.MULTILINE):
        raise ValueError(f"{source} is not the quick road of one game with its dvc.yaml: run this in the repository's root")
    if gate is not None and not math.isfinite(gate):
        raise ValueError(f"--gate {gate} is no return: give a number, or leave it out")
    (old,), (mix,) = params.teachers, params.mixes
    folder = out or layout.root / "experiments" / found.lower()
    for name in ("params.yaml", "dvc.yaml"):
        if (folder / name).exists():
            raise ValueError(f"{folder / name} is there already: choose another --out, or remove it")
    if gate is None:
        gate = _chance(layout, params, found)
    up = Path(os.path.relpath(layout.root.resolve(), folder.resolve())).as_posix()
    numbers = {
        "steps": steps,
        "select_every": max(1, steps // SELECTIONS),
        "gate_return": gate,
        "gate_episodes": GATE_EPISODES,
        "average_decay": AVERAGE_DECAY,
    }
    told = _without_heading(source.read_text())
    for key, value in numbers.items():
        told, found_it = re.subn(rf"^( +{key}: )\S+", rf"\g<1>{value}", told, flags=re.MULTILINE)
        if found_it != 1:
            raise ValueError(f"{source} has {found_it} lines with {key} where it should have one: restore it")
    told = re.sub(r"^( +)average_decay: .*\n", rf"\g<0>\g<1>{STAGGER}\n", told, flags=re.MULTILINE)
    stages = re.sub(r"^(\s+- )(pipeline|stages)/", rf"\g<1>{up}/\g<2>/", stages, flags=re.MULTILINE)
    command = f"dvc repro {folder / 'dvc.yaml'}"
    texts = {
        "params.yaml": f"# {found}, from nothing to students: `{command}`, or command by command in this folder.\n\n{told}",
        "dvc.yaml": f"# Made by `pd-pipeline new {found}` from the quick road.\n{stages}",
    }
    renamed = {name: re.sub(rf"\b{old}\b", found, re.sub(rf"\b{mix}\b", found.lower(), text)) for name, text in texts.items()}
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "params.yaml"
        draft.write_text(renamed["params.yaml"])
        settings.load(draft)
    for name, text in renamed.items():
        with replaced_file(folder / name) as part:
            part.write_text(text)
    say(f"wrote {folder}: its teacher learns for {steps:,} steps and must reach {gate:g}")
    return folder


def _without_heading(text: str) -> str:
    """The text after its first comment."""
    return re.sub(r"\A(?:#.*\n)*\n*", "", text)


def _chance(layout: Layout, params: settings.Params, game: str) -> float:
    """The upper end of the interval of the random agent's mean return, rounded up to a tenth."""
    _, high = interval(chance_returns(layout, params, game))
    return math.ceil(10 * high) / 10
