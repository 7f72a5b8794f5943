"""How much of a dataset is read where it lies: kilobytes for `info` and for 64 states, against its size.

The dataset is put into a DVC repository, beside a megabyte that DVC has no use for, tagged, pushed to an S3 server on loopback
and opened as git+file://REPOSITORY@TAG:PATH. Told are the bytes that the reader asked for, those that crossed the loopback
interface, requests included, and those that Git fetched, which did not cross it.

    python -m benchmarks.remote [DATASET]
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
from moto.server import ThreadedMotoServer

from benchmarks import command
from pipeline.datasets.describe import info, size
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.repositories import fetched
from tests.repositories import new_repository, publish, run

SAMPLE = Path("data/samples/Pong")


def main(path: Path) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    fsspec.filesystem("s3").mkdir("datasets")
    with tempfile.TemporaryDirectory() as name:
        repository = new_repository(Path(name) / "team")
        run(repository, "cp", "-r", str(path.resolve()), "set")
        run(repository, "dvc", "remote", "add", "-q", "-d", "storage", "s3://datasets/team")
        run(repository, "dvc", "remote", "modify", "-q", "storage", "endpointurl", endpoint)
        (repository / "weights").write_bytes(os.urandom(1_000_000))
        publish(repository, "set", "v1")
        run(repository, "dvc", "push", "-q")
        run(repository, "rm", "-r", "set", ".dvc/cache")
        url = f"git+file://{repository}@v1:set"
        total = size(open_dataset(path))
        print(f"{path}: {len(open_dataset(path)):,} states, {total / 1e6:,.1f} MB")
        steps = np.random.default_rng(0).integers(len(open_dataset(path)) - 64, size=1)[0] + np.arange(64)
        tasks: dict[str, Callable[[Dataset], object]] = {
            "info": info,
            "64 states in a row": lambda dataset: (dataset.stacks(steps), dataset.read("q", int(steps[0]), int(steps[-1]) + 1)),
        }
        for what, task in tasks.items():
            before, by_git = _received(), fetched.total()
            dataset = open_dataset(url)
            task(dataset)
            crossed, by_git = _received() - before, fetched.total() - by_git
            asked = dataset.folder.bytes_read
            print(f"{what}: {asked / 1e3:,.0f} kB read, {asked / total:.2%} of it; ", end="")
            print(f"{crossed / 1e3:,.0f} kB crossed the wire, Git fetched {by_git / 1e3:,.1f} kB")
    server.stop()


def _received() -> int:
    """Bytes that came in over loopback so far."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


if __name__ == "__main__":
    command.run(main, __doc__, path=SAMPLE)
