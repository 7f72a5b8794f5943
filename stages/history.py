"""train-history: a learner's snapshots at regular steps, each with what it scored: the record of how a policy evolved."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline.agents.checkpoints import save_agent
from pipeline.agents.device import exact, prepare_to_learn
from pipeline.atari.envs import VectorWorld, action_meanings, fingerprint
from pipeline.atari.games import find_game
from stages import params as settings
from stages.contest import mean_return, tried
from stages.current import made_with
from stages.paths import Layout
from stages.publish import alone_in, load_state, replace_folder, replaced_file, resuming, save_state
from stages.runlog import mark, saved_when_stopped, say, show

CHECKPOINT_EVERY_SECONDS = 120.0
RECORD: Final = "history.json"

RECIPE = 1
"""Bump when what this stage does changes (ARCHITECTURE.md, recipes); its parts are pinned as train-teacher's."""


class Point(NamedTuple):
    """A snapshot: its place in the history, steps so far, mean return on the seeds that choose, and how many seconds it took to
    learn since the last one and to play for that return.
    """

    number: int
    steps: int
    selected: float
    digest: str
    seconds_learning: float
    seconds_selecting: float


class History:
    """Snapshots in a folder: `history.json`, and an agent per point. One that is published tells how it was `made`
    (`current.made_with`); for one that is not, its folder's name does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / RECORD
        try:
            told = json.loads(path.read_text()) if path.is_file() else {"points": []}
            self.points = [Point(**row) for row in told["points"]]
            self.made: dict[str, Any] = dict(told.get("made", {}))
        except (ValueError, TypeError, KeyError) as error:
            remedy = "restore it, from git if it is kept there, or remove it and run train-history"
            raise ValueError(f"{path} is not a history ({error}): {remedy}") from None

    def agent(self, point: Point) -> Path:
        """The folder of a snapshot."""
        return self.folder / f"{point.number:03}"

    def best(self, number: int) -> Point:
        """The best of the points up to this one, by the seeds that choose."""
        return max(self.points[: number + 1], key=lambda p: p.selected)

    def bests(self) -> list[Point]:
        """The points that were better than all before them."""
        return [point for point in self.points if self.best(point.number) == point]

    def add(self, point: Point) -> None:
        """Its agent is there already."""
        self.points.append(point)
        self._write(self.folder)

    def check_replaces(self, recorded: History, remedy: str) -> None:
        """ValueError where a record would be replaced by another than what it has become."""
        if [p.digest for p in recorded.points] != [p.digest for p in self.points[: len(recorded.points)]]:
            raise ValueError(f"{recorded.folder} is a record that a teacher learning now would replace: {remedy}, or remove it")

    def _write(self, folder: Path) -> None:
        told = {"made": self.made, "points": [p._asdict() for p in self.points]}
        with replaced_file(folder / RECORD) as part:
            part.write_text(json.dumps(told, indent=1) + "\n")

    def publish(self, target: Path, made: dict[str, Any]) -> None:
        """Copy it to `target`, with how it was `made` and `best` and `last` of all as agents. What is here stays: more steps go
        on from it.
        """
        copy = self.folder.with_name("publish")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)
        self.made = made
        self._write(copy)
        for name, point in (("best", self.best(len(self.points))), ("last", self.points[-1])):
            shutil.copytree(self.agent(point), copy / name)
        replace_folder(copy, target)


def run(layout: Layout, params: settings.Params, game: str, seed: int, device_name: str) -> Path:
    """Train, or go on training, and publish data/history/GAME-SEED, whose folder it returns. A record of the same settings is
    not made anew: a learner that went on from what is in git alone would begin at nothing.
    """
    game = find_game(game).name
    work = work_folder(layout, params, game, seed)
    recorded = History(layout.history(f"{game}-{seed}"))
    same = recorded.made == made_with(params, game)
    if same and recorded.points[-1].steps >= params.history[game].steps and not (work / "history" / RECORD).is_file():
        say(f"{recorded.folder} is there already, of {recorded.points[-1].steps:,} steps: remove it to make it anew")
        return recorded.folder
    with alone_in(work):
        history = History(work / "history")
        if same:
            history.check_replaces(recorded, f"bring {work} from where it was made, set history.{game}.steps back")
        for _ in live(params, game, seed, work, history, device_name):
            pass
        target = layout.history(f"{game}-{seed}")
        history.publish(target, made_with(params, game))
        best = history.best(len(history.points))
        say(f"published {target}: {len(history.points)} snapshots, the best at {best.steps:,} steps ({best.selected:.2f})")
        return target


def work_folder(layout: Layout, params: settings.Params, game: str, seed: int) -> Path:
    """Where the history of a game is made; a longer one goes on there if its learner's settings do not heed the budget.

    ValueError if params.yaml has none, or of another recipe.
    """
    made = made_with(params, game)
    settings.check_recipe(f"history.{game}", params.history[game].recipe, RECIPE)
    decides = {**made, "environment": fingerprint(game, params.environment), "seed": seed}
    return layout.work("train-history", f"{game}-{seed}", decides)


def live(
    params: settings.Params, game: str, seed: int, work: Path, history: History, device_name: str
) -> Generator[Point, None, None]:
    """The points of a history that is being made in `work`: those that are there, then each as it comes.

    While the caller does something with a point the learner rests, and all that it needs to go on is on disk. ValueError if it
    has gone beyond its steps, or cannot go on.
    """
    recording = _Recording(params, game, seed, work, history, device_name)
    yield from list(history.points)
    yield from recording.points()


class _Recording:
    """A learner, its history, and how long it has learned since the last point. Resumes by itself."""

    def __init__(self, params: settings.Params, game: str, seed: int, work: Path, history: History, device_name: str) -> None:
        self._params, self._game, self._seed, self._history = params, game, seed, history
        self._told: settings.HistoryParams = params.history[game]
        self._preset: settings.TeacherPreset = params.teacher_presets[self._told.preset]
        self._checkpoint = work / "checkpoint.pt"
        state = load_state(self._checkpoint)
        if state is None and history.points:
            raise ValueError(f"{self._checkpoint} is gone, {history.folder} cannot go on: remove {work} to start afresh")
        prepare_to_learn()
        heads = {game: len(action_meanings(game, params.environment))}
        compute = self._preset.compute(device_name)
        self._learner = self._preset.learner(self._told.steps, settings.network(self._told.network), heads, compute, seed)
        self._seconds = 0.0
        if state is None:
            return
        with resuming(self._checkpoint):
            self._learner.load_state_dict(state["learner"])
        steps = self._learner.tally.steps
        if self._learner.beyond:
            raise ValueError(
                f"the history in {work} is at {steps:,} steps, beyond history.{game}.steps = {self._told.steps:,}: "
                f"raise that, or remove the folder to start afresh"
            )
        last = history.points[-1].steps if history.points else 0
        due = -(-self._told.steps // self._told.every) - last // self._told.every if last < self._told.steps else 0
        if len(history.points) + due > settings.MOST_POINTS:
            raise ValueError(
                f"the history in {work} has {len(history.points)} snapshots and {due} to come, {settings.MOST_POINTS} at most: "
                f"raise history.{game}.every, or lower its steps"
            )
        if last < steps:
            self._seconds = state["seconds"]
        say(f"resuming {game} at {steps:,} steps from {work}")

    def points(self) -> Generator[Point, None, None]:
        """Spend the steps, with a point wherever one is due."""
        if self._due():  # an evaluation that the last sitting did not finish
            yield self._point()
        if self._learner.tally.steps >= self._told.steps:
            return
        world = VectorWorld(
            self._game, self._params.environment, width=self._learner.envs, seed_once=bool(self._preset.seed_once)
        )
        shown = ("refilled", "return", "loss", "q")
        title = f"train {self._game}-{self._seed}"
        saved = began = time.monotonic()
        showing = show(self._learner.train(world), title, shown, learning=True)
        stopped = saved_when_stopped(self._save, lambda: f"{self._learner.tally.steps:,} steps")
        with stopped, closing(showing) as progress:
            for told in progress:
                if "refilled" not in told.metrics:
                    self._seconds += time.monotonic() - began
                if self._due():
                    yield self._point()
                    saved = time.monotonic()
                elif time.monotonic() - saved > CHECKPOINT_EVERY_SECONDS:
                    self._save()
                    saved = time.monotonic()
                began = time.monotonic()

    def _save(self) -> None:
        save_state(self._checkpoint, {"learner": self._learner.state_dict(), "seconds": self._seconds})

    def _due(self) -> bool:
        """Whether it is time for a snapshot: every so many steps, and when they are spent."""
        told, last = self._told, self._history.points[-1].steps if self._history.points else 0
        return last < told.steps and self._learner.tally.steps >= min((last // told.every + 1) * told.every, told.steps)

    def _point(self) -> Point:
        """Evaluate the learner as it is, and keep it."""
        self._save()
        began = time.monotonic()
        game, environment, epsilon = self._game, self._params.environment, self._params.evaluation.epsilon
        network, steps = self._learner.result, self._learner.tally.steps
        compute, episodes, name = exact(self._learner.compute.device), self._told.select_episodes, f"{game} at {steps:,}"
        selected = mean_return(tried(network, compute, self._params, game, "select", self._seed, episodes, name=name))
        number = len(self._history.points)
        card: dict[str, Any] = {
            "role": "snapshot",
            "game": game,
            "algorithm": self._preset.algorithm,
            "environment": fingerprint(game, environment),
            "steps": steps,
            "evaluation": {"mean_return": selected, "episodes": episodes, "epsilon": epsilon},
            "seed": self._seed,
        }
        digest = save_agent(self._history.folder / f"{number:03}", network, card)["digest"]
        selecting = round(time.monotonic() - began, 1)
        point = Point(number, steps, selected, digest, round(self._seconds, 1), selecting)
        mark(f"train {game}-{self._seed}", steps, {"eval_return": selected})
        self._history.add(point)
        self._seconds = 0.0
        say(f"{game} at {steps:,} steps: mean return {selected:.2f} on the seeds that choose")
        return point
