"""Muon: what students learn by fastest. Momentum, orthogonalised matrix by matrix; Adam for all that is no hidden matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import hardshrink

from pipeline.agents.device import Compute, has_matrix_units
from pipeline.agents.networks import QNetwork

MOMENTUM: Final = 0.95
BETAS: Final = (0.9, 0.999)
MINIMUM: Final = 1e-8
UPDATE_SIZE: Final = 0.2
"""Root mean square of an orthogonalised update, as Adam's usually is: one learning rate serves both (Liu et al. 2025)."""
COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
STEPS: Final = 5
NOTHING: Final = 1e-15
"""Elements of a matrix of norm 1 that are far below a float32's last bit of all that they are added to."""
TOGETHER: Final = 128
"""Rows of the largest Gram matrices that a GPU multiplies in one batch."""
SMALL: Final = 128
"""Rows of the largest Gram matrices that are multiplied in float32 even where bfloat16 is many times as fast."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose singular values are all brought near 1 (Jordan et al. 2024, Liu et al. 2025, eq. 4), for `hidden`
    matrices and convolutions, a row a filter; Adam (Kingma and Ba 2015) for the `others`: biases, norms, output layers.

    torch.optim.Muon takes no convolutions and leaves all others to a second optimiser. A rate that is a tensor, and with it the
    count of steps, is read on the device, so that steps can be recorded (`device.Recorded`). With `bfloat16` large matrices
    are multiplied in it, as published.
    """

    def __init__(
        self, hidden: Iterable[nn.Parameter], others: Iterable[nn.Parameter], *, lr: float | Tensor, bfloat16: bool = False
    ) -> None:
        self._bfloat16 = bfloat16
        groups = [{"params": list(hidden), "orthogonal": True}, {"params": list(others), "orthogonal": False}]
        super().__init__([group for group in groups if group["params"]], {"lr": lr})

    @staticmethod
    def of(network: QNetwork, parameters: Iterable[nn.Parameter], *, lr: float | Tensor, compute: Compute) -> Muon:
        """For these of a network's parameters, in bfloat16 where it learns in it on a CPU with units for that."""
        hidden, learned = {id(weights) for weights in network.hidden_weights()}, list(parameters)
        return Muon(
            [p for p in learned if id(p) in hidden],
            [p for p in learned if id(p) not in hidden],
            lr=lr,
            bfloat16=compute.precision == "bfloat16" and compute.device.type == "cpu" and has_matrix_units(),
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """KeyError where it is another optimiser's."""
        for state in state_dict["state"].values():
            if state.keys() not in ({"momentum"}, {"steps", "mean", "square"}):
                raise KeyError(f"Muon keeps no {', '.join(state)}")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand. All weights of a kind move together: a GPU has few kernels to launch."""
        assert closure is None
        for group in self.param_groups:
            moved, rate = [p for p in group["params"] if p.grad is not None], group["lr"]
            if not moved:
                continue
            gradients, states = [p.grad for p in moved], [self.state[p] for p in moved]
            changes = self._orthogonal(states, gradients) if group["orthogonal"] else self._adam(states, gradients, rate)
            if isinstance(rate, Tensor):
                torch._foreach_mul_(changes, rate)
                torch._foreach_sub_(moved, changes)
            else:
                torch._foreach_add_(moved, changes, alpha=-rate)

    def _orthogonal(self, states: list[dict[str, Any]], gradients: list[Tensor]) -> list[Tensor]:
        for state, gradient in zip(states, gradients, strict=True):
            if not state:
                state["momentum"] = torch.zeros_like(gradient)
        momenta = [state["momentum"] for state in states]
        torch._foreach_lerp_(momenta, gradients, 1.0 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        matrices = [tensor.flatten(1) for tensor in ahead]
        found = all_orthogonalised(matrices) if matrices[0].is_cuda else [self._alone(matrix) for matrix in matrices]
        torch._foreach_mul_(found, [UPDATE_SIZE * max(matrix.shape) ** 0.5 for matrix in matrices])
        return [matrix.view_as(gradient) for matrix, gradient in zip(found, gradients, strict=True)]

    def _alone(self, matrix: Tensor) -> Tensor:
        large = self._bfloat16 and min(matrix.shape) > SMALL
        return orthogonalised_in_bfloat16(matrix) if large else orthogonalised(matrix)

    @staticmethod
    def _adam(states: list[dict[str, Any]], gradients: list[Tensor], rate: float | Tensor) -> list[Tensor]:
        for state, gradient in zip(states, gradients, strict=True):
            if not state:
                state.update(steps=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
            if isinstance(state["steps"], Tensor) != isinstance(rate, Tensor):  # at first, or resumed on another device
                state["steps"] = torch.full_like(rate, state["steps"]) if isinstance(rate, Tensor) else int(state["steps"])
            state["steps"] += 1
        means, squares = [state["mean"] for state in states], [state["square"] for state in states]
        torch._foreach_lerp_(means, gradients, 1.0 - BETAS[0])
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1.0 - BETAS[1])
        mean = torch._foreach_div(means, _seen(BETAS[0], states))
        size = torch._foreach_div(squares, _seen(BETAS[1], states))
        torch._foreach_sqrt_(size)
        torch._foreach_add_(size, MINIMUM)
        torch._foreach_div_(mean, size)
        return list(mean)


def _seen(beta: float, states: list[dict[str, Any]]) -> list[Any]:
    """How much of a moving average is of what was seen: 1 - beta ** steps."""
    steps = [state["steps"] for state in states]
    if not isinstance(steps[0], Tensor):
        return [1.0 - beta**count for count in steps]
    unseen = torch._foreach_pow(beta, steps)
    torch._foreach_mul_(unseen, -1.0)
    torch._foreach_add_(unseen, 1.0)
    return list(unseen)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values brought to between 0.7 and 1.2, but for those below a thousandth of its norm.

    Five steps of a quintic Newton-Schulz iteration X <- (a + b XX' + c (XX')^2) X. Each is a polynomial of the Gram matrix XX',
    so they are multiplied there, where all is small, and meet the matrix once.

    Momentum of a unit that is never active any more decays to denormal numbers and stays there. A CPU multiplies these a
    hundred times as slowly; they are taken for 0.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    matrix = hardshrink(matrix / (matrix.norm() + 1e-7), NOTHING)
    return _multiplied(matrix @ matrix.T) @ matrix


def orthogonalised_in_bfloat16(matrix: Tensor) -> Tensor:
    """What `orthogonalised` gives, to some 3 %: the steps one by one, as published, which is twice the work at a sixth of the
    time for each. In the Gram matrix's polynomials bfloat16 would lose small singular values, which are squared there.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised_in_bfloat16(matrix.T).T
    a, b, c = COEFFICIENTS
    matrix = hardshrink(matrix / (matrix.norm() + 1e-7), NOTHING).bfloat16()
    for _ in range(STEPS):
        gram = matrix @ matrix.T
        matrix = torch.addmm(matrix, torch.addmm(gram, gram, gram, beta=b, alpha=c), matrix, beta=a)
    return matrix.float()


def all_orthogonalised(matrices: list[Tensor]) -> list[Tensor]:
    """Each of them `orthogonalised`. Gram matrices of up to `TOGETHER` rows are multiplied together, padded with zeros: that is
    more work and fewer kernels, and quicker on a GPU.
    """
    wide = [matrix.T if len(matrix) > matrix.shape[1] else matrix for matrix in matrices]
    norms = torch._foreach_norm(wide)
    torch._foreach_add_(norms, 1e-7)
    wide = [matrix / norm for matrix, norm in zip(wide, norms, strict=True)]
    most = max((len(matrix) for matrix in wide if len(matrix) <= TOGETHER), default=0)
    small = [i for i, matrix in enumerate(wide) if len(matrix) <= most]
    padded = torch.zeros((len(small), most, most), device=wide[0].device)
    for gram, i in zip(padded, small, strict=True):
        rows = len(wide[i])
        gram[:rows, :rows] = wide[i] @ wide[i].T
    products = dict(zip(small, _multiplied(padded) if small else padded, strict=True))
    found = []
    for i, matrix in enumerate(wide):
        rows = len(matrix)
        product = products[i][:rows, :rows] if i in products else _multiplied(matrix @ matrix.T)
        found.append(product @ matrix)
    return [a.T if len(b) > b.shape[1] else a for a, b in zip(found, matrices, strict=True)]


def _multiplied(gram: Tensor) -> Tensor:
    """The product of all steps' polynomials of a Gram matrix, or of each in a batch."""
    a, b, c = COEFFICIENTS
    add = torch.addmm if gram.dim() == 2 else torch.baddbmm
    product: Tensor | None = None
    for step in range(STEPS):
        factor = add(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product
