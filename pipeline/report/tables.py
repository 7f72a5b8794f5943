"""Scores as tables, each of which can be had as HTML and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import compress
from typing import Final

import numpy as np

from pipeline.report import bootstrap
from pipeline.report.aggregate import Aggregate
from pipeline.report.online import (
    HEAD,
    Run,
    kept_within,
    share_of_drop,
    share_within,
    table,
    teachers_drop,
    told_share,
)
from pipeline.report.paper import (
    BARS,
    DROP,
    KEPT,
    LADDER,
    MULTITASK,
    SEVERAL_LEAST,
    SEVERAL_MEAN,
    STUDENTS,
    TABLE1,
    THREE_GAMES,
    Bar,
    published_percent,
)
from pipeline.report.predictors import PREDICTORS, Group, Predicted
from pipeline.report.scores import Evaluated, Score, read_returns
from pipeline.report.summary import Game, Lead, Standing, Summary

INTERVAL: Final = re.compile(r"\[[^\]]*\]")


NUMBER: Final = re.compile(r"-?\d")
"""How a cell of a column of numbers begins."""


def _unbroken(cell: str) -> str:
    """As HTML, in which no line ends within an interval."""
    return INTERVAL.sub(lambda interval: interval[0].replace(" ", "&nbsp;"), escape(cell))


@dataclass(frozen=True, slots=True)
class Table:
    """Titles and cells; `classes` are those of the rows in HTML, "student" if not told."""

    head: Sequence[str]
    cells: Sequence[Sequence[str]]
    classes: Sequence[str] = ()

    def html(self, caption: str) -> str:
        """Sortable; columns of numbers are aligned by the style sheet's `.number`. Where a table is wide, lines break before
        intervals, not in them.
        """
        numbers = [all(NUMBER.match(cell) for cell in column if cell) for column in zip(*self.cells, strict=True)]
        kinds = [' class="number"' if number else "" for number in numbers or [False] * len(self.head)]
        titles = "".join(
            f'<th scope="col"{kind}><button type="button">{_unbroken(name)}</button></th>'
            for name, kind in zip(self.head, kinds, strict=True)
        )
        body = "".join(
            f'<tr class="{escape(row_kind)}">'
            + "".join(f"<td{kind}>{_unbroken(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
            + "</tr>"
            for row, row_kind in zip(self.cells, self.classes or ["student"] * len(self.cells), strict=True)
        )
        table = f"<caption>{escape(caption)}</caption><thead><tr>{titles}</tr></thead><tbody>{body}</tbody>"
        return f'<div class="scroll"><table>{table}</table></div>'

    def filled(self) -> Table:
        """Without columns that are empty in every row."""
        keep = [any(column) for column in zip(*self.cells, strict=True)]
        return replace(self, head=list(compress(self.head, keep)), cells=[list(compress(row, keep)) for row in self.cells])

    def markdown(self) -> str:
        """As GitHub shows it."""
        lines = ["| " + " | ".join(self.head) + " |", "|" + "---|" * len(self.head)]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in self.cells)]) + "\n"


@dataclass(frozen=True, slots=True)
class Row:
    """A score with the agent it belongs to and the size of the teacher it is compared with."""

    score: Score
    who: Evaluated
    teacher_parameters: int


def _published(row: Row) -> str:
    found = published_percent(row.score.game, row.who.loss, row.score.network) if row.who.loss and row.who.plain else None
    return f"{found[0]:.1f} ({found[1]})" if found else ""


def _with_interval(value: float, interval: tuple[float, float], digits: int) -> str:
    low, high = interval
    return f"{value:,.{digits}f} [{low:,.1f}, {high:,.1f}]"


def short_name(agent: str) -> str:
    """VARIANT-SEED, of an agent of several games MIX/VARIANT-SEED; teacher and random agent keep their role."""
    kind, *names = agent.split("/")
    return (
        {"teachers": "teacher", "random": "random"}.get(kind) or "/".join(names[:2] if len(names) > 2 else names[-1:]) or agent
    )


COLUMNS: Final[Mapping[str, Callable[[Row], str]]] = {
    "agent": lambda r: short_name(r.score.agent) + ("†" if r.who.elsewhere else ""),
    "parameters": lambda r: f"{r.score.parameters:,}",
    "size %": lambda r: f"{100 * r.score.parameters / r.teacher_parameters:.1f}",
    "mean return [95 %]": lambda r: _with_interval(r.score.mean, r.score.ci95, 2),
    "min": lambda r: f"{r.score.min:g}",
    "% of teacher": lambda r: "n/a" if r.score.teacher_percent is None else f"{r.score.teacher_percent:.1f}",
    "normalised % [95 %]": lambda r: _with_interval(r.score.normalized, r.score.normalized_ci95, 1),
    "paper, % of teacher": _published,
    "episodes": lambda r: str(r.score.episodes) + (f" ({r.score.stalled} stalled)" if r.score.stalled else ""),
}


def scores(rows: Sequence[Row]) -> Table:
    """One row per agent."""
    return Table(list(COLUMNS), [[cell(row) for cell in COLUMNS.values()] for row in rows], [row.score.role for row in rows])


PAIRED: Final = "each agent paired with its teacher on its own seeds, where that has played them all"
"""How intervals of scores relative to a teacher's come about (`scores.Baseline`)."""


