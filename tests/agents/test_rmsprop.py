"""The optimiser's step by hand."""

import math

import pytest
import torch

from pipeline.agents.device import prepare_to_learn
from pipeline.agents.rmsprop import CenteredRmsProp


def test_rmsprop_by_hand() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = CenteredRmsProp([p], lr=0.1, squared_decay=0.9, gradient_decay=0.8, minimum=0.01)
    value, squared, mean = 1.0, 0.0, 0.0
    for gradient in (2.0, -1.0, 0.5):
        p.grad = torch.tensor([gradient])
        optimizer.step()
        squared = 0.9 * squared + 0.1 * gradient**2
        mean = 0.8 * mean + 0.2 * gradient
        value -= 0.1 * gradient / math.sqrt(squared - mean**2 + 0.01)
        assert p.item() == pytest.approx(value, rel=1e-5)


def test_a_variance_below_zero_is_none() -> None:
    """The mean may remember a gradient longer than the mean square does."""
    p = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = CenteredRmsProp([p], lr=0.1, squared_decay=0.1, gradient_decay=0.9, minimum=1e-4)
    for gradient in (*[4.0] * 9, 0.0, 1e-3):
        before = p.item()
        p.grad = torch.tensor([gradient])
        optimizer.step()
    assert p.item() == pytest.approx(before - 0.1 * 1e-3 / math.sqrt(1e-4), rel=1e-5)


@pytest.mark.parametrize("prepared", [False, True])
def test_averages_of_a_gradient_that_has_died_end_at_zero(prepared: bool) -> None:
    """Not at numbers below the normal ones, which a CPU multiplies a hundred times as slowly."""
    p = torch.nn.Parameter(torch.ones(64))
    optimizer = CenteredRmsProp([p], lr=1e-4, squared_decay=0.95, gradient_decay=0.95, minimum=1e-10)
    if prepared:
        prepare_to_learn()
    p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    p.grad = torch.zeros_like(p)
    for _ in range(2000):
        optimizer.step()
    bits = {name: set(average.view(torch.int32).tolist()) for name, average in optimizer.state[p].items()}
    least = torch.tensor(torch.finfo(torch.float32).tiny).view(torch.int32).item()
    died = {name: all(0 < bit < least for bit in found) for name, found in bits.items()}
    assert died == {"squared": not prepared, "gradient": not prepared}
    assert not prepared or set.union(*bits.values()) == {0}
