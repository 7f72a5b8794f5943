"""Scores as tables: one list of columns serves HTML and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from pipeline.report.paper import published_percent
from pipeline.report.scores import Contestant, Score


@dataclass(frozen=True, slots=True)
class Row:
    """A score with the agent it belongs to and the size of the teacher it is compared with."""

    score: Score
    who: Contestant
    teacher_parameters: int


def _published(row: Row) -> str:
    found = published_percent(row.score.game, row.who.loss, row.score.network) if row.who.loss else None
    return f"{found[0]:.1f} ({found[1]})" if found else ""


def _with_interval(value: float, interval: tuple[float, float], digits: int) -> str:
    low, high = interval
    return f"{value:.{digits}f} [{low:.1f}, {high:.1f}]"


def short_name(agent: str) -> str:
    """The agent's name without its folder: teacher and random agent keep their role."""
    kind, _, name = agent.partition("/")
    return {"teachers": "teacher", "random": "random"}.get(kind, name.split("/")[-1])


COLUMNS: Final[Mapping[str, Callable[[Row], str]]] = {
    "agent": lambda r: short_name(r.score.agent),
    "parameters": lambda r: f"{r.score.parameters:,}",
    "size %": lambda r: f"{100 * r.score.parameters / r.teacher_parameters:.1f}",
    "mean return [95 %]": lambda r: _with_interval(r.score.mean, r.score.ci95, 2),
    "min": lambda r: f"{r.score.min:g}",
    "% of teacher": lambda r: "n/a" if r.score.teacher_percent is None else f"{r.score.teacher_percent:.1f}",
    "normalised % [95 %]": lambda r: _with_interval(r.score.normalized, r.score.normalized_ci95, 1),
    "paper, % of teacher": _published,
    "episodes": lambda r: str(r.score.episodes) + (f" ({r.score.stalled} stalled)" if r.score.stalled else ""),
}


def markdown(rows: Sequence[Row]) -> str:
    """A GitHub table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def html(rows: Sequence[Row], caption: str) -> str:
    """A sortable table; numbers are aligned by the style sheet's `.number`."""
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in COLUMNS)
    body = "".join(
        f'<tr class="{escape(row.score.role)}">'
        + "".join(
            f"<td>{escape(cell(row))}</td>" if name == "agent" else f'<td class="number">{escape(cell(row))}</td>'
            for name, cell in COLUMNS.items()
        )
        + "</tr>"
        for row in rows
    )
    table = f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{table}</table></div>'
