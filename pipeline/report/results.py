"""What a report tells, whichever page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.report.aggregate import Aggregate
from pipeline.report.online import Run
from pipeline.report.predictors import Predicted
from pipeline.report.scores import Evaluated
from pipeline.report.summary import Game, Lead, Summary


@dataclass(frozen=True, kw_only=True, slots=True)
class Several:
    """Agents that play several games, the same ones: their summaries, and the agents by game."""

    summaries: Sequence[Summary]
    games: Mapping[str, Game]

    @property
    def teachers(self) -> dict[str, Evaluated]:
        """By game."""
        return {name: game.teacher for name, game in self.games.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """A teacher of another experiment, its students, and their losses' leads over each other."""

    teacher: Evaluated
    summaries: Sequence[Summary]
    leads: Sequence[Lead] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """`protocol` says how episodes start, explore and end, `command` what makes the report again, `timing` how networks were
    timed, if they were. `games` has who played each; `predicted` is what held-out numbers tell of students' scores.

    `summaries` and `aggregates` are of agents of one game, over all games, and `leads` of their losses over each other;
    `several` of agents of the same several games each; `online` are students that followed a teacher which was still learning.
    `beside` are teachers of other experiments with their students. `earlier` has who learned by other settings than the
    experiment has now, by what differed; `collections`, who learned from another collection of the same datasets, by these;
    `missing`, who is not shown yet.
    """

    protocol: str = ""
    command: str = ""
    timing: str = ""
    games: Mapping[str, Game] = field(default_factory=dict)
    predicted: Predicted | None = None
    summaries: Sequence[Summary] = ()
    aggregates: Sequence[Aggregate] = ()
    leads: Sequence[Lead] = ()
    several: Sequence[Several] = ()
    online: Sequence[Run] = ()
    beside: Sequence[Beside] = ()
    earlier: Mapping[str, Sequence[str]] = field(default_factory=dict)
    collections: Mapping[str, Sequence[str]] = field(default_factory=dict)
    missing: Sequence[str] = ()

    @property
    def teachers(self) -> dict[str, Evaluated]:
        """By game."""
        return {name: game.teacher for name, game in self.games.items()}
