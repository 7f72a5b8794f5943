"""After standardising, every layer's outputs have mean 0 and deviation 1 over the batch, and MSE heads the targets' scale."""

import torch
from torch import nn

from pipeline.agents.initialise import standardise
from pipeline.agents.networks import NETWORKS, QNetwork


def frames() -> torch.Tensor:
    """Bright constant background, a little noise: what Atari looks like to a network."""
    noise = torch.randint(0, 20, (64, 4, 84, 84), generator=torch.Generator().manual_seed(0))
    return (noise + 100).to(torch.uint8)


def test_layers_have_unit_variance() -> None:
    network = QNetwork(NETWORKS["net3"], {"g": 6})
    standardise(network, {"g": frames()})
    x = frames().float() / 255
    for layer in [*network.trunk, *network.heads["g"]]:  # type: ignore[misc]
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            over = (0, 2, 3) if x.dim() == 4 else (0,)
            assert torch.allclose(x.mean(over), torch.zeros(x.shape[1]), atol=1e-2)
            assert torch.allclose(x.std(over), torch.ones(x.shape[1]), atol=1e-2)


def test_targets_set_the_outputs_scale() -> None:
    network = QNetwork(NETWORKS["net3"], {"g": 6})
    target = torch.randn(64, 6, generator=torch.Generator().manual_seed(1)) * 3 + 7
    standardise(network, {"g": frames()}, {"g": target})
    out = network(frames())
    assert torch.allclose(out.mean(0), target.mean(0), atol=0.05)
    assert torch.allclose(out.std(0), target.std().expand(6), rtol=0.05)
