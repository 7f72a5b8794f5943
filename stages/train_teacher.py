"""train-teacher: learn a game from reward, keep the best snapshot, and publish it only if it passes its gate."""

from __future__ import annotations

import csv
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from pipeline.agents.checkpoints import CARD, digest, load_agent, load_card, save_agent
from pipeline.agents.device import exact, keep_freed_memory
from pipeline.agents.networks import QNetwork, place
from pipeline.agents.policies import EpsilonGreedy, q_function
from pipeline.atari.envs import VectorWorld, action_meanings, fingerprint
from pipeline.atari.games import find_game
from pipeline.datasets.folders import Folder
from pipeline.progress import Progress
from pipeline.rl.learner import Learner
from stages import params as settings
from stages.contest import Contestant, Notes, mean_return, played, record
from stages.paths import Layout
from stages.publish import alone_in, check_target, load_state, replace_folder, save_state, write_csv
from stages.runlog import duration, mark, saved_when_stopped, say, show
from stages.versions import code_version

CURVE = "curve.csv"
CHECKPOINT_EVERY_SECONDS = 120.0
CURVE_POINTS = 100
SHOWN = (
    "refilled",
    "return",
    "loss",
    "q",
    "epsilon",
    *(f"seconds_{part}" for part in ("environment", "forward", "update", "play")),
)


RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""


def run(
    layout: Layout,
    params: settings.Params,
    game: str,
    *,
    device_name: str,
    start: Path | None,
    minutes: float | None,
    seed: int | None,
    out: Path | None,
    snapshot: Path | None,
) -> Path:
    """Train or go on training the teacher of `game`; returns the published folder.

    `start` is a teacher, or the checkpoint of a run with other settings, to begin from; the card's history tells of both.
    `minutes` is a budget of training time beside the one of steps, whichever ends first. `seed` and `out` make a second teacher
    of the game. `snapshot` only publishes there what an unfinished run has learned, without a gate; it may be running.
    """
    game = find_game(game).name
    teacher: settings.TeacherParams = settings.pick(params.teachers, game, "teacher")
    if seed is not None and seed != teacher.seed:
        if out is None:
            raise ValueError(f"seed {seed} would replace the teacher of {game} by another: say where it goes with --out")
        teacher = teacher.model_copy(update={"seed": seed})
    preset: settings.TeacherPreset = settings.pick(params.teacher_presets, teacher.preset, "teacher preset")
    settings.check_recipe(f"teachers.{game}", teacher.recipe, RECIPE)
    environment = fingerprint(game, params.environment)
    # A larger budget or another gate goes on from the same checkpoint; anything else is another run.
    decides = {
        "teacher": teacher.model_dump(exclude={"steps", "gate_return", "gate_episodes"}),
        "preset": preset.model_dump(exclude_none=True),
        "environment": environment,
        "epsilon": params.evaluation.epsilon,
    }
    target = out or layout.teacher(game)
    check_target(Folder(target), CARD, "a teacher")
    if out is not None:
        if (target / CARD).exists() and (theirs := load_card(target).get("game")) != game:
            raise ValueError(f"{target} holds a teacher of {theirs}: choose another --out")
        layout = Layout(root=target.resolve().parent, zoo=layout.zoo)
    work = layout.work("train-teacher", game, decides)
    compute = preset.compute(device_name)
    heads = {game: len(action_meanings(game, params.environment))}
    learner = preset.learner(teacher.steps, settings.network(teacher.network), heads, compute, teacher.seed)
    time_budget = 60 * minutes if minutes else math.inf
    kind = f"{game}, {preset.algorithm}, network {teacher.network}"
    state = _Run(work / "checkpoint.pt", kind, learner, teacher, params.environment.frame_skip, time_budget)
    chosen = {"preset": teacher.preset, **preset.settings()}
    facts = {"settings": chosen, "environment": environment}
    if snapshot is not None:
        return _snapshot(state, snapshot, {**facts, "game": game, "algorithm": preset.algorithm})
    with alone_in(work):
        keep_freed_memory()
        if state.resume(state.path):
            say(f"resuming {game} at {learner.tally.steps:,} steps from {work}")
        elif start is not None:
            state.begin_from(start)
            say(f"beginning {game} at {learner.tally.steps:,} steps from {start}")
        if learner.beyond:
            raise ValueError(
                f"the unfinished run in {work} is at {learner.tally.steps:,} steps, "
                f"beyond teachers.{game}.steps = {teacher.steps:,}: raise that, or remove the folder to start afresh"
            )
        state.begin_sitting({"budget": teacher.steps, "settings": chosen})
        _learn(params, game, state, f"train {out.name if out else game}", seed_once=bool(preset.seed_once))
        if learner.tally.steps < teacher.steps:
            say(f"stopped learning at {learner.tally.steps:,} of {teacher.steps:,} steps: the time is spent")
        best, evaluation = _pass_gate(params, game, state, work)

        folder = work / "publish"
        card = save_agent(
            folder,
            best,
            {
                "role": "teacher",
                "game": game,
                "algorithm": preset.algorithm,
                "evaluation": evaluation,
                **facts,
                **state.facts(state.best_steps),
            },
        )
        write_csv(folder / CURVE, state.curve)
        replace_folder(folder, target)
        shutil.rmtree(work)  # so that the next run trains anew
        reached = f"mean return {evaluation['mean_return']:.2f}"
        say(f"published {target / CARD}: {reached}, digest {card['digest'][:12]}, {duration(state.all_seconds())} of training")
        return target