def over_games(summaries: Sequence[Summary]) -> Table:
    """One row per kind of student, a column per game."""
    games = list(dict.fromkeys(game for s in summaries for game in s.games))
    head = ["student", "parameters", "runs", *games, "geometric mean [95 %]", "paper (ten games)"]
    cells = []
    for s in summaries:
        played = [_with_interval(s.games[g].normalized, s.games[g].ci95, 1) if g in s.games else "" for g in games]
        mean = _mean(s.mean, s.ci95, floored=bool(s.floored))
        published = f"{LADDER[s.network]:.1f}" if s.plain and s.loss == "kl" and s.network in LADDER else ""
        runs = "-".join(map(str, sorted({standing.runs for standing in s.games.values()})))
        cells.append([s.variant, f"{s.parameters:,}", runs, *played, mean, published])
    return Table(head, cells)


def aggregates(found: Sequence[Aggregate]) -> Table:
    """One row per kind of student, a column per aggregate."""
    head = [
        "student",
        "episodes",
        "IQM [95 %]",
        "median [95 %]",
        "mean [95 %]",
        "optimality gap [95 %]",
        "% better than teacher [95 %]",
    ]
    cells = []
    for a in found:
        numbers = (a.scores.iqm, a.scores.median, a.scores.mean, a.scores.optimality_gap, a.improvement)
        cells.append([a.variant, f"{a.episodes:,}", *(_with_interval(n.value, (n.low, n.high), 1) for n in numbers)])
    return Table(head, cells)


def costs(teacher: Evaluated, students: Sequence[Evaluated]) -> Table:
    """One row per network, the teacher's first: what it is and what a state costs, beside the teacher's."""
    networks = {who.network: who for who in reversed(students)}
    ordered = [teacher, *sorted(networks.values(), key=lambda who: -who.parameters)]
    timed = all(who.latency_ms for who in ordered)
    head = [
        "network",
        "parameters",
        "kB as float32",
        "Mflop a state",
        *(["ms a state, one core"] if timed else []),
        "% of teacher: size",
        "flop",
    ]
    cells = []
    for who in ordered:
        row = [
            who.network + (", the teacher's" if who is teacher else ""),
            f"{who.parameters:,}",
            f"{4e-3 * who.parameters:,.0f}",
        ]
        row.append(f"{1e-6 * (who.flops or 0):.2f}")
        shares = [who.parameters / teacher.parameters, (who.flops or 0) / (teacher.flops or 1)]
        if who.latency_ms and teacher.latency_ms and timed:
            row.append(f"{who.latency_ms:.3f}")
            shares.append(who.latency_ms / teacher.latency_ms)
        cells.append([*row, *(f"{100 * share:.1f}" for share in shares)])
    return Table([*head, *(["latency"] if timed else [])], cells, ["teacher"] + ["student"] * len(networks))


