"""A full disk is one line with the remedy, and the same command finishes once there is room (on a small tmpfs)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stages.cli import main


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_collect_on_a_full_disk_goes_on_when_there_is_room(
    breakout_teacher: Path, on_one_worker: tuple[str, str], small_disk: Path, tmp_path: Path
) -> None:
    shutil.copy("params.yaml", tmp_path)
    shutil.copytree(breakout_teacher, tmp_path / "data/teachers/Breakout")

    def collect(out: Path, *where: str) -> Result:
        options = ["--game", "Breakout", "--states", "3000", "--out", str(out), *where]
        return CliRunner().invoke(main, ["--params", str(tmp_path / "params.yaml"), "collect", *options])

    result = collect(small_disk / "set", "--workers", "1")
    assert result.exit_code == 1
    assert "no space left on the disk" in result.output
    assert "run the same command again" in result.output
    assert not (small_disk / "set").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert collect(small_disk / "set", *on_one_worker).exit_code == 0
    assert collect(tmp_path / "roomy", *on_one_worker).exit_code == 0
    manifests = [(folder / "manifest.json").read_text() for folder in (small_disk / "set", tmp_path / "roomy")]
    assert manifests[0] == manifests[1]
