"""distill-online: a student follows the best policy so far of a teacher that is still learning, or of one that was recorded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.agents.checkpoints import CARD, save_agent
from pipeline.agents.device import Compute, exact, keep_freed_memory, pick_device
from pipeline.agents.networks import QNetwork, place
from pipeline.agents.policies import EpsilonGreedy, q_function
from pipeline.atari.games import find_game
from pipeline.datasets.mix import Joined
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.schema import MANIFEST
from pipeline.distill.offline import MEASURES, DistillConfig, Student, train
from stages import collect
from stages import params as settings
from stages.evaluate import Contestant, mean_return, played
from stages.history import History, Point, live, work_folder
from stages.paths import Layout
from stages.publish import alone_in, load_state, replace_folder, save_state, write_csv
from stages.runlog import say, show

RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""


def run(layout: Layout, params: settings.Params, game: str, seed: int, device_name: str, *, replay: bool) -> Path:
    """Follow the teacher of `game` as it learns, or with `replay` its recorded history; returns data/online/GAME-SEED.

    Versions of the dataset, each labelled by the best policy at its time, become data/versions/GAME-SEED.
    """
    game = find_game(game).name
    told: settings.OnlineParams = settings.pick(params.online, game, "online")
    settings.check_recipe(f"online.{game}", told.recipe, RECIPE)
    variant: settings.StudentParams = settings.pick(params.students, told.student, "student")
    config = settings.pick(params.presets, variant.preset, "preset")
    name = f"{game}-{seed}"
    recorded = History(layout.history(name))
    making = work_folder(layout, params, game, seed)
    if replay and not recorded.points:
        raise ValueError(f"{layout.history(name)} has no history: run `pd-pipeline train-history --game {game} --seed {seed}`")
    decides = {
        "online": told.model_dump(),
        "variant": variant.model_dump(),
        "preset": asdict(config),
        "seed": seed,
        "history": [p.digest for p in recorded.points] if replay else making.name,
    }
    work = layout.work("distill-online", name, decides)
    with ExitStack() as stack:
        stack.enter_context(alone_in(work))
        if replay:
            history, points = recorded, _walk(recorded)
        else:
            stack.enter_context(alone_in(making))
            history = History(making / "history")
            points = live(params, game, seed, making, history, device_name)
        finished = work / "publish"
        if not (finished / CARD).is_file():
            keep_freed_memory()
            follower = Follower(layout, params, game, seed, work, history, device_name)
            client = stack.enter_context(collect.cluster(None, os.cpu_count() or 1))
            scheduler = str(client.scheduler_info()["address"])
            with closing(points):
                for point in points:
                    if point.number >= len(follower.rows):
                        follower.follow(point, scheduler)
            if not replay:
                history.finish()
            follower.publish(finished)
        moves = {work / "versions": layout.versions(name), finished: layout.online(name)}
        if not replay:
            (making / "checkpoint.pt").unlink(missing_ok=True)
            moves = {making / "history": layout.history(name), **moves}
        for made, target in moves.items():  # the student last: while it is here, the others may have gone
            if made.exists():
                replace_folder(made, target)
        (work / "checkpoint.pt").unlink(missing_ok=True)
        say(f"published {layout.online(name) / CARD}")
        return layout.online(name)


def _walk(history: History) -> Generator[Point, None, None]:
    yield from history.points


class Follower:
    """The student's resumable state: its network and optimiser after the last point, and a row per point.

    At a point the policy that did best on the seeds that choose labels a new version of the dataset; the student goes on
    learning from the latest versions, and is scored, as the teacher is, on seeds that chose nobody.
    """

    def __init__(
        self, layout: Layout, params: settings.Params, game: str, seed: int, work: Path, history: History, device_name: str
    ) -> None:
        self._layout, self._params, self._game, self._seed = layout, params, game, seed
        self._work, self._history = work, history
        self._told: settings.OnlineParams = params.online[game]
        self._variant: settings.StudentParams = params.students[self._told.student]
        self._config: DistillConfig = params.presets[self._variant.preset]
        self._compute = Compute(pick_device(device_name), self._config.precision)
        self._network: QNetwork | None = None
        self._optimizer: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []
        state = load_state(work / "checkpoint.pt")
        if state is not None:
            self.rows, self._optimizer = state["rows"], state["optimizer"]
            self._network = place(QNetwork(settings.network(self._variant.network), state["heads"]), self._compute.device)
            self._network.load_state_dict(state["network"])
            say(f"resuming {game} after {len(self.rows)} points")

    def follow(self, point: Point, scheduler: str) -> None:
        """Collect, learn and be scored at a point of the history."""
        best = self._history.best(point.number)
        version = self._version(point.number)
        if not (version / MANIFEST).is_file():
            collect.run(
                self._layout,
                self._params,
                game=self._game,
                dataset=None,
                states=self._told.states,
                episodes=None,
                epsilon=self._told.epsilon,
                seed=point.number,
                actor=None,
                labels_from=self._history.agent(best),
                workers=None,
                scheduler=scheduler,
                out=str(version),
                licence=None,
                dry_run=False,
            )
        first = max(0, point.number + 1 - self._told.window)
        latest = [open_dataset(self._version(number), check_files=True) for number in range(first, point.number + 1)]
        measured = self._learn(Joined(latest), point.number)
        assert self._network is not None
        policy = EpsilonGreedy(q_function(self._network, exact(self._compute.device)), self._params.evaluation.epsilon)
        contestant = Contestant(f"student of {self._game}", self._game, policy, {})
        episodes = self._params.history[self._game].episodes
        reached = mean_return(played(contestant, self._params, "follow", self._seed, episodes))
        self.rows.append(
            {
                "point": point.number,
                "steps": point.steps,
                "frames": point.steps * self._params.environment.frame_skip,
                "teacher_return": point.scored,
                "best_return": best.scored,
                "student_return": reached,
                "best_steps": best.steps,
                **{key: measured[key] for key in MEASURES},
                "labelled_by": best.digest,
                "dataset": latest[-1].manifest.digest,
            }
        )
        state = {
            "rows": self.rows,
            "heads": self._network.actions,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer,
        }
        save_state(self._work / "checkpoint.pt", state)
        say(f"{self._game} at {point.steps:,} steps: teacher {point.scored:.2f}, best {best.scored:.2f}, student {reached:.2f}")

    def _version(self, number: int) -> Path:
        return self._work / "versions" / f"{number:03}"

    def _learn(self, source: Joined, number: int) -> dict[str, float]:
        """Go on learning from `source`; returns what held-out episodes say."""
        student = Student(
            self._config,
            self._variant.objective(),
            settings.network(self._variant.network),
            [source],
            self._variant.updates,
            self._compute,
            self._seed * settings.MOST_POINTS + number,
            start=self._network,
        )
        if self._optimizer is not None:
            student.optimizer.load_state_dict(self._optimizer)
        with closing(show(train(student), f"distill {self._game}", ("loss", "kl", "agreement"))) as progress:
            for _ in progress:
                pass
        self._network, self._optimizer = student.network, student.optimizer.state_dict()
        return student.curve[-1]

    def publish(self, folder: Path) -> None:
        """Write the student and the curve into `folder`; the curve first, the card last."""
        assert self._network is not None
        shutil.rmtree(self._work / "versions/.work", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "curve.csv", self.rows)
        last = self.rows[-1]
        manifest = open_dataset(self._version(last["point"])).manifest
        save_agent(
            folder,
            self._network,
            {
                "role": "student",
                "game": self._game,
                "environment": manifest.environment,
                "teacher": manifest.teacher,
                "variant": self._told.student,
                "seed": self._seed,
                "objective": asdict(self._variant.objective()),
                "updates": self._variant.updates * len(self.rows),
                "versions": len(self.rows),
                "held_out": {key: last[key] for key in MEASURES},
                "settings": {"preset": self._variant.preset, **asdict(self._config)},
                "recipe": self._told.recipe,
            },
        )
