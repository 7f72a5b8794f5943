"""plan: what of a params file's grid is done, what is left, and about how long that takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.agents.checkpoints import CARD, load_card
from pipeline.agents.device import Compute
from pipeline.agents.networks import new_network
from pipeline.agents.policies import EpsilonGreedy, q_function, uniform_random
from pipeline.atari.envs import EnvConfig, SlotWorld
from pipeline.atari.rollout import rollout
from pipeline.datasets.schema import MANIFEST
from stages import params as settings
from stages.grid import games_of_cell, games_of_mix
from stages.paths import Layout

PROBE_SECONDS = 1.5
BACKWARD = 3.0
"""A training step costs about so many forward passes."""
UNKNOWN_STEPS = 2_000.0
"""Steps of an episode where nobody has played yet."""


class Job(NamedTuple):
    """One stage's run: `seconds` on this machine, about; None where nobody can tell."""

    stage: str
    name: str
    done: bool
    seconds: float | None


def jobs(layout: Layout, params: settings.Params) -> Iterator[Job]:
    """Everything that the grid asks for; rates are measured, a second or two each, as far as something is left."""
    cells = params.cells()
    games = {name: dataset.game or name for name, dataset in params.datasets.items()}
    names = dict.fromkeys(name for cell in cells for name in settings.pick(params.mixes, cell.mix, "mix"))
    compute = {"float32": Compute(torch.device("cpu"), "float32"), "bfloat16": Compute(torch.device("cpu"), "bfloat16")}

    @cache
    def forward(network: str, precision: str, batch: int) -> float:
        """States per second."""
        net = new_network(settings.network(network), {"game": 18}, torch.device("cpu"), 0).eval()
        values = q_function(net, compute[precision])
        obs_BCHW = np.zeros((batch, 4, 84, 84), dtype=np.uint8)
        return _rate(lambda: len(values(obs_BCHW)))

    @cache
    def emulate(game: str) -> float:
        return _emulation(game, params.environment)

    def play(game: str, *networks: str) -> float:
        """Seconds per step."""
        return 1 / emulate(game) + sum(1 / forward(network, "float32", 16) for network in networks)

    def evaluation(agent: str, game: str, network: str | None) -> Job:
        done = layout.scores(agent).is_file()
        seconds = (
            0.0 if done else params.evaluation.episodes * _steps(layout, game) * play(game, *([network] if network else []))
        )
        return Job("evaluate", agent, done, seconds)

    labelling = {}
    for game in dict.fromkeys(game for cell in cells for game in games_of_cell(layout, params, cell)):
        trained = (layout.teacher(game) / CARD).is_file()
        labelling[game] = str(load_card(layout.teacher(game))["network"]) if trained else "pqn"
        yield Job("train-teacher", game, trained, 0.0 if trained else None)
        yield evaluation(f"random/{game}", game, None)
        yield evaluation(f"teachers/{game}", game, labelling[game])
    for name in (name for name in names if name in params.datasets):
        dataset, game = params.datasets[name], games[name]
        actor = params.students.get(_variant(dataset.actor or ""))
        acting = (actor.network,) if actor else ()
        done = (layout.dataset(name) / MANIFEST).is_file()
        yield Job("collect", name, done, 0.0 if done else dataset.states * play(game, labelling[game], *acting))
    for cell in cells:
        if cell.kind == "multitask":
            baseline: settings.MultitaskParams = settings.pick(params.multitask, cell.variant, "baseline")
            network = baseline.network
            done = (layout.multitask(cell.name) / CARD).is_file()
            learned = games_of_mix(layout, params, cell.mix)
            seconds = 0.0 if done else _learning(params, learned, baseline, emulate, forward)
            yield Job("train-multitask", cell.name, done, seconds)
        else:
            variant: settings.StudentParams = settings.pick(params.students, cell.variant, "student")
            preset, network = settings.pick(params.presets, variant.preset, "preset"), variant.network
            done = (layout.student(cell.name) / CARD).is_file()
            samples = variant.updates * preset.batch
            seconds = 0.0 if done else BACKWARD * samples / forward(network, preset.precision, preset.batch)
            yield Job("distill", cell.name, done, seconds)
        played = games_of_cell(layout, params, cell)
        for game in played:
            yield evaluation(f"{cell.agent}/{game}" if len(played) > 1 else cell.agent, game, network)


def _learning(
    params: settings.Params,
    games: Sequence[str],
    baseline: settings.MultitaskParams,
    emulate: Callable[[str], float],
    forward: Callable[[str, str, int], float],
) -> float:
    """Seconds of a baseline's training."""
    preset: settings.TeacherPreset = settings.pick(params.teacher_presets, baseline.preset, "teacher preset")
    rate = forward(baseline.network, "bfloat16", 64)
    if preset.pqn is not None:
        passes = 1 + BACKWARD * preset.pqn.epochs
    else:
        assert preset.dqn is not None
        passes = 1 + (BACKWARD + 1) * preset.dqn.minibatch / preset.dqn.steps_per_update
    return sum(baseline.steps * (1 / emulate(game) + passes / rate) for game in games)


def _variant(actor: str) -> str:
    """students/MIX/VARIANT-SEED -> VARIANT."""
    return actor.rsplit("/", 1)[-1].rsplit("-", 1)[0]


def _steps(layout: Layout, game: str) -> float:
    """Steps of the teacher's episodes, as far as it has been evaluated."""
    path = layout.episodes(f"teachers/{game}")
    return float(np.mean(pq.read_table(path)["steps"].to_numpy())) if path.is_file() else UNKNOWN_STEPS


def _emulation(game: str, environment: EnvConfig) -> float:
    """Steps per second of a random agent."""
    width = 16
    world = SlotWorld(game, environment, width=width)
    steps = rollout(world, EpsilonGreedy(uniform_random(2), 1.0), iter(range(10**6)))
    next(steps)
    return width * _rate(lambda: int(next(steps).active_B.any()))


def _rate(work: Callable[[], int]) -> float:
    """What `work` returns, per second."""
    work()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < PROBE_SECONDS:
        done += work()
    return done / (time.perf_counter() - began)
