"""Foreign checkpoints: the same Q-values as in the library that wrote them; anything but tensors is refused and never run."""

import contextlib
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.agents import imports
from pipeline.agents.imports import Source, load_foreign
from pipeline.agents.networks import NETWORKS

STATES = np.random.default_rng(0).integers(0, 256, (8, 4, 84, 84), dtype=np.uint8)


class Screen(gymnasium.Env[Any, Any]):
    """What Stable-Baselines3 asks of an environment to build its agent."""

    observation_space = gymnasium.spaces.Box(0, 255, (84, 84, 4), np.uint8)

    def __init__(self, actions: int = 6) -> None:
        self.action_space = gymnasium.spaces.Discrete(actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 1.0, False, False, {}


@pytest.fixture(scope="module")
def sb3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray[Any, Any]]:
    """A checkpoint written by Stable-Baselines3, and the Q-values that it gives the test's states there."""
    from stable_baselines3 import DQN

    model = DQN("CnnPolicy", Screen(), buffer_size=100, learning_starts=20, seed=3, device="cpu")
    model.learn(60)
    path = tmp_path_factory.mktemp("sb3") / "dqn.zip"
    model.save(path)
    with torch.inference_mode():
        return path, model.q_net(torch.from_numpy(STATES)).numpy()


class CleanRl(nn.Module):
    """The module that CleanRL's dqn_atari.py saves the state dict of."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU()),
            *(nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, stride=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, actions)),
        )


def cleanrl(path: Path, actions: int = 6) -> tuple[Path, np.ndarray[Any, Any]]:
    model = CleanRl(actions)
    torch.save(model.state_dict(), path)
    with torch.inference_mode():
        return path, model.network(torch.from_numpy(STATES) / 255.0).numpy()


def check(path: Path, source: Source, expected: np.ndarray[Any, Any]) -> None:
    network = load_foreign(path, source, "Pong", 6)
    assert network.spec == NETWORKS["dqn"]
    with torch.inference_mode():
        np.testing.assert_allclose(network(torch.from_numpy(STATES)).numpy(), expected, atol=1e-5)


def test_stable_baselines3(sb3: tuple[Path, np.ndarray[Any, Any]]) -> None:
    check(sb3[0], "sb3", sb3[1])


def test_cleanrl(tmp_path: Path) -> None:
    path, expected = cleanrl(tmp_path / "dqn.pth")
    check(path, "cleanrl", expected)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def saved(x: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": x}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("wrap", [pickle.dumps, saved], ids=["pickle", "torch.save"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, sb3: Any, wrap: Any) -> None:
    trace = tmp_path / "run"
    payload = wrap(Hostile(trace))
    plain = tmp_path / "dqn.pth"
    plain.write_bytes(payload)
    archive = tmp_path / "dqn.zip"
    with zipfile.ZipFile(sb3[0]) as good, zipfile.ZipFile(archive, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, payload if name == "policy.pth" else good.read(name))
    attempts: list[tuple[Path, Source]] = [(plain, "cleanrl"), (archive, "sb3")]
    for path, source in attempts:
        with pytest.raises(ValueError, match=r"holds more than tensors.*refused") as caught:
            load_foreign(path, source, "Pong", 6)
        assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_another_action_set_is_refused(tmp_path: Path) -> None:
    path, _ = cleanrl(tmp_path / "dqn.pth", 4)
    with pytest.raises(ValueError, match="chooses among 4 actions, Pong has 6"):
        load_foreign(path, "cleanrl", "Pong", 6)


def edited(path: Path, edit: Any) -> Path:
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("network.7.bias"), r"lacks network.7.bias"),
        (lambda s: s.update({"network.1.weight": torch.ones(3)}), r"also has network.1.weight"),
        (lambda s: s.update({"network.0.bias": torch.ones(2, 2)}), r"network.0.bias .* is not the weight of that layer"),
        (lambda s: s.update({"network.0.weight": torch.ones(32, 3, 8, 8)}), r"is not the Nature network on 4 frames"),
        (lambda s: s["network.9.bias"].fill_(float("nan")), r"network.9.bias .* not finite"),
    ],
)
def test_another_network_is_named(tmp_path: Path, edit: Any, message: str) -> None:
    path, _ = cleanrl(tmp_path / "dqn.pth")
    with pytest.raises(ValueError, match=message):
        load_foreign(edited(path, edit), "cleanrl", "Pong", 6)


def test_undivided_frames_are_refused(tmp_path: Path) -> None:
    from stable_baselines3 import DQN

    path = tmp_path / "dqn.zip"
    DQN("CnnPolicy", Screen(), buffer_size=10, policy_kwargs={"normalize_images": False}, device="cpu").save(path)
    with pytest.raises(ValueError, match="not divided by 255"):
        load_foreign(path, "sb3", "Pong", 6)


def test_a_bomb_is_not_unpacked(sb3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "LIMIT", 1000)
    with pytest.raises(ValueError, match=r"unpacks to [\d,]+ bytes, more than 1,000"):
        load_foreign(sb3[0], "sb3", "Pong", 6)


def test_a_deflated_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = cleanrl(tmp_path / "stored.pth")
    deflated = tmp_path / "deflated.pth"
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as smaller:
        for name in stored.namelist():
            content = stored.read(name)
            smaller.writestr(name, bytes(len(content)) if "/data/" in name else content)
    assert deflated.stat().st_size < 100_000 < path.stat().st_size
    monkeypatch.setattr(imports, "LIMIT", 100_000)
    with pytest.raises(ValueError, match=r"unpacks to 6,\d+,\d+ bytes, more than the 100,000"):
        load_foreign(deflated, "cleanrl", "Pong", 6)


def test_a_few_numbers_repeated_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = cleanrl(tmp_path / "dqn.pth")
    weights = torch.load(path, weights_only=True)
    weights["network.7.weight"] = torch.zeros(1, 1).expand(512, 3136)
    torch.save(weights, path)
    monkeypatch.setattr(imports, "LIMIT", 1_000_000)
    with pytest.raises(ValueError, match=r"network.7.weight in \S+ has 1,605,632 weights, more than a checkpoint may have"):
        load_foreign(path, "cleanrl", "Pong", 6)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_foreign(tmp_path / "no.zip", "sb3", "Pong", 6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), cut=st.integers(0, 2000), source=st.sampled_from(["sb3", "cleanrl"]))
def test_any_bytes_load_or_are_a_value_error(tmp_path: Path, sb3: Any, data: bytes, cut: int, source: Source) -> None:
    path = tmp_path / "any"
    good = sb3[0].read_bytes()
    path.write_bytes(data if cut % 2 else good[:cut] + data + good[cut + len(data) :])
    with contextlib.suppress(ValueError):  # any other exception fails
        load_foreign(path, source, "Pong", 6)
