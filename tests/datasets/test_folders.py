"""Datasets elsewhere: a bucket of a real S3 server on loopback, a tag of a real DVC repository; only what is needed is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import describe, schema
from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.verify import verify
from tests.fakes import corridor_dataset
from tests.repositories import new_repository, publish, run


def same(ours: Path, theirs: str) -> int:
    """Check the dataset at `theirs` against the one here; returns how many bytes opening it and reading 64 states took."""
    here, there = open_dataset(ours), open_dataset(theirs)
    assert there.manifest == here.manifest
    assert there.episodes == here.episodes
    steps = range(40, 104)
    assert np.array_equal(there.stacks(steps), here.stacks(steps))
    assert np.array_equal(there.read("q", 40, 104), here.read("q", 40, 104))
    taken = there.folder.bytes_read
    assert there.folder.files() == here.folder.files()
    assert there.folder.sizes() == here.folder.sizes()
    found: list[str] = []
    list(verify(there, found))
    assert found == []
    return taken


def test_a_bucket(tmp_path: Path, bucket: str) -> None:
    corridor_dataset(tmp_path / "set", 400)
    here, there = Folder(tmp_path / "set"), Folder(f"{bucket}/sets/corridor")
    assert not there.is_folder()
    with pytest.raises(ValueError, match=r"dataset s3://.*/sets/corridor does not exist"):
        open_dataset(f"{bucket}/sets/corridor")
    for name in here.files():
        there.write(name, here.read(name))
    size = sum(here.sizes().values())
    assert same(tmp_path / "set", there.url) < size
    with pytest.MonkeyPatch.context() as patch:
        asked: list[str] = []
        ask = Folder._ask

        def counted(self: Folder, what: Any, name: str) -> Any:
            asked.append(name)
            return ask(self, what, name)

        patch.setattr(Folder, "_ask", counted)
        assert describe.size(open_dataset(there)) == size - here.sizes()["manifest.json"]
        assert asked.count("") == 1  # one listing, beside the files that were opened
        assert len(asked) <= 1 + 2 + 2 * len(schema.ARRAYS) + 1
    there.remove("manifest.json")
    there.remove("manifest.json")
    with pytest.raises(ValueError, match="never finished"):
        open_dataset(there)
    there.clear()
    assert there.files() == []
    assert not there.is_folder()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, tagged v1, that has a dataset only in its remote."""
    repository = new_repository(tmp_path_factory.mktemp("team") / "a")
    corridor_dataset(repository / "data/corridor", 400)
    corridor_dataset(repository.parent / "kept", 400)
    run(repository, "dvc", "remote", "add", "-q", "-d", "storage", str(repository.parent / "storage"))
    publish(repository, "data/corridor", "v1")
    run(repository, "dvc", "push", "-q")
    run(repository, "rm", "-r", "data/corridor", ".dvc/cache")
    return repository


def test_a_tag_of_a_repository(repository: Path) -> None:
    url = f"git+{repository}@v1:data/corridor"
    size = sum(p.stat().st_size for p in (repository.parent / "kept").rglob("*") if p.is_file())
    assert same(repository.parent / "kept", url) < size
    with pytest.raises(ValueError, match="to be read only"):
        Folder(url).write("x", b"")
    with pytest.raises(ValueError, match=r"does not exist"):
        open_dataset(f"git+{repository}@v1:data/other")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("git+https://host/repo", r"is not git\+URL@REVISION:PATH"),
        ("git+/nowhere@v1:data", r"git\+/nowhere@v1:data cannot be reached \(.*/nowhere.*\): check the address"),
        ("nosuch://place", r"nosuch://place cannot be reached \(Protocol not known: nosuch\): check the address"),
    ],
)
def test_what_cannot_be_reached_is_one_line(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(url)
    assert "\n" not in str(caught.value)


def test_an_unknown_revision_is_one_line(repository: Path) -> None:
    with pytest.raises(ValueError, match=r"@v2:data/corridor cannot be reached \(there is no revision v2\): check") as caught:
        open_dataset(f"git+{repository}@v2:data/corridor")
    assert "\n" not in str(caught.value)


def test_bytes_by_range(tmp_path: Path, bucket: str) -> None:
    for folder in (Folder(tmp_path), Folder(f"{bucket}/ranges")):
        folder.write("deep/file", bytes(range(100)))
        assert folder.read("deep/file", 10, 12) == bytes([10, 11])
        assert folder.read("deep/file", 98) == bytes([98, 99])
        assert folder.read("deep/file", -2) == bytes([98, 99])
        assert folder.bytes_read == 6
        assert folder.exists("deep/file")
        assert not folder.exists("deep/other")
        with pytest.raises(FileNotFoundError):
            folder.read("deep/other")
        assert folder.sizes() == {"deep/file": 100}
