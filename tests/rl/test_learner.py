"""What both algorithms promise the stages."""

from collections.abc import Callable

import pytest
import torch

from pipeline.agents.device import Compute
from pipeline.agents.networks import QNetwork
from pipeline.rl.learner import Learner
from tests.rl.small import small_dqn, small_pqn

CPU = Compute(torch.device("cpu"), "float32")


@pytest.mark.parametrize("make", [small_pqn, small_dqn])
def test_beginning_with_an_agent_is_being_it(make: Callable[[Compute, int], Learner]) -> None:
    learner = make(CPU, 1000)
    other = QNetwork(learner.result.spec, learner.result.actions)
    learner.begin_with(other.state_dict(), 40)
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    held = {name: net for name, net in learner.state_dict().items() if name in ("network", "average", "target")}
    assert len(held) == 2
    for weights in held.values():
        bare = {name.removeprefix("module."): tensor for name, tensor in weights.items() if name != "n_averaged"}
        copy = QNetwork(learner.result.spec, learner.result.actions)
        copy.load_state_dict(bare)
        assert torch.equal(copy(obs), other(obs))
    assert learner.tally.steps == 40
