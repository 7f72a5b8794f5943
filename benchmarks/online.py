"""A teacher's training steps/s with a student that follows it, against without: which share is kept.

Two learners of `experiments/online` take turns, from point to point; one has a student. Points are close here and the student
does little at each, in short episodes: what a step, a state and an update take is put together as the experiment has them, the
final updates spread over its points; a student that rests learns as often as the recorded histories have a new best. Scores,
which distilling does not want, are told apart.

    python -m benchmarks.online [GAME]
"""

from __future__ import annotations

import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import command
from stages import params as settings
from stages.cluster import cluster
from stages.distill_online import Follower
from stages.history import History, live
from stages.paths import Layout
from stages.plan import steps_of_episode

STEPS, STATES, UPDATES, EPISODES, LENGTH = 2048, 16_384, 150, 16, 300
"""A point's, and an episode's steps. Fewer episodes at once would take as long: states are valued 16 at a time."""
POINTS = 6
"""The first is not counted."""


def main(game: str) -> None:
    layout, params = settings.load_project(Path("experiments/online/params.yaml"))
    small = _small(params, game)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core a run, as the experiment's hours are told
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, cluster(None, 1) as client:
        scheduler = str(client.scheduler_info()["address"])
        alone, followed = (Path(name) / who for who in ("alone", "followed"))
        histories = [History(work / "history") for work in (alone, followed)]
        runs = [live(small, game, 0, h.folder.parent, h, "cpu") for h in histories]
        follower = Follower(Layout(Path(name), Path(name)), small, game, 0, followed, histories[1], "cpu")
        for _, point in zip(*runs, strict=True):
            follower.follow(point, scheduler)
    told, online = params.history[game], params.online[game]
    points = -(-told.steps // told.every)
    without = statistics.median(point.seconds_learning for point in histories[0].points[1:]) / STEPS

    def seconds(what: str) -> float:
        return float(statistics.median(row[f"seconds_{what}"] for row in follower.rows[1:]))

    learning = told.every * seconds("learning") / STEPS
    learns = _share_of_bests(layout, game) if online.rests else 1.0
    states = learns * online.states + online.final_states / points
    updates = learns * params.students[online.student].updates + online.final_updates / points
    collecting = states * seconds("collecting") / STATES
    distilling = updates * seconds("distilling") / UPDATES
    played = steps_of_episode(layout, game)
    both = (1 + learns) / 2  # who rests has the same episodes
    scoring = both * online.score_episodes * played * seconds("scoring") / (EPISODES * LENGTH)
    print(f"{game}, {1 / without:.0f} steps/s alone; beside a student, {STEPS / seconds('learning'):.0f} while it learns")
    parts = {"learning": learning, "collecting": collecting, "distilling": distilling, "scores": scoring}
    print(f"the student learns at {learns:.0%} of the points")
    print("seconds a point: " + ", ".join(f"{what} {took:.0f}" for what, took in parts.items()))
    beside = learning + collecting + distilling
    kept, scored = (told.every * without / total for total in (beside, beside + scoring))
    print(f"kept: {kept:.0%} of its steps/s, or {scored:.0%} with scores of {played:,.0f} steps an episode")


def _share_of_bests(layout: Layout, game: str) -> float:
    """At which share of the points of the histories that are there the best so far has just changed."""
    found = [History(path) for path in layout.data.glob(f"history/{game}-*")]
    return statistics.mean(len(history.bests()) / len(history.points) for history in found) if found else 1.0


def _small(params: settings.Params, game: str) -> settings.Params:
    """The experiment's params with little of everything."""
    told, online = params.history[game], params.online[game]
    preset, student = params.teacher_presets[told.preset], params.students[online.student]
    assert preset.dqn is not None
    history = {"steps": POINTS * STEPS, "every": STEPS, "select_episodes": 1}
    return params.model_copy(
        update={
            "environment": replace(params.environment, max_episode_frames=LENGTH * params.environment.frame_skip),
            "history": {game: told.model_copy(update=history)},
            "online": {game: online.model_copy(update={"states": STATES, "score_episodes": EPISODES, "rests": False})},
            "teacher_presets": {told.preset: preset.model_copy(update={"dqn": replace(preset.dqn, replay_start=STEPS // 2)})},
            "students": {online.student: student.model_copy(update={"updates": UPDATES})},
        }
    )


if __name__ == "__main__":
    command.run(main, __doc__, game="Pong")
