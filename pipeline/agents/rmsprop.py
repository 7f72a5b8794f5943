"""RMSProp as DQN has it: what a DQN teacher learns by, and a student as published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor, nn

CACHED: Final = 1 << 16
"""Weights that the optimiser takes at a time: all it does to them happens in the cache, not in memory."""


class CenteredRmsProp(torch.optim.Optimizer):
    """RMSProp as DQN uses it (Graves 2013, eq. 38-41, without momentum): g / sqrt(E[g^2] - E[g]^2 + minimum).

    torch's centered RMSprop has one decay for both averages and adds its constant outside the root. A rate that is a tensor is
    read on the device, so that steps can be recorded (`device.Recorded`).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float | Tensor,
        squared_decay: float,
        gradient_decay: float,
        minimum: float,
    ) -> None:
        defaults = {"lr": lr, "squared_decay": squared_decay, "gradient_decay": gradient_decay, "minimum": minimum}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p] = {"squared": torch.zeros_like(p), "gradient": torch.zeros_like(p)}
                rows = max(1, CACHED * len(p) // p.numel())
                tensors = (p, p.grad, self.state[p]["squared"], self.state[p]["gradient"])
                for weight, gradient, squared, mean in zip(*(t.split(rows) for t in tensors), strict=True):
                    squared.mul_(group["squared_decay"]).addcmul_(gradient, gradient, value=1.0 - group["squared_decay"])
                    mean.lerp_(gradient, 1.0 - group["gradient_decay"])
                    variance = torch.addcmul(squared, mean, mean, value=-1.0).clamp_(min=0.0)  # of other decays it may be below
                    scale = variance.add_(group["minimum"]).sqrt_()
                    if isinstance(group["lr"], Tensor):
                        weight.sub_(gradient.div(scale).mul_(group["lr"]))
                    else:
                        weight.addcdiv_(gradient, scale, value=-group["lr"])
