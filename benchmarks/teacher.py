"""PQN's steps/s against its own bound, 1 / (1/environment + 1/forward + epochs/update), and against Stable-Baselines3's DQN.

All of it interleaved in one run, on Pong with the settings that the zoo's teachers were trained with; Stable-Baselines3 with
its published Atari settings (batch 32, one update per 4 steps), after its warm-up. `make bench` installs what is wanted.

    python -m benchmarks.teacher
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import command
from benchmarks.timing import rates
from pipeline.agents.networks import NETWORKS
from pipeline.atari.envs import VectorWorld, action_meanings
from pipeline.rl.pqn import PqnLearner
from stages import params

GAME = "Pong"
ITERATIONS = 4
PEER_STEPS = 400


def main() -> None:
    settings = params.load(Path("experiments/zoo/params.yaml"))
    preset = settings.teacher_presets["pqn-atari"]
    config, network = preset.pqn, NETWORKS["pqn"]
    assert config is not None
    compute = preset.compute("auto")
    heads = {GAME: len(action_meanings(GAME, settings.environment))}
    learner = PqnLearner(config, 10**9, network, heads, compute, 0)
    per_iteration = config.envs * config.horizon
    playing = VectorWorld(GAME, settings.environment, width=config.envs, seed_once=bool(preset.seed_once))
    training = learner.train(playing)

    world = VectorWorld(GAME, settings.environment, width=config.envs)
    everyone = np.ones(config.envs, dtype=np.bool_)
    obs, _ = world.reset(np.arange(config.envs), everyone)
    rng = np.random.default_rng(0)
    alone = PqnLearner(config, 10**9, network, heads, compute, 0)
    for t in range(config.horizon):
        alone.q_values(obs, t)
    action_TB = torch.zeros((config.horizon, config.envs), dtype=torch.int64, device=compute.device)
    target_TB = torch.zeros((config.horizon, config.envs), device=compute.device)

    def train() -> int:
        for _ in range(ITERATIONS):
            next(training)
        return ITERATIONS * per_iteration

    def environment() -> int:
        for _ in range(ITERATIONS * config.horizon):
            world.step(rng.integers(0, heads[GAME], config.envs), everyone)
        return ITERATIONS * per_iteration

    def forward() -> int:
        for t in range(ITERATIONS * config.horizon):
            alone.q_values(obs, t % config.horizon).cpu()
        return ITERATIONS * per_iteration

    def update() -> int:
        for _ in range(ITERATIONS):
            alone.update(action_TB, target_TB)
        return ITERATIONS * per_iteration

    found = rates(
        {"pqn": train, "environment": environment, "forward": forward, "update": update, "sb3": _stable_baselines3()}, rounds=5
    )
    bound = 1 / sum(1 / found[part] for part in ("environment", "forward", "update"))
    print(f"{GAME}, {compute.device.type}: " + ", ".join(f"{name} {rate:,.0f} steps/s" for name, rate in found.items()))
    print(f"PQN runs at {found['pqn'] / bound:.1%} of its bound {bound:,.0f} steps/s")
    print(f"PQN runs at {found['pqn'] / found['sb3']:.1f} x the steps/s of Stable-Baselines3's DQN")


def _stable_baselines3() -> Callable[[], int]:
    """A task that trains Stable-Baselines3's DQN for `PEER_STEPS` more steps, its replay already warm."""
    import ale_py
    import gymnasium
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    env = VecFrameStack(make_atari_env(f"{GAME}NoFrameskip-v4", n_envs=1, seed=0), n_stack=4)
    model = DQN(
        "CnnPolicy",
        env,
        learning_rate=1e-4,
        buffer_size=10_000,
        learning_starts=1_000,
        batch_size=32,
        train_freq=4,
        gradient_steps=1,
        target_update_interval=1_000,
        seed=0,
    )
    model.learn(1_200)

    def more() -> int:
        model.learn(PEER_STEPS, reset_num_timesteps=False)
        return PEER_STEPS

    return more


if __name__ == "__main__":
    command.run(main, __doc__)
