"""An agent as one file that runs without this package: ONNX or TorchScript, of one game, states in and values out.

The file maps uint8 `obs` (B, 4, 84, 84), oldest frame first, to float32 `q` (B, A) for any B. Scaling and weights are inside,
and a record in JSON under the name `METADATA`: an ONNX metadata property, a TorchScript extra file. How well it repeats the
agent, and how long each takes for one state on one core, is measured here too.

Dimensions: B batch, C stacked frames, H W pixels (84), A actions.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.agents.checkpoints import Agent, games_of, gives_q_values
from pipeline.agents.networks import QNetwork
from pipeline.agents.policies import QFunction

Form = Literal["onnx", "torchscript"]

FORMAT: Final = 1
SUFFIXES: Final[dict[Form, str]] = {"onnx": ".onnx", "torchscript": ".pt"}
METADATA: Final = "pd_pipeline"
REMEDY: Final = "pip install -e '.[export]' in the repository"
BATCH: Final = 256
"""States that go through a file at once where many are asked about."""


class OneGame(nn.Module):
    """The trunk and one head of a network, of which it keeps a copy on the CPU."""

    def __init__(self, network: QNetwork, game: str) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(network.trunk).cpu()
        self.head = copy.deepcopy(network.head(game)).cpu()

    def forward(self, obs: Tensor) -> Tensor:
        q_BA: Tensor = self.head(self.trunk(obs.to(torch.float32) * (1.0 / 255.0)))
        return q_BA


class Exported(NamedTuple):
    """A file that runs: its values of states, and its record."""

    q_values: QFunction
    record: dict[str, Any]


def described(agent: Agent, game: str) -> dict[str, Any]:
    """The record of a file: the agent's digest and, as far as its card tells, its origin, its world and what actions mean."""
    card, environment = agent.card, agent.world(game)
    origin: dict[str, Any] = {key: card[key] for key in ("role", "network", "algorithm", "objective") if key in card}
    teacher = games_of(card).get(game, {}).get("teacher", card.get("teacher"))
    actions = environment.get("actions") if isinstance(environment, dict) else None
    outputs = "q-values" if gives_q_values(card) else "logits"
    told = {"teacher": teacher, "actions": actions, "environment": environment, "outputs": outputs}
    return {"format": FORMAT, "game": game, "agent": agent.digest, **origin, **{k: v for k, v in told.items() if v is not None}}


def export(network: QNetwork, game: str, to: Form, path: Path, record: Mapping[str, Any]) -> None:
    """Write the network as a player of `game`, with that record. ValueError if it has no such head or a package is missing."""
    module = OneGame(network, game).eval()
    write = {"onnx": _write_onnx, "torchscript": _write_torchscript}[to]
    # Two states: a size of one would be taken for a constant.
    write(module, torch.zeros((2, network.spec.stack, 84, 84), dtype=torch.uint8), path, json.dumps(record, sort_keys=True))


def _write_onnx(module: nn.Module, example_BCHW: Tensor, path: Path, record: str) -> None:
    _need("onnx", "onnxscript")  # the latter for torch's exporter
    import onnx

    with _quiet():
        program = torch.onnx.export(
            module,
            (example_BCHW,),
            dynamo=True,
            input_names=["obs"],
            output_names=["q"],
            dynamic_shapes={"obs": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # The exporter notes the Python stack of every node, with this machine's paths.
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
    onnx.helper.set_model_props(model, {METADATA: record})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _write_torchscript(module: nn.Module, example_BCHW: Tensor, path: Path, record: str) -> None:
    with _quiet(), torch.no_grad():
        frozen = torch.jit.freeze(torch.jit.trace(module, example_BCHW))  # type: ignore[no-untyped-call]
        torch.jit.save(frozen, path, _extra_files={METADATA: record})


def _need(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise ValueError(f"ONNX wants the package {package}, which is not installed: {REMEDY}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say of themselves: that TorchScript is deprecated, that a traced check of shapes is a
    constant, that torchvision is not there.
    """
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean")  # a TracerWarning
        warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def load_exported(path: Path, to: Form) -> Exported:
    """A file that `export` wrote, ready to run: ONNX with one thread, TorchScript with torch's.

    TorchScript is a program: only what this package wrote itself may be given here. ValueError for any other file.
    """
    if to == "onnx":
        _need("onnxruntime")
    try:
        q_values, record = {"onnx": _load_onnx, "torchscript": _load_torchscript}[to](path)
        return Exported(q_values, json.loads(record))
    except Exception as error:  # onnxruntime raises types of its own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not an agent exported to {to} ({first}): export it again") from None


def _load_onnx(path: Path) -> tuple[QFunction, str]:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: it warns of machines whose GPUs it cannot list
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def q_values(obs_BCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.asarray(session.run(["q"], {"obs": obs_BCHW})[0], dtype=np.float32)

    return q_values, session.get_modelmeta().custom_metadata_map[METADATA]


def _load_torchscript(path: Path) -> tuple[QFunction, str]:
    extra: dict[str, Any] = {METADATA: ""}
    with _quiet():
        module = torch.jit.load(path, map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
    return in_torch(module), extra[METADATA]


def in_torch(module: Callable[[Tensor], Tensor]) -> QFunction:
    """A module on the CPU as a function of numpy states, all of them in one pass: what one player pays for one state."""

    def q_values(obs_BCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(obs_BCHW)).numpy(), dtype=np.float32)

    return q_values


class Parity(NamedTuple):
    """How well one function repeats another on so many states."""

    states: int
    same_actions: float
    max_abs_dq: float


def parity(ours: QFunction, theirs: QFunction, obs_BCHW: npt.NDArray[np.uint8]) -> Parity:
    """The share of states with the same greedy action, and the largest difference of a value, in the values' units."""
    same, largest = 0, 0.0
    for start in range(0, len(obs_BCHW), BATCH):
        batch_BCHW = obs_BCHW[start : start + BATCH]
        our_BA, their_BA = ours(batch_BCHW), theirs(batch_BCHW)
        if our_BA.shape != their_BA.shape:
            raise ValueError(f"values of shapes {our_BA.shape} and {their_BA.shape} cannot be compared: another agent's file?")
        if not (np.isfinite(our_BA).all() and np.isfinite(their_BA).all()):
            raise ValueError("values are not finite: the agent's weights are damaged")
        same += int((our_BA.argmax(axis=1) == their_BA.argmax(axis=1)).sum())
        largest = max(largest, float(np.abs(our_BA - their_BA).max()))
    return Parity(len(obs_BCHW), same / len(obs_BCHW), largest)


def latencies(players: Mapping[str, QFunction], obs_BCHW: npt.NDArray[np.uint8], rounds: int = 25) -> dict[str, float]:
    """Median milliseconds that each player takes for one state on one core, over 20 calls in each of so many rounds.

    Players take turns, so that a machine's drift falls on all of them. A turn's first two calls, which refill the caches, and
    the first round, which compiles, are not counted.
    """
    taken: dict[str, list[float]] = {name: [] for name in players}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(rounds + 1):
            for name, q_values in players.items():
                for call in range(22):
                    at = (turn * 22 + call) % len(obs_BCHW)
                    start = time.perf_counter()
                    q_values(obs_BCHW[at : at + 1])
                    if turn and call >= 2:
                        taken[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: 1e3 * statistics.median(values) for name, values in taken.items()}