def facts(rows: Sequence[Mapping[str, str]]) -> Table:
    """A column per key of the first row."""
    return Table(list(rows[0]), [list(row.values()) for row in rows])


TYPICAL: Final = (
    "IQM is the mean of the middle half, median and mean are of the games' means, the optimality gap is how far episodes "
    "fall short of 100 % on average, their own noise included, and the last column the chance in per cent that an episode "
    "beats one of the teacher's, ties counting a half: 50 is equal. Episodes are skewed: a student is on a par with its "
    "teachers where its numbers are theirs, not where they are 100. Intervals: 95 % bootstrap over the training runs of "
    "each game, where there are several, and their episodes; what teacher and random score is taken as it is, but for the "
    "last column, where the teacher's episodes are resampled, too."
)
CORRELATED: Final = (
    "Kendall's rank correlation with the normalised score, over the pairs of students that were measured on the same held-out "
    "episodes, in brackets how many. Students are resampled for the 95 % intervals (none where the order is perfect: all "
    "resamples are, then). Within a loss the held-out numbers are comparable; over all losses they mostly tell losses apart. "
    "Where all students play as well as their teacher, ranks are mostly noise."
)
"""What the table of correlations tells."""


def best_predictor(found: Predicted) -> str:
    """Of whom, and which number is the best, if any."""
    best = (
        f"The best is {PREDICTORS[found.best]}: the 95 % intervals of its lead over the others are above zero."
        if found.best
        else "Which is best, the intervals do not tell."
    )
    who = f"Every student trained at tau = {found.temperature:g}, by what its held-out episodes said before it ever played."
    return f"{who} {best}"


def correlations(groups: Sequence[Group]) -> Table:
    """A row per held-out number, a column per group of students."""
    head = ["rank correlation [95 %]", *(f"{g.game}, {g.loss or 'all losses'} ({g.pairs})" for g in groups)]
    found = {name: [g.correlations[name] for g in groups] for name in PREDICTORS}
    cells = [
        [label, *(f"{c.value:.2f}" + (f" [{c.ci95[0]:.2f}, {c.ci95[1]:.2f}]" if c.ci95 else "") for c in found[name])]
        for name, label in PREDICTORS.items()
    ]
    return Table(head, cells)


def several(summaries: Sequence[Summary]) -> Table:
    """Agents of several games, a row each: every game's raw per cent of its teacher with its interval, the geometric means of
    these and of the normalised per cents, and the least of the latter; the paper's beside those of its three games. Of
    baselines their steps of each game, too, and the mean of normalised per cents of the best that the teachers were until then.
    """
    games = sorted({game for s in summaries for game in s.games})
    known = tuple(games) == THREE_GAMES
    head = ["agent", "learned from", "steps a game", "parameters", "runs", *(f"{g} %" for g in games), "mean % [95 %]"]
    head += ["paper, mean %"] * known
    head += ["normalised mean % [95 %]", "least %", "normalised mean % at equal steps"]
    runs = ["-".join(map(str, sorted({standing.runs for standing in s.games.values()}))) for s in summaries]
    if set(runs) == {"1"}:  # the page says so of all
        runs = [""] * len(runs)
    cells = []
    for s, run in zip(summaries, runs, strict=True):
        whole, comparable = len(s.games) == len(games), s.plain or not s.loss
        cells.append(
            [
                *(s.variant, f"teachers, {s.loss}" if s.loss else f"reward, {s.learned}"),
                *("" if s.steps is None else f"{s.steps:,}", f"{s.parameters:,}", run),
                *(_percent(s.games[g]) if g in s.games else "" for g in games),
                _mean(s.percent_mean, s.percent_ci95, floored=s.percent_floored),
                *([f"{MULTITASK[s.learned]:.1f}" if whole and comparable and s.learned in MULTITASK else ""] if known else []),
                _mean(s.mean, s.ci95, floored=bool(s.floored)),
                f"{min(standing.normalized for standing in s.games.values()):.1f}",
                "" if s.at_equal_steps is None else f"{s.at_equal_steps:.1f}",
            ]
        )
    return Table(head, cells).filled()


