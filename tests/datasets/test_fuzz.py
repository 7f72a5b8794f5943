"""A stranger's dataset, mangled at random: read, or refused in a ValueError; nothing is run, nothing of ours opened or told."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import rederive as rederiving
from pipeline.atari.envs import EnvConfig
from pipeline.datasets import describe, edit, exchange, schema
from pipeline.datasets.compare import compare
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.validate import validate
from pipeline.datasets.verify import verify
from pipeline.report import view
from stages.cli import main
from tests.fakes import ENVIRONMENT, LENGTH, Corridor, corridor_episode, write_dataset

NEVER = {"pickle.find_class", "os.system", "os.exec", "os.spawn", "subprocess.Popen", "socket.connect"}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["../../etc/passwd", "\x1b[2J", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)

OURS = "a file of ours"
SECONDS = 60

_watched: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event == "exec":
        _watched.append(f"exec: {arguments[0].co_filename}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        _watched.append(f"open: {os.path.realpath(os.fsdecode(arguments[0]))}")
    elif event in NEVER:
        _watched.append(f"{event}: {arguments[0] if arguments else ''}")


sys.addaudithook(_hook)


def _too_long(*_: object) -> None:
    raise AssertionError(f"still reading after {SECONDS} s")


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """AssertionError if anything is run, a file opened that is neither below the folder nor Python's own, or it takes too long.

    Links are resolved. What zarrs opens is not seen, so half of the examples are read without it.
    """
    global _watched  # noqa: PLW0603 - an audit hook can never be taken back
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    _watched = []
    try:
        yield
    finally:
        seen, _watched = _watched, None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    python = [f"{event}: {path}" for event in ("open", "exec") for path in (sys.prefix, sys.base_prefix, "<")]
    own = (f"open: {folder}", "open: /proc", "open: /sys", *python)
    assert [line for line in seen if not line.startswith(own)] == []


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest dataset of a greedy actor in the corridor."""
    folder = tmp_path_factory.mktemp("good") / "set"
    rightwards: Any = SimpleNamespace(random=lambda: 0.0)
    episodes = [corridor_episode(seed % LENGTH, rightwards) for seed in range(5)]
    for episode in episodes:
        episode.flags_N[-1] |= schema.Flag.LIFE_LOST  # the game's last
    write_dataset(
        folder,
        episodes,
        environment={"game": "Corridor", "config": asdict(ENVIRONMENT)},
        collection={"policy": "epsilon-greedy", "epsilon": 0},
    )
    assert use(folder) == []  # imports whatever is imported late, and all of it can succeed
    return folder


def use(folder: Path, *, count_bytes: bool = False, forms: Iterable[str] = exchange.EXPORTS) -> list[str]:
    """Everything that reads; returns what playing it again found. What is written lies beside the folder."""
    dataset = open_dataset(folder, count_bytes=count_bytes)
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
    look(folder)
    hand_on(dataset, folder.parent / "out", forms)
    return played_again(dataset)


def look(folder: Path) -> None:
    """What people see of it: a page, but for the drawing, and lines that leave the terminal as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "render", lambda shown: str([film.frames(np.arange(1)).sum() for film in shown.films]))
        for arguments in (["info"], ["view", "--out", str(folder.parent / "page.html")]):
            result = CliRunner().invoke(main, ["dataset", *arguments, str(folder)])
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
            assert result.output.replace("\n", "").isprintable()


def hand_on(dataset: Dataset, out: Path, forms: Iterable[str]) -> None:
    """Exported to these formats, and imported from one; nothing of a file of ours is in it."""
    with suppress(ValueError):
        for form in forms:
            list(exchange.EXPORTS[form](dataset, out / form))
        for place in out.glob("minari/*/*"):
            list(exchange.from_minari(place, out / "again", game=None))
    assert not [path for path in out.rglob("*") if path.is_file() and OURS.encode() in path.read_bytes()]


def played_again(dataset: Dataset) -> list[str]:
    """What `rederive` finds of all its episodes, in the corridor."""

    def fingerprint(game: str, config: EnvConfig) -> dict[str, Any]:
        return {"game": game, "config": asdict(config)}

    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch, suppress(ValueError):
        patch.setattr(rederiving, "SlotWorld", lambda *_, width: Corridor(width))
        patch.setattr(rederiving, "fingerprint", fingerprint)
        list(rederiving.rederive(dataset, rederiving.choose(dataset, 1.0, 0), None, found))
        rederiving.described(dataset, [0], None, None)
    return found


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
                parent[data.draw(st.text(max_size=8) | st.sampled_from(["../../etc/passwd", "\x1b[2J"]))] = data.draw(JSON)
        path.write_text(json.dumps(document))
        return
    content = path.read_bytes()
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    path.write_bytes(content[:at] + data.draw(st.binary(max_size=40)) + content[at + data.draw(st.integers(0, 40)) :])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mangled_dataset_is_read_or_refused(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "set"
    for left in (folder, tmp_path / "out"):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(good, folder)
    (tmp_path / "ours").write_text(OURS)
    if not (tmp_path / "pipe").exists():
        os.mkfifo(tmp_path / "pipe")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    mangled = [path for path in files if path.name != schema.CARD]
    for path in data.draw(st.lists(st.sampled_from(mangled), min_size=1, max_size=3)):
        mangle(path, data)
    if data.draw(st.booleans()):
        certify(folder)
    if data.draw(st.integers(0, 4)) == 0:
        path = folder / schema.CARD if data.draw(st.booleans()) else data.draw(st.sampled_from(files))
        path.unlink()
        path.symlink_to(tmp_path / data.draw(st.sampled_from(["ours", "pipe"])))
    count_bytes, form = (
        data.draw(st.booleans()),
        data.draw(st.sampled_from([*exchange.EXPORTS])),
    )  # Hypothesis reads our modules
    with watched(tmp_path), suppress(ValueError):
        use(folder, count_bytes=count_bytes, forms=[form])
