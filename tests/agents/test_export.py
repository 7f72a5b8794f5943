"""Exported files: the network's values in other runtimes, one game alone, quietly, and bad input refused in one line."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pipeline.agents.checkpoints import Agent
from pipeline.agents.device import exact
from pipeline.agents.export import METADATA, SUFFIXES, Form, described, export, latencies, load_exported, parity
from pipeline.agents.networks import NetworkSpec, QNetwork, new_network
from pipeline.agents.policies import QFunction, q_function
from tests.fakes import SMALL, SMALL_NORM

CPU = torch.device("cpu")
FORMS: tuple[Form, ...] = ("onnx", "torchscript")
CONTROLLER = NetworkSpec(channels=(4, 4, 4), hidden=16, layer_norm=True, controller=8)
STATES = np.random.default_rng(0).integers(0, 256, (300, 4, 84, 84), dtype=np.uint8)  # more than go through at once


def network(spec: NetworkSpec) -> QNetwork:
    return new_network(spec, {"Breakout": 4, "Qbert": 6}, CPU, seed=1)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What torch's exporter logs; its own handler writes past pytest's capture."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("torch.onnx").addHandler(handler)
    yield lines
    logging.getLogger("torch.onnx").removeHandler(handler)


@pytest.mark.parametrize("spec", [SMALL, SMALL_NORM, CONTROLLER], ids=["plain", "norm", "controller"])
@pytest.mark.parametrize("to", FORMS)
def test_a_file_repeats_the_network_of_one_game(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], logged: list[str], to: Form, spec: NetworkSpec
) -> None:
    whole = network(spec)
    path = tmp_path / f"agent{SUFFIXES[to]}"
    export(whole, "Qbert", to, path, {"game": "Qbert", "actions": ["NOOP", "UP"]})
    exported = load_exported(path, to)
    assert exported.record == {"game": "Qbert", "actions": ["NOOP", "UP"]}
    found = parity(q_function(whole, exact(CPU), "Qbert"), exported.q_values, STATES)
    assert found.states == len(STATES)
    assert found.same_actions == 1.0
    assert found.max_abs_dq < 1e-5
    for size in (1, 2, 7):
        q_BA = exported.q_values(STATES[:size])
        assert q_BA.dtype == np.float32
        assert q_BA.shape == (size, 6)
    held = path.read_bytes()
    for game, here in (("Qbert", True), ("Breakout", False)):
        last = whole.heads[game][-1].weight.detach().numpy().tobytes()  # type: ignore[index]
        assert (last in held) is here
    assert list(tmp_path.iterdir()) == [path]
    assert (capfd.readouterr(), logged) == (("", ""), [])
    assert all(part.training for part in whole.modules())  # as it was


def test_onnx_says_what_it_takes_and_gives_and_nothing_of_this_machine(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    for path in (first, second):
        export(network(SMALL_NORM), "Breakout", "onnx", path, {})
    assert first.read_bytes() == second.read_bytes()
    assert b"site-packages" not in first.read_bytes()
    graph = onnx.load(first).graph
    signature = {}
    for value in (*graph.input, *graph.output):
        tensor = value.type.tensor_type
        signature[value.name] = (tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim])
    assert signature == {
        "obs": (onnx.TensorProto.UINT8, ["batch", 4, 84, 84]),
        "q": (onnx.TensorProto.FLOAT, ["batch", 4]),
    }


def test_the_record_tells_what_the_card_does() -> None:
    card: dict[str, Any] = {"digest": "d1", "role": "student", "network": "net3", "seed": 0}
    world = {"actions": ["NOOP", "FIRE"], "config": {"frame_skip": 4}}
    several = card | {
        "objective": {"loss": "kl"},
        "games": {"Pong": {"environment": world, "teacher": {"digest": "t"}}, "Qbert": {}},
    }
    assert described(Agent(network(SMALL), several), "Pong") == {
        "format": 1,
        "game": "Pong",
        "agent": "d1",
        "role": "student",
        "network": "net3",
        "objective": {"loss": "kl"},
        "teacher": {"digest": "t"},
        "actions": ["NOOP", "FIRE"],
        "environment": world,
        "outputs": "logits",
    }
    bare = described(Agent(network(SMALL), card), "Qbert")
    assert bare == {"format": 1, "game": "Qbert", "agent": "d1", "role": "student", "network": "net3", "outputs": "q-values"}


@pytest.mark.parametrize("to", FORMS)
def test_a_game_that_it_does_not_play(tmp_path: Path, to: Form) -> None:
    with pytest.raises(ValueError, match="no head for Pong: it plays Breakout, Qbert"):
        export(network(SMALL), "Pong", to, tmp_path / "agent", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / "agent.onnx"
    with pytest.raises(ValueError, match=rf"{package}, which is not installed: pip install -e '\.\[export\]' in"):
        load_exported(path, "onnx") if package == "onnxruntime" else export(network(SMALL), "Qbert", "onnx", path, {})
    assert not path.exists()


@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("damage", ["absent", "garbage", "cut", "no record"])
def test_other_files_are_refused_in_one_line(tmp_path: Path, to: Form, damage: str) -> None:
    path = tmp_path / "agent"
    if damage == "garbage":
        path.write_bytes(b"not an agent" * 100)
    elif damage == "cut":
        export(network(SMALL), "Qbert", to, path, {})
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "no record" and to == "onnx":
        export(network(SMALL), "Qbert", to, path, {})
        model = onnx.load(path)
        del model.metadata_props[:]
        onnx.save(model, path)
    elif damage == "no record":
        export(network(SMALL), "Qbert", to, path, {})
        path.write_bytes(path.read_bytes().replace(METADATA.encode(), b"x" * len(METADATA)))
    with pytest.raises(ValueError, match=f"is not an agent exported to {to}") as refused:
        load_exported(path, to)
    assert "\n" not in str(refused.value)


def constant(*q_BA: tuple[float, ...]) -> QFunction:
    return lambda obs_BCHW: np.array(q_BA, dtype=np.float32)


def test_parity_by_hand() -> None:
    ours, theirs = constant((0, 1), (1, 0), (2, 2), (3, 1)), constant((0, 1.5), (0, 1), (2, 2), (3, 1))
    assert parity(ours, theirs, STATES[:4]) == (4, 0.75, 1.0)
    assert parity(ours, ours, STATES[:4]) == (4, 1.0, 0.0)
    with pytest.raises(ValueError, match="cannot be compared"):
        parity(ours, constant((0, 1, 2)), STATES[:4])
    with pytest.raises(ValueError, match="not finite"):
        parity(constant((np.nan, 0)), constant((np.nan, 0)), STATES[:1])


def test_latencies_are_medians_of_turns_on_one_thread() -> None:
    calls: list[tuple[str, int, int]] = []

    def player(name: str, milliseconds: float) -> QFunction:
        def q_values(obs_BCHW: Any) -> Any:
            calls.append((name, len(obs_BCHW), torch.get_num_threads()))
            warm = sum(called == name for called, _, _ in calls) > 24  # after a turn of 22 calls and two of the next
            time.sleep((milliseconds if warm else 10) / 1e3)

        return q_values

    torch.set_num_threads(2)
    try:
        taken = latencies({"slow": player("slow", 3), "fast": player("fast", 1)}, STATES[:5], rounds=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert 1 <= taken["fast"] < 3 <= taken["slow"] < 8
    turns = [name for name, _, _ in calls[::22]]
    assert turns == ["slow", "fast"] * 2
    assert {(size, threads) for _, size, threads in calls} == {(1, 1)}


def test_the_record_is_plain_json_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "agent.onnx"
    export(network(SMALL), "Qbert", "onnx", path, {"b": [1], "a": "x"})
    assert {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props} == {METADATA: {"a": "x", "b": [1]}}
