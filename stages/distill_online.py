"""distill-online: a student follows the best policy so far of a teacher that is still learning, or of one that was recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pipeline.agents.checkpoints import CARD, load_card, save_agent
from pipeline.agents.device import learning, name_of, pick_device, prepare_to_learn
from pipeline.agents.networks import QNetwork, place
from pipeline.atari.envs import fingerprint
from pipeline.atari.games import find_game
from pipeline.cores import core_count
from pipeline.datasets.compare import differing
from pipeline.datasets.mix import Joined
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.schema import MANIFEST
from pipeline.distill.offline import MEASURES, DistillConfig, Student
from pipeline.report.online import RETURNS
from stages import collect
from stages import params as settings
from stages.cluster import cluster
from stages.current import WATCHING, followed, made_with
from stages.distill import RECIPE as DISTILL_RECIPE
from stages.distill import learn, take_up
from stages.history import History, Point, live, work_folder
from stages.paths import CURVE, Layout
from stages.publish import alone_in, load_state, replace_folder, replaced_file, resuming, save_state, write_csv
from stages.runlog import mark, say
from stages.score_online import INDEX, Spent, episodes, is_kept, is_published, mean_returns, score_more

CHECKPOINT: Final = "checkpoint.pt"
DROPPED: Final = "dropped"
"""Where a folder goes before it is removed."""
RECIPE = 1
"""Bump when what this stage does changes (ARCHITECTURE.md, recipes); its parts are pinned as collect's and distill's."""


def run(layout: Layout, params: settings.Params, game: str, seed: int, device_name: str, *, replay: bool) -> Path:
    """Follow the teacher of `game` as it learns, or with `replay` its recorded history; returns data/online/GAME-SEED.

    Versions of the dataset, each labelled by the best policy at its time, become data/versions/GAME-SEED, with an index.csv;
    the student as it was at each point data/followers/GAME-SEED/NNN. What is there plays the episodes that its scores lack.
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
    made = made_with(params, game)
    if replay:
        _check_recorded(recorded, made, params.history[game].steps, f"train-history --game {game} --seed {seed}")
    decides = {
        "online": told.following() | {"recipe": told.recipe},
        "variant": variant.model_dump(),
        "preset": {key: value for key, value in config.settings().items() if key not in WATCHING},
        "seed": seed,
        "made": made,
        "environment": fingerprint(game, params.environment),
    }
    begins = [making.name, *(point.digest for point in recorded.points[:1])]  # of a history that may go on, live and recorded
    works = [layout.work("distill-online", name, decides | {"history": begin}) for begin in begins]
    work = works[1 if replay else 0]
    if is_published(layout, params, recorded, game, seed, [folder.name for folder in works]):
        if is_kept(layout, name):
            return score_more(layout, params, recorded, game, seed, device_name)
        run = load_card(layout.online(name))["run"]
        work = next(folder for folder in works if folder.name == run)
        if not (work / CHECKPOINT).is_file():
            raise ValueError(
                f"{layout.online(name)} is there, made by these settings, but not {layout.followers(name)}, the student as it "
                f"was at each point: bring that from where it was made, or remove {layout.online(name)} to make all of it anew"
            )
    with ExitStack() as stack:
        stack.enter_context(alone_in(work))
        if replay:
            history, points = recorded, _walk(recorded)
        else:
            stack.enter_context(alone_in(making))
            history = History(making / "history")
            history.check_replaces(recorded, "follow it with --replay")
            points = live(params, game, seed, making, history, device_name)
        prepare_to_learn()
        follower = Follower(layout, params, game, seed, work, history, device_name)
        client = stack.enter_context(cluster(None, core_count()))
        scheduler = str(client.scheduler_info()["address"])
        with closing(points):
            for point in points:
                follower.follow(point, scheduler)
        follower.finish(work / "publish", scheduler)
        if not replay:
            history.publish(layout.history(name), made)
        _publish(layout, name, work)
        say(f"published {layout.online(name) / CARD}")
        return layout.online(name)


def _publish(layout: Layout, name: str, work: Path) -> None:
    """Copy what is made to where it belongs, the student last. What is in `work` stays: a longer history goes on from it."""
    copy = work / "copy"
    targets = {"versions": layout.versions(name), "followers": layout.followers(name), "publish": layout.online(name)}
    for made, target in targets.items():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(work / made, copy)
        replace_folder(copy, target)


