"""The optimiser's steps, by hand and beside torch's own of matrices."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.agents import muon
from pipeline.agents.device import Compute
from pipeline.agents.muon import (
    SMALL,
    TOGETHER,
    UPDATE_SIZE,
    Muon,
    all_orthogonalised,
    orthogonalised,
    orthogonalised_in_bfloat16,
)
from pipeline.agents.networks import NetworkSpec, new_network


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_singular_values_become_one_or_so(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn((rows, columns), generator=generator) * 10.0 ** torch.randint(-6, 6, (1,), generator=generator)
    values = torch.linalg.svdvals(matrix)
    told = torch.linalg.svdvals(orthogonalised(matrix))[values > 0.01 * matrix.norm()]
    assert ((told > 0.6) & (told < 1.3)).all()


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4), st.booleans())
def test_together_they_become_what_each_becomes(shapes: list[tuple[int, int]], large: bool) -> None:
    shapes = [*shapes, (TOGETHER + 1, TOGETHER + 9)] if large else shapes
    matrices = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    for together, alone in zip(all_orthogonalised(matrices), map(orthogonalised, matrices), strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(150, 400), (400, 150)])
def test_in_bfloat16_they_become_nearly_the_same(shape: tuple[int, int], decay: float) -> None:
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    matrix = u * torch.arange(1, 151) ** -decay @ v
    exact = orthogonalised(matrix)
    assert (orthogonalised_in_bfloat16(matrix) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("units", [False, True])
def test_large_matrices_alone_are_multiplied_in_bfloat16_by_a_cpu_with_units_for_it(
    units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "has_matrix_units", lambda: units)
    spec = NetworkSpec(channels=(4, 4, 3), hidden=SMALL + 1)  # the shared layer: 129 by 147
    large, moved = {"trunk.7.weight"}, {}
    for precision in ("float32", "bfloat16"):
        network = new_network(spec, {"game": 2}, torch.device("cpu"), 0)
        optimizer = Muon.of(network, network.parameters(), lr=1.0, compute=Compute(torch.device("cpu"), precision))
        for n, p in enumerate(network.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
        optimizer.step()
        moved[precision] = dict(network.named_parameters())
    others = {name for name, p in moved["float32"].items() if not torch.equal(p, moved["bfloat16"][name])}
    assert others == (large if units else set())


@pytest.mark.parametrize("orthogonalised", [orthogonalised, orthogonalised_in_bfloat16])
def test_what_has_decayed_to_denormal_numbers_is_nothing(orthogonalised: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Else a CPU takes a hundred times as long for it."""
    matrix = torch.randn((8, 20), generator=torch.Generator().manual_seed(0))
    matrix[3], matrix[5, :10] = 1e-42, -1e-20
    clean = torch.where(matrix.abs() > 1e-15, matrix, 0.0)
    assert torch.equal(orthogonalised(matrix), orthogonalised(clean))
    assert not orthogonalised(matrix)[3].any()


def test_directions_stay() -> None:
    matrix = torch.randn((8, 20), generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonalised(matrix) @ v.T
    assert torch.allclose(turned, torch.diag(turned.diagonal()), atol=1e-3)


def test_a_gradient_of_nothing_moves_nothing() -> None:
    p = nn.Parameter(torch.ones(3, 4))
    p.grad = torch.zeros(3, 4)
    Muon([p], [], lr=0.1).step()
    assert torch.equal(p, torch.ones(3, 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has none")
def test_of_a_matrix_it_is_what_torch_does() -> None:
    """torch multiplies in bfloat16."""
    ours, theirs = (nn.Parameter(torch.ones(6, 10)) for _ in range(2))
    mine = Muon([ours], [], lr=0.01)
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn((6, 10), generator=generator)
        mine.step()
        reference.step()  # type: ignore[no-untyped-call,unused-ignore]
    assert torch.allclose(ours, theirs, atol=0.02 * (1.0 - ours).abs().max().item())


def test_a_convolution_is_a_matrix_of_filters_in_any_memory_format() -> None:
    weights = torch.randn((4, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    gradient = torch.randn((4, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    moved = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(weights.clone(memory_format=memory_format))
        p.grad = gradient.contiguous(memory_format=memory_format)
        Muon([p], [], lr=0.5).step()
        moved.append(p.detach())
    assert torch.allclose(moved[0], moved[1], atol=1e-6)
    size = (moved[0] - weights).square().mean().sqrt().item() / 0.5
    assert size == pytest.approx(UPDATE_SIZE, rel=0.3)


def test_all_else_is_adam() -> None:
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    mine, reference = Muon([], [ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for n in range(1, 6):
        ours.grad = theirs.grad = torch.tensor([math.sin(n), 0.1 * n])
        mine.step()
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_rate_on_the_device_is_the_same_rate() -> None:
    moved = []
    for rate in (0.1, torch.tensor(0.1)):
        parameters = [nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
        optimizer = Muon(parameters[:1], parameters[1:], lr=rate)
        for n in range(3):
            for p in parameters[: 3 if n else 2]:  # one joins a step later: it counts its own
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
            optimizer.step()
        moved.append(torch.cat([p.detach().flatten() for p in parameters]))
    torch.testing.assert_close(moved[0], moved[1])


def test_it_goes_on_where_the_rate_is_on_another_device() -> None:
    def begin(rate: float | torch.Tensor, start: list[nn.Parameter]) -> tuple[list[nn.Parameter], Muon]:
        parameters = [nn.Parameter(p.detach().clone()) for p in start]
        return parameters, Muon(parameters[:1], parameters[1:], lr=rate)

    ends = []
    by_turns: list[float | torch.Tensor] = [0.1, torch.tensor(0.1), 0.1]
    for rates in ([0.1, 0.1, 0.1], by_turns):
        parameters, optimizer = begin(0.1, [nn.Parameter(torch.ones(shape)) for shape in ((3, 5), (3,), (2,))])
        for n, rate in enumerate(rates):
            state = copy.deepcopy(optimizer.state_dict())
            parameters, optimizer = begin(rate, parameters)
            optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for p in parameters[: 3 if n else 2]:  # one joins after the first step
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in parameters]))
    torch.testing.assert_close(ends[0], ends[1])


def test_the_state_of_another_optimiser_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    other = torch.optim.Adam([p])
    other.step()
    with pytest.raises(KeyError, match="Muon keeps no step, exp_avg, exp_avg_sq"):
        Muon([], [p], lr=0.1).load_state_dict(other.state_dict())


def test_a_resumed_run_makes_the_same_steps() -> None:
    def begin() -> tuple[list[nn.Parameter], Muon]:
        parameters = [nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(3))]
        return parameters, Muon(parameters[:1], parameters[1:], lr=0.1)

    def step(parameters: list[nn.Parameter], optimizer: Muon, n: int) -> None:
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
        optimizer.step()

    once, undisturbed = begin()
    step(once, undisturbed, 0)
    again, resumed = begin()
    for p, q in zip(again, once, strict=True):
        p.data.copy_(q.data)
    resumed.load_state_dict(copy.deepcopy(undisturbed.state_dict()))
    step(once, undisturbed, 1)
    step(again, resumed, 1)
    assert all(torch.equal(p, q) for p, q in zip(once, again, strict=True))
