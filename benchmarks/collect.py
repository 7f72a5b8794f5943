"""Collection states/s against what the environment and the float32 forward pass allow: 1 / (1/environment + 1/forward), and
against Minari's DataCollector with the same network.

One worker on one core plays a block alone and eight in a run; the bound and Minari are measured on the same core in the same
run, interleaved. The environment is taken twice: its steps alone, and with the seeded starts of the episodes played (the
emulator loads its ROM anew for each). Then one against two worker processes, and what a block costs the coordinator.
`make bench` installs what Minari's collector wants.

    python -m benchmarks.collect [GAME]
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from minari import DataCollector

from benchmarks import command
from benchmarks.timing import rates
from pipeline.agents.checkpoints import Agent, load_agent
from pipeline.agents.device import exact
from pipeline.agents.networks import QNetwork
from pipeline.agents.policies import q_function
from pipeline.atari.envs import EnvConfig, VectorWorld, fingerprint
from pipeline.collect import BLOCK_EPISODES, SLOTS, CollectConfig, Collection, Task, one_core, play, send_agent
from pipeline.datasets import blocks
from pipeline.datasets.folders import Folder
from stages import params
from stages.cluster import cluster

STEPS = 500
WORKERS_STATES = 262_144  # ten of Pong's blocks: two workers have five each


def main(game: str) -> None:
    settings = params.load(Path("params.yaml"))
    folder = Path(settings.zoo) / game
    agent = load_agent(folder, torch.device("cpu"))
    against_bound(game, settings.environment, folder, agent)
    one_against_two(game, settings.environment, folder, agent)


def against_bound(game: str, env: EnvConfig, folder: Path, agent: Agent) -> None:
    config = CollectConfig(game=game, environment=env, epsilon=0.05, seed=0, states=1, episodes=None, recipe=1)
    with tempfile.TemporaryDirectory() as name, one_core():
        send_agent(folder, Folder(name), "teacher")
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
                world=fingerprint(game, env),
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
            "minari": partial(_minari_episode, game, env, agent.network, Path(name)),
        }
        found = rates(tasks, rounds=2)
        print(f"{game}, one core: " + ", ".join(f"{k} {v:,.0f}/s" for k, v in found.items()))
        starting = len(lengths) / sum(lengths) / found["starts"]  # seconds per state
        for what, extra in (("steps", 0.0), ("steps and seeded starts", starting)):
            bound = 1 / (1 / found["environment"] + extra + 1 / found["forward"])
            print(f"bound {bound:,.0f} states/s (environment: {what})")
            print(", ".join(f"{task}: {found[task] / bound:.1%} of it" for task in ("a block", "eight blocks")))
        print(f"eight blocks: {found['eight blocks'] / found['minari']:.1f} x the states/s of Minari's DataCollector")


class _Labelled(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Tells the Q-values of each state in `info`, and nothing else."""

    def __init__(self, env: gymnasium.Env[Any, Any], network: QNetwork) -> None:
        super().__init__(env)
        self.network = network

    def q_values(self, obs_CHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(self.network(torch.from_numpy(obs_CHW[None])).numpy()[0])

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        obs, _ = self.env.reset(**options)
        return obs, {"q": self.q_values(obs)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return obs, reward, terminated, truncated, {"q": self.q_values(obs)}


def _minari_episode(game: str, config: EnvConfig, network: QNetwork, folder: Path) -> int:
    """One episode as Minari's users collect it, kept on disk with its Q-values; returns its states."""
    gymnasium.register_envs(ale_py)
    env = gymnasium.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=config.sticky)
    env = AtariPreprocessing(env, noop_max=config.noop_max, frame_skip=config.frame_skip)
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    collector = DataCollector(
        _Labelled(FrameStackObservation(env, config.stack, padding_type="zero"), network),
        record_infos=True,
        data_format="hdf5",
    )
    rng = np.random.default_rng(0)
    _, info = collector.reset(seed=0)
    steps, over = 0, False
    while not over:
        action = rng.integers(len(info["q"])) if rng.random() < 0.05 else info["q"].argmax()
        _, _, terminated, truncated, info = collector.step(np.int64(action))
        steps, over = steps + 1, terminated or truncated
    collector.close()
    return steps


def one_against_two(game: str, env: EnvConfig, folder: Path, agent: Agent) -> None:
    seconds = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as name, cluster(None, workers) as client:
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
            start, busy = time.perf_counter(), time.process_time()
            for p in job.run(client):
                blocks_done = p.metrics["blocks"]
            busy = time.process_time() - busy
            digest = job.finish().digest
            seconds[workers] = time.perf_counter() - start
            print(f"{workers} worker(s): {WORKERS_STATES / seconds[workers]:,.0f} states/s, digest {digest[:12]}")
            cost, played = busy / blocks_done, seconds[workers] * workers / blocks_done
            print(f"a block: {cost:.2f} s of the coordinator's processor, {played:.2f} s of a worker's time")
    print(f"2 workers are {seconds[1] / seconds[2]:.2f}x as fast as 1")
    print(f"the coordinator is busy all the time with {played / cost:.0f} workers")


if __name__ == "__main__":
    command.run(main, __doc__, game="Pong")
