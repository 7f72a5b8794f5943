"""A teacher's training steps/s with a student that follows it, against without: which share is kept.

Two learners of `experiments/online` take turns, from point to point; one has a student. Points are close here and the student
does less at each, in short episodes: what a step, a state and an update take is put together as the experiment has them. A
student that rests learns as often as the recorded histories have a new best. The making of the published student, when the
teacher has learned, and scores, which distilling does not want, are told apart; the episodes that choose the best are not told:
a record of the teacher alone has them too. Each point is compared with its neighbour, so that a machine which is slower for a
while is so for both.

    python -m benchmarks.online [GAME]
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import command
from pipeline.atari.games import find_game
from stages import params as settings
from stages.cluster import cluster
from stages.distill_online import Follower
from stages.history import History, live
from stages.paths import Layout
from stages.plan import steps_of_episode

STEPS, STATES, UPDATES, EPISODES, LENGTH = 2048, 49_152, 400, 16, 300
"""A point's, and an episode's steps. To begin a collection takes as long as 2,000 states of it: of few states that would count
several times. Fewer episodes at once would take as long: states are valued 16 at a time.
"""
POINTS = 5
"""The first is not counted."""
BESIDE = ("learning", "collecting", "distilling")


def main(game: str) -> None:
    layout, params = settings.load_project(Path("experiments/online/params.yaml"))
    game = find_game(game).name
    for name, section in (("history", params.history), ("online", params.online)):
        settings.pick(section, game, name)
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
    online, learns = params.online[game], 1.0
    if online.rests:
        learns = _share_of_bests(layout, game)
        print(f"the student learns at {learns:.0%} of the points")
    played = steps_of_episode(layout, game)
    took_alone = [point.seconds_learning for point in histories[0].points[1:]]
    costs = [_costs(params, game, row, learns, played) for row in follower.rows[1:]]
    without = [params.history[game].every * took / STEPS for took in took_alone]
    print("seconds a point: " + ", ".join(f"{what} {statistics.median(c[what] for c in costs):.0f}" for what in costs[0]))
    print(f"{game} alone: {STEPS / statistics.median(took_alone):.0f} steps/s. Kept, median of the points, least and most:")
    for extra, parts in (
        ("beside a student", BESIDE),
        ("with the making of the published one, after the last step", [*BESIDE, "final student"]),
        (f"and with scores, of {played:,.0f} steps an episode", [*costs[0]]),
    ):
        kept = sorted(took / sum(c[part] for part in parts) for took, c in zip(without, costs, strict=True))
        print(f"  {extra}: {statistics.median(kept):.0%}, {kept[0]:.0%} to {kept[-1]:.0%}")


def _costs(params: settings.Params, game: str, row: Mapping[str, Any], learns: float, played: float) -> dict[str, float]:
    """Seconds that a point of the experiment takes at the speeds of this one: what is done beside learning, what after it
    (the published student, spread over the points), and the scores.
    """
    told, online = params.history[game], params.online[game]
    points = -(-told.steps // told.every)
    state, update = row["seconds_collecting"] / STATES, row["seconds_distilling"] / UPDATES
    both = (1 + learns) / 2  # who rests has the same episodes
    return {
        "learning": told.every * row["seconds_learning"] / STEPS,
        "collecting": learns * online.states * state,
        "distilling": learns * params.students[online.student].updates * update,
        "final student": (online.final_states * state + online.final_updates * update) / points,
        "scores": both * online.score_episodes * played * row["seconds_scoring"] / (EPISODES * LENGTH),
    }


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
