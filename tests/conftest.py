"""Shared fixtures: a small real teacher and a small real dataset, made once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from distributed import Client, LocalCluster
from hypothesis import settings
from moto.server import ThreadedMotoServer

from pipeline.agents.checkpoints import save_agent
from pipeline.agents.networks import NETWORKS, QNetwork
from pipeline.atari.envs import fingerprint
from stages import evaluate
from tests.fakes import ENVIRONMENT, blocks_of_four

settings.register_profile("any machine", deadline=None)  # a slow one is no failure
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole roads first, then stages, which take longest: what comes last keeps both cores busy to the end."""
    items.sort(key=lambda item: {"tests": 0, "stages": 1}.get(item.path.parent.name, 2))


@pytest.fixture(autouse=True)
def _like_a_new_process() -> None:
    """What a stage has set for its process is not for the next test: Hypothesis, for one, wants denormal numbers to stay.

    One thread, as tests run side by side on two cores: that is faster and steadier.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True, scope="session")
def _short_clips() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "CLIP_STEPS", 20)
        yield


@pytest.fixture(scope="session")
def breakout_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained net3 that almost always serves in Breakout: short real episodes, real Q-values."""
    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("zoo") / "Breakout"
    card = {"role": "teacher", "game": "Breakout", "algorithm": "none", "environment": fingerprint("Breakout", ENVIRONMENT)}
    save_agent(folder, QNetwork(NETWORKS["net3"], {"Breakout": 4}), card)
    return folder


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket of a real S3 server on loopback; the environment says how to reach it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    reach = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (reach | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("datasets")
        yield "s3://datasets"
    server.stop()


@pytest.fixture(scope="session")
def one_worker() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def small_blocks() -> Iterator[None]:
    with blocks_of_four():
        yield


@pytest.fixture(scope="session")
def on_one_worker(one_worker: Client) -> tuple[str, str]:
    """Options that make `collect` use that worker, which saves starting one."""
    return "--scheduler", one_worker.scheduler_info()["address"]
