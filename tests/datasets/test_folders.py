"""Datasets elsewhere: a bucket of a real S3 server on loopback, a tag of a real DVC repository; only what is needed is read."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import describe, exchange, schema
from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.verify import verify
from tests.fakes import corridor_dataset
from tests.repositories import add_remotes, new_repository, publish, run


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
    elsewhere = pickle.loads(pickle.dumps(open_dataset(there)))  # noqa: S301 as to a Dask worker
    assert np.array_equal(elsewhere.read("q", 40, 104), open_dataset(here).read("q", 40, 104))
    there.remove("manifest.json")
    there.remove("manifest.json")
    with pytest.raises(ValueError, match="never finished"):
        open_dataset(there)
    there.clear()
    assert there.files() == []
    assert not there.is_folder()


def test_a_request_that_fails_is_not_a_no(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(f"{bucket}/denied")
    folder.write("file", b"")
    assert folder.exists("file")
    assert folder.is_folder()

    def denied(*_: object, **__: object) -> None:
        raise PermissionError("the token has expired")

    monkeypatch.setattr(folder._where()[0], "info", denied)
    told = r"cannot be reached \(the token has expired\): check the address"
    with pytest.raises(ValueError, match=told):
        folder.exists("file")
    with pytest.raises(ValueError, match=told):
        folder.is_folder()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, tagged v1, that has a dataset only in its remote."""
    repository = new_repository(tmp_path_factory.mktemp("team") / "a")
    corridor_dataset(repository / "data/corridor", 400)
    corridor_dataset(repository.parent / "kept", 400)
    add_remotes(repository, "storage", storage={"url": str(repository.parent / "storage")})
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


def test_links_are_followed_to_files_as_dvc_makes_them(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set", 5)
    found: list[str] = []
    for number, path in enumerate(p for p in sorted((tmp_path / "set").rglob("*")) if p.is_file()):
        path.symlink_to(path.rename(tmp_path / f"cache-{number}"))
    opened = open_dataset(tmp_path / "set", check_files=True)
    list(verify(opened, found))
    assert found == []
    assert "license: other\n" in opened.card()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("manifest.json", "has no manifest.json"),
        ("episodes.parquet", "episodes.parquet is missing"),
        ("states.zarr/zarr.json", "states.zarr cannot be opened"),
        ("states.zarr/q/zarr.json", "states.zarr/q/zarr.json is missing"),
        ("states.zarr/q/c/0/0", "array q cannot be read"),
    ],
)
def test_a_link_to_what_never_ends_is_no_file(tmp_path: Path, name: str, told: str) -> None:
    corridor_dataset(tmp_path / "set", 5)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "set" / name).unlink()
    (tmp_path / "set" / name).symlink_to(tmp_path / "pipe")
    for count_bytes in (False, True):
        with pytest.raises(ValueError, match=told):
            open_dataset(tmp_path / "set", count_bytes=count_bytes).records(0, 5)


def test_a_link_brings_no_file_of_ours_into_an_export(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "set", 5)
    (tmp_path / "key").write_text("license: secret\n")
    (tmp_path / "set/README.md").unlink()
    (tmp_path / "set/README.md").symlink_to(tmp_path / "key")
    opened = open_dataset(tmp_path / "set")
    list(exchange.to_npz(opened, tmp_path / "out"))
    assert "secret" not in (tmp_path / "out" / exchange.DESCRIPTION).read_text()
    assert describe.licence_of([opened]) == describe.UNTOLD
    (tmp_path / "key").unlink()
    os.mkfifo(tmp_path / "key")
    assert opened.card() == ""
    found: list[str] = []
    list(verify(opened, found))
    assert "README.md is missing" in found[0]


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
