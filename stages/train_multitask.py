"""train-multitask: one network learns a mix's games from reward, without teachers: what a multi-game student must beat."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.agents.checkpoints import CARD, load_card, save_agent
from pipeline.agents.device import Compute, keep_freed_memory
from pipeline.agents.networks import QNetwork
from pipeline.agents.policies import EpsilonGreedy, q_function
from pipeline.atari.envs import VectorWorld, action_meanings, fingerprint
from pipeline.atari.games import find_game
from pipeline.progress import Progress
from pipeline.rl.dqn import DqnLearner, DqnWeights
from pipeline.rl.multitask import MultitaskLearner, train
from pipeline.rl.pqn import PqnLearner, PqnWeights
from stages import params as settings
from stages.contest import Contestant, mean_return, played
from stages.grid import games_of_mix
from stages.paths import Layout
from stages.plan import Machine, multitask_seconds
from stages.publish import alone_in, load_state, replace_folder, save_state, write_csv
from stages.runlog import duration, mark, saved_when_stopped, say, show
from stages.versions import code_version

CHECKPOINT_EVERY_SECONDS = 120.0
CURVE_POINTS = 100
EXPLORATION: Final = ("epsilon_low", "epsilon_high", "exploration_fraction", "hold_exponent", "hold_until", "stagger")
"""What the games of one baseline may differ in: how each is explored."""

RECIPE = 1
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""


def run(layout: Layout, params: settings.Params, name: str, seed: int, device_name: str) -> Path:
    """Train or go on training baseline `MIX/VARIANT`; returns its folder."""
    mix_name, variant_name = params.mix_and_variant(name, "baseline")
    variant: settings.MultitaskParams = settings.pick(params.multitask, variant_name, "baseline")
    settings.check_recipe(f"multitask.{variant_name}", variant.recipe, RECIPE)
    games = games_of_mix(layout, params, mix_name)
    if unknown := sorted(variant.presets.keys() - set(games)):
        raise ValueError(f"multitask.{variant_name}.presets names {', '.join(unknown)}: mix {mix_name} has {', '.join(games)}")
    presets = {
        game: settings.pick(params.teacher_presets, variant.presets.get(game, variant.preset), "teacher preset")
        for game in games
    }
    environments = {game: fingerprint(game, params.environment) for game in games}
    agent = f"{mix_name}/{variant_name}-{seed}"
    references = {game: _reference(layout, game) for game in games}
    decides = {
        "variant": variant.model_dump(exclude={"steps"}),
        "presets": {game: preset.model_dump(exclude_none=True) for game, preset in presets.items()},
        "environments": environments,
        "epsilon": params.evaluation.epsilon,
        "references": references,  # they weigh the games where the best snapshot is chosen
        "seed": seed,
    }
    work = layout.work("train-multitask", agent, decides)
    with alone_in(work):
        keep_freed_memory()
        heads = {game: len(action_meanings(game, params.environment)) for game in games}
        compute = next(iter(presets.values())).compute(device_name)
        learner = multitask_learner(variant, presets, heads, compute, seed)
        state = _Run(work / "checkpoint.pt", agent, learner, params, variant, seed, references)
        if state.resume():
            say(f"resuming {agent} at {learner.steps:,} steps a game from {work}")
        if learner.steps < learner.budget:
            seconds = multitask_seconds(layout, Machine(params), variant, games) * (1.0 - learner.steps / learner.budget)
            say(
                f"{agent}: to {learner.budget:,} steps of each of {', '.join(games)}, about {duration(seconds)} on this machine"
            )
        if learner.beyond:
            raise ValueError(
                f"the unfinished run in {work} is at {learner.steps:,} steps a game, "
                f"beyond multitask.{variant_name}.steps = {variant.steps:,}: raise that, or remove the folder to start afresh"
            )
        worlds = {
            game: VectorWorld(
                game, params.environment, width=learner.learners[game].envs, seed_once=bool(presets[game].seed_once)
            )
            for game in games
        }
        with saved_when_stopped(state.save, lambda: f"{learner.steps:,} steps a game"):
            if state.selection_due():
                state.select()  # an evaluation that the last sitting did not finish
            with closing(
                show(train(learner, worlds), f"train {agent}", tuple(f"return_{game}" for game in games), learning=True)
            ) as progress:
                for p in progress:
                    state.follow(p)
            if state.evaluated_steps < learner.steps or not state.best_weights:
                state.select()
        best = QNetwork(learner.result.spec, learner.result.actions)
        best.load_state_dict(state.best_weights)
        folder = work / "publish"
        card = save_agent(
            folder,
            best,
            {
                "role": "multitask",
                "games": {game: {"environment": environments[game], "selected_at": state.best_returns[game]} for game in games},
                "algorithm": presets[games[0]].algorithm,
                "variant": variant_name,
                "mix": mix_name,
                "seed": seed,
                "settings": {game: preset.settings() for game, preset in presets.items()},
                "steps": state.best_steps,
                "frames": state.best_steps * params.environment.frame_skip,
                "steps_trained": learner.steps,
                "recipe": variant.recipe,
                "code": code_version(),
            },
        )
        write_csv(folder / "curve.csv", state.curve)
        target = layout.multitask(agent)
        replace_folder(folder, target)
        (work / "checkpoint.pt").unlink(missing_ok=True)
        reached = ", ".join(f"{game} {value:.2f}" for game, value in state.best_returns.items())
        say(f"published {target / CARD}: {reached} at {state.best_steps:,} steps a game, digest {card['digest'][:12]}")
        return target


def multitask_learner(
    variant: settings.MultitaskParams,
    presets: Mapping[str, settings.TeacherPreset],
    heads: Mapping[str, int],
    compute: Compute,
    seed: int,
) -> MultitaskLearner:
    """A fresh baseline. ValueError where games' presets differ in more than how they explore."""
    spec = settings.network(variant.network)
    first = next(iter(presets.values()))
    for game, preset in presets.items():
        if _shared(preset) != _shared(first):
            raise ValueError(
                f"the preset of {game} differs from that of {next(iter(presets))} in more than {', '.join(EXPLORATION)}: "
                f"one network learns with one set of settings"
            )
    if first.pqn is not None:
        weights = PqnWeights(first.pqn, spec, heads, compute, seed)
        return MultitaskLearner(
            {
                game: PqnLearner(preset.pqn, variant.steps, spec, heads, compute, seed, weights=weights, game=game)
                for game, preset in presets.items()
                if preset.pqn
            }
        )
    assert first.dqn is not None
    shared = DqnWeights(first.dqn, spec, heads, compute, seed)
    return MultitaskLearner(
        {
            game: DqnLearner(preset.dqn, variant.steps, spec, heads, compute, seed, weights=shared, game=game)
            for game, preset in presets.items()
            if preset.dqn
        }
    )


