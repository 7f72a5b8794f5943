"""A collection on a cluster, whatever is killed at whatever moment: the same command ends in the same bytes."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from pipeline.agents.checkpoints import save_agent
from pipeline.agents.networks import NETWORKS, QNetwork
from pipeline.atari.envs import fingerprint
from tests import processes
from tests.fakes import ENVIRONMENT

STATES = 131_072
MOMENTS = 20


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with params.yaml and an untrained, small teacher of Pong."""
    torch.manual_seed(0)
    card = {"role": "teacher", "game": "Pong", "algorithm": "none", "environment": fingerprint("Pong", ENVIRONMENT)}
    save_agent(tmp_path / "data/teachers/Pong", QNetwork(NETWORKS["net3"], {"Pong": 6}), card)
    shutil.copy("params.yaml", tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_moments(project: Path) -> None:
    collect = ("collect", "--game", "Pong", "--states", str(STATES))
    began = time.monotonic()
    processes.run(project, *collect, "--workers", "2")
    seconds = time.monotonic() - began
    manifest = json.loads((project / "data/datasets/Pong/manifest.json").read_text())
    choose = random.Random(0)
    moments = 0
    with processes.Cluster(project) as cluster:
        while moments < MOMENTS:
            victim = ("first", "scheduler", "client")[moments % 3]
            out = project / f"sets/{victim}-{moments}"
            command = (*collect, "--out", str(out))
            cluster.ensure()
            client = processes.start(project, (*command, "--scheduler", cluster.address))
            time.sleep(choose.uniform(0, seconds))
            if client.poll() is not None:  # it was quicker than the one before: another moment
                client.communicate()
                shutil.rmtree(out)
                continue
            moments += 1
            if victim == "client":
                client.kill()
            else:
                cluster.kill(victim)
            _, said = client.communicate(timeout=300)
            if client.returncode != 0:
                assert victim in ("client", "scheduler"), said
                assert victim == "client" or said.splitlines()[-1].endswith("start it again, the same command goes on"), said
                assert "Traceback" not in said
                cluster.ensure()
                processes.run(project, *command, "--scheduler", cluster.address)
            made = json.loads((out / "manifest.json").read_text())
            assert (made["digest"], made["files"]) == (manifest["digest"], manifest["files"]), (victim, moments)
            assert not list(project.glob("sets/.work/collect/*")), (victim, moments)
            shutil.rmtree(out)
