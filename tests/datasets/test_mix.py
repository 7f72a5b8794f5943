"""A mix names exact bytes, and notices others."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.loader import split_episodes
from pipeline.datasets.mix import (
    make_mix,
    open_ingredients,
    read_mix,
    read_recipes,
    recipe_of,
    write_mix,
    write_recipes,
)
from pipeline.datasets.reader import open_dataset
from tests.fakes import corridor_dataset, corridor_episode, cut_short, write_dataset


def nobody(game: str) -> None:
    """No teacher is at hand."""


def test_round_trip(tmp_path: Path) -> None:
    manifest = corridor_dataset(tmp_path / "Corridor")
    mix = make_mix({"Corridor": tmp_path / "Corridor"}, lambda game: "t" * 64)
    write_mix(tmp_path / "m.json", mix)
    assert read_mix(tmp_path / "m.json") == mix
    assert (
        open_ingredients({"Corridor": tmp_path / "Corridor"}, mix["Corridor"], "m").parts[0].manifest.digest == manifest.digest
    )


def test_recipes_tell_how_a_dataset_was_collected_and_not_what_came_out(tmp_path: Path) -> None:
    collected = open_dataset("data/samples/Pong").manifest
    told = recipe_of(collected, None)
    assert recipe_of(replace(collected, digest="d" * 64, files={}), None) == told
    assert recipe_of(replace(collected, states=1), None) != told
    acted = replace(collected, collection=collected.collection | {"actor": {"digest": "a" * 64}})
    assert (
        recipe_of(acted, None)
        != recipe_of(acted, "students/m/v-0")
        == {
            **told,
            "collection": told["collection"] | {"actor": "students/m/v-0"},
        }
    )
    joined = replace(collected, collection={"made_by": {"operation": "merge"}})
    assert recipe_of(joined, None) == {"digest": collected.digest}
    write_recipes(tmp_path / "m.json", {"Pong": told})
    assert read_recipes(tmp_path / "m.json") == {"Pong": told}
    assert read_recipes(tmp_path / "none.json") == {}
    for wrong in ("[]", '{"Pong": 1}', "no"):
        (tmp_path / "m.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"m.json has no recipes.*: make the mix again"):
            read_recipes(tmp_path / "m.json")


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "Corridor")
    with pytest.raises(ValueError, match="labelled by teacher tttttttttttt, the teacher at hand is 77bc"):
        make_mix({"Corridor": tmp_path / "Corridor"}, lambda game: "77bc")
    mix = make_mix({"Corridor": tmp_path / "Corridor"}, nobody)
    other = [corridor_episode(0, np.random.default_rng(0)) for _ in range(4)]
    write_dataset(tmp_path / "other", other, teacher="u" * 64)
    with pytest.raises(ValueError, match=r"labelled by teacher uuuuuuuuuuuu, mix m expects tttttttttttt: run `dvc repro`"):
        open_ingredients({"Corridor": tmp_path / "other"}, mix["Corridor"], "m")


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "a", 40)
    corridor_dataset(tmp_path / "b", 39)
    mix = make_mix({"a": tmp_path / "a"}, nobody)
    with pytest.raises(ValueError, match="mix m expects"):
        open_ingredients({"a": tmp_path / "b"}, mix["Corridor"], "m")


def test_several_datasets_of_a_game_are_read_as_one(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "a", 40)
    rng = np.random.default_rng(5)
    write_dataset(tmp_path / "b", [corridor_episode(0, rng) for _ in range(7)])
    folders = {name: tmp_path / name for name in ("a", "b")}
    mix = make_mix(folders, nobody)
    write_mix(tmp_path / "m.json", mix)
    assert read_mix(tmp_path / "m.json") == mix
    joined = open_ingredients(folders, mix["Corridor"], "m")
    a, b = joined.parts
    assert len(joined) == len(a) + len(b)
    assert [joined.episodes[i].start for i in (40, 46)] == [len(a) + b.episodes[i].start for i in (0, 6)]
    for start, stop in ((0, 5), (len(a) - 3, len(a) + 4), (len(a), len(joined)), (0, len(joined))):
        for name in ("q", "frame"):
            both = np.concatenate([a.read(name, 0, len(a)), b.read(name, 0, len(b))])[start:stop]
            assert np.array_equal(joined.read(name, start, stop), both)
            into = np.full_like(both, 7)
            assert joined.read(name, start, stop, out=into) is into
            assert np.array_equal(into, both)
    alone, split = split_episodes(a, 0.1, 3), joined.split(0.1, [3, 4])
    assert np.array_equal(split.held_out_N, [*alone.held_out_N, *(split_episodes(b, 0.1, 4).held_out_N + len(a))])
    assert np.array_equal(split.train_N[: len(alone.train_N)], alone.train_N)
    assert sorted([*split.train_N, *split.held_out_N]) == list(range(len(joined)))


def test_nor_can_the_beginning_of_one(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "a", 7)
    cut_short(open_dataset(tmp_path / "a"), tmp_path / "b", episodes=1)
    folders = {name: tmp_path / name for name in ("a", "b")}
    with pytest.raises(ValueError, match="datasets a, b of mix m have 1 episodes in common"):
        open_ingredients(folders, make_mix(folders, nobody)["Corridor"], "m")


def test_an_episode_cannot_be_in_two_datasets_of_a_mix(tmp_path: Path) -> None:
    corridor_dataset(tmp_path / "a", 40)
    corridor_dataset(tmp_path / "b", 7)
    folders = {name: tmp_path / name for name in ("a", "b")}
    mix = make_mix(folders, nobody)
    with pytest.raises(ValueError, match="datasets a, b of mix m have 7 episodes in common: join them with `dataset merge`"):
        open_ingredients(folders, mix["Corridor"], "m")


def test_datasets_that_cannot_be_one_are_refused(tmp_path: Path) -> None:
    episodes = [corridor_episode(i % 2, np.random.default_rng(i)) for i in range(4)]
    write_dataset(tmp_path / "a", episodes)
    write_dataset(tmp_path / "b", episodes, teacher="u" * 64, environment={"game": "Corridor", "wind": 1})
    with pytest.raises(
        ValueError,
        match=r"a and b are of Corridor but differ in teacher, environment \(wind None and 1\): a mix cannot have both, leave",
    ):
        make_mix({"a": tmp_path / "a", "b": tmp_path / "b"}, nobody)
    with pytest.raises(ValueError, match="a and again are the same dataset"):
        make_mix({"a": tmp_path / "a", "again": tmp_path / "a"}, nobody)


@pytest.mark.parametrize("text", ["", "[1]", '{"Pong": {}}', '{"Pong": 3}', json.dumps({"Pong": {"dataset": "x"}})])
def test_a_broken_mix_names_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match="pd-pipeline mix --mix m"):
        read_mix(tmp_path / "m.json")
    with pytest.raises(ValueError, match="does not exist"):
        read_mix(tmp_path / "none.json")
