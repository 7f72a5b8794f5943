"""Collection states/s against what the environment and the float32 forward pass allow: 1 / (1/environment + 1/forward).

One worker on one core, the bound on the same core in the same run, interleaved; then one against two worker processes.

    python -m benchmarks.collect [GAME]
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
import torch
from distributed import Client, LocalCluster

from benchmarks.timing import rates
from pipeline.agents.checkpoints import load_agent
from pipeline.agents.device import exact
from pipeline.agents.policies import q_function
from pipeline.atari.envs import VectorWorld
from pipeline.collect import BLOCK_EPISODES, Block, CollectConfig, Collection, play_block
from pipeline.datasets import blocks
from stages import params

STEPS = 400
WORKERS_STATES = 131_072


def main(game: str) -> None:
    settings = params.load(Path("params.yaml"))
    folder = Path(settings.zoo) / game
    agent = load_agent(folder, torch.device("cpu"))
    config = CollectConfig(game=game, environment=settings.environment, epsilon=0.05, seed=0, states=1, episodes=None, recipe=1)
    with tempfile.TemporaryDirectory() as name:
        torch.set_num_threads(1)
        world = VectorWorld(game, settings.environment, width=BLOCK_EPISODES, threads=1)
        seed_B = np.arange(BLOCK_EPISODES)
        everyone = np.ones(BLOCK_EPISODES, dtype=np.bool_)
        obs, _ = world.reset(seed_B, everyone)
        q_values = q_function(agent.network, exact(torch.device("cpu")), game)
        rng = np.random.default_rng(0)
        index = count()

        def environment() -> int:
            for _ in range(STEPS):
                world.step(rng.integers(0, agent.network.actions[game], BLOCK_EPISODES), everyone)
            return STEPS * BLOCK_EPISODES

        def forward() -> int:
            for _ in range(STEPS):
                q_values(obs)
            return STEPS * BLOCK_EPISODES

        def collection() -> int:
            job = Block(
                index=next(index),
                config=config,
                teacher_folder=folder,
                teacher_digest=agent.digest,
                folder=Path(name) / "blocks",
            )
            rows = play_block(job)
            list(blocks.read_block(job.folder, job.index))
            return sum(row.length for row in rows)

        found = rates({"environment": environment, "forward": forward, "collect": collection}, rounds=3)
        bound = 1 / (1 / found["environment"] + 1 / found["forward"])
        print(f"{game}, one core: " + ", ".join(f"{k} {v:,.0f}/s" for k, v in found.items()))
        print(f"collection is {found['collect'] / bound:.1%} of the bound {bound:,.0f} states/s")

    seconds = {}
    for workers in (1, 2):
        with (
            tempfile.TemporaryDirectory() as name,
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            whole = CollectConfig(
                game=game,
                environment=settings.environment,
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
