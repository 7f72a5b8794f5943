"""train-teacher: learn a game from reward, keep the best snapshot, and publish it only if it passes its gate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from pipeline.agents.checkpoints import CARD, save_agent
from pipeline.agents.device import Compute, exact, pick_device
from pipeline.agents.networks import QNetwork, place
from pipeline.agents.policies import EpsilonGreedy, q_function
from pipeline.atari.envs import VectorWorld, action_meanings, fingerprint
from pipeline.atari.games import find_game
from pipeline.rl.learner import Learner
from stages import params as settings
from stages.evaluate import Contestant, mean_return, played, record
from stages.paths import Layout
from stages.publish import load_state, replace_folder, save_state, write_csv
from stages.runlog import duration, say, show
from stages.versions import code_version

CHECKPOINT_EVERY_SECONDS = 120.0
CURVE_POINTS = 100


RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""


def run(layout: Layout, params: settings.Params, game: str, device_name: str, start: Path | None = None) -> Path:
    """Train or go on training the teacher of `game`; returns the published folder.

    `start` is the checkpoint of a run with other settings to begin from; the card's history tells of both.
    """
    game = find_game(game).name
    teacher: settings.TeacherParams = settings.pick(params.teachers, game, "teacher")
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
    work = layout.work("train-teacher", game, decides)
    work.mkdir(parents=True, exist_ok=True)

    compute = Compute(pick_device(device_name), "bfloat16")
    heads = {game: len(action_meanings(game, params.environment))}
    learner = preset.learner(teacher.steps, settings.network(teacher.network), heads, compute, teacher.seed)
    state = _Run(work / "checkpoint.pt", learner)
    if state.resume(state.path):
        say(f"resuming {game} at {learner.tally.steps:,} steps from {work}")
    elif start is not None:
        if not state.resume(start):
            raise ValueError(
                f"{start} does not exist: --from wants the checkpoint.pt of an unfinished run in .work/train-teacher"
            )
        state.best_return = float("-inf")  # its evaluations may have been others
        say(f"beginning {game} at {learner.tally.steps:,} steps from {start}")
    if learner.tally.steps > teacher.steps:
        raise ValueError(
            f"the unfinished run in {work} is at {learner.tally.steps:,} steps, "
            f"beyond teachers.{game}.steps = {teacher.steps:,}: raise that, or remove the folder to start afresh"
        )
    chosen = {"preset": teacher.preset, **preset.model_dump(exclude_none=True)[preset.algorithm]}
    state.begin_sitting({"budget": teacher.steps, "settings": chosen})
    _learn(params, game, teacher, state)
    best, evaluation = _pass_gate(params, game, teacher, state)

    folder = work / "publish"
    card = save_agent(
        folder,
        best,
        {
            "role": "teacher",
            "game": game,
            "algorithm": preset.algorithm,
            "steps": state.best_steps,
            "frames": state.best_steps * params.environment.frame_skip,
            "steps_trained": learner.tally.steps,
            "updates": learner.tally.updates,
            "history": state.history,
            "seed": teacher.seed,
            "recipe": teacher.recipe,
            "evaluation": evaluation,
            "settings": chosen,
            "environment": environment,
            "code": code_version(),
        },
    )
    write_csv(folder / "curve.csv", state.curve)
    target = layout.teacher(game)
    replace_folder(folder, target)
    state.path.unlink()  # so that the next run trains anew
    reached = f"mean return {evaluation['mean_return']:.2f}"
    say(f"published {target / CARD}: {reached}, digest {card['digest'][:12]}, {duration(state.seconds())} of training")
    return target


def _learn(params: settings.Params, game: str, teacher: settings.TeacherParams, state: _Run) -> None:
    """Spend the step budget, evaluating and checkpointing on the way."""
    learner = state.learner
    policy = EpsilonGreedy(q_function(learner.result, learner.compute), params.evaluation.epsilon)
    contestant = Contestant(f"teachers/{game}", game, policy, {})

    def select() -> None:
        evaluated = mean_return(played(contestant, params, "select", teacher.seed, teacher.select_episodes))
        state.offer(evaluated)
        state.add_point(metrics, params.environment.frame_skip, evaluated)
        state.save()
        say(f"{game} at {learner.tally.steps:,} steps: mean return {evaluated:.2f} (best {state.best_return:.2f})")

    def due() -> bool:
        return learner.tally.steps >= min(
            teacher.steps, (state.evaluated_steps // teacher.select_every + 1) * teacher.select_every
        )

    metrics: Mapping[str, float] = {}
    try:
        if learner.tally.steps and state.evaluated_steps < learner.tally.steps and due():
            select()  # an evaluation that the last sitting did not finish
        if learner.tally.steps >= teacher.steps:
            return
        next_point = learner.tally.steps
        world = VectorWorld(game, params.environment, width=learner.envs)
        shown = ("return", "loss", "q", "epsilon", "seconds_environment", "seconds_forward", "seconds_update", "seconds_play")
        with closing(show(learner.train(world), f"train {game}", shown)) as progress:
            for p in progress:
                metrics = p.metrics
                if due():
                    select()
                elif p.done >= next_point:
                    state.add_point(metrics, params.environment.frame_skip, None)
                    next_point = p.done + teacher.steps // CURVE_POINTS
                if state.due():
                    state.save()
    except KeyboardInterrupt:
        state.save()
        say(f"stopped at {learner.tally.steps:,} steps; the same command goes on from there")
        raise


def _pass_gate(
    params: settings.Params, game: str, teacher: settings.TeacherParams, state: _Run
) -> tuple[QNetwork, dict[str, Any]]:
    """The best snapshot and its evaluation on fresh episodes. ValueError if that is below the gate; nothing is lost."""
    device = state.learner.compute.device
    best = QNetwork(state.learner.result.spec, state.learner.result.actions)
    best.load_state_dict(state.best_weights)
    best = place(best, device).eval()
    policy = EpsilonGreedy(q_function(best, exact(device)), params.evaluation.epsilon)
    say(f"gate: {teacher.gate_episodes} fresh episodes of the best snapshot ({state.best_steps:,} steps)")
    episodes = played(Contestant(f"teachers/{game}", game, policy, {}), params, "gate", teacher.seed, teacher.gate_episodes)
    reached = mean_return(episodes)
    if reached < teacher.gate_return:
        raise ValueError(
            f"{game} reached a mean return of {reached:.2f} over {len(episodes)} episodes, "
            f"its gate is {teacher.gate_return:g}: raise teachers.{game}.steps "
            f"(the run goes on from {state.learner.tally.steps:,}) or lower teachers.{game}.gate_return"
        )
    return best, record([e.episode_return for e in episodes], params)


class _Run:
    """A training run's resumable state in one file: the learner, the best snapshot so far, and the curve."""

    def __init__(self, path: Path, learner: Learner) -> None:
        self.path, self.learner = path, learner
        self.curve: list[dict[str, Any]] = []
        self.best_return = float("-inf")
        self.best_steps = 0
        self.best_weights: dict[str, torch.Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._started = self._saved = time.monotonic()

    def resume(self, path: Path) -> bool:
        """Take over what was saved at `path`, if anything was."""
        state = load_state(path)
        if state is None:
            return False
        self.learner.load_state_dict(state["learner"])
        self.curve, self.best_return, self.best_steps = state["curve"], state["best_return"], state["best_steps"]
        self.best_weights, self._seconds = state["best_weights"], state["seconds"]
        self.history = state["history"]
        return True

    def begin_sitting(self, chosen: dict[str, Any]) -> None:
        """Remember from which step on the budget or the settings are these."""
        before = {k: v for k, v in self.history[-1].items() if k != "from"} if self.history else None
        if before != chosen:
            self.history.append({"from": self.learner.tally.steps, **chosen})

    def save(self) -> None:
        state = {
            "learner": self.learner.state_dict(),
            "curve": self.curve,
            "best_return": self.best_return,
            "best_steps": self.best_steps,
            "best_weights": self.best_weights,
            "history": self.history,
            "seconds": self.seconds(),
        }
        save_state(self.path, state)
        self._saved = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._saved > CHECKPOINT_EVERY_SECONDS

    def seconds(self) -> float:
        """Wall time of all sittings."""
        return self._seconds + time.monotonic() - self._started

    def offer(self, mean_return: float) -> None:
        """Keep the current weights if they evaluated best so far."""
        if mean_return > self.best_return:
            self.best_return, self.best_steps = mean_return, self.learner.tally.steps
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.learner.result.state_dict().items()}

    @property
    def evaluated_steps(self) -> int:
        """Steps at the last evaluation, 0 before the first."""
        return next((int(point["steps"]) for point in reversed(self.curve) if point["eval_return"] != ""), 0)

    def add_point(self, metrics: Mapping[str, float], frame_skip: int, evaluated: float | None) -> None:
        """One row of the curve; a column is empty where its number is not known."""
        names = ("loss", "q", "epsilon", "learning_rate")
        self.curve.append(
            {
                "steps": self.learner.tally.steps,
                "frames": self.learner.tally.steps * frame_skip,
                "updates": self.learner.tally.updates,
                "episodes": self.learner.tally.episodes,
                "seconds": round(self.seconds(), 1),
                "train_return": round(metrics["return"], 3) if "return" in metrics else "",
                "eval_return": "" if evaluated is None else round(evaluated, 3),
                **{name: round(metrics[name], 6) if name in metrics else "" for name in names},
            }
        )
