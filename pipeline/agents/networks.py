"""One Q-network for every role: a convolutional trunk and one head per game.

The paper's ladder (Rusu et al. 2015, Section 4 and Table 3) differs only in its `NetworkSpec`. Under NLL and KL the outputs are
logits of a policy, under MSE and for teachers they are Q-values; the network does not know which.

Dimensions: B batch, C stacked frames, H W pixels (84), A actions, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSpec:
    """Channels of the three convolutions (8x8/4, 4x4/2, 3x3/1), units of the shared layer, and two options.

    `layer_norm` normalises after every layer but the last (PQN); `controller` gives each game a private hidden layer of so many
    units before its output (multi-game students), 0 for none. `stack` is the number of input frames.
    """

    channels: tuple[int, int, int]
    hidden: int
    layer_norm: bool = False
    controller: int = 0
    stack: int = 4

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"channels": list(self.channels)}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> NetworkSpec:
        channels = fields["channels"]
        if len(channels) != 3:
            raise ValueError(f"a network has three convolutions, this one lists {len(channels)}")
        first, second, third = (int(c) for c in channels)
        return NetworkSpec(
            channels=(first, second, third),
            hidden=int(fields["hidden"]),
            layer_norm=bool(fields["layer_norm"]),
            controller=int(fields["controller"]),
            stack=int(fields["stack"]),
        )


NETWORKS: Final = {
    "dqn": NetworkSpec(channels=(32, 64, 64), hidden=512),
    "net1": NetworkSpec(channels=(16, 32, 32), hidden=256),
    "net2": NetworkSpec(channels=(16, 16, 16), hidden=128),
    "net3": NetworkSpec(channels=(16, 16, 16), hidden=64),
    "tiny": NetworkSpec(channels=(8, 16, 16), hidden=28),
    "pqn": NetworkSpec(channels=(32, 64, 64), hidden=512, layer_norm=True),
    "multi3": NetworkSpec(channels=(32, 64, 64), hidden=512, controller=128),
    "multi10": NetworkSpec(channels=(64, 64, 64), hidden=1500, controller=128),
    "pqn-multi3": NetworkSpec(channels=(32, 64, 64), hidden=512, layer_norm=True, controller=128),
}
"""The paper's four single-game networks and a smaller one (1.7 % of its teacher), PQN's teacher, the paper's two multi-game
students, and PQN's multi-game baseline."""


