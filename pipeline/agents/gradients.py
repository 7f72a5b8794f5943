"""Whether games pull a shared trunk the same way: the cosine between the gradients of their losses.

1: one game's step helps the other as much as its own would; 0: it does not matter; below: they interfere.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from pipeline.agents.networks import QNetwork


def trunk_cosines(network: QNetwork, losses: Mapping[str, Tensor]) -> dict[str, float]:
    """`cosine_GAME_GAME` of every two games' losses with respect to the trunk's weights; 0 where a gradient vanishes."""
    weights = list(network.trunk.parameters())
    gradient = {}
    for game, loss in losses.items():
        flat_W = torch.cat([g.flatten().float() for g in torch.autograd.grad(loss, weights)])
        gradient[game] = flat_W / flat_W.norm().clamp_min(1e-30)
    return {f"cosine_{one}_{other}": float(gradient[one] @ gradient[other]) for one, other in combinations(gradient, 2)}
