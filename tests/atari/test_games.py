"""Every game of the wheel by name; near matches; the paper's ten."""

import pytest

from pipeline.atari.games import REFERENCES, find_game, games, rom_md5


def test_every_rom_has_a_name_and_is_found_whatever_its_case() -> None:
    assert len(games()) > 100
    for name, spec in games().items():
        assert find_game(name.upper()) is spec
        assert find_game(spec.rom) is spec


def test_the_papers_ten_are_there_with_references() -> None:
    assert len(REFERENCES) == 10
    assert REFERENCES.keys() <= games().keys()
    assert find_game("ms_pacman").reference is REFERENCES["MsPacman"]
    assert find_game("Boxing").reference is None


def test_an_unknown_game_lists_near_matches() -> None:
    with pytest.raises(ValueError, match=r"did you mean.*Pong"):
        find_game("Pongg")
    with pytest.raises(ValueError, match="pd-pipeline games"):
        find_game("zzzzzz")


def test_rom_md5_is_the_published_one() -> None:
    assert rom_md5(find_game("Pong")) == "60e0ea3cbe0913d39803477945e9e5ec"
