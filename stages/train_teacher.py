"""train-teacher: learn a game from reward, keep the best snapshot, and publish it only if it passes its gate."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.agents.checkpoints import CARD, digest, load_card, save_agent
from pipeline.agents.device import exact, prepare_to_learn
from pipeline.agents.networks import QNetwork, place
from pipeline.atari.envs import VectorWorld, action_meanings, fingerprint
from pipeline.atari.games import find_game
from pipeline.datasets.folders import Folder
from pipeline.rl.learner import Learner
from stages import params as settings
from stages.contest import Notes, mean_return, record, tried
from stages.paths import CURVE, Layout
from stages.publish import alone_in, check_target, replace_folder, write_csv
from stages.runlog import duration, say
from stages.training import Training, run_kind

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
    prepare_to_learn()
    compute = preset.compute(device_name)
    heads = {game: len(action_meanings(game, params.environment))}
    learner = preset.learner(teacher.steps, settings.network(teacher.network), heads, compute, teacher.seed)
    time_budget = 60 * minutes if minutes else math.inf
    title = out.name if out else game
    state = _Teaching(work / "checkpoint.pt", title, learner, params, game, teacher, preset.algorithm, time_budget)
    chosen = {"preset": teacher.preset, **preset.settings()}
    facts = {"game": game, "algorithm": preset.algorithm, "settings": chosen, "environment": environment}
    if snapshot is not None:
        return state.publish_snapshot(snapshot, facts)
    with alone_in(work):
        state.start(start, f"teachers.{game}.steps")
        state.begin_sitting({"budget": teacher.steps, "settings": chosen})
        state.learn(
            lambda: learner.train(VectorWorld(game, params.environment, width=learner.envs, seed_once=bool(preset.seed_once))),
            SHOWN,
        )
        if learner.tally.steps < teacher.steps:
            say(f"stopped learning at {learner.tally.steps:,} of {teacher.steps:,} steps: the time is spent")
        best, evaluation = _pass_gate(params, game, state, work)

        folder = work / "publish"
        card = save_agent(
            folder,
            best,
            {
                "role": "teacher",
                **facts,
                "evaluation": evaluation,
                **state.facts(state.best_steps),
            },
        )
        write_csv(folder / CURVE, state.curve)
        replace_folder(folder, target)
        shutil.rmtree(work)  # so that the next run trains anew
        reached = f"mean return {evaluation['mean_return']:.2f}"
        say(f"published {target / CARD}: {reached}, digest {card['digest'][:12]}, {duration(state.all_seconds())} of training")
        return target


def _pass_gate(params: settings.Params, game: str, state: _Teaching, work: Path) -> tuple[QNetwork, dict[str, Any]]:
    """The best snapshot and its evaluation on fresh episodes, which are kept in `work` as they end.

    ValueError if that is below the gate; nothing is lost.
    """
    teacher = state.teacher
    device = state.learner.compute.device
    best = QNetwork(state.learner.result.spec, state.learner.result.actions)
    best.load_state_dict(state.best_weights)
    best = place(best, device).eval()
    say(f"gate: {teacher.gate_episodes} fresh episodes of the best snapshot ({state.best_steps:,} steps)")
    notes = Notes(work / f"gate-{digest(best)[:12]}.jsonl")
    name = f"teachers/{game}"
    episodes = tried(best, exact(device), params, game, "gate", teacher.seed, teacher.gate_episodes, name=name, notes=notes)
    reached = mean_return(episodes)
    missed = work / "missed"  # a line each; all gates are on these seeds: the best of several is a little lucky
    before = missed.read_text().splitlines() if missed.is_file() else []
    if reached < teacher.gate_return:
        missed.write_text(
            "".join(f"{line}\n" for line in dict.fromkeys([*before, f"{state.best_steps} {teacher.gate_return:g}"]))
        )
        budget = "--minutes" if state.learner.tally.steps < teacher.steps else f"teachers.{game}.steps"
        raise ValueError(
            f"{game} reached a mean return of {reached:.2f} over {len(episodes)} episodes, "
            f"its gate is {teacher.gate_return:g}: raise {budget} "
            f"(the run goes on from {state.learner.tally.steps:,}) or lower teachers.{game}.gate_return"
        )
    return best, record([e.episode_return for e in episodes], params) | {"gates_missed": len(before)}


class _Teaching(Training):
    """The training of one teacher; `time_budget` is in seconds."""

    def __init__(
        self,
        path: Path,
        title: str,
        learner: Learner,
        params: settings.Params,
        game: str,
        teacher: settings.TeacherParams,
        algorithm: str,
        time_budget: float,
    ) -> None:
        kind = run_kind(game, algorithm, teacher.network)
        super().__init__(path, kind, title, learner, teacher.select_every, params.environment)
        self.learner: Learner = learner
        self.teacher, self._params, self._game, self._time_budget = teacher, params, game, time_budget

    def evaluate(self) -> dict[str, float]:
        network, compute, told, game = self.learner.result, self.learner.compute, self.teacher, self._game
        episodes = tried(
            network, compute, self._params, game, "select", told.seed, told.select_episodes, name=f"teachers/{game}"
        )
        return {game: mean_return(episodes)}

    def worth(self, returns: Mapping[str, float]) -> float:
        return returns[self._game]

    def evaluated(self, returns: Mapping[str, float]) -> dict[str, float]:
        return {"eval_return": returns[self._game]}

    def row(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        tally = self.learner.tally
        return {
            "frames": tally.steps * self.frame_skip,
            "updates": tally.updates,
            "episodes": tally.episodes,
            "train_return": round(metrics["return"], 3) if "return" in metrics else "",
            "eval_return": "",
            **{k: round(metrics[k], 6) if k in metrics else "" for k in ("loss", "q", "epsilon", "learning_rate")},
        }

    def take_over(self, weights: Mapping[str, torch.Tensor], steps: int, latest: Mapping[str, Any]) -> None:
        done = {name: int(latest.get(name, 0)) for name in ("updates", "episodes")}
        self.learner.begin_with(weights, steps=steps, **done)

    def facts(self, steps: int) -> dict[str, Any]:
        taken = (int(row["updates"]) for row in self.curve if row["steps"] == steps)
        updates = next(taken, self.learner.tally.updates)
        return super().facts(steps) | {"updates": updates, "seed": self.teacher.seed, "recipe": self.teacher.recipe}

    def spent(self) -> bool:
        """Whether the budget of steps or that of time is spent."""
        return super().spent() or self.seconds() >= self._time_budget
