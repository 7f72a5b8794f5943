"""train-multitask: one network learns a mix's games from reward, without teachers: what a multi-game student must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from pipeline.agents.checkpoints import CARD, load_card, save_agent
from pipeline.agents.device import Compute, prepare_to_learn
from pipeline.agents.networks import QNetwork
from pipeline.atari.envs import VectorWorld, action_meanings, fingerprint
from pipeline.atari.games import find_game
from pipeline.rl.dqn import DqnLearner, DqnWeights
from pipeline.rl.multitask import MultitaskLearner, train
from pipeline.rl.pqn import PqnLearner, PqnWeights
from stages import params as settings
from stages.contest import chance_returns, mean_return, tried
from stages.grid import games_of_mix
from stages.paths import CURVE, Layout
from stages.plan import Machine, multitask_seconds
from stages.publish import alone_in, replace_folder, write_csv
from stages.runlog import duration, say
from stages.training import Training, run_kind

EXPLORATION: Final = {
    "pqn": ("epsilon_low", "epsilon_high", "exploration_fraction", "hold_exponent", "hold_until", "stagger"),
    "dqn": ("epsilon_final", "epsilon_steps"),
}
"""What the games of one baseline may differ in, by algorithm: how each is explored."""

RECIPE = 2
"""Bump when what this stage does changes; tests/test_recipes.py pins its numbers (ARCHITECTURE.md, recipes)."""


def run(
    layout: Layout,
    params: settings.Params,
    name: str,
    seed: int,
    device_name: str,
    start: Path | None = None,
    snapshot: Path | None = None,
) -> Path:
    """Train or go on training baseline `MIX/VARIANT`; returns its folder.

    `start` is a baseline or a snapshot of one, or the checkpoint of a run with other settings, to begin from; the card's
    history tells of both. `snapshot` only publishes there what an unfinished run has learned; it may be running.
    """
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
    references = {game: _reference(layout, params, game) for game in games}
    decides = {
        "variant": variant.model_dump(exclude={"steps"}),
        "presets": {game: preset.model_dump(exclude_none=True) for game, preset in presets.items()},
        "environments": environments,
        "epsilon": params.evaluation.epsilon,
        "references": references,  # they weigh the games where the best snapshot is chosen
        "seed": seed,
    }
    work = layout.work("train-multitask", agent, decides)
    prepare_to_learn()
    heads = {game: len(action_meanings(game, params.environment)) for game in games}
    first = presets[games[0]]
    learner = multitask_learner(variant, presets, heads, first.compute(device_name), seed)
    state = _Baseline(work / "checkpoint.pt", agent, learner, params, variant, first.algorithm, seed, references)
    chosen = {game: preset.settings() for game, preset in presets.items()}
    facts = {
        "games": {game: {"environment": environments[game]} for game in games},
        "algorithm": first.algorithm,
        "variant": variant_name,
        "mix": mix_name,
        "settings": chosen,
        "selection": {"select_every": variant.select_every, "select_episodes": variant.select_episodes},
    }
    if snapshot is not None:
        return state.publish_snapshot(snapshot, facts)
    with alone_in(work):
        state.start(start, f"multitask.{variant_name}.steps")
        state.begin_sitting({"budget": variant.steps, "settings": chosen})
        if not state.spent():
            seconds = multitask_seconds(layout, Machine(params), variant, games) * (1.0 - learner.steps / learner.budget)
            say(
                f"{agent}: to {learner.budget:,} steps of each of {', '.join(games)}, about {duration(seconds)} on this machine"
            )
        worlds = {
            game: VectorWorld(
                game, params.environment, width=learner.learners[game].envs, seed_once=bool(presets[game].seed_once)
            )
            for game in games
        }
        state.learn(lambda: train(learner, worlds), tuple(f"return_{game}" for game in games))
        best = QNetwork(learner.result.spec, learner.result.actions)
        best.load_state_dict(state.best_weights)
        folder = work / "publish"
        card = save_agent(
            folder,
            best,
            {
                "role": "multitask",
                **facts,
                "games": {game: {"environment": environments[game], "selected_at": state.best_returns[game]} for game in games},
                **state.facts(state.best_steps),
            },
        )
        write_csv(folder / CURVE, state.curve)
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
            may = ", ".join(EXPLORATION[first.algorithm])
            raise ValueError(
                f"the preset of {game} differs from that of {next(iter(presets))} in more than {may}: "
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
        k: v for k, v in asdict(config).items() if k not in EXPLORATION[preset.algorithm]
    }


def _reference(layout: Layout, params: settings.Params, game: str) -> tuple[float, float]:
    """Mean returns of the random agent, published or played, and of the teacher, to compare games by. ValueError without a
    teacher that has one, or of one that plays no better.
    """
    if (evaluation := load_card(layout.teacher(game)).get("evaluation")) is None:
        raise ValueError(f"{layout.teacher(game)} was never evaluated: train-teacher and import-teacher publish what was")
    reference, best = find_game(game).reference, float(evaluation["mean_return"])
    zero = reference.random if reference else float(np.mean(chance_returns(layout, params, game)))
    if not best > zero:
        raise ValueError(f"{layout.teacher(game)} scores {best:.2f}, no better than random ({zero:.2f}): train it for longer")
    return zero, best


class _Baseline(Training):
    """The training of a baseline.

    A snapshot's worth is its mean over games of (return - random) / (teacher - random), on episodes for selection alone.
    """

    def __init__(
        self,
        path: Path,
        agent: str,
        learner: MultitaskLearner,
        params: settings.Params,
        variant: settings.MultitaskParams,
        algorithm: str,
        seed: int,
        references: Mapping[str, tuple[float, float]],
    ) -> None:
        kind = run_kind(references, algorithm, variant.network)
        super().__init__(path, kind, agent, learner, variant.select_every, params.environment, "steps a game")
        self.learner: MultitaskLearner = learner
        self._params, self._variant, self._seed, self._references = params, variant, seed, references

    def evaluate(self) -> dict[str, float]:
        returns = {}
        for game in self._references:
            compute = self.learner.learners[game].compute
            network, count, name = self.learner.result, self._variant.select_episodes, f"baseline of {game}"
            returns[game] = mean_return(tried(network, compute, self._params, game, "select", self._seed, count, name=name))
        return returns

    def worth(self, returns: Mapping[str, float]) -> float:
        parts = [(returns[game] - zero) / (best - zero) for game, (zero, best) in self._references.items()]
        return sum(parts) / len(parts)

    def told(self, returns: Mapping[str, float]) -> str:
        return f"{super().told(returns)}, {self.worth(returns):.1%} of the teachers"

    def evaluated(self, returns: Mapping[str, float]) -> dict[str, float]:
        return {f"eval_return_{game}": value for game, value in returns.items()} | self.learner.cosines()

    def row(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        names = [f"{name}_{game}" for name in ("return", "loss", "share", "q") for game in self._references]
        tallies = {game: learner.tally for game, learner in self.learner.learners.items()}
        done = {f"updates_{game}": tally.updates for game, tally in tallies.items()}
        done |= {f"episodes_{game}": tally.episodes for game, tally in tallies.items()}
        return {**done, **{name: round(metrics[name], 6) for name in names if name in metrics}}

    def take_over(self, weights: Mapping[str, torch.Tensor], steps: int, latest: Mapping[str, Any]) -> None:
        tallies = {g: (int(latest.get(f"updates_{g}", 0)), int(latest.get(f"episodes_{g}", 0))) for g in self._references}
        self.learner.begin_with(weights, steps=steps, tallies=tallies)

    def facts(self, steps: int) -> dict[str, Any]:
        return super().facts(steps) | {"seed": self._seed, "recipe": self._variant.recipe}
