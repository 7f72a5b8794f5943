"""Two datasets side by side: what differs is named, the first episode among it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets.compare import compare
from pipeline.datasets.reader import open_dataset
from tests.fakes import corridor_dataset


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 7}, "episode 2 (seed 2): seed 2 in A, 7 in B"),
        ({"complete": False, "sha256": "f"}, "episode 2 (seed 2): complete True in A, False in B; sha256 "),
    ],
)
def test_the_first_episode_that_differs_is_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    corridor_dataset(tmp_path / "set", 5)
    ours = open_dataset(tmp_path / "set")
    rows = list(ours.episodes)
    rows[2], rows[4] = rows[2]._replace(**change), rows[4]._replace(seed=9)
    (line,) = compare(ours, replace(ours, episodes=tuple(rows)))["differences"]
    assert line.startswith(told)


def test_an_episode_that_only_one_has_is_named(tmp_path: Path) -> None:
    for name, episodes in (("a", 5), ("b", 3)):
        corridor_dataset(tmp_path / name, episodes)
    a, b = (open_dataset(tmp_path / name) for name in "ab")
    assert compare(a, b)["differences"][-1] == "episode 3 (seed 3): only in A"
    assert compare(b, a)["differences"][-1] == "episode 3 (seed 3): only in B"
    assert compare(a, a)["differences"] == []
