"""What both algorithms promise the stages."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from pipeline.agents.device import Compute
from pipeline.agents.networks import QNetwork
from pipeline.atari.rollout import Step
from pipeline.rl.learner import Learner, learning_signal
from tests.fakes import Corridor
from tests.rl.small import small_dqn, small_pqn

CPU = Compute(torch.device("cpu"), "float32")


@pytest.mark.parametrize("make", [small_pqn, small_dqn])
def test_beginning_with_an_agent_is_being_it(make: Callable[[Compute, int], Learner]) -> None:
    learner = make(CPU, 1000)
    other = QNetwork(learner.result.spec, learner.result.actions)
    learner.begin_with(other.state_dict(), steps=40, updates=5, episodes=2)
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    held = {name: net for name, net in learner.state_dict().items() if name in ("network", "average", "target")}
    assert len(held) == 2
    for weights in held.values():
        bare = {name.removeprefix("module."): tensor for name, tensor in weights.items() if name != "n_averaged"}
        copy = QNetwork(learner.result.spec, learner.result.actions)
        copy.load_state_dict(bare)
        assert torch.equal(copy(obs), other(obs))
    assert (learner.tally.steps, learner.tally.updates, learner.tally.episodes) == (40, 5, 2)


@pytest.mark.parametrize("make", [small_pqn, small_dqn])
def test_a_run_whose_loss_is_no_number_any_more_ends_before_it_is_saved(make: Callable[[Compute, int], Learner]) -> None:
    learner = make(CPU, 4096)
    world = Corridor(learner.envs)
    for tensor in learner.network.state_dict().values():
        tensor.mul_(float("nan"))
    with pytest.raises(ValueError, match=r"the loss is not finite after .* steps: lower the learning rate"):
        for _ in learner.train(world):
            pass


@pytest.mark.parametrize(("make", "stride"), [(small_pqn, 64), (small_dqn, 8)])
def test_the_last_steps_may_pass_the_budget(make: Callable[[Compute, int], Learner], stride: int) -> None:
    learner = make(CPU, 1000)
    for steps, beyond in ((1000, False), (999 + stride, False), (1000 + stride, True)):
        learner.tally.steps = steps
        assert learner.beyond is beyond


def test_what_is_learned_from_by_hand() -> None:
    over, end, lost = (np.array(bits, dtype=np.bool_) for bits in ([0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]))
    step = cast(
        Step,
        SimpleNamespace(
            reward_B=np.array([5.0, -3.0, 0.0, 1.0], dtype=np.float32), terminated_B=over, truncated_B=end, life_lost_B=lost
        ),
    )
    reward_B, done_B = learning_signal(step, clip_rewards=True, life_loss_ends=True)
    assert (reward_B.tolist(), done_B.tolist()) == ([1, -1, 0, 1], [True, True, True, False])
    reward_B, done_B = learning_signal(step, clip_rewards=False, life_loss_ends=False)
    assert (reward_B.tolist(), done_B.tolist()) == ([5, -3, 0, 1], [False, True, True, False])
