"""Data-dependent initialisation: every layer starts with outputs of mean 0 and variance 1 over real states.

Atari frames are a bright constant background with a few moving pixels. Under the usual initialisation the part of a layer's
output that varies between states is small beside its offset, and a small student without normalisation layers hardly starts
to learn (tests/distill/test_standardise.py). Rescaling each layer once, before training, removes it and leaves the architecture
untouched (Kraehenbuehl et al. 2016, arXiv 1511.06856; Mishkin and Matas 2016, arXiv 1511.06422).

Dimensions: B batch, C stacked frames, H W pixels, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.agents.networks import QNetwork


@torch.no_grad()
def standardise(
    network: QNetwork, states: Mapping[str, Tensor], targets: Mapping[str, Tensor] | None = None, *, trunk: bool = True
) -> None:
    """Rescale the trunk on these states of each game and each game's head on its own, in place; without `trunk`, heads alone.

    Outputs of games that have `targets` (B, A) get their mean and deviation. A few hundred states drawn over whole episodes
    do. Networks with normalisation layers do not need it.
    """
    x = torch.cat([obs_BCHW.float() / 255.0 for obs_BCHW in states.values()])
    for layer in network.trunk:
        if trunk and isinstance(layer, nn.Conv2d | nn.Linear):
            _rescale(layer, layer(x))
        x = layer(x)
    features = torch.split(x, [len(obs_BCHW) for obs_BCHW in states.values()])
    for game, features_BF in zip(states, features, strict=True):
        head = network.head(game)
        assert isinstance(head, nn.Sequential)
        x = features_BF
        for layer in head:
            if isinstance(layer, nn.Linear):
                _rescale(layer, layer(x))
            x = layer(x)
        if targets and game in targets:
            last = head[-1]
            assert isinstance(last, nn.Linear)
            deviation = float(targets[game].std()) or 1.0
            last.weight.mul_(deviation)
            last.bias.mul_(deviation).add_(targets[game].mean(dim=0))


def _rescale(layer: nn.Conv2d | nn.Linear, out: Tensor) -> None:
    """Give each output channel of `layer` mean 0 and deviation 1 over the batch and positions of `out`."""
    over = (0, 2, 3) if out.dim() == 4 else (0,)
    scale_C = 1.0 / out.std(dim=over).clamp_min(1e-6)
    assert layer.bias is not None
    layer.weight.mul_(scale_C.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.sub_(out.mean(dim=over)).mul_(scale_C)
