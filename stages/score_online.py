"""What a teacher that was learning and the student that followed it scored at each point, on seeds that choose nobody."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pipeline.agents.checkpoints import CARD, load_agent, load_card
from pipeline.agents.device import exact, pick_device
from pipeline.atari.envs import fingerprint
from pipeline.evaluate import Episode
from pipeline.report.online import RETURNS
from pipeline.report.scores import read_curve
from stages import params as settings
from stages.contest import Notes, tried
from stages.current import episodes_at_points
from stages.evaluate import NOTES, RECIPE
from stages.history import History, Point
from stages.paths import CURVE, Layout
from stages.publish import alone_in, replaced_file, write_csv
from stages.runlog import say

INDEX: Final = "index.csv"
"""Of the versions that a student learned from: who labelled each."""


class Spent:
    """How many seconds each part of a run has taken, over all its sittings in `work`, but for those that were killed in it."""

    def __init__(self, work: Path) -> None:
        self._path = work / "seconds.json"
        self._seconds: dict[str, float] = json.loads(self._path.read_text()) if self._path.is_file() else {}

    @contextmanager
    def on(self, part: str, before: float = 0.0) -> Iterator[None]:
        """Whatever is done here counts, also when it is stopped, and is added to what was spent `before` the first sitting."""
        self._seconds.setdefault(part, before)
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[part] += time.monotonic() - began
            with replaced_file(self._path) as written:
                written.write_text(json.dumps(self._seconds))

    def told(self, part: str) -> float:
        """To a tenth."""
        return round(self._seconds.get(part, 0.0), 1)


def is_published(
    layout: Layout, params: settings.Params, recorded: History, game: str, seed: int, runs: Collection[str]
) -> bool:
    """Whether the student of one of these `runs` has been published, and followed this history to its end."""
    folder = layout.online(f"{game}-{seed}")
    if not ((folder / CARD).is_file() and (folder / CURVE).is_file()) or load_card(folder).get("run") not in runs:
        return False
    rows = read_curve(folder / CURVE)
    if int(rows[-1]["steps"]) < params.history[game].steps:
        return False
    points = [(point.digest, recorded.best(point.number).digest) for point in recorded.points]
    return points == [(row["snapshot"], row["labelled_by"]) for row in rows]


def is_kept(layout: Layout, name: str) -> bool:
    """Whether a student that has been published is here as it was at each point, and no versions but those it learned from."""
    rows, index = read_curve(layout.online(name) / CURVE), layout.versions(name) / INDEX
    labelled = [row["dataset"] for row in rows if row["dataset"]]
    if index.is_file() and [row["dataset_digest"] for row in read_curve(index)][:-1] != labelled:
        return False  # a run that was killed has published its own
    kept = [layout.followers(name) / f"{int(row['point']):03}" for row in rows]
    return all(
        (follower / CARD).is_file() and load_card(follower)["digest"] == row.get("follower")
        for follower, row in zip(kept, rows, strict=True)
    )


def score_more(layout: Layout, params: settings.Params, recorded: History, game: str, seed: int, device_name: str) -> Path:
    """Play what the scores of a run that is there lack of episodes; nobody learns anew."""
    name = f"{game}-{seed}"
    folder = layout.online(name)
    if (there := episodes_at_points(folder)) >= params.online[game].score_episodes:
        say(f"{folder} is there already, with {there} episodes a point")
        return folder
    work = layout.work("score-online", name, load_card(folder)["digest"])
    with alone_in(work):
        known: list[dict[str, Any]] = [*read_curve(folder / RETURNS)] if there else []
        returns: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = [*read_curve(folder / CURVE)]
        spent = Spent(work)
        for row, point in zip(rows, recorded.points, strict=True):
            agents = recorded.agent(point), layout.followers(name) / f"{point.number:03}"
            with spent.on(f"scoring {point.number}", float(row["seconds_scoring"]) if there else 0.0):
                returns += episodes(layout, params, game, seed, point, *agents, known, device_name)
            row.update(mean_returns(returns, point.number))
            row["best_return"] = rows[int(row["best_point"])]["teacher_return"]
            row["seconds_scoring"] = spent.told(f"scoring {point.number}")
        # By the last one it is told whether there are enough: killed between them, the same command makes both again.
        for table, lines in ((CURVE, rows), (RETURNS, returns)):
            with replaced_file(folder / table) as part:
                write_csv(part, lines)
    shutil.rmtree(work, ignore_errors=True)
    say(f"published {folder / RETURNS}: {params.online[game].score_episodes} episodes a point")
    return folder


def episodes(
    layout: Layout,
    params: settings.Params,
    game: str,
    seed: int,
    point: Point,
    teacher: Path,
    student: Path,
    known: Iterable[Mapping[str, Any]],
    device_name: str,
) -> list[dict[str, Any]]:
    """A row of returns.csv per episode of a point, on seeds that choose nobody. What is `known` is not played again, nor what
    an agent is noted for: whoever follows the same teacher does not play its episodes again, nor a student that rests.
    """
    compute, count = exact(pick_device(device_name)), params.online[game].score_episodes
    here = [row for row in known if int(row["point"]) == point.number]
    found = []
    for who, folder in (("teacher", teacher), ("student", student)):
        agent = load_agent(folder, compute.device)
        decides = {
            "agent": agent.digest,
            "environment": fingerprint(game, params.environment),
            "epsilon": params.evaluation.epsilon,
            "recipe": RECIPE,
        }
        with alone_in(layout.work("follow", f"{game}-{seed}", decides), wait=True) as work:
            notes, name = Notes(work / NOTES), f"{game} {who} at {point.steps:,}"
            told = {int(row["seed"]): float(row[who]) for row in here}
            others = [episode for episode in notes.finished if episode.seed not in told]
            notes.finished = [*others, *(Episode(played, value, 0, stalled=False) for played, value in told.items())]
            found.append(tried(agent.network, compute, params, game, "follow", seed, count, name=name, notes=notes))
    return [
        {"point": point.number, "seed": t.seed, "teacher": t.episode_return, "student": s.episode_return}
        for t, s in zip(*found, strict=True)
    ]


def mean_returns(returns: Iterable[Mapping[str, Any]], number: int) -> dict[str, float]:
    """Teacher's and student's at a point."""
    here = [row for row in returns if row["point"] == number]
    return {f"{who}_return": sum(row[who] for row in here) / len(here) for who in ("teacher", "student")}
