"""train-history: a learner's snapshots at regular steps, each with what it scored: the record of how a policy evolved."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline.agents.checkpoints import save_agent
from pipeline.agents.device import exact, keep_freed_memory
from pipeline.agents.policies import EpsilonGreedy, q_function
from pipeline.atari.envs import VectorWorld, action_meanings, fingerprint
from pipeline.atari.games import find_game
from pipeline.atari.rollout import World
from pipeline.rl.learner import Learner
from stages import params as settings
from stages.contest import Contestant, mean_return, played
from stages.paths import Layout
from stages.publish import alone_in, load_state, replace_folder, replaced_file, save_state
from stages.runlog import mark, saved_when_stopped, say, show

CHECKPOINT_EVERY_SECONDS = 120.0
RECORD: Final = "history.json"

RECIPE = 1
"""Bump when what this stage does changes (ARCHITECTURE.md, recipes); its parts are pinned as train-teacher's."""


class Point(NamedTuple):
    """A snapshot: its place in the history, steps so far, and mean returns on the seeds that choose and on those that score."""

    number: int
    steps: int
    selected: float
    scored: float
    digest: str


class History:
    """Snapshots in a folder: `history.json`, and an agent per point. `protocol` is how they were scored, {} without any."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / RECORD
        try:
            told = json.loads(path.read_text()) if path.is_file() else {"protocol": {}, "points": []}
            self.protocol: dict[str, Any] = dict(told["protocol"])
            self.points = [Point(**row) for row in told["points"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a history ({error}): restore it with `dvc pull` or run train-history") from None

    def agent(self, point: Point) -> Path:
        """The folder of a snapshot."""
        return self.folder / f"{point.number:03}"

    def best(self, number: int) -> Point:
        """The best of the points up to this one, by the seeds that choose."""
        return max(self.points[: number + 1], key=lambda p: p.selected)

    def finish(self) -> None:
        """Keep the best of all as `best`, an agent to evaluate."""
        shutil.copytree(self.agent(self.best(len(self.points))), self.folder / "best", dirs_exist_ok=True)

    def add(self, point: Point, protocol: Mapping[str, Any]) -> None:
        """Its agent is there already."""
        self.points.append(point)
        self.protocol = dict(protocol)
        told = {"protocol": self.protocol, "points": [p._asdict() for p in self.points]}
        with replaced_file(self.folder / RECORD) as part:
            part.write_text(json.dumps(told, indent=1) + "\n")

    def whole(self, steps: int) -> bool:
        """Whether the last snapshot was taken when so many steps were spent."""
        return bool(self.points) and self.points[-1].steps >= steps


def run(layout: Layout, params: settings.Params, game: str, seed: int, device_name: str) -> Path:
    """Train, or go on training, and publish data/history/GAME-SEED, whose folder it returns."""
    game = find_game(game).name
    work = work_folder(layout, params, game, seed)
    with alone_in(work):
        history = History(work / "history")
        for _ in live(params, game, seed, work, history, device_name):
            pass
        history.finish()
        target = layout.history(f"{game}-{seed}")
        (work / "checkpoint.pt").unlink(missing_ok=True)  # first: without it, a whole history is only to be published
        replace_folder(work / "history", target)
        best = history.best(len(history.points))
        say(f"published {target}: {len(history.points)} snapshots, best {best.scored:.2f} at {best.steps:,} steps")
        return target


def work_folder(layout: Layout, params: settings.Params, game: str, seed: int) -> Path:
    """Where the history of a game is made. ValueError if params.yaml has none, or of another recipe."""
    told: settings.HistoryParams = settings.pick(params.history, game, "history")
    settings.check_recipe(f"history.{game}", told.recipe, RECIPE)
    preset: settings.TeacherPreset = settings.pick(params.teacher_presets, told.preset, "teacher preset")
    decides = {
        "history": told.model_dump(),
        "preset": preset.model_dump(exclude_none=True),
        "environment": fingerprint(game, params.environment),
        "epsilon": params.evaluation.epsilon,
        "seed": seed,
    }
    return layout.work("train-history", f"{game}-{seed}", decides)


def live(
    params: settings.Params, game: str, seed: int, work: Path, history: History, device_name: str
) -> Generator[Point, None, None]:
    """The points of a history that is being made in `work`: those that are there, then each as it comes.

    While the caller does something with a point the learner rests, and all that it needs to go on is on disk.
    """
    told: settings.HistoryParams = params.history[game]
    yield from list(history.points)
    checkpoint = work / "checkpoint.pt"
    state = load_state(checkpoint)
    if state is None and history.whole(told.steps):
        return  # only to be published
    if state is None and history.points:
        raise ValueError(f"{history.folder} is unfinished and {checkpoint} is gone: remove {work} to start afresh")
    keep_freed_memory()
    preset: settings.TeacherPreset = params.teacher_presets[told.preset]
    heads = {game: len(action_meanings(game, params.environment))}
    compute = preset.compute(device_name)
    learner = preset.learner(told.steps, settings.network(told.network), heads, compute, seed)
    if state is not None:
        learner.load_state_dict(state)
        say(f"resuming {game} at {learner.tally.steps:,} steps from {work}")
    if _due(told, learner, history):  # an evaluation that the last sitting did not finish
        yield _point(params, game, seed, learner, history, checkpoint)
    if learner.tally.steps < told.steps:
        world = VectorWorld(game, params.environment, width=learner.envs, seed_once=bool(preset.seed_once))
        yield from _learn(params, game, seed, learner, world, history, checkpoint)


def _learn(
    params: settings.Params, game: str, seed: int, learner: Learner, world: World, history: History, checkpoint: Path
) -> Generator[Point, None, None]:
    """Spend the steps, with a point wherever one is due."""
    saved = time.monotonic()
    shown = show(learner.train(world), f"train {game}-{seed}", ("refilled", "return", "loss", "q"), learning=True)
    stopped = saved_when_stopped(lambda: save_state(checkpoint, learner.state_dict()), lambda: f"{learner.tally.steps:,} steps")
    with stopped, closing(shown) as progress:
        for _ in progress:
            if _due(params.history[game], learner, history):
                yield _point(params, game, seed, learner, history, checkpoint)
                saved = time.monotonic()
            elif time.monotonic() - saved > CHECKPOINT_EVERY_SECONDS:
                save_state(checkpoint, learner.state_dict())
                saved = time.monotonic()


def _due(told: settings.HistoryParams, learner: Learner, history: History) -> bool:
    """Whether it is time for a snapshot: every so many steps, and when they are spent."""
    last = history.points[-1].steps if history.points else 0
    return last < told.steps and learner.tally.steps >= min((last // told.every + 1) * told.every, told.steps)


def _point(params: settings.Params, game: str, seed: int, learner: Learner, history: History, checkpoint: Path) -> Point:
    """Evaluate the learner as it is, and keep it."""
    save_state(checkpoint, learner.state_dict())
    network = learner.result
    policy = EpsilonGreedy(q_function(network, exact(learner.compute.device)), params.evaluation.epsilon)
    contestant = Contestant(f"{game} at {learner.tally.steps:,}", game, params.environment, policy)
    episodes = params.history[game].episodes
    selected, scored = (mean_return(played(contestant, params, purpose, seed, episodes)) for purpose in ("select", "follow"))
    number = len(history.points)
    card: dict[str, Any] = {
        "role": "snapshot",
        "game": game,
        "algorithm": params.teacher_presets[params.history[game].preset].algorithm,
        "environment": fingerprint(game, params.environment),
        "steps": learner.tally.steps,
        "evaluation": {"mean_return": scored, "episodes": episodes, "epsilon": params.evaluation.epsilon},
        "seed": seed,
    }
    digest = save_agent(history.folder / f"{number:03}", network, card)["digest"]
    point = Point(number, learner.tally.steps, selected, scored, digest)
    mark(f"train {game}-{seed}", point.steps, {"eval_return": scored})
    history.add(point, {"episodes": episodes, "epsilon": params.evaluation.epsilon})
    say(f"{game} at {point.steps:,} steps: mean return {scored:.2f} ({selected:.2f} on the seeds that choose)")
    return point