def _shared(preset: settings.TeacherPreset) -> dict[str, Any]:
    """All that games of one network have in common."""
    config = preset.pqn or preset.dqn
    assert config is not None
    return {"algorithm": preset.algorithm, "precision": preset.precision} | {
        k: v for k, v in asdict(config).items() if k not in EXPLORATION
    }


def _reference(layout: Layout, game: str) -> tuple[float, float]:
    """Mean returns of the random agent and of the teacher, to compare games by. ValueError without a teacher."""
    reference = find_game(game).reference
    best = float(load_card(layout.teacher(game))["evaluation"]["mean_return"])
    return reference.random if reference else 0.0, best


class _Run:
    """A run's resumable state: the learner, the best snapshot so far, and the curve.

    A snapshot's worth is its mean over games of (return - random) / (teacher - random), on episodes for selection alone.
    """

    def __init__(
        self,
        path: Path,
        agent: str,
        learner: MultitaskLearner,
        params: settings.Params,
        variant: settings.MultitaskParams,
        seed: int,
        references: Mapping[str, tuple[float, float]],
    ) -> None:
        self._path, self._learner, self._params, self._variant, self._seed = path, learner, params, variant, seed
        self._agent, self._references = agent, references
        self._metrics: Mapping[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        self.best, self.best_steps = float("-inf"), 0
        self.best_returns: dict[str, float] = {}
        self.best_weights: dict[str, torch.Tensor] = {}
        self._seconds = 0.0
        self._started = self._saved = time.monotonic()

    def resume(self) -> bool:
        """Take over what was saved, if anything was."""
        state = load_state(self._path)
        if state is None:
            return False
        self._learner.load_state_dict(state["learner"])
        self.curve, self._seconds = state["curve"], state["seconds"]
        self.best, self.best_steps, self.best_returns = state["best"], state["best_steps"], state["best_returns"]
        self.best_weights = state["best_weights"]
        return True

    def save(self) -> None:
        state = {
            "learner": self._learner.state_dict(),
            "curve": self.curve,
            "best": self.best,
            "best_steps": self.best_steps,
            "best_returns": self.best_returns,
            "best_weights": self.best_weights,
            "seconds": self._spent(),
        }
        save_state(self._path, state)
        self._saved = time.monotonic()

    def _spent(self) -> float:
        """Wall time of all sittings, in seconds."""
        return self._seconds + time.monotonic() - self._started

    @property
    def evaluated_steps(self) -> int:
        """Steps of each game at the last evaluation, 0 before the first."""
        return next((int(point["steps"]) for point in reversed(self.curve) if any("eval" in name for name in point)), 0)

    def selection_due(self) -> bool:
        """Whether it is time for an evaluation that may choose these weights: every `select_every` steps of each game."""
        every = self._variant.select_every
        return self._learner.steps >= (self.evaluated_steps // every + 1) * every

    def follow(self, p: Progress) -> None:
        """After a turn of each game: an evaluation, a point of the curve, a checkpoint, as they are due."""
        self._metrics = p.metrics
        if self.selection_due():
            self.select()
        elif not self.curve or p.done >= self.curve[-1]["steps"] + p.total // CURVE_POINTS:
            self._add_point({})
        elif time.monotonic() - self._saved > CHECKPOINT_EVERY_SECONDS:
            self.save()

    def select(self) -> None:
        """Evaluate the weights as they are, for the curve, and keep them if they are the best so far."""
        returns, worth = {}, 0.0
        result, learner = self._learner.result, self._learner
        for game, (zero, best) in self._references.items():
            policy = EpsilonGreedy(q_function(result, learner.learners[game].compute, game), self._params.evaluation.epsilon)
            contestant = Contestant(f"baseline of {game}", game, self._params.environment, policy)
            returns[game] = mean_return(played(contestant, self._params, "select", self._seed, self._variant.select_episodes))
            worth += (returns[game] - zero) / ((best - zero) or 1.0) / len(self._references)
        evaluated = {f"eval_return_{game}": round(value, 3) for game, value in returns.items()}
        self._add_point(evaluated | learner.cosines())
        mark(f"train {self._agent}", learner.steps, evaluated)
        if worth > self.best:
            self.best, self.best_steps, self.best_returns = worth, learner.steps, returns
            self.best_weights = {k: v.detach().cpu().clone() for k, v in result.state_dict().items()}
        self.save()
        told = ", ".join(f"{game} {value:.2f}" for game, value in returns.items())
        say(f"at {learner.steps:,} steps a game: {told}; {worth:.1%} of the teachers (best {self.best:.1%})")

    def _add_point(self, more: Mapping[str, float]) -> None:
        """One row of the curve; an evaluation joins the row of its step."""
        names = [f"{name}_{game}" for name in ("return", "loss", "share", "q") for game in self._references]
        known = {name: round(self._metrics[name], 6) for name in names if name in self._metrics}
        if self.curve and self.curve[-1]["steps"] == self._learner.steps:
            known = {k: v for k, v in self.curve.pop().items() if k in names} | known
        self.curve.append({"steps": self._learner.steps, "seconds": round(self._spent(), 1), **known, **more})
