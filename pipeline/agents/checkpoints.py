"""An agent on disk: `model.safetensors` and `card.json`. Nothing is ever unpickled.

The digest covers what decides the agent's behaviour: architecture, heads and every weight.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.agents.networks import NETWORKS, NetworkSpec, QNetwork, count_parameters, place

FORMAT: Final = 1
WEIGHTS: Final = "model.safetensors"
CARD: Final = "card.json"


@dataclass(frozen=True, slots=True)
class Agent:
    """A network with the card that says where it comes from."""

    network: QNetwork
    card: dict[str, Any]

    @property
    def digest(self) -> str:
        return str(self.card["digest"])

    def world(self, game: str) -> Any:
        """The fingerprint of the environment in which it plays `game`, as its card says; None if that does not say."""
        return games_of(self.card).get(game, {}).get("environment")


def games_of(card: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a card says of each game: under `games`, or for an agent of one game at its top."""
    if isinstance(games := card.get("games"), dict):
        return dict(games)
    return (
        {str(card["game"]): {key: card[key] for key in ("environment", "teacher", "held_out") if key in card}}
        if "game" in card
        else {}
    )


Q_LOSSES: Final = ("mse", "normalised-mse")
"""Losses whose students' outputs are Q-values, as a teacher's are; those of the others are a policy's logits."""


def gives_q_values(card: Mapping[str, Any]) -> bool:
    """Whether an agent's outputs are Q-values, or else the logits of a policy."""
    return card.get("objective", {}).get("loss", "mse") in Q_LOSSES


def digest(network: QNetwork) -> str:
    """SHA-256 over architecture, heads and weights, independent of file layout."""
    spec = json.dumps({"network": network.spec.as_json(), "heads": network.actions}, sort_keys=True)
    sha = hashlib.sha256(spec.encode())
    for name, tensor in sorted(network.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def network_name(spec: NetworkSpec) -> str:
    """The architecture's name in `NETWORKS`, or "custom"."""
    return next((name for name, known in NETWORKS.items() if known == spec), "custom")


def save_agent(folder: Path, network: QNetwork, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write the agent into `folder`; the card gains format, architecture, heads, parameter count and digest. Returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(contiguous, folder / WEIGHTS)
    complete = dict(card) | {
        "format": FORMAT,
        "network": network_name(network.spec),
        "architecture": network.spec.as_json(),
        "heads": network.actions,
        "parameters": count_parameters(network),
        "digest": digest(network),
    }
    part = folder / f".{CARD}.part"  # whoever finds a card takes the agent for whole
    part.write_text(json.dumps(complete, indent=2, sort_keys=True) + "\n")
    part.replace(folder / CARD)
    return complete


def load_card(folder: Path) -> dict[str, Any]:
    """The card of the agent in `folder`. ValueError says what is missing and how to get it."""
    path = folder / CARD
    if not path.is_file():
        raise ValueError(
            f"no agent at {folder}: {CARD} is missing; `pd-pipeline plan` tells what is left to make, "
            f"`git checkout` or `dvc pull` brings back what was there"
        )
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}): restore it with `git checkout` or `dvc pull`") from None
    if not isinstance(card, dict) or not {"format", "architecture", "heads", "digest"} <= card.keys():
        raise ValueError(f"{path} is not an agent card: it lacks format, architecture, heads or digest")
    if card["format"] != FORMAT:
        raise ValueError(f"{path} has format {card['format']}, this version reads {FORMAT}: update pd-pipeline")
    return card


def load_agent(folder: Path, device: torch.device) -> Agent:
    """Read and verify an agent. ValueError names the file that is missing, damaged or does not match its card."""
    card = load_card(folder)
    try:
        spec, heads = NetworkSpec.from_json(card["architecture"]), {str(k): int(v) for k, v in card["heads"].items()}
        with torch.device("meta"):  # takes no memory, whatever the card claims
            claimed = count_parameters(QNetwork(spec, heads))
        if 4 * claimed > (folder / WEIGHTS).stat().st_size:
            raise RuntimeError(f"{claimed:,} parameters are more than {WEIGHTS} has")
        network = QNetwork(spec, heads)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError:
        raise ValueError(
            f"{folder / WEIGHTS} is missing: bring it back with `git checkout` or `dvc pull`, or make the agent again"
        ) from None
    except (SafetensorError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{folder} is damaged ({first}): restore it with `git checkout` or `dvc pull`") from None
    if digest(network) != card["digest"]:
        raise ValueError(f"{folder / WEIGHTS} does not match the digest in its card: restore both from one source")
    return Agent(place(network, device).eval(), card)


def read_files(folder: Path) -> dict[str, bytes]:
    """The agent in `folder` as bytes, to be sent elsewhere."""
    return {name: (folder / name).read_bytes() for name in (WEIGHTS, CARD)}


def load_files(files: Mapping[str, bytes], device: torch.device) -> Agent:
    """The agent that `read_files` read, as `load_agent` gives it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return load_agent(Path(folder), device)
