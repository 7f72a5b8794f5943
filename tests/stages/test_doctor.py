"""doctor: good on this machine, and what it says of worse ones."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from pipeline.agents import device
from stages import doctor
from stages.cli import main

DISK = shutil.disk_usage(".")._replace(free=10**6)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.01)


def findings(folder: Path = Path()) -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), "doctor", "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == any(one["verdict"] == "bad" for one in found)
    return {one["name"]: one for one in found}


def test_here_nothing_is_bad() -> None:
    found = findings()
    assert not [one for one in found.values() if one["verdict"] == "bad"]
    assert {"Python", "torch", "ale-py", "cores", "memory", "bfloat16", "GPU", "disk", "ffmpeg", "DVC remote"} <= found.keys()
    assert all(one["remedy"] for one in found.values() if one["verdict"] != "good")


def test_a_worse_machine_is_told_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "core_count", lambda: 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DISK)
    monkeypatch.setattr(device, "_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(doctor, "_seconds", lambda dtype: 1.0 if dtype is torch.float32 else 2.0)
    monkeypatch.setattr(doctor, "_pins", lambda: {"ale-py": "0.0.1", "torch": "0.0.2"})
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "ale-py", "no-such-package"))
    found = findings(tmp_path)
    verdicts = {name: one["verdict"] for name, one in found.items()}
    assert verdicts["ale-py"] == verdicts["no-such-package"] == "bad"
    assert verdicts["torch"] == verdicts["disk"] == "note"
    assert verdicts["cores"] == verdicts["bfloat16"] == "slow"
    assert found["disk"]["found"].startswith("0.0 GB free")
    assert found["bfloat16"]["found"] == "0.5x as fast as float32"
    assert "precision: float32" in found["bfloat16"]["remedy"]
    assert "dvc init" in found["DVC"]["remedy"]
    text, fine = doctor.run(tmp_path, as_json=False)
    assert not fine
    assert "constraints.txt pins 0.0.1" in text


def test_where_the_cpu_could_only_emulate_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_multiplies_bfloat16", lambda: False)
    found = findings()["bfloat16"]
    assert found["verdict"] == "slow"
    assert "learn in float32" in found["remedy"]


def test_without_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as if it were not installed
    assert findings()["ffmpeg"]["verdict"] == "bad"


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert not {"bfloat16", "GPU"} & findings().keys()