class QNetwork(nn.Module):
    """Maps uint8 states to one value per action of one game. `heads`: game -> number of actions."""

    def __init__(self, spec: NetworkSpec, heads: Mapping[str, int]) -> None:
        super().__init__()
        if not heads:
            raise ValueError("a network needs at least one head: give {game: number of actions}")
        self.spec = spec
        self.actions = dict(heads)
        first, second, third = spec.channels

        def normalised(layer: nn.Module, features: int) -> list[nn.Module]:
            # One group: LayerNorm over channels and positions, in the memory format that the convolutions run fastest in.
            return (
                [layer, nn.GroupNorm(1, features), nn.ReLU(inplace=True)] if spec.layer_norm else [layer, nn.ReLU(inplace=True)]
            )

        self.trunk = nn.Sequential(
            *normalised(nn.Conv2d(spec.stack, first, 8, stride=4), first),
            *normalised(nn.Conv2d(first, second, 4, stride=2), second),
            *normalised(nn.Conv2d(second, third, 3, stride=1), third),
            nn.Flatten(),
            *normalised(nn.Linear(third * 7 * 7, spec.hidden), spec.hidden),
        )
        self.heads = nn.ModuleDict(
            {
                game: nn.Sequential(
                    *normalised(nn.Linear(spec.hidden, spec.controller), spec.controller), nn.Linear(spec.controller, n)
                )
                if spec.controller
                else nn.Sequential(nn.Linear(spec.hidden, n))
                for game, n in heads.items()
            }
        )

    def head(self, game: str | None) -> nn.Module:
        """The head of `game`; None picks the only one."""
        if game is None:
            if len(self.heads) != 1:
                raise ValueError(f"this network plays {', '.join(self.heads)}: name one of them")
            game = next(iter(self.heads))
        if game not in self.heads:
            raise ValueError(f"this network has no head for {game}: it plays {', '.join(self.heads)}")
        return self.heads[game]

    def hidden_weights(self) -> list[Tensor]:
        """Weights of every layer but the heads' last ones: matrices, and convolutions, a row a filter."""
        layers = [*self.trunk, *(layer for head in self.heads.values() for layer in list(head.children())[:-1])]
        return [layer.weight for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]

    def features(self, obs_BCHW: Tensor) -> Tensor:
        """uint8 (B, stack, 84, 84) -> float32 (B, hidden), the layer that the heads read.

        The trunk runs in the caller's precision (`device.Compute.autocast`).
        """
        device = obs_BCHW.device.type
        if torch.is_autocast_enabled(device):
            features_BF: Tensor = self.trunk[1:](self._first_of_patches(obs_BCHW, torch.get_autocast_dtype(device)))
            return features_BF.float()
        # torch.channels_last keeps oneDNN and cuDNN on their fast kernels. Bytes are cheaper to bring there than floats, and
        # by stacking them in half the time that `contiguous` takes.
        last_BCHW = torch.stack(obs_BCHW.unbind(1), dim=-1).permute(0, 3, 1, 2)
        features_BF = self.trunk(last_BCHW.to(torch.float32).mul_(1.0 / 255.0))
        return features_BF

    def _first_of_patches(self, obs_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """The first convolution in low precision: 8x8 pixels of `stack` frames every 4 pixels are 2x2 patches of 4x4 pixels, of
        which each is 16 channels a frame. Kernels for matrices want many channels; with AMX, forward and backward
        together then take six tenths of the time.

        Bytes are whole numbers that bfloat16 holds exactly. What divides them by 255 is the weights.

        Dimensions here: I J patches (21 of 4 rows, 21 of 4 columns), R rows of a patch, P its pixels in all frames, F filters.
        """
        first, stack = self.trunk[0], self.spec.stack
        assert isinstance(first, nn.Conv2d)
        assert obs_BCHW.dtype == torch.uint8
        # Four pixels of a row are one int32, a patch of a frame is one complex128: moved whole, none is computed with.
        row_BCIRJ = obs_BCHW.contiguous().view(torch.int32).view(-1, stack, 21, 4, 21)
        patch_BCIJ = row_BCIRJ.transpose(3, 4).clone(memory_format=torch.contiguous_format).view(torch.complex128)
        patch_BIJC = patch_BCIJ.view(-1, stack, 21, 21).permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        pixel_BIJP = patch_BIJC.view(torch.uint8).view(-1, 21, 21, stack * 16).to(dtype)
        weight_FPIJ = (first.weight / 255.0).view(-1, stack, 2, 4, 2, 4).permute(0, 1, 3, 5, 2, 4).reshape(-1, stack * 16, 2, 2)
        hidden_BFIJ: Tensor = nn.functional.conv2d(pixel_BIJP.permute(0, 3, 1, 2), weight_FPIJ, first.bias)
        return hidden_BFIJ

    def values(self, features_BF: Tensor, game: str | None = None) -> Tensor:
        """Features -> float32 q_BA, always in float32: gaps between Q-values are hundredths of the values, below bfloat16's
        resolution.
        """
        with torch.autocast(features_BF.device.type, enabled=False):
            q_BA: Tensor = self.head(game)(features_BF)
        return q_BA

    def forward(self, obs_BCHW: Tensor, game: str | None = None) -> Tensor:
        """uint8 (B, stack, 84, 84) -> float32 q_BA."""
        return self.values(self.features(obs_BCHW), game)


def new_network(spec: NetworkSpec, heads: Mapping[str, int], device: torch.device, seed: int) -> QNetwork:
    """A network with the weights that `seed` draws, whatever torch's global stream holds, placed on `device`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = QNetwork(spec, heads)
    return place(network, device)


def place(network: QNetwork, device: torch.device) -> QNetwork:
    """The network on `device`, in the memory format of the fast convolutions."""
    placed: QNetwork = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers in the network."""
    return sum(p.numel() for p in network.parameters())
