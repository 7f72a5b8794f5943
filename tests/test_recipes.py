"""What a recipe number stands for: the numbers of a tiny run of each dear stage's library function.

DVC does not rerun a dear stage when code changes, only when its `recipe` does. So a change of behaviour must raise the
number, and this test notices. The settings here are the tests' own: those in params.yaml, DVC watches. After raising a
stage's RECIPE, `python -m tests.test_recipes` pins the new numbers.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pytest
import torch

from pipeline import collect as collecting
from pipeline.agents.checkpoints import save_agent
from pipeline.agents.device import Compute, exact
from pipeline.agents.networks import NETWORKS, QNetwork, new_network
from pipeline.agents.policies import EpsilonGreedy, q_function
from pipeline.atari.envs import SlotWorld, fingerprint
from pipeline.datasets import blocks, loader
from pipeline.datasets.folders import Folder
from pipeline.datasets.mix import Joined
from pipeline.datasets.reader import open_dataset
from pipeline.distill import offline
from pipeline.distill.losses import LossName
from pipeline.evaluate import play
from pipeline.rl import multitask
from pipeline.rl.learner import Learner
from pipeline.seeding import episode_seeds
from stages import distill, evaluate, train_multitask, train_teacher
from tests.distill import test_offline
from tests.distill.test_multigame import SPEC as SEVERAL
from tests.fakes import ENVIRONMENT, SMALL, Corridor, blocks_of_four, corridor_dataset, mirror_dataset
from tests.rl import test_multitask
from tests.rl.small import small_dqn, small_pqn

PINS: Final = Path(__file__).with_name("recipes.json")
CPU: Final = Compute(torch.device("cpu"), "float32")


def run_train_teacher() -> list[float]:
    """Loss and mean Q of the first iterations of PQN and of DQN, in a corridor where lives are lost; PQN's averaged weights."""
    agents: list[tuple[Learner, int]] = [(small_pqn(CPU, 640), 3), (small_dqn(CPU, 2048), 1)]
    numbers = []
    for agent, yields in agents:
        for p in itertools.islice(agent.train(Corridor(8, life_steps=5)), yields):
            numbers += [p.metrics[name] for name in ("loss", "q", "episodes")]
        numbers.append(sum(float(weight.detach().abs().mean()) for weight in agent.result.parameters()))
    return numbers


def run_collect() -> list[float]:
    """Seeds, lengths, returns, flags and Q-values of a few episodes of real Breakout."""
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "teacher"
        card = save_agent(
            folder, QNetwork(NETWORKS["net3"], {"Breakout": 4}), {"environment": fingerprint("Breakout", ENVIRONMENT)}
        )
        config = collecting.CollectConfig(
            game="Breakout", environment=ENVIRONMENT, epsilon=0.5, seed=0, states=1, episodes=None, recipe=collecting.RECIPE
        )
        world = fingerprint("Breakout", ENVIRONMENT)
        task = collecting.Task(blocks=range(1), config=config, world=world, teacher_digest=card["digest"], url=name)
        collecting.send_agent(folder, Folder(name), "teacher")
        with blocks_of_four():
            rows = collecting.play(task)[0]
        records = next(blocks.read_block(Folder(name), 0))
    numbers = [float(x) for row in rows[:4] for x in (row.seed, row.length, row.episode_return)]
    return [
        *numbers,
        float(records.flags_N.sum()),
        float(records.frame_NHW.mean()),
        float(records.q_NA.mean()),
        float(records.action_N.sum()),
    ]