def of_steps(summaries: Sequence[Summary], teachers: Mapping[str, Evaluated]) -> str:
    """What to say beside `several` of its baselines' steps; nothing where there are none."""
    if all(s.steps is None for s in summaries):
        return ""
    games = sorted({game for s in summaries for game in s.games})
    own = ", ".join(f"{game} {steps:,}" for game in games if (steps := teachers[game].card.get("steps")))
    return (
        f" Steps a game: those that a baseline was trained for; its best snapshot until then is published. Its teachers were "
        f"published after their own{own and f' ({own})'}, so the mean at equal steps, where there is one, takes each at "
        "the best of the evaluations that chose its snapshot within the baseline's, which are of few episodes and flatter it "
        "a little."
    )


def of_training(summaries: Sequence[Summary]) -> str:
    """What intervals say of the variance of training."""
    if all(standing.runs == 1 for s in summaries for standing in s.games.values()):
        return "they do not include the variance of training: every student has one run"
    return (
        "where a student has several runs in a game, runs are resampled as well, and the interval includes the variance of "
        "training as far as two or three runs can tell; where it has one, it does not"
    )


def followed(runs: Sequence[Run]) -> str:
    """What the table below tells, and of how many episodes."""
    at_points, at_end = (
        " or ".join(f"{count} ({game})" for game, count in counts.items())
        for counts in ({run.game: run.student_PN.shape[1] for run in runs}, {run.game: len(run.student_N) for run in runs})
    )
    return (
        f"Every point is scored by {at_points} episodes, the end by {at_end}. "
        "Change is the root mean square of the changes from point to point, progress among them. The worst drop is below the "
        "best policy so far, which other seeds chose, at the point that half of the episodes find the worst, measured on the "
        "other half, the mean over many ways to halve them; it is below zero where a curve stays above the best. The next "
        "column counts only points at which the best policy had not just changed. The students' is also given over their "
        "teachers', of means over seeds, with an interval over episodes that covers 95 % at least and has no upper end where "
        "in more than one of forty resamples the teachers do not drop. Over several seeds: their mean, least and greatest. "
        "At the end: the teacher's last policy, its best and the final student on seeds that nothing else has seen. Kept is "
        "(student - random) / (best - random) of these, with the 95 % bootstrap interval of the seeds' mean over episodes, "
        "paired by seed."
    )


def online(runs: Sequence[Run]) -> Table:
    """How steadily students followed their teachers."""
    cells = table(runs)
    return Table(list(HEAD), cells, [row[1] for row in cells])


def table1(rows: Sequence[tuple[str, Evaluated, Sequence[Summary]]]) -> Table:
    """The paper's Table 1 and ours side by side: students of the teacher's size, raw per cent of the teacher, paired with it by
    seed. A row is what it is called, a teacher, and the students of its game.
    """
    losses = ("mse", "nll", "kl")
    head = ["game", "teacher", "paper's teacher", *(f"{loss.upper()} % [95 %] (paper)" for loss in losses)]
    cells = []
    for name, teacher, summaries in rows:
        published = TABLE1.get(teacher.game, {})
        row = [name, f"{read_returns(teacher.episodes)[0].mean():,.1f}", f"{published['teacher']:,.1f}" if published else ""]
        for loss in losses:
            same = [s.games.get(teacher.game) for s in summaries if s.plain and (s.loss, s.network) == (loss, "dqn")]
            ours = "".join(_percent(standing) for standing in same if standing)
            row.append(f"{ours} ({published[loss]:.1f})".strip() if published else ours)
        cells.append(row)
    return Table(head, cells)


