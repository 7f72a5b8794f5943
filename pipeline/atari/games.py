"""Which games there are, by the Arcade Learning Environment's CamelCase names, and the scores the literature gives them.

Reference scores are raw, unclipped, full-game returns. Random, human and DQN: Mnih et al. 2015 (Nature DQN), Extended
Data Table 2.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
from dataclasses import dataclass
from typing import Final

from ale_py import roms


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Published returns: a random agent, a human tester, and Nature DQN."""

    random: float
    human: float
    dqn: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GameSpec:
    """One game: its name, the wheel's ROM id, and the literature's scores (None outside the paper's ten)."""

    name: str
    rom: str
    reference: Reference | None


REFERENCES: Final = {
    "BeamRider": Reference(random=363.9, human=5775.0, dqn=6846.0),
    "Breakout": Reference(random=1.7, human=31.8, dqn=401.2),
    "Enduro": Reference(random=0.0, human=309.6, dqn=301.8),
    "Freeway": Reference(random=0.0, human=29.6, dqn=30.3),
    "MsPacman": Reference(random=307.3, human=15693.0, dqn=2311.0),
    "Pong": Reference(random=-20.7, human=9.3, dqn=18.9),
    "Qbert": Reference(random=163.9, human=13455.0, dqn=10596.0),
    "Riverraid": Reference(random=1338.5, human=13513.0, dqn=8316.0),
    "Seaquest": Reference(random=68.4, human=20182.0, dqn=5286.0),
    "SpaceInvaders": Reference(random=148.0, human=1652.0, dqn=1976.0),
}
"""The ten games of Rusu et al. 2015."""


@functools.cache
def games() -> dict[str, GameSpec]:
    """Every game in the ale-py wheel, by name."""
    specs = {}
    for rom in sorted(roms.get_all_rom_ids()):
        name = rom.title().replace("_", "")
        specs[name] = GameSpec(name=name, rom=rom, reference=REFERENCES.get(name))
    return specs


def find_game(name: str) -> GameSpec:
    """The game called `name`, whatever its case or separators. ValueError lists near matches."""

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    by_plain = {plain(known): spec for known, spec in games().items()}
    if plain(name) in by_plain:
        return by_plain[plain(name)]
    near = [by_plain[p].name for p in difflib.get_close_matches(plain(name), by_plain, n=4, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}?" if near else "`pd-pipeline games` lists all of them"
    raise ValueError(f"unknown game {name!r}: {hint}")


def rom_md5(spec: GameSpec) -> str:
    """MD5 of the ROM image: what ALE itself identifies a game by."""
    path = roms.get_rom_path(spec.rom)
    assert path is not None, spec.rom
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
