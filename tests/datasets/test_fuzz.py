"""A stranger's dataset, mangled at random: read, or refused in a ValueError; nothing is run, nothing outside it is opened."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.datasets import describe, edit, schema
from pipeline.datasets.compare import compare
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.validate import validate
from pipeline.datasets.verify import verify
from tests.fakes import corridor_dataset

NEVER = {"pickle.find_class", "os.system", "os.exec", "os.spawn", "subprocess.Popen", "socket.connect"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("../../etc/passwd"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)

_watched: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event == "exec":
        _watched.append(f"exec: {arguments[0].co_filename}")
    elif event == "open" or event in NEVER:
        _watched.append(f"{event}: {arguments[0] if arguments else ''}")


sys.addaudithook(_hook)


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """AssertionError if anything is run, or a file opened that is neither the folder's nor Python's own."""
    global _watched  # noqa: PLW0603 - an audit hook can never be taken back
    _watched = []
    try:
        yield
    finally:
        seen, _watched = _watched, None
    python = [f"{event}: {path}" for event in ("open", "exec") for path in (sys.prefix, sys.base_prefix, "<")]
    own = (f"open: {folder}", "open: /proc", "open: /sys", *python)
    assert [line for line in seen if not line.startswith(own)] == []


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "set"
    corridor_dataset(folder, 5)
    use(folder)  # imports whatever is imported late
    return folder


def use(folder: Path) -> None:
    """Everything that reads."""
    dataset = open_dataset(folder)
    with suppress(ValueError):
        open_dataset(folder, check_files=True)
    json.dumps(describe.info(dataset), allow_nan=False)
    describe.card(dataset.manifest, dataset.episodes, np.zeros((1, dataset.manifest.actions), np.float32))
    list(verify(dataset, []))
    list(validate(dataset, []))
    with suppress(ValueError):
        json.dumps(describe.stats(dataset), allow_nan=False)
    with suppress(ValueError):
        dataset.stacks(range(len(dataset)))
    compare(dataset, dataset)
    edit.merged([dataset, dataset])
    edit._collection([dataset.manifest], {})
    edit.chosen(dataset, min_length=1)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a JSON document."""
    if path:
        yield path
    items = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def certify(folder: Path) -> None:
    """Give a manifest the digest of what it says, as a forger would, if it is still one."""
    path = folder / schema.MANIFEST
    with suppress(Exception):
        told = json.loads(path.read_text())
        table = pq.read_table(folder / schema.EPISODES)
        rows = [schema.EpisodeRow(**row) for row in table.to_pylist()]
        digest = schema.dataset_digest(told["game"], told["teacher"], told["environment"], told["collection"], rows)
        path.write_text(json.dumps(told | {"digest": digest}))


def mangle(path: Path, data: st.DataObject) -> None:
    """Another value, key or nothing somewhere in a JSON file; other bytes in any other."""
    document = None
    with suppress(ValueError):
        document = json.loads(path.read_text())
    if document is not None and data.draw(st.integers(0, 4)):
        *way, last = data.draw(st.sampled_from(list(places(document))))
        parent = document
        for key in way:
            parent = parent[key]
        match data.draw(st.sampled_from(["change", "remove", "add"])):
            case "change":
                parent[last] = data.draw(JSON)
            case "remove":
                del parent[last]
            case "add" if isinstance(parent, dict):
                parent[data.draw(st.text(max_size=8) | st.just("../../etc/passwd"))] = data.draw(JSON)
        path.write_text(json.dumps(document))
        return
    content = path.read_bytes()
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    path.write_bytes(content[:at] + data.draw(st.binary(max_size=40)) + content[at + data.draw(st.integers(0, 40)) :])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mangled_dataset_is_read_or_refused(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "set"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "README.md")
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3)):
        mangle(path, data)
    if data.draw(st.booleans()):
        certify(folder)
    with watched(folder), suppress(ValueError):
        use(folder)