def run_distill() -> list[float]:
    """Losses and held-out numbers of a student's first updates, for each loss, for several games, by each optimiser from a
    round's two datasets, and where it looks at gaps, at features, at windows, or begins with another's weights.
    """
    config = replace(test_offline.CONFIG, batch=16, validate_every=4, warmup_updates=2)
    numbers = []
    with tempfile.TemporaryDirectory() as name:
        corridor_dataset(Path(name) / "set", 30)
        dataset = open_dataset(Path(name) / "set")
        for loss in get_args(LossName):
            student = offline.Student(config, offline.Objective(loss=loss, temperature=0.01), SMALL, [dataset], 8, CPU, 0)
            numbers += [p.metrics[key] for p in offline.train(student) for key in ("loss", "held_out_loss", "kl", "regret")]
        mirror_dataset(Path(name) / "mirror", 30)
        pair = [dataset, open_dataset(Path(name) / "mirror")]
        objective = offline.Objective(loss="kl", temperature=0.05, balanced=True)
        several = offline.Student(config, objective, SEVERAL, pair, 8, CPU, 0, interleave=3)
        numbers += [
            p.metrics[f"{k}_{g}"] for p in offline.train(several) for k in ("loss", "kl") for g in ("Corridor", "Mirror")
        ]
        corridor_dataset(Path(name) / "round", 20)
        joined = Joined([dataset, open_dataset(Path(name) / "round")])
        decays: dict[str, Any] = {"squared_decay": 0.95, "gradient_decay": 0.95, "squared_minimum": 1e-5}
        kl = offline.Objective(loss="kl", temperature=0.05)
        for settings in (replace(config, optimizer="muon"), replace(config, optimizer="rmsprop", **decays)):
            student = offline.Student(settings, kl, SMALL, [joined], 8, CPU, 0)
            numbers += [p.metrics[key] for p in offline.train(student) for key in ("loss", "held_out_loss")]
        frames = 3 * 35 + 8 * 4  # windows of a block, and the stacks to be measured on
        memory = (len(dataset) * (4 * dataset.actions + 16) + frames * 84 * 84) / 1e9
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader, "BLOCK", 32)
            windows = offline.Student(replace(config, memory_gb=memory, validation_states=8), kl, SMALL, [dataset], 8, CPU, 0)
            assert not windows.lessons["Corridor"].loader.resident
            numbers += [p.metrics[key] for p in offline.train(windows) for key in ("loss", "held_out_loss")]
        teacher = new_network(SMALL, {"Corridor": dataset.actions}, CPU.device, 5)
        others: list[tuple[offline.Objective, dict[str, Any]]] = [
            (replace(kl, per_gap=True), {}),
            (replace(kl, feature_weight=0.1), {"teacher": teacher}),
            (kl, {"start": teacher}),
        ]
        for goal, more in others:
            student = offline.Student(config, goal, SMALL, [dataset], 8, CPU, 0, **more)
            numbers += [p.metrics[key] for p in offline.train(student) for key in ("loss", "held_out_loss")]
        added = offline.Student(config, kl, SMALL, pair[1:], 8, CPU, 0, start=teacher, frozen=True)
        numbers += [p.metrics[key] for p in offline.train(added) for key in ("loss", "held_out_loss")]
    return numbers


def run_train_multitask() -> list[float]:
    """Losses and mean Q of the first turns of a baseline of two games, of PQN and of DQN."""
    numbers = []
    for algorithm in ("pqn", "dqn"):
        agent = test_multitask.learner(algorithm, 4096, minibatch=4)
        for p in itertools.islice(multitask.train(agent, test_multitask.worlds()), 1):
            numbers += [p.metrics[f"{name}_{game}"] for name in ("loss", "q") for game in agent.learners]
        numbers.append(sum(float(weight.detach().abs().mean()) for weight in agent.result.parameters()))
    return numbers


def run_evaluate() -> list[float]:
    """Returns and lengths of real Breakout episodes on the evaluation seeds."""
    torch.manual_seed(1)
    network = QNetwork(NETWORKS["net3"], {"Breakout": 4}).eval()
    policy = EpsilonGreedy(q_function(network, exact(torch.device("cpu"))), 0.5)
    first = episode_seeds("evaluate", 0)
    played = sorted(play(SlotWorld("Breakout", ENVIRONMENT, width=3), policy, range(first, first + 4)))
    return [float(x) for e in played for x in (e.episode_return, e.steps)]


STAGES: Final[dict[str, tuple[Any, Any]]] = {
    "train-teacher": (train_teacher, run_train_teacher),
    "collect": (collecting, run_collect),
    "distill": (distill, run_distill),
    "train-multitask": (train_multitask, run_train_multitask),
    "evaluate": (evaluate, run_evaluate),
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_recipe_does_what_it_did(stage: str) -> None:
    module, run = STAGES[stage]
    pinned = json.loads(PINS.read_text())[stage]
    assert pinned["recipe"] == module.RECIPE, f"{stage}: run `python -m tests.test_recipes` to pin recipe {module.RECIPE}"
    remedy = (
        f"{stage} does something else than recipe {module.RECIPE}: raise RECIPE, the recipe in every params.yaml, and pin anew"
    )
    assert np.allclose(run(), pinned["values"], rtol=1e-3, atol=1e-5), remedy


if __name__ == "__main__":
    torch.set_num_threads(1)
    PINS.write_text(
        json.dumps({stage: {"recipe": m.RECIPE, "values": run()} for stage, (m, run) in STAGES.items()}, indent=1) + "\n"
    )