def _read_curve(path: Path) -> list[dict[str, Any]]:
    """The rows of a published curve, none where it has none. ValueError if it is not one."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [row | {"steps": int(row["steps"])} for row in rows]
    except (KeyError, ValueError):
        raise ValueError(f"{path} is not the curve of a teacher: remove it to go on without") from None


def _snapshot(state: _Run, target: Path, facts: dict[str, Any]) -> Path:
    """Publish an unfinished run's latest weights, to go on from where its `.work` is not. ValueError if there is none."""
    if target.exists() and not ((target / CARD).is_file() and load_card(target).get("role") == "snapshot"):
        raise ValueError(f"{target} holds something that is not a snapshot: choose another --snapshot or empty it")
    if not state.resume(state.path):
        raise ValueError(f"there is no unfinished run in {state.path.parent}: train first")
    steps = state.learner.tally.steps
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    save_agent(part, state.learner.result, {"role": "snapshot", **facts, **state.facts(steps)})
    write_csv(part / CURVE, state.curve)
    replace_folder(part, target)
    say(f"published {target / CARD}: a snapshot at {steps:,} steps, that has passed no gate")
    return target


def _learn(params: settings.Params, game: str, state: _Run, title: str, *, seed_once: bool) -> None:
    """Spend the budget of steps or of time, evaluating and checkpointing on the way and at the end."""
    learner = state.learner
    policy = EpsilonGreedy(q_function(learner.result, learner.compute), params.evaluation.epsilon)
    contestant = Contestant(f"teachers/{game}", game, params.environment, policy)

    def select() -> None:
        evaluated = mean_return(played(contestant, params, "select", state.teacher.seed, state.teacher.select_episodes))
        state.offer(evaluated)
        mark(title, learner.tally.steps, {"eval_return": evaluated})
        state.save()
        say(f"{game} at {learner.tally.steps:,} steps: mean return {evaluated:.2f} (best {state.best_return:.2f})")

    with saved_when_stopped(state.save, lambda: f"{learner.tally.steps:,} steps"):
        if state.selection_due():
            select()  # an evaluation that the last sitting did not finish
        if not state.spent():
            world = VectorWorld(game, params.environment, width=learner.envs, seed_once=seed_once)
            with closing(show(state.until_spent(learner.train(world)), title, SHOWN, learning=True)) as progress:
                for _ in progress:
                    if state.selection_due():
                        select()
                    elif state.checkpoint_due():
                        state.save()
        if state.evaluated_steps < learner.tally.steps or not state.best_weights:
            select()