def _check(variant: settings.StudentParams, name: str, game: str) -> None:
    """ValueError, before anything dear is done, where a variant cannot follow."""
    settings.check_recipe(f"students.{name}", variant.recipe, DISTILL_RECIPE)
    settings.network(variant.network)
    if variant.feature_weight or variant.begins_with or variant.frozen or variant.play_episodes:
        raise ValueError(
            f"student {name} cannot follow: leave out feature_weight, begins_with, frozen and play_episodes, for distill"
        )
    if unknown := sorted(variant.temperatures.keys() - {game}):
        raise ValueError(f"students.{name}.temperatures name {', '.join(unknown)}, the game is {game}: leave them out")


def _check_recorded(recorded: History, made: Mapping[str, Any], steps: int, command: str) -> None:
    """ValueError if there is no record, or one of other settings than these, or of fewer steps."""
    if not recorded.points:
        raise ValueError(f"{recorded.folder} has no history: run `pd-pipeline {command}`")
    if not recorded.made:
        raise ValueError(f"{recorded.folder} does not tell how it was made: run `pd-pipeline {command}` to record it again")
    if others := [f"{name} {then}, not {now}" for name, now, then in differing(made, recorded.made)]:
        raise ValueError(
            f"{recorded.folder} was made with {', '.join(others)}: set params.yaml back, "
            f"or run `pd-pipeline {command}` to record another"
        )
    if (there := recorded.points[-1].steps) < steps:
        raise ValueError(
            f"{recorded.folder} has {there:,} of {steps:,} steps: run `pd-pipeline {command}` to go on, or set params.yaml back"
        )


def _walk(history: History) -> Generator[Point, None, None]:
    yield from history.points


