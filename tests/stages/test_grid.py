"""Which games a mix and an agent are of, before and after they are made."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.mix import Ingredient, write_mix
from stages import params
from stages.grid import games_of_cell, games_of_mix
from stages.params import Cell
from stages.paths import Layout
from tests.fakes import edited_params, write_dataset
from tests.test_several_games import episode

STUDENT = {"loss": "kl", "temperature": 0.01, "network": "multi3", "preset": "fast", "updates": 1, "recipe": 1}


def test_games(tmp_path: Path) -> None:
    with edited_params(tmp_path) as raw:
        raw["datasets"] = {"Pong-1": raw["datasets"]["Pong"] | {"game": "Pong"}}
        raw["mixes"] = {"rounds": ["Pong", "Pong-1"], "best": ["Breakout-best"], "pair": ["Qbert", "pong"], "one": ["Freeway"]}
        raw["students"] = {
            "kl": STUDENT,
            "more": STUDENT | {"begins_with": "students/pair/kl-0"},
            "again": STUDENT | {"begins_with": "students/one/more-0"},
            "after": STUDENT | {"begins_with": "teachers/breakout"},
        }
        raw["grid"] = {"pair": {"students": ["kl"], "seeds": [0]}}
    layout, loaded = Layout(tmp_path, tmp_path / "zoo"), params.load(tmp_path / "params.yaml")
    assert games_of_mix(layout, loaded, "rounds") == ["Pong"]
    assert games_of_mix(layout, loaded, "pair") == ["Qbert", "Pong"]
    with pytest.raises(ValueError, match="unknown game 'Breakout-best'"):
        games_of_mix(layout, loaded, "best")
    for variant, mix, games in (
        ("more", "one", ["Qbert", "Pong", "Freeway"]),
        ("again", "best", ["Qbert", "Pong", "Freeway", "Breakout"]),
        ("after", "one", ["Breakout", "Freeway"]),
    ):
        if mix == "best":
            write_mix(
                layout.mix("best"), {"Breakout": [Ingredient(dataset="Breakout-best", digest="d", teacher="t", actions=4)]}
            )
        assert games_of_cell(layout, loaded, Cell("students", mix, variant, 0)) == games
    layout.mix("best").unlink()
    write_dataset(layout.dataset("Breakout-best"), [episode(4, np.random.default_rng(0))], game="Breakout")
    assert games_of_mix(layout, loaded, "best") == ["Breakout"]