def _pass_gate(params: settings.Params, game: str, state: _Run, work: Path) -> tuple[QNetwork, dict[str, Any]]:
    """The best snapshot and its evaluation on fresh episodes, which are kept in `work` as they end.

    ValueError if that is below the gate; nothing is lost.
    """
    teacher = state.teacher
    device = state.learner.compute.device
    best = QNetwork(state.learner.result.spec, state.learner.result.actions)
    best.load_state_dict(state.best_weights)
    best = place(best, device).eval()
    policy = EpsilonGreedy(q_function(best, exact(device)), params.evaluation.epsilon)
    say(f"gate: {teacher.gate_episodes} fresh episodes of the best snapshot ({state.best_steps:,} steps)")
    contestant = Contestant(f"teachers/{game}", game, params.environment, policy)
    notes = Notes(work / f"gate-{digest(best)[:12]}.jsonl")
    episodes = played(contestant, params, "gate", teacher.seed, teacher.gate_episodes, notes)
    reached = mean_return(episodes)
    if reached < teacher.gate_return:
        budget = "--minutes" if state.learner.tally.steps < teacher.steps else f"teachers.{game}.steps"
        raise ValueError(
            f"{game} reached a mean return of {reached:.2f} over {len(episodes)} episodes, "
            f"its gate is {teacher.gate_return:g}: raise {budget} "
            f"(the run goes on from {state.learner.tally.steps:,}) or lower teachers.{game}.gate_return"
        )
    return best, record([e.episode_return for e in episodes], params)