def leads(found: Sequence[Lead], games: Sequence[str], others: Sequence[tuple[str, Sequence[Lead]]] = ()) -> Table:
    """Points of normalised per cent by which one loss is ahead of the next, beside the paper's raw ones. Last come those
    of `others`, a name each with its leads in one game, which are in no mean.
    """
    cells = []
    for lead in found:
        told = [_with_interval(*lead.games[game], 1) if game in lead.games else "" for game in games]
        name = f"{lead.loss.upper()} less {lead.other.upper()}"
        apart = [
            ", ".join(
                _with_interval(*it, 1)
                for one in of
                for it in one.games.values()
                if (one.loss, one.other) == (lead.loss, lead.other)
            )
            for _, of in others
        ]
        cells.append([name, *told, _with_interval(*lead.mean, 1) if lead.mean else "", *apart])
        papers = [
            f"{TABLE1[game][lead.loss] - TABLE1[game][lead.other]:.1f}"
            if {lead.loss, lead.other} <= TABLE1.get(game, {}).keys()
            else ""
            for game in games
        ]
        cells.append([f"the paper's {name}", *papers, "", *("" for _ in others)])
    return Table(["points", *games, "geometric mean", *(name for name, _ in others)], cells)


def mistakes(games: Mapping[str, Game], network: str, losses: Sequence[str]) -> Table:
    """Of plain students of that network, a row per loss: in how many held-out states they prefer the teacher's action, and what
    their choices cost on average by its Q-values. Of several runs their mean.
    """
    cells = []
    for loss in losses:
        row = []
        for game in games.values():
            same = [who for who in game.students if who.plain and (who.loss, who.network) == (loss, network)]
            told = [who.card["held_out"] for who in same if "held_out" in who.card]
            agreement, regret = (np.mean([of[name] for of in told] or [0.0]) for name in ("agreement", "regret"))
            row.append(f"{100 * agreement:.1f} %, {regret:.2g}" if told else "")
        if any(row):
            cells.append([loss.upper(), *row])
    return Table(["agreement, regret", *games], cells)


def _mean(mean: float | None, interval: tuple[float, float] | None, *, floored: bool) -> str:
    """A geometric mean, with a star where a game was taken to reach 1 %; empty where there is none."""
    if mean is None:
        return ""
    return (_with_interval(mean, interval, 1) if interval else f"{mean:.1f}") + ("*" if floored else "")


def _percent(standing: Standing) -> str:
    if standing.percent is None:
        return "n/a"
    return _with_interval(standing.percent, standing.percent_ci95, 1) if standing.percent_ci95 else f"{standing.percent:.1f}"


def returns(summaries: Sequence[Summary], games: Mapping[str, Game], published: Mapping[str, float] = STUDENTS) -> Table:
    """Mean returns, a column per game: the paper's own students, if any, the random agent, our teachers, a row per kind of
    student.
    """
    paper = ["the paper's, KL, of its teacher's size", *(f"{published[g]:,.1f}" if g in published else "" for g in games)]
    cells = [
        *([paper] if published else []),
        ["the random agent", *(_returned(game.chance) for game in games.values())],
        ["our teachers", *(_returned(game.teacher) for game in games.values())],
    ]
    for s in summaries:
        played = [s.games.get(name) for name in games]
        cells.append([s.variant, *(_with_interval(p.returned, p.returned_ci95, 1) if p else "" for p in played)])
    return Table(["agent", *games], cells)


def _returned(who: Evaluated) -> str:
    """The mean return of a teacher or of the random agent, over all that it has played."""
    own_N = read_returns(who.episodes)[0]
    return f"{_with_interval(float(own_N.mean()), bootstrap.interval(own_N), 1)} ({len(own_N)} episodes)"


