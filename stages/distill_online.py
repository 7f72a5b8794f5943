"""distill-online: a student follows the best policy so far of a teacher that is still learning, or of one that was recorded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.agents.checkpoints import CARD, save_agent
from pipeline.agents.device import Compute, exact, keep_freed_memory, pick_device
from pipeline.agents.networks import QNetwork, place
from pipeline.agents.policies import EpsilonGreedy, q_function
from pipeline.atari.games import find_game
from pipeline.datasets.loader import Split, split_episodes
from pipeline.datasets.mix import Joined
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.schema import MANIFEST
from pipeline.distill.offline import MEASURES, DistillConfig, Student, train
from stages import collect
from stages import params as settings
from stages.cluster import cluster
from stages.contest import Contestant, mean_return, played
from stages.distill import RECIPE as DISTILL_RECIPE
from stages.history import History, Point, live, work_folder
from stages.paths import Layout
from stages.publish import alone_in, load_state, replace_folder, save_state, write_csv
from stages.runlog import mark, say, show

RECIPE = 1
"""Bump when what this stage does changes (ARCHITECTURE.md, recipes); its parts are pinned as collect's and distill's."""


def run(layout: Layout, params: settings.Params, game: str, seed: int, device_name: str, *, replay: bool) -> Path:
    """Follow the teacher of `game` as it learns, or with `replay` its recorded history; returns data/online/GAME-SEED.

    Versions of the dataset, each labelled by the best policy at its time, become data/versions/GAME-SEED.
    """
    game = find_game(game).name
    told: settings.OnlineParams = settings.pick(params.online, game, "online")
    settings.check_recipe(f"online.{game}", told.recipe, RECIPE)
    variant: settings.StudentParams = settings.pick(params.students, told.student, "student")
    _check(variant, told.student, game)
    config = settings.pick(params.presets, variant.preset, "preset")
    name = f"{game}-{seed}"
    recorded = History(layout.history(name))
    making = work_folder(layout, params, game, seed)
    protocol = {"episodes": params.history[game].episodes, "epsilon": params.evaluation.epsilon}
    if replay:
        _check_recorded(recorded, protocol, f"train-history --game {game} --seed {seed}")
    decides = {
        "online": told.model_dump(),
        "variant": variant.model_dump(),
        "preset": config.settings(),
        "seed": seed,
        "history": [p._asdict() for p in recorded.points] if replay else making.name,
        "protocol": protocol,
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
            client = stack.enter_context(cluster(None, os.cpu_count() or 1))
            with closing(points):
                for point in points:
                    follower.follow(point, str(client.scheduler_info()["address"]))
            if not replay:
                history.finish()
            follower.publish(finished)
        _publish(layout, name, work, None if replay else making)
        say(f"published {layout.online(name) / CARD}")
        return layout.online(name)


def _publish(layout: Layout, name: str, work: Path, making: Path | None) -> None:
    """Move what is made to where it belongs, the student last: while it is in `work`, the others may have gone already."""
    moves = {work / "versions": layout.versions(name), work / "publish": layout.online(name)}
    (work / "checkpoint.pt").unlink(missing_ok=True)
    if making is not None:
        (making / "checkpoint.pt").unlink(missing_ok=True)
        moves = {making / "history": layout.history(name), **moves}
    for made, target in moves.items():
        if made.exists():
            replace_folder(made, target)
        elif not target.exists():
            raise ValueError(f"{target} was published and is gone: remove {work} to make it again")


def _check(variant: settings.StudentParams, name: str, game: str) -> None:
    """ValueError, before anything dear is done, where a variant cannot follow."""
    settings.check_recipe(f"students.{name}", variant.recipe, DISTILL_RECIPE)
    settings.network(variant.network)
    if variant.feature_weight or variant.begins_with or variant.frozen or variant.play_episodes:
        raise ValueError(
            f"student {name} cannot follow: leave out feature_weight, begins_with, frozen and play_episodes, for distill"
        )
    if unknown := sorted(variant.temperatures.keys() - {game}):
        raise ValueError(f"students.{name}.temperatures name {', '.join(unknown)}, the game is {game}")


def _check_recorded(recorded: History, protocol: dict[str, Any], command: str) -> None:
    """ValueError if there is no record, or one that was scored otherwise."""
    if not recorded.points:
        raise ValueError(f"{recorded.folder} has no history: run `pd-pipeline {command}`")
    if recorded.protocol != protocol:
        raise ValueError(
            f"{recorded.folder} was scored with {recorded.protocol}, params.yaml says {protocol}: "
            f"set that back, or record the history again"
        )


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
        """Collect, learn and be scored at a point of the history, unless that has been done."""
        if point.number < len(self.rows):
            if self.rows[point.number]["snapshot"] != point.digest:
                raise ValueError(f"{self._work} follows another history: remove it to start afresh")
            return
        best = self._history.best(point.number)
        version = self._version(point.number)
        if not (version / MANIFEST).is_file():
            collect.run(
                self._layout,
                self._params.model_copy(update={"datasets": {}}),  # whose actors and numbers are of other datasets
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
        measured = self._learn(latest, first, point.number)
        assert self._network is not None
        policy = EpsilonGreedy(q_function(self._network, exact(self._compute.device)), self._params.evaluation.epsilon)
        contestant = Contestant(f"student of {self._game}", self._game, self._params.environment, policy)
        episodes = self._history.protocol["episodes"]
        reached = mean_return(played(contestant, self._params, "follow", self._seed, episodes))
        returns = {"teacher_return": point.scored, "best_return": best.scored, "student_return": reached}
        mark(f"follow {self._game}-{self._seed}", point.steps, returns)
        self.rows.append(
            {
                "point": point.number,
                "steps": point.steps,
                "frames": point.steps * self._params.environment.frame_skip,
                **returns,
                "best_steps": best.steps,
                **{key: measured[key] for key in MEASURES},
                "snapshot": point.digest,
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

    def _learn(self, versions: Sequence[Dataset], first: int, number: int) -> dict[str, float]:
        """Go on learning from these versions, of which `first` is the first; returns what held-out episodes say.

        A version's held-out episodes are the same at every point: what has been learned from once is never measured on.
        """
        source = Joined(versions)
        begins = np.cumsum([0, *(len(version) for version in versions)])
        splits = [
            split_episodes(version, self._config.held_out, self._seed * settings.MOST_POINTS + first + index)
            for index, version in enumerate(versions)
        ]
        split = Split(
            *(
                np.concatenate([part + begin for part, begin in zip(parts, begins, strict=False)])
                for parts in zip(*splits, strict=True)
            )
        )
        student = Student(
            self._config,
            self._variant.objective(),
            settings.network(self._variant.network),
            [source],
            self._variant.updates,
            self._compute,
            self._seed * settings.MOST_POINTS + number,
            start=self._network,
            splits={self._game: split},
        )
        if self._optimizer is not None:
            student.optimizer.load_state_dict(self._optimizer)
        title = f"distill {self._game}-{self._seed} at point {number}"
        with closing(show(train(student), title, ("loss", "kl", "agreement"), learning=True)) as progress:
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
                "settings": {"preset": self._variant.preset, **self._config.settings()},
                "recipe": self._told.recipe,
            },
        )
