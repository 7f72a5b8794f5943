"""mix: it says what it was asked for and has not."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.datasets.mix import read_mix
from stages.cli import main
from tests.fakes import corridor_episode, edited_params, write_dataset


def mixed(folder: Path, **datasets: int) -> str:
    """What `mix` says where params.yaml there asks for so many states; data come from an experiment beside it."""
    with edited_params(folder, Path(__file__).parents[2] / "params.yaml") as raw:
        raw["store"] = "../theirs/data/datasets"
        recipe = raw["datasets"]["Pong"]
        raw["datasets"] = {name: recipe | {"states": states} for name, states in datasets.items()}
        raw["mixes"] = {"m": ["Pong"]}
        raw["grid"] = {}
    result = CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), "mix", "--mix", "m"])
    assert result.exit_code == 0, result.output
    assert list(read_mix(folder / "data/mixes/m.json")) == ["Pong"]
    return str(result.output)


@pytest.mark.parametrize(("more", "told"), [(0, False), (1, True)])
def test_a_dataset_of_fewer_states_than_asked_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int, told: bool
) -> None:
    episode = corridor_episode(0, np.random.default_rng(0))
    store = tmp_path / "theirs/data/datasets"
    states = write_dataset(store / "Pong", [episode] * 9, game="Pong").states
    wanted = states + more
    monkeypatch.chdir(tmp_path)

    def lacking(described: str) -> str:
        command = f"pd-pipeline --params {described} collect --dataset Pong"
        return f"dataset Pong has {states:,} states of the {wanted:,} asked for: `{command}`"

    assert (lacking("ours/params.yaml") in mixed(tmp_path / "ours", Pong=wanted)) == told
    mixed(tmp_path / "theirs", Pong=wanted)
    assert (lacking("theirs/params.yaml") in mixed(tmp_path / "ours")) == told
