"""Collection states/s against what the environment and the float32 forward pass allow: 1 / (1/environment + 1/forward).

One worker on one core plays a block alone and eight in a run; the bound is measured on the same core in the same run,
interleaved. The environment is taken twice: its steps alone, and with the seeded starts of the episodes played (the emulator
loads its ROM anew for each). Then one against two worker processes.

    python -m benchmarks.collect [GAME]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from distributed import Client, LocalCluster

from benchmarks.timing import rates
from pipeline.agents.checkpoints import Agent, load_agent
from pipeline.agents.device import exact
from pipeline.agents.policies import q_function
from pipeline.atari.envs import EnvConfig, VectorWorld
from pipeline.collect import BLOCK_EPISODES, SLOTS, CollectConfig, Collection, Task, play, send_teacher
from pipeline.datasets import blocks
from pipeline.datasets.folders import Folder
from stages import params

STEPS = 500
WORKERS_STATES = 131_072


@contextmanager
def one_core() -> Iterator[None]:
    """Everything that starts in here shares one core: a world's threads too."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def main(game: str) -> None:
    settings = params.load(Path("params.yaml"))
    folder = Path(settings.zoo) / game
    agent = load_agent(folder, torch.device("cpu"))
    against_bound(game, settings.environment, folder, agent)
    one_against_two(game, settings.environment, folder, agent)


def against_bound(game: str, env: EnvConfig, folder: Path, agent: Agent) -> None:
    config = CollectConfig(game=game, environment=env, epsilon=0.05, seed=0, states=1, episodes=None, recipe=1)
    with tempfile.TemporaryDirectory() as name, one_core():
        send_teacher(folder, Folder(name))
        torch.set_num_threads(1)
        world = VectorWorld(game, env, width=SLOTS, threads=1)
        seed_B = np.arange(SLOTS)
        everyone = np.ones(SLOTS, dtype=np.bool_)
        obs, _ = world.reset(seed_B, everyone)
        q_values = q_function(agent.network, exact(torch.device("cpu")), game)
        rng = np.random.default_rng(0)
        played = 0
        lengths: list[int] = []

        def environment() -> int:
            for _ in range(STEPS):
                world.step(rng.integers(0, agent.network.actions[game], SLOTS), everyone)
            return STEPS * SLOTS

        def forward() -> int:
            for _ in range(STEPS):
                q_values(obs)
            return STEPS * SLOTS

        def collection(count: int) -> int:
            nonlocal played
            task = Task(
                blocks=range(played, played + count),
                config=config,
                teacher_digest=agent.digest,
                url=name,
            )
            play(task)
            played += count
            lengths.extend(records.steps for block in task.blocks for records in blocks.read_block(Folder(name), block))
            return sum(lengths[-count * BLOCK_EPISODES :])

        def starts() -> int:
            world.reset(seed_B, everyone)
            return SLOTS

        tasks: dict[str, Callable[[], int]] = {
            "environment": environment,
            "starts": starts,
            "forward": forward,
            "a block": partial(collection, 1),
            "eight blocks": partial(collection, 8),
        }
        found = rates(tasks, rounds=2)
        print(f"{game}, one core: " + ", ".join(f"{k} {v:,.0f}/s" for k, v in found.items()))
        starting = len(lengths) / sum(lengths) / found["starts"]  # seconds per state
        for what, extra in (("steps", 0.0), ("steps and seeded starts", starting)):
            bound = 1 / (1 / found["environment"] + extra + 1 / found["forward"])
            print(f"bound {bound:,.0f} states/s (environment: {what})")
            print(", ".join(f"{task}: {found[task] / bound:.1%} of it" for task in ("a block", "eight blocks")))


def one_against_two(game: str, env: EnvConfig, folder: Path, agent: Agent) -> None:
    seconds = {}
    for workers in (1, 2):
        with (
            tempfile.TemporaryDirectory() as name,
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            whole = CollectConfig(
                game=game,
                environment=env,
                epsilon=0.05,
                seed=0,
                states=WORKERS_STATES,
                episodes=None,
                recipe=1,
            )
            job = Collection(whole, folder, agent, Path(name))
            start = time.perf_counter()
            for _ in job.run(client):
                pass
            digest = job.finish().digest
            seconds[workers] = time.perf_counter() - start
            print(f"{workers} worker(s): {WORKERS_STATES / seconds[workers]:,.0f} states/s, digest {digest[:12]}")
    print(f"2 workers are {seconds[1] / seconds[2]:.2f}x as fast as 1")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "Pong")
