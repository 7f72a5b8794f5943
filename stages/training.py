"""A run that learns from reward: evaluated and saved on the way, resumed by the same command, gone on from by another."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.agents.checkpoints import CARD, load_agent, load_card, save_agent
from pipeline.atari.envs import EnvConfig
from pipeline.datasets.compare import differing
from pipeline.progress import Progress
from pipeline.report.scores import read_curve
from pipeline.rl.learner import Learner
from pipeline.rl.multitask import MultitaskLearner
from stages.paths import CURVE
from stages.publish import load_state, replace_folder, resuming, save_state, write_csv
from stages.runlog import mark, saved_when_stopped, say, show
from stages.versions import code_version

CHECKPOINT_EVERY_SECONDS: Final = 120.0
CURVE_POINTS: Final = 100


class Training(ABC):
    """A run's resumable state in one file: the learner, the best snapshot so far, and the curve.

    `kind` is what two runs have in common where one may go on from the other, `title` what is shown while it learns, `unit`
    what its steps are called, each in this `environment`. The weights are evaluated every `select_every` steps; those of the
    best `worth` are kept.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        title: str,
        learner: Learner | MultitaskLearner,
        select_every: int,
        environment: EnvConfig,
        unit: str = "steps",
    ) -> None:
        self.path, self.kind, self.title, self.learner, self.unit = path, kind, title, learner, unit
        self.frame_skip, self._every = environment.frame_skip, select_every
        self._environment = asdict(environment)
        self._metrics: Mapping[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        self.best, self.best_steps = float("-inf"), 0
        self.best_returns: dict[str, float] = {}
        self.best_weights: dict[str, torch.Tensor] = {}
        self.sittings: list[dict[str, Any]] = []
        self._origin: dict[str, str] = {}
        self._earlier = self._seconds = 0.0
        self._started = self._saved = time.monotonic()

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """The mean return in each game of the weights as they are, on the episodes that choose."""

    @abstractmethod
    def worth(self, returns: Mapping[str, float]) -> float:
        """By what the best snapshot is chosen."""

    @abstractmethod
    def row(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What a row of the curve tells beside steps, seconds and evaluations."""

    @abstractmethod
    def evaluated(self, returns: Mapping[str, float]) -> dict[str, float]:
        """What an evaluation adds to the row of its step: columns whose names begin with `eval_return`, and others."""

    @abstractmethod
    def take_over(self, weights: Mapping[str, torch.Tensor], steps: int, latest: Mapping[str, Any]) -> None:
        """Begin the learner with an agent's weights, which took so many steps; `latest` is the last row of its curve."""

    def told(self, returns: Mapping[str, float]) -> str:
        """An evaluation in words."""
        return ", ".join(f"{game} {value:.2f}" for game, value in returns.items())

    def start(self, begin: Path | None, setting: str) -> None:
        """Take over what was saved, else `begin`, a folder or a checkpoint. ValueError if that is of another kind, or if more
        steps are done than the budget, which is called `setting`, would have let there be.
        """
        source = f"the unfinished run in {self.path.parent}"
        if self._resume(self.path):
            say(f"resuming {self.title} at {self.learner.steps:,} {self.unit} from {self.path.parent}")
        elif begin is not None:
            self._begin_from(begin)
            source = str(begin)
            say(f"beginning {self.title} at {self.learner.steps:,} {self.unit} from {begin}")
        if self.learner.beyond:
            raise ValueError(
                f"{source} is at {self.learner.steps:,} {self.unit}, beyond {setting} = {self.learner.budget:,}: "
                f"raise that, or start afresh without it"
            )

    def _resume(self, path: Path) -> bool:
        """Take over what was saved at `path`, if anything was. ValueError if that was a run of another kind, or in another
        environment, of which a replay may be full.
        """
        state = load_state(path)
        if state is None:
            return False
        if "kind" not in state:
            raise ValueError(f"{path} is no checkpoint of a training: begin from the checkpoint.pt of one")
        if state["kind"] != self.kind:
            raise ValueError(f"{path} is of a run of {state['kind']}, not of {self.kind}: begin from one like it")
        theirs = state.get("environment", self._environment)  # older ones do not tell
        if others := [f"{name} {then}, not {now}" for name, now, then in differing(self._environment, theirs)]:
            raise ValueError(f"{path} learned with {', '.join(others)}: begin from a --snapshot of it, which is but weights")
        with resuming(path):
            self.learner.load_state_dict(state["learner"])
            self.curve, self.sittings = state["curve"], state["history"]
            self.best, self.best_steps, self.best_returns = state["best"], state["best_steps"], state["best_returns"]
            self.best_weights = state["best_weights"]
            self._seconds, self._earlier = state["seconds"], state["earlier"]
        return True

    def save(self) -> None:
        state = {
            "kind": self.kind,
            "environment": self._environment,
            "learner": self.learner.state_dict(),
            "curve": self.curve,
            "history": self.sittings,
            "best": self.best,
            "best_steps": self.best_steps,
            "best_returns": self.best_returns,
            "best_weights": self.best_weights,
            "seconds": self.seconds(),
            "earlier": self._earlier,
        }
        save_state(self.path, state)
        self._saved = time.monotonic()

    def _begin_from(self, start: Path) -> None:
        """Take over what an agent or another run has learned and its curve, but not its best snapshot, whose evaluation may
        have been another, nor its time. ValueError if that is of another kind.
        """
        if (start / CARD).is_file():
            self._begin_with(start)
        elif start.is_dir() or not self._resume(start):
            raise ValueError(
                f"{start} is not there or holds no agent: --from wants the folder of one, "
                f"or the checkpoint.pt of an unfinished run in {self.path.parents[1]}"
            )
        self.best, self.best_steps, self.best_returns, self.best_weights = float("-inf"), 0, {}, {}
        self._earlier, self._seconds = self._earlier + self._seconds, 0.0

    def _begin_with(self, start: Path) -> None:
        """Take over a published agent, or a snapshot."""
        agent = load_agent(start, torch.device("cpu"))
        card = agent.card
        kind = run_kind(card.get("games", card.get("game")), card.get("algorithm"), card["network"])
        if kind != self.kind:
            raise ValueError(f"{start} is {kind}, not {self.kind}: begin from one like it")
        for game, few in self.learner.result.actions.items():
            if (many := agent.network.actions[game]) != few:
                raise ValueError(f"{start} chooses among {many} actions, here there are {few}: begin from one like it")
        steps = int(card.get("steps", 0))
        self.curve = [row for row in _read_curve(start / CURVE) if row["steps"] <= steps]
        latest = self.curve[-1] if self.curve else {}
        self.take_over(agent.network.state_dict(), steps, latest)
        self.sittings = list(card.get("history", []))
        self._origin = {"begins_with": agent.digest}
        self._seconds = float(latest.get("seconds", 0.0))

    def begin_sitting(self, chosen: dict[str, Any]) -> None:
        """Remember from which step on the budget, the settings or the code are these, or another's weights were begun with."""
        chosen = {**chosen, "code": code_version()}
        before = {k: v for k, v in self.sittings[-1].items() if k in chosen} if self.sittings else None
        if before != chosen or self._origin:
            self.sittings.append({"from": self.learner.steps, **self._origin, **chosen})

    def learn(self, train: Callable[[], Iterator[Progress]], shown: tuple[str, ...]) -> None:
        """Go on with `train` until the budget is spent, evaluating and saving on the way and at the end."""
        with saved_when_stopped(self.save, lambda: f"{self.learner.steps:,} {self.unit}"):
            if self._selection_due():
                self._select()  # an evaluation that the last sitting did not finish
            if not self.spent():
                with closing(show(train(), f"train {self.title}", shown, learning=True)) as progress:
                    for p in progress:
                        self._follow(p)
                        if self.spent():
                            break
            if self._evaluated_steps < self.learner.steps or not self.best_weights:
                self._select()

    def spent(self) -> bool:
        """Whether the budget is spent."""
        return self.learner.steps >= self.learner.budget

    def _follow(self, p: Progress) -> None:
        """After some steps: a point of the curve, an evaluation, a checkpoint, as they are due."""
        self._metrics = p.metrics
        if not self.curve or p.done >= self.curve[-1]["steps"] + p.total // CURVE_POINTS:
            self._add_point({})
        if self._selection_due():
            self._select()
        elif time.monotonic() - self._saved > CHECKPOINT_EVERY_SECONDS:
            self.save()

    def _selection_due(self) -> bool:
        """Whether it is time for an evaluation that may choose these weights."""
        return self.learner.steps >= (self._evaluated_steps // self._every + 1) * self._every

    @property
    def _evaluated_steps(self) -> int:
        """Steps at the last evaluation, 0 before the first of this run."""
        if not self.best_weights:
            return 0
        rows = (row for row in reversed(self.curve) if any(row[c] != "" for c in row if c.startswith("eval_return")))
        return next((int(row["steps"]) for row in rows), 0)

    def _select(self) -> None:
        """Evaluate the weights as they are, for the curve, and keep them if they are the best so far. Saved before as well: an
        evaluation may take longer than what has been learned since the last checkpoint.
        """
        self.save()
        returns = self.evaluate()
        worth, steps = self.worth(returns), self.learner.steps
        evaluated = {name: round(value, 3) for name, value in self.evaluated(returns).items()}
        self._add_point(evaluated)
        mark(f"train {self.title}", steps, evaluated)
        if worth > self.best:
            self.best, self.best_steps, self.best_returns = worth, steps, returns
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.learner.result.state_dict().items()}
        self.save()
        best = f"best so far {self.told(self.best_returns)}" if steps != self.best_steps else "the best so far"
        say(f"{self.title} at {steps:,} {self.unit}: mean return {self.told(returns)}; {best}")

    def _add_point(self, evaluated: Mapping[str, float]) -> None:
        """One row of the curve; an evaluation joins the row of its step."""
        steps = self.learner.steps
        row = {"steps": steps, **self.row(self._metrics), "seconds": round(self.all_seconds(), 1), **evaluated}
        if self.curve and self.curve[-1]["steps"] == steps:
            row = self.curve.pop() | {k: v for k, v in row.items() if v != ""}
        self.curve.append(row)

    def seconds(self) -> float:
        """Wall time of all sittings of this run."""
        return self._seconds + time.monotonic() - self._started

    def all_seconds(self) -> float:
        """Wall time of this run and of those that it was begun from."""
        return self._earlier + self.seconds()

    def facts(self, steps: int) -> dict[str, Any]:
        """What a card says of the run that brought these weights, which have taken so many steps."""
        return {
            "steps": steps,
            "frames": steps * self.frame_skip,
            "steps_trained": self.learner.steps,
            "history": self.sittings,
            "code": code_version(),
        }

    def publish_snapshot(self, target: Path, facts: Mapping[str, Any]) -> Path:
        """Publish an unfinished run's latest weights, to go on from where its `.work` is not. ValueError if there is none."""
        if target.exists() and not ((target / CARD).is_file() and load_card(target).get("role") == "snapshot"):
            raise ValueError(f"{target} holds something that is not a snapshot: choose another --snapshot or empty it")
        if not self._resume(self.path):
            raise ValueError(f"there is no unfinished run in {self.path.parent}: train first")
        steps = self.learner.steps
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        save_agent(part, self.learner.result, {"role": "snapshot", **facts, **self.facts(steps)})
        write_csv(part / CURVE, self.curve)
        replace_folder(part, target)
        say(f"published {target / CARD}: a snapshot at {steps:,} {self.unit}, that has passed no gate")
        return target


def run_kind(games: object, algorithm: object, network: object) -> str:
    """What two trainings have in common where one may go on from the other."""
    named = ", ".join(sorted(games)) if isinstance(games, Mapping) else str(games)  # a card has them in this order
    return f"{named}, {algorithm}, network {network}"


def _read_curve(path: Path) -> list[dict[str, Any]]:
    """The rows of a published curve, none where it has none. ValueError if it is not one."""
    if not path.is_file():
        return []
    rows = read_curve(path)
    try:
        return [row | {"steps": int(row["steps"])} for row in rows]
    except (KeyError, ValueError):
        raise ValueError(f"{path} is not the curve of a training: remove it to go on without") from None