def bars(summaries: Sequence[Summary]) -> Table:
    """What is asked of the KL students (`paper.BARS`, `paper.STUDENTS`), and what they reached; open where it is not known."""
    cells = []
    for bar in BARS:
        found = _asked(summaries, bar)
        name = f"{bar.network}{' with student-driven rounds' if bar.rounds else ''}: geometric mean %"
        mean, low = (found.mean, (found.ci95 or (None,))[0]) if found and found.games.keys() == TABLE1.keys() else (None, None)
        cells.append([name, *_held(mean, bar.mean, found.ci95 if found and mean is not None else None)])
        if bar.low is not None:
            cells.append([f"{name}, lower end of its interval", *_held(low, bar.low)])
    student = _asked(summaries, BARS[0])
    for game, floor in STUDENTS.items():
        standing = student.games.get(game) if student else None
        cells.append([f"dqn: mean return in {game}", *_held(standing.returned if standing else None, floor)])
    return Table(["KL students", "at least", "reached", ""], cells)


def bars_of_several(summaries: Sequence[Summary]) -> Table:
    """What is asked of KL students of the paper's three games, from scratch (`paper.SEVERAL_MEAN`, `SEVERAL_LEAST`), and of no
    others.
    """
    cells = []
    three = {game for s in summaries for game in s.games} == set(THREE_GAMES)
    for s in summaries:
        if three and not s.onward and s.loss == "kl" and s.mean is not None:
            least = min(standing.normalized for standing in s.games.values())
            cells.append([s.variant, *_held(s.mean, SEVERAL_MEAN)[1:], *_held(least, SEVERAL_LEAST)[1:]])
    mean, of_a_game = f"normalised mean %, {SEVERAL_MEAN:.0f} asked", f"least % of a game, {SEVERAL_LEAST:.0f} asked"
    return Table(["KL students", mean, "", of_a_game, ""], cells)


def bars_of_online(runs: Sequence[Run], unmade: Collection[str] = ()) -> Table:
    """What is asked of students that follow a learning teacher (`paper.DROP`, `paper.KEPT`), over a game's seeds; open where
    some of its runs, GAME-SEED, are yet to be made, or to be made anew (`unmade`). Where the interval over episodes has the bar
    in it, that is told: other episodes might say otherwise.
    """
    cells = []
    for game in dict.fromkeys(run.game for run in runs):
        of_game = [run for run in runs if run.game == game]
        share, (least, most) = share_of_drop(of_game), share_within(of_game)
        whole = game not in {name.rpartition("-")[0] for name in unmade}
        known = whole and teachers_drop(of_game)
        held = _surely(share <= DROP, most <= DROP if share <= DROP else least > DROP) if known else "open"
        cells.append([f"{game}: worst drop, of the teacher's", f"at most {DROP:.3f}", told_share(of_game, 3), held])
        kept = [percent for run in of_game if (percent := run.kept) is not None]
        if len(kept) < len(of_game):
            cells.append([f"{game}: kept %", f"at least {KEPT:.1f}", "", "open"])
            continue
        mean, (low, high) = float(np.mean(kept)), kept_within(of_game)
        held = _surely(mean >= KEPT, low >= KEPT if mean >= KEPT else high < KEPT) if whole else "open"
        cells.append([f"{game}: kept %", f"at least {KEPT:.1f}", f"{mean:.1f}", held])
    return Table(["students, mean over seeds", "asked", "reached", ""], cells)


def _surely(met: bool, sure: bool) -> str:
    return ("met" if met else "missed") + ("" if sure else ", not surely")


def _asked(summaries: Sequence[Summary], bar: Bar) -> Summary | None:
    """Whom a bar is for."""
    same = [s for s in summaries if s.loss == "kl" and s.network == bar.network and (s.rounds if bar.rounds else s.plain)]
    return max(same, key=lambda s: s.rounds, default=None)


def _held(reached: float | None, bar: float, ci95: tuple[float, float] | None = None) -> tuple[str, str, str]:
    if reached is None:
        return f"{bar:,.1f}", "", "open"
    told = _with_interval(reached, ci95, 1) if ci95 else f"{reached:,.1f}"
    return f"{bar:,.1f}", told, "met" if reached >= bar else "missed"
