"""Muon: what students learn by fastest. Momentum, orthogonalised matrix by matrix; Adam for all that is no hidden matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

MOMENTUM: Final = 0.95
BETAS: Final = (0.9, 0.999)
MINIMUM: Final = 1e-8
UPDATE_SIZE: Final = 0.2
"""Root mean square of an orthogonalised update, as Adam's usually is: one learning rate serves both (Liu et al. 2025)."""
COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
STEPS: Final = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose singular values are all brought near 1 (Jordan et al. 2024, Liu et al. 2025, eq. 4), for `hidden`
    matrices and convolutions, a row a filter; Adam (Kingma and Ba 2015) for the `others`: biases, norms, output layers.

    torch.optim.Muon takes no convolutions and leaves all others to a second optimiser. A rate that is a tensor, and with it the
    count of steps, is read on the device, so that steps can be recorded (`device.Recorded`).
    """

    def __init__(self, hidden: Iterable[nn.Parameter], others: Iterable[nn.Parameter], *, lr: float | Tensor) -> None:
        groups = [{"params": list(hidden), "orthogonal": True}, {"params": list(others), "orthogonal": False}]
        super().__init__([group for group in groups if group["params"]], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand."""
        assert closure is None
        for group in self.param_groups:
            update, rate = self._orthogonal if group["orthogonal"] else self._adam, group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not group["orthogonal"] and not self.state[p]:
                    self.state[p]["steps"] = torch.zeros_like(rate) if isinstance(rate, Tensor) else 0
                change = update(self.state[p], p.grad)
                if isinstance(rate, Tensor):
                    p.sub_(change.mul_(rate))
                else:
                    p.add_(change, alpha=-rate)

    @staticmethod
    def _orthogonal(state: dict[str, Any], gradient: Tensor) -> Tensor:
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1.0 - MOMENTUM)
        looking_ahead = gradient.lerp(state["momentum"], MOMENTUM)
        matrix = orthogonalised(looking_ahead.flatten(1))
        return matrix.mul_(UPDATE_SIZE * max(matrix.shape) ** 0.5).view_as(gradient)

    @staticmethod
    def _adam(state: dict[str, Any], gradient: Tensor) -> Tensor:
        if "mean" not in state:
            state.update(mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
        state["steps"] += 1
        state["mean"].lerp_(gradient, 1.0 - BETAS[0])
        state["square"].lerp_(gradient.square(), 1.0 - BETAS[1])
        mean = state["mean"] / (1.0 - BETAS[0] ** state["steps"])
        size = (state["square"] / (1.0 - BETAS[1] ** state["steps"])).sqrt().add_(MINIMUM)
        return torch.div(mean, size)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values brought to between 0.7 and 1.2, but for those below a thousandth of its norm.

    Five steps of a quintic Newton-Schulz iteration X <- (a + b XX' + c (XX')^2) X. Each is a polynomial of the Gram matrix XX',
    so they are multiplied there, where all is small, and meet the matrix once.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    a, b, c = COEFFICIENTS
    matrix = matrix / (matrix.norm() + 1e-7)
    gram = matrix @ matrix.T
    product: Tensor | None = None
    for step in range(STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ matrix
