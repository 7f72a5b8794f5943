"""A mix names exact bytes, and notices others."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.mix import make_mix, open_ingredient, read_mix, write_mix
from tests.fakes import corridor_dataset, corridor_episode, write_dataset


def test_round_trip(tmp_path: Path) -> None:
    manifest = corridor_dataset(tmp_path / "Corridor")
    mix = make_mix({"Corridor": tmp_path / "Corridor"}, {"Corridor": "t" * 64})
    write_mix(tmp_path / "m.json", mix)
    assert read_mix(tmp_path / "m.json") == mix
    assert open_ingredient(tmp_path / "Corridor", mix["Corridor"], "m").manifest.digest == manifest.digest


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "Corridor")
    with pytest.raises(ValueError, match="labelled by teacher tttttttttttt, the teacher at hand is 77bc"):
        make_mix({"Corridor": tmp_path / "Corridor"}, {"Corridor": "77bc"})
    mix = make_mix({"Corridor": tmp_path / "Corridor"}, {})
    other = [corridor_episode(0, np.random.default_rng(0)) for _ in range(4)]
    write_dataset(tmp_path / "other", other, teacher="u" * 64)
    with pytest.raises(ValueError, match=r"labelled by teacher uuuuuuuuuuuu, mix m expects tttttttttttt: run `dvc repro`"):
        open_ingredient(tmp_path / "other", mix["Corridor"], "m")


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "a", 40)
    corridor_dataset(tmp_path / "b", 39)
    mix = make_mix({"a": tmp_path / "a"}, {})
    with pytest.raises(ValueError, match="mix m expects"):
        open_ingredient(tmp_path / "b", mix["Corridor"], "m")
    with pytest.raises(ValueError, match="both of Corridor"):
        make_mix({"a": tmp_path / "a", "b": tmp_path / "b"}, {})


@pytest.mark.parametrize("text", ["", "[1]", '{"Pong": {}}', '{"Pong": 3}', json.dumps({"Pong": {"dataset": "x"}})])
def test_a_broken_mix_names_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match="pd-pipeline mix --mix m"):
        read_mix(tmp_path / "m.json")
    with pytest.raises(ValueError, match="does not exist"):
        read_mix(tmp_path / "none.json")
