"""Other people's DQN checkpoints -> our networks, without ever unpickling what they hold besides tensors.

- Stable-Baselines3: the zip's `policy.pth` (weights) and the plain JSON of its `data`, whose pickles are not opened.
- CleanRL: `torch.save(q_network.state_dict(), path)` of its dqn_atari.py.

Both are the Nature network (Mnih et al. 2015) on (4, 84, 84) uint8 states divided by 255, as ours is; the shapes decide
channels and units.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from pipeline.agents.networks import NetworkSpec, QNetwork

Source = Literal["sb3", "cleanrl"]
LIMIT: Final = 1 << 30
"""Bytes that a checkpoint's weights may unpack to; the Nature network has 7 million."""

_OURS: Final = ("trunk.0", "trunk.2", "trunk.4", "trunk.7")  # three convolutions and the shared layer, without normalisation
_THEIRS: Final[dict[Source, tuple[str, ...]]] = {
    "sb3": (
        *(f"q_net.features_extractor.cnn.{i}" for i in (0, 2, 4)),
        "q_net.features_extractor.linear.0",
        "q_net.q_net.0",
    ),
    "cleanrl": tuple(f"network.{i}" for i in (0, 2, 4, 7, 9)),
}


def load_foreign(path: Path, source: Source, game: str, actions: int) -> QNetwork:
    """The network in a checkpoint of `source`, as a player of `game` with that many actions.

    ValueError in one line where the file is missing, holds anything but tensors, is another architecture, or plays another
    number of actions.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the checkpoint file")
    read: dict[Source, Callable[[Path], Mapping[str, Any]]] = {"sb3": _read_sb3, "cleanrl": _read_tensors}
    weights = _layers(path, source, read[source](path))
    first, second, third, shared, head = (weights[f"{layer}.weight"] for layer in _THEIRS[source])
    spec = NetworkSpec(channels=(len(first), len(second), len(third)), hidden=len(shared))
    if len(head) != actions:
        raise ValueError(
            f"{path} chooses among {len(head)} actions, {game} has {actions} here: "
            f"check --game, or set environment.full_action_space for an agent of all 18"
        )
    network = QNetwork(spec, {game: actions})
    names = dict(zip(_THEIRS[source], (*_OURS, f"heads.{game}.0"), strict=True))
    renamed = {f"{names[layer]}.{part}": weights[f"{layer}.{part}"] for layer in names for part in ("weight", "bias")}
    try:
        network.load_state_dict(renamed)
    except RuntimeError as error:
        fault = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} is not the Nature network on 4 frames of 84 x 84 ({fault})") from None
    return network


def _read_sb3(path: Path) -> Mapping[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(_member(archive, "data"))
            weights = _member(archive, "policy.pth")
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not a Stable-Baselines3 checkpoint ({error}): give the zip that model.save() wrote"
        ) from None
    kwargs = settings.get("policy_kwargs") if isinstance(settings, dict) else None
    if isinstance(kwargs, dict) and kwargs.get("normalize_images") is False:
        raise ValueError(f"{path} was trained on frames that are not divided by 255: our networks divide them")
    return _load_tensors(path, io.BytesIO(weights))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.file_size > LIMIT:
        raise ValueError(f"{name} unpacks to {entry.file_size:,} bytes, more than {LIMIT:,}")
    return archive.read(entry)


def _read_tensors(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, more than the {LIMIT:,} that a checkpoint may have")
    return _load_tensors(path, io.BytesIO(path.read_bytes()))


def _load_tensors(path: Path, file: io.BytesIO) -> Mapping[str, Any]:
    if zipfile.is_zipfile(file):  # torch inflates what is deflated, and checks no size
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LIMIT:
            raise ValueError(f"{path} unpacks to {size:,} bytes, more than the {LIMIT:,} that a checkpoint may have")
    file.seek(0)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a malformed file makes torch's reader raise anything, an IndexError for one
        raise ValueError(f"{path} holds more than tensors, or is damaged: refused ({_first_line(error)})") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a state dict: save the network's state_dict()")
    return loaded


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch explains itself at length; the line that names the forbidden global is the telling one.
    telling = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (telling or lines or [type(error).__name__])[0][:160]


def _layers(path: Path, source: Source, loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the five layers; ValueError names what is missing or is there beside them."""
    wanted = {f"{layer}.{part}" for layer in _THEIRS[source] for part in ("weight", "bias")}
    missing = sorted(wanted - loaded.keys())
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}: only plain DQN with the Nature network can be imported from {source}")
    others = sorted(key for key in loaded.keys() - wanted if not str(key).startswith("q_net_target."))
    if others:
        raise ValueError(f"{path} also has {others[0]}: only plain DQN with the Nature network can be imported from {source}")
    weights = {key: loaded[key] for key in wanted}
    for key, value in weights.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() != (_dimensions(source, key)):
            raise ValueError(f"{key} in {path} is not the weight of that layer of the Nature network")
        if 4 * value.numel() > LIMIT:  # of a few numbers that are repeated
            raise ValueError(f"{key} in {path} has {value.numel():,} weights, more than a checkpoint may have")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key} in {path} holds values that are not finite: the checkpoint is damaged")
    return {key: value.float() for key, value in weights.items()}


def _dimensions(source: Source, key: str) -> int:
    layer, part = key.rsplit(".", 1)
    if part == "bias":
        return 1
    return 4 if _THEIRS[source].index(layer) < 3 else 2
