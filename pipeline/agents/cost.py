"""What a network costs to run: parameters, multiply-adds, bytes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pipeline.agents.networks import NetworkSpec, QNetwork, count_parameters


class Cost(NamedTuple):
    """Of one state: `flops` counts a multiply-add as two; `bytes` are those of the float32 weights."""

    parameters: int
    flops: int
    bytes: int


def cost(spec: NetworkSpec, actions: int) -> Cost:
    """Cost of a network of one head. Normalisation and activations, under a hundredth of it, are not counted."""
    network = QNetwork(spec, {"game": actions})
    flops = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal flops
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        flops += 2 * output[0].numel() * weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros((1, spec.stack, 84, 84), dtype=torch.uint8))
    parameters = count_parameters(network)
    return Cost(parameters, flops, 4 * parameters)
