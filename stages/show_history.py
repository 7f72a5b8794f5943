"""history: a page that shows how a recorded policy came to be, in states that its student learned from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.agents.checkpoints import load_agent
from pipeline.agents.device import exact
from pipeline.agents.policies import q_function
from pipeline.atari.games import find_game
from pipeline.datasets.describe import gaps
from pipeline.datasets.reader import open_dataset
from pipeline.report.evolution import render
from stages.history import History
from stages.paths import Layout
from stages.publish import replaced_file
from stages.runlog import say


def run(layout: Layout, game: str, seed: int, dataset: str | None, states: int, out: Path | None) -> Path:
    """Write the page and return where. `dataset` is whose states are shown: by default the student's last version's."""
    name = f"{find_game(game).name}-{seed}"
    history = History(layout.history(name))
    if not history.points:
        raise ValueError(f"{layout.history(name)} has no history: run `pd-pipeline train-history --game {game} --seed {seed}`")
    versions = layout.all_versions(name)
    if dataset is None and not versions:
        raise ValueError(f"{layout.versions(name)} has no dataset to take states from: name one with --dataset")
    opened = open_dataset(dataset or versions[-1])
    if opened.game != find_game(game).name:
        raise ValueError(f"dataset {opened.folder} is of {opened.game}, not of {find_game(game).name}")
    chosen = decisive(opened.read("q", 0, len(opened)), states, lambda step: bool(np.ptp(opened.stacks([step])[0, -1])))
    state_SCHW = opened.stacks(chosen)
    q_P = []
    for point in history.points:
        agent = load_agent(history.agent(point), torch.device("cpu"))
        q_P.append(q_function(agent.network, exact(torch.device("cpu")))(state_SCHW))
    actions = opened.manifest.environment.get("actions") or [str(a) for a in range(opened.actions)]
    target = out or layout.data / f"history-{name}.html"
    best = history.best(len(history.points))
    facts = {
        "snapshots": len(history.points),
        "best, on the seeds that choose": f"{best.selected:.2f} at {best.steps:,} steps",
        "states from": opened.manifest.digest,
    }
    titles = [f"Step {step:,} of the dataset" for step in chosen]
    page = render(
        f"How {name} came to its policy",
        facts,
        state_SCHW[:, -1],
        np.stack(q_P),
        [p.steps for p in history.points],
        actions,
        titles,
    )
    with replaced_file(target) as part:
        part.write_text(page)
    say(f"{target}: {len(chosen)} states, {len(history.points)} snapshots")
    return target


def decisive(q_NA: npt.NDArray[np.float32], count: int, shows: Callable[[int], bool]) -> list[int]:
    """The steps at which the best action stands out most, each in a stretch of the dataset of its own. Actions take turns being
    the best: otherwise where one kind of moment decides, as when Pong's ball comes down, that moment comes again and again. A
    step of which nothing `shows`, as where Q*bert's screen is black for a while, is taken only where there is no other.
    """
    gap_N, best_N = gaps(q_NA), q_NA.argmax(axis=1)
    chosen = []
    for number, stretch in enumerate(np.array_split(np.arange(len(q_NA)), min(count, len(q_NA)))):
        turn = best_N[stretch] == number % q_NA.shape[1]
        ordered = stretch[np.lexsort((-gap_N[stretch], ~turn))].tolist()
        chosen.append(next(filter(shows, ordered), ordered[0]))
    return chosen
