"""Data-dependent initialisation: every layer starts with outputs of mean 0 and variance 1 over real states.

Atari frames are a bright constant background with a few moving pixels. Under the usual initialisation the part of a layer's
output that varies between states is small beside its offset, and a small student without normalisation layers hardly starts
to learn (tests/distill/test_standardise.py). Rescaling each layer once, before training, removes it and leaves the architecture
untouched (Kraehenbuehl et al. 2016, arXiv 1511.06856; Mishkin and Matas 2016, arXiv 1511.06422).

Dimensions: B batch, C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.agents.networks import QNetwork


@torch.no_grad()
def standardise(network: QNetwork, game: str, obs_BCHW: Tensor, target_BA: Tensor | None = None) -> None:
    """Rescale every layer on these states, in place; with `target_BA` the outputs get the targets' mean and deviation.

    A few hundred states drawn over whole episodes do. Networks with normalisation layers do not need it.
    """
    x = obs_BCHW.float() / 255.0
    last = None
    for layer in [*network.trunk, *network.head(game)]:  # type: ignore[misc]
        if isinstance(layer, nn.Conv2d | nn.Linear):
            _rescale(layer, layer(x))
            last = layer
        x = layer(x)
    if target_BA is not None and last is not None:
        deviation = float(target_BA.std()) or 1.0
        last.weight.mul_(deviation)
        assert last.bias is not None
        last.bias.mul_(deviation).add_(target_BA.mean(dim=0))


def _rescale(layer: nn.Conv2d | nn.Linear, out: Tensor) -> None:
    """Give each output channel of `layer` mean 0 and deviation 1 over the batch and positions of `out`."""
    over = (0, 2, 3) if out.dim() == 4 else (0,)
    scale_C = 1.0 / out.std(dim=over).clamp_min(1e-6)
    assert layer.bias is not None
    layer.weight.mul_(scale_C.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.sub_(out.mean(dim=over)).mul_(scale_C)
