"""The paper's sizes, heads, and batch independence."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from pipeline.agents.networks import NETWORKS, NetworkSpec, QNetwork, count_parameters, new_network


@pytest.mark.parametrize(("name", "parameters"), [("dqn", 1_693_362), ("net1", 427_874), ("net2", 113_346), ("net3", 61_954)])
def test_parameter_counts_are_the_papers(name: str, parameters: int) -> None:
    assert count_parameters(QNetwork(NETWORKS[name], {"any": 18})) == parameters


TEN = {"BeamRider": 9, "Breakout": 4, "Enduro": 9, "Freeway": 3, "MsPacman": 9, "Pong": 6, "Qbert": 6, "Riverraid": 18,
       "Seaquest": 18, "SpaceInvaders": 6}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "heads", "parameters"),
    [
        ("multi3", {"Freeway": 3, "Pong": 3, "Qbert": 6}, 1_882_668),
        ("multi3", {"Freeway": 3, "Pong": 6, "Qbert": 6}, 1_883_055),
        ("multi10", TEN | {"Pong": 3}, 6_756_721),  # the paper's Pong has three actions
        ("multi10", TEN, 6_757_108),
    ],
)
def test_multi_game_counts(name: str, heads: dict[str, int], parameters: int) -> None:
    assert count_parameters(QNetwork(NETWORKS[name], heads)) == parameters


def test_normalised_is_every_layer_but_the_last() -> None:
    network = QNetwork(NETWORKS["pqn-multi3"], {"Pong": 6, "Breakout": 4})
    layers = [*network.trunk.children(), *network.heads["Pong"].children()]
    followed = [
        isinstance(after, nn.GroupNorm) and after.num_groups == 1
        for layer, after in pairwise([*layers, None])
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    assert followed == [True] * 5 + [False]


def test_heads_are_chosen_by_game() -> None:
    network = QNetwork(NETWORKS["net3"], {"Pong": 6, "Breakout": 4})
    obs = torch.zeros((2, 4, 84, 84), dtype=torch.uint8)
    assert network(obs, "Pong").shape == (2, 6)
    assert network(obs, "Breakout").shape == (2, 4)
    with pytest.raises(ValueError, match="name one of them"):
        network(obs)
    with pytest.raises(ValueError, match="no head for Qbert"):
        network(obs, "Qbert")
    with pytest.raises(ValueError, match="at least one head"):
        QNetwork(NETWORKS["net3"], {})


def test_the_head_is_float32_under_autocast() -> None:
    network = QNetwork(NETWORKS["net3"], {"any": 6})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(torch.zeros((1, 4, 84, 84), dtype=torch.uint8)).dtype == torch.float32


def test_the_first_layer_of_patches_is_the_first_layer() -> None:
    network = new_network(NETWORKS["net3"], {"Pong": 6}, torch.device("cpu"), 0)
    obs_BCHW = torch.randint(0, 256, (3, 5, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))[:, 1:]
    of_pixels = network.trunk[0](obs_BCHW / 255.0)
    of_patches = network._first_of_patches(obs_BCHW, torch.float32)
    torch.testing.assert_close(of_patches, of_pixels, atol=1e-5, rtol=1e-5)
    weight = next(network.parameters())
    (wanted,) = torch.autograd.grad(of_pixels.square().sum(), weight)
    (found,) = torch.autograd.grad(of_patches.square().sum(), weight)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def test_bfloat16_loses_little() -> None:
    network = new_network(NETWORKS["net3"], {"Pong": 6}, torch.device("cpu"), 0)
    obs_BCHW = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact_BF = network.features(obs_BCHW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_BF = network.features(obs_BCHW)
    assert found_BF.dtype == torch.float32
    assert (found_BF - exact_BF).norm() < 0.01 * exact_BF.norm()


def test_spec_survives_json() -> None:
    for spec in NETWORKS.values():
        assert NetworkSpec.from_json(spec.as_json()) == spec
    with pytest.raises(ValueError, match="three convolutions"):
        NetworkSpec.from_json(NETWORKS["dqn"].as_json() | {"channels": [1, 2]})