class _Run:
    """A training run's resumable state in one file: the learner, the best snapshot so far, and the curve."""

    def __init__(
        self, path: Path, kind: str, learner: Learner, teacher: settings.TeacherParams, frame_skip: int, time_budget: float
    ) -> None:
        self.path, self.kind, self.learner, self.teacher = path, kind, learner, teacher
        self.frame_skip, self.time_budget = frame_skip, time_budget
        self._metrics: Mapping[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        self.best_return = float("-inf")
        self.best_steps = 0
        self.best_weights: dict[str, torch.Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self._origin: dict[str, str] = {}
        self._earlier = self._seconds = 0.0
        self._started = self._saved = time.monotonic()

    def resume(self, path: Path) -> bool:
        """Take over what was saved at `path`, if anything was. ValueError if that was a run of another kind."""
        state = load_state(path)
        if state is None:
            return False
        if "kind" not in state:
            raise ValueError(f"{path} is no checkpoint of a teacher's training: begin from the checkpoint.pt of one")
        if state["kind"] != self.kind:
            raise ValueError(f"{path} is of a run of {state['kind']}, not of {self.kind}: begin from one like it")
        self.learner.load_state_dict(state["learner"])
        self.curve, self.best_return, self.best_steps = state["curve"], state["best_return"], state["best_steps"]
        self.best_weights, self._seconds = state["best_weights"], state["seconds"]
        self.history, self._earlier = state["history"], state.get("earlier", 0.0)
        return True

    def begin_from(self, start: Path) -> None:
        """Take over what a teacher or another run has learned and its curve, but not its best snapshot, whose evaluation may
        have been another, nor its time. ValueError if that is of another kind.
        """
        if (start / CARD).is_file():
            self._begin_with(start)
        elif start.is_dir() or not self.resume(start):
            raise ValueError(
                f"{start} is not there or holds no teacher: --from wants a teacher's folder, "
                f"or the checkpoint.pt of an unfinished run in .work/train-teacher"
            )
        self.best_return, self.best_steps, self.best_weights = float("-inf"), 0, {}
        self._earlier, self._seconds = self._earlier + self._seconds, 0.0

    def _begin_with(self, start: Path) -> None:
        """Take over a published teacher, or a snapshot."""
        agent = load_agent(start, torch.device("cpu"))
        card = agent.card
        kind = f"{card.get('game')}, {card.get('algorithm')}, network {card['network']}"
        if kind != self.kind:
            raise ValueError(f"{start} is {kind}, not {self.kind}: begin from one like it")
        ours, theirs = self.learner.result, agent.network
        if ours.actions != theirs.actions:
            many, few = (next(iter(network.actions.values())) for network in (theirs, ours))
            raise ValueError(f"{start} chooses among {many} actions, here there are {few}: begin from one like it")
        steps = int(card.get("steps", 0))
        self.curve = [row for row in _read_curve(start / CURVE) if row["steps"] <= steps]
        latest = self.curve[-1] if self.curve else {}
        self.learner.begin_with(
            theirs.state_dict(), steps=steps, updates=int(latest.get("updates", 0)), episodes=int(latest.get("episodes", 0))
        )
        self.history = list(card.get("history", []))
        self._origin = {"begins_with": agent.digest}
        self._seconds = float(latest.get("seconds", 0.0))

    def begin_sitting(self, chosen: dict[str, Any]) -> None:
        """Remember from which step on the budget or the settings are these, or another's weights were begun with."""
        before = {k: v for k, v in self.history[-1].items() if k in chosen} if self.history else None
        if before != chosen or self._origin:
            self.history.append({"from": self.learner.tally.steps, **self._origin, **chosen})

    def facts(self, steps: int) -> dict[str, Any]:
        """What a card says of the run that brought these weights, which have taken so many steps."""
        return {
            "steps": steps,
            "frames": steps * self.frame_skip,
            "steps_trained": self.learner.tally.steps,
            "updates": self.learner.tally.updates,
            "history": self.history,
            "seed": self.teacher.seed,
            "recipe": self.teacher.recipe,
            "code": code_version(),
        }

    def save(self) -> None:
        state = {
            "kind": self.kind,
            "learner": self.learner.state_dict(),
            "curve": self.curve,
            "best_return": self.best_return,
            "best_steps": self.best_steps,
            "best_weights": self.best_weights,
            "history": self.history,
            "earlier": self._earlier,
            "seconds": self.seconds(),
        }
        save_state(self.path, state)
        self._saved = time.monotonic()

    def checkpoint_due(self) -> bool:
        return time.monotonic() - self._saved > CHECKPOINT_EVERY_SECONDS

    def seconds(self) -> float:
        """Wall time of all sittings of this run, which the budget of time bounds."""
        return self._seconds + time.monotonic() - self._started

    def all_seconds(self) -> float:
        """Wall time of this run and of those that it was begun from."""
        return self._earlier + self.seconds()

    def spent(self) -> bool:
        """Whether the budget of steps or that of time is spent."""
        return self.learner.tally.steps >= self.teacher.steps or self.seconds() >= self.time_budget

    def until_spent(self, progress: Iterator[Progress]) -> Iterator[Progress]:
        """Pass `progress` through, keeping its metrics and adding points to the curve, until a budget is spent."""
        next_point = int(self.curve[-1]["steps"]) + 1 if self.curve else self.learner.tally.steps
        for p in progress:
            self._metrics = p.metrics
            if p.done >= next_point:
                self._add_point(None)
                next_point = p.done + self.teacher.steps // CURVE_POINTS
            yield p
            if self.spent():
                return

    def selection_due(self) -> bool:
        """Whether it is time for an evaluation that may choose these weights: every `select_every` steps."""
        every = self.teacher.select_every
        return self.learner.tally.steps >= (self.evaluated_steps // every + 1) * every

    def offer(self, evaluated: float) -> None:
        """A mean return of the current weights, for the curve; keep them if it is the best so far."""
        self._add_point(evaluated)
        if evaluated > self.best_return:
            self.best_return, self.best_steps = evaluated, self.learner.tally.steps
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.learner.result.state_dict().items()}

    @property
    def evaluated_steps(self) -> int:
        """Steps at the last evaluation, 0 before the first of this run."""
        if not self.best_weights:
            return 0
        return next((int(point["steps"]) for point in reversed(self.curve) if point["eval_return"] != ""), 0)

    def _add_point(self, evaluated: float | None) -> None:
        """One row of the curve; a column is empty where its number is not known. An evaluation joins the row of its step."""
        names = ("loss", "q", "epsilon", "learning_rate")
        metrics, tally = self._metrics, self.learner.tally
        known = self.curve.pop()["eval_return"] if self.curve and self.curve[-1]["steps"] == tally.steps else ""
        self.curve.append(
            {
                "steps": tally.steps,
                "frames": tally.steps * self.frame_skip,
                "updates": tally.updates,
                "episodes": tally.episodes,
                "seconds": round(self.all_seconds(), 1),
                "train_return": round(metrics["return"], 3) if "return" in metrics else "",
                "eval_return": known if evaluated is None else round(evaluated, 3),
                **{name: round(metrics[name], 6) if name in metrics else "" for name in names},
            }
        )