class Follower:
    """The student's resumable state: network and optimiser after the last point, a row per point, and one per episode there.
    A row without returns is of a point that is yet to be scored, one without a dataset of a point where the student rested.

    At a point the policy that did best on the seeds that choose labels a new version of the dataset; the student goes on
    learning from the versions of that policy, or rests if it has already; it and the teacher are scored on seeds that chose
    nobody. After the last point the final best labels one more version, for the student's last updates.
    """

    def __init__(
        self, layout: Layout, params: settings.Params, game: str, seed: int, work: Path, history: History, device_name: str
    ) -> None:
        self._layout, self._params, self._game, self._seed = layout, params, game, seed
        self._work, self._history = work, history
        self._told: settings.OnlineParams = params.online[game]
        self._variant: settings.StudentParams = params.students[self._told.student]
        self._config: DistillConfig = params.presets[self._variant.preset]
        self._device = device_name
        self._compute = learning(pick_device(device_name), self._config.precision)
        self._network: QNetwork | None = None
        self._optimizer: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []
        self._returns: list[dict[str, Any]] = []
        shutil.rmtree(work / DROPPED, ignore_errors=True)
        self._spent = Spent(work)
        state = load_state(work / CHECKPOINT)
        if state is not None:
            with resuming(work / CHECKPOINT):
                self.rows, self._returns, self._optimizer = state["rows"], state["returns"], state["optimizer"]
                self._network = place(QNetwork(settings.network(self._variant.network), state["heads"]), self._compute.device)
                self._network.load_state_dict(state["network"])
            say(f"resuming {game} after {len(self.rows)} points")

    def follow(self, point: Point, scheduler: str) -> None:
        """Collect, learn and be scored at a point of the history, as far as that has not been done."""
        if point.number == len(self.rows):
            self._learn_at(point, scheduler)
        row = self.rows[point.number]
        if (row["snapshot"], row["labelled_by"]) != (point.digest, self._history.best(point.number).digest):
            raise self._another()
        if sum(told["point"] == point.number for told in self._returns) == self._told.score_episodes:
            return
        with self._spent.on(f"scoring {point.number}"):
            returns = self._score(point, row["best_point"])
        row |= returns | {"seconds_scoring": self._spent.told(f"scoring {point.number}")}
        self._save()
        mark(f"follow {self._game}-{self._seed}", point.steps, returns)
        told = ", ".join(f"{who.removesuffix('_return')} {value:.2f}" for who, value in returns.items())
        say(f"{self._game} at {point.steps:,} steps: {told}")

    def _another(self) -> ValueError:
        return ValueError(f"{self._work} follows another history: remove it to start afresh")

    def _learn_at(self, point: Point, scheduler: str) -> None:
        """Collect and learn, unless the student rests, and begin the point's row."""
        best = self._history.best(point.number)
        version = None
        if (learned := self._learned_from(best)) and self._told.rests:
            measured = self.rows[-1]
            if self._version(point.number).exists():  # the last one of a shorter history
                self._drop(self._version(point.number))
        else:
            with self._spent.on(f"collecting {point.number}"):
                version = self._collect(point.number, best, self._told.states, scheduler)
            with self._spent.on(f"distilling {point.number}"):
                measured = self._learn(best, point.number, self._variant.updates)
        follower = self._keep(point, version or open_dataset(self._version(learned[-1])))
        self.rows.append(
            {
                "point": point.number,
                "steps": point.steps,
                "frames": point.steps * self._params.environment.frame_skip,
                **dict.fromkeys(("teacher_return", "student_return", "best_return")),
                "best_point": best.number,
                **{key: measured[key] for key in MEASURES},
                "snapshot": point.digest,
                "labelled_by": best.digest,
                "dataset": version.manifest.digest if version else "",
                "follower": follower,
                "seconds_learning": point.seconds_learning,
                "seconds_selecting": point.seconds_selecting,
                **{f"seconds_{what}": self._spent.told(f"{what} {point.number}") for what in ("collecting", "distilling")},
            }
        )
        self._save()
        self._forget_updates()

    def _save(self) -> None:
        assert self._network is not None
        state = {
            "rows": self.rows,
            "returns": self._returns,
            "heads": self._network.actions,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer,
        }
        save_state(self._work / CHECKPOINT, state)

    def _follower(self, point: Point) -> Path:
        return self._work / "followers" / f"{point.number:03}"

    def _keep(self, point: Point, version: Dataset) -> str:
        """The student as it is at a point: whoever wants more episodes of it need not make it again. Returns its digest."""
        assert self._network is not None
        manifest = version.manifest
        card = {
            "role": "snapshot",
            "game": self._game,
            "environment": manifest.environment,
            "teacher": manifest.teacher,
            "variant": self._told.student,
            "objective": asdict(self._variant.objective()),
            "steps": point.steps,
            "seed": self._seed,
        }
        return str(save_agent(self._follower(point), self._network, card)["digest"])

    def _forget_updates(self) -> None:
        """What a stopped run would have gone on from within a point, whose network is kept by now."""
        for path in self._work.glob("learning-*.pt"):
            path.unlink()

    def _version(self, number: int) -> Path:
        return self._work / "versions" / f"{number:03}"

    def _collect(self, number: int, best: Point, states: int, scheduler: str) -> Dataset:
        """Version `number` of the dataset, played and labelled by `best`, unless it is there. A run that was stopped in its
        last updates, and whose teacher then had more steps to learn, has left another, or the beginning of one.
        """
        version = self._version(number)
        if (version / MANIFEST).is_file():
            made = open_dataset(version)
            if (made.manifest.teacher["digest"], made.manifest.states) == (best.digest, states):
                return made
            self._drop(version)
        asked, wanted = version.parent / f".work/{version.name}.json", [best.digest, states]
        if not asked.is_file() or json.loads(asked.read_text()) != wanted:
            for begun in asked.parent.glob(f"collect/{version.name}-*"):
                self._drop(begun)
            asked.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(asked) as part:
                part.write_text(json.dumps(wanted))
        collect.run(
            self._layout,
            self._params.model_copy(update={"datasets": {}}),  # whose actors and numbers are of other datasets
            game=self._game,
            dataset=None,
            states=states,
            episodes=None,
            epsilon=self._told.epsilon,
            seed=number,
            actor=None,
            labels_from=self._history.agent(best),
            workers=None,
            scheduler=scheduler,
            out=str(version),
            licence=None,
            dry_run=False,
        )
        return open_dataset(version)

    def _drop(self, folder: Path) -> None:
        """Remove a folder, by a rename first: killed half way, nothing is left that looks like a whole one."""
        dropped = self._work / DROPPED
        shutil.rmtree(dropped, ignore_errors=True)
        folder.rename(dropped)
        shutil.rmtree(dropped)

    def _learned_from(self, best: Point) -> list[int]:
        """The numbers of the versions that this policy has labelled."""
        return [row["point"] for row in self.rows if row["best_point"] == best.number and row["dataset"]]

    def _learn(self, best: Point, latest: int, updates: int) -> dict[str, float]:
        """Go on learning from the last `window` versions, up to the latest, that this policy has labelled, a whole schedule of
        the preset's; returns what held-out episodes say.

        A version's held-out episodes are the same at every point: what has been learned from once is never measured on.
        """
        earlier = self._learned_from(best)
        numbers = [*earlier, latest][-self._told.window :]
        shrink = 1.0 if earlier else self._told.shrink
        versions = [open_dataset(self._version(number), check_files=True) for number in numbers]
        first = self._seed * (settings.MOST_POINTS + 1)
        joined = Joined(versions)
        student = Student(
            self._config,
            self._variant.objective(),
            settings.network(self._variant.network),
            [joined],
            updates,
            self._compute,
            first + numbers[-1],
            start=self._network,
            shrink=shrink,
            splits={self._game: joined.split(self._config.held_out, [first + number for number in numbers])},
        )
        if self._optimizer is not None and shrink == 1:
            student.load_optimizer(self._optimizer)
        watching = "-".join(str(self._config.settings()[name]) for name in WATCHING)  # in what order states come depends on it
        version = joined.parts[-1].manifest.digest[:12]
        checkpoint = self._work / f"learning-{version}-{len(numbers)}-{updates}-{watching}.pt"
        take_up(student, checkpoint, f"{self._game} at point {numbers[-1]}")
        learn(student, checkpoint, f"distill {self._game}-{self._seed} at point {numbers[-1]}")
        self._network, self._optimizer = student.network, student.optimizer.state_dict()
        return student.curve[-1]

    def _score(self, point: Point, best: int) -> dict[str, float]:
        """Play what a point lacks of episodes: the mean returns there, and of the teacher that was the `best`."""
        agents = self._history.agent(point), self._follower(point)
        here = episodes(self._layout, self._params, self._game, self._seed, point, *agents, self._returns, self._device)
        others = [row for row in self._returns if row["point"] != point.number]
        self._returns = sorted([*others, *here], key=lambda row: int(row["point"]))
        return mean_returns(here, point.number) | {"best_return": mean_returns(self._returns, best)["teacher_return"]}

    def finish(self, folder: Path, scheduler: str) -> None:
        """Learn for the last time, unless the card in `folder` says that it has been done, and write the tables beside it."""
        number, best = len(self.rows), self._history.best(len(self.rows))
        if number != len(self._history.points):
            raise self._another()
        card = load_card(folder) if (folder / CARD).is_file() else {}
        if not card or (card.get("points"), card["teacher"]["digest"]) != (number, best.digest):
            self._learn_last(folder, scheduler)
        final = open_dataset(self._version(number)).manifest.digest
        write_csv(self._work / "versions" / INDEX, self._index(final))
        write_csv(folder / CURVE, self.rows)
        write_csv(folder / RETURNS, self._returns)

    def _learn_last(self, folder: Path, scheduler: str) -> None:
        number, best = len(self.rows), self._history.best(len(self.rows))
        version = self._collect(number, best, self._told.final_states, scheduler)
        measured = self._learn(best, number, self._told.final_updates)
        assert self._network is not None
        labelled = sum(bool(row["dataset"]) for row in self.rows)
        shutil.rmtree(self._work / "versions/.work", ignore_errors=True)
        save_agent(
            folder,
            self._network,
            {
                "role": "student",
                "game": self._game,
                "environment": version.manifest.environment,
                "teacher": version.manifest.teacher,
                "variant": self._told.student,
                "seed": self._seed,
                "objective": asdict(self._variant.objective()),
                "updates": self._variant.updates * labelled + self._told.final_updates,
                "points": number,
                "versions": labelled + 1,
                "following": followed(self._params, self._game),
                "run": self._work.name,
                "held_out": {key: measured[key] for key in MEASURES},
                "settings": {"preset": self._variant.preset, **self._config.settings()},
                "device": name_of(self._compute.device),
                "precision": self._compute.precision,
                "recipe": self._told.recipe,
            },
        )
        self._forget_updates()

    def _index(self, final: str) -> list[dict[str, Any]]:
        """Which snapshot labelled each version, a row each; `final` is the digest of the last version."""
        number, points = len(self.rows), self._history.points
        labelled = [(row["point"], points[row["best_point"]], row["dataset"]) for row in self.rows if row["dataset"]]
        return [
            {
                "version": self._version(version).name,
                "snapshot": best.number,
                "steps": best.steps,
                "return": best.selected,
                "snapshot_digest": best.digest,
                "dataset_digest": dataset,
            }
            for version, best, dataset in [*labelled, (number, self._history.best(number), final)]
        ]
