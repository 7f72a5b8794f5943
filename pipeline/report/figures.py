"""The report's figures as SVG text."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from pipeline.report.online import Run
from pipeline.report.paper import LADDER
from pipeline.report.predictors import PREDICTORS, RISING, Point
from pipeline.report.scores import Evaluated, Score, read_curve, read_returns
from pipeline.report.tables import short_name

LOSS_COLOURS = {"kl": "#0b6e99", "nll": "#c2571a", "mse": "#6b7d3a"}
mpl.rcParams.update(
    {
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "svg.hashsalt": "pd-pipeline",
        "svg.fonttype": "none",
        "legend.frameon": False,
    }
)


def svg(figure: Figure) -> str:
    """The drawing as SVG text, closed."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _points(curve: list[dict[str, str]], x: str, y: str) -> tuple[list[float], list[float]]:
    rows = [(float(row[x]), float(row[y])) for row in curve if row.get(y)]
    return [a for a, _ in rows], [b for _, b in rows]


def compression(scores: Sequence[Score], teacher: Evaluated, students: Sequence[Evaluated]) -> str:
    """Random-normalised score against what a student costs, with intervals, and against size the paper's ladder.

    Costs: parameters and bytes, multiply-adds, and, where it was measured, latency. Of each loss and network the first variant
    is drawn, every run of it, and a line through the means of the runs.
    """
    costs: dict[str, Callable[[Evaluated], float | None]] = {
        "parameters, 4 bytes each": lambda who: who.parameters,
        "floating-point operations a state": lambda who: who.flops,
        "milliseconds a state, one core": lambda who: who.latency_ms,
    }
    shown = {label: cost for label, cost in costs.items() if all(cost(who) for who in (teacher, *students))}
    figure, axes = plt.subplots(1, len(shown), figsize=(5.2 * len(shown), 4.2), sharey=True, squeeze=False)
    by_name = {who.agent: who for who in students}
    size = axes[0, 0]
    published = [{"net1": 427_874, "net2": 113_346, "net3": 61_954}[name] for name in LADDER]
    for panel, (label, cost) in zip(axes[0], shown.items(), strict=True):
        for loss, colour in LOSS_COLOURS.items():
            alike = [s for s in scores if s.agent in by_name and by_name[s.agent].loss == loss]
            first = {s.network: s.variant for s in reversed(alike)}
            points = [(float(cost(by_name[s.agent]) or 0), s) for s in alike if s.variant == first[s.network]]
            if points:
                _ladder(panel, sorted(points, key=lambda p: p[0]), color=colour, label=f"{loss.upper()} (ours)")
        panel.axhline(100.0, color="#444444", linewidth=1)
        panel.axvline(cost(teacher), color="#444444", linewidth=1, linestyle=":")
        panel.set_xlabel(label)
        if label.startswith("milliseconds"):
            panel.set_xlim(left=0.0)
            continue
        every = [cost(who) or 1.0 for who in (teacher, *students)] + (list(published) if panel is size else [])
        panel.set_xlim(min(every) / 1.3, max(every) * 1.3)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_minor_formatter(NullFormatter())
    size.plot(
        published,
        list(LADDER.values()),
        "s--",
        color="#888888",
        label="KL, ten-game mean, % of teacher (as published in the paper)",
    )
    size.set_ylabel("random-normalised score, % of teacher")
    figure.legend(*size.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=9)
    return svg(figure)


def _ladder(panel: Any, points: Sequence[tuple[float, Score]], **style: Any) -> None:
    """Scores with their intervals at what they cost, and a line through the mean of each cost."""
    x = [at for at, _ in points]
    y = [score.normalized for _, score in points]
    errors = np.array([[s.normalized - s.normalized_ci95[0], s.normalized_ci95[1] - s.normalized] for _, s in points]).T
    panel.errorbar(x, y, yerr=errors, fmt="o", capsize=3, **style)
    at = sorted(set(x))
    panel.plot(
        at, [np.mean([value for where, value in zip(x, y, strict=True) if where == a]) for a in at], "-", color=style["color"]
    )


def predictor(points: Sequence[Point], name: str) -> str:
    """Normalised score, with its interval, against a held-out number: a colour per game, a mark per loss."""
    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    colours = dict(zip(dict.fromkeys(p.score.game for p in points), mpl.color_sequences["tab10"], strict=False))
    marks = dict(zip(dict.fromkeys(p.loss for p in points), itertools.cycle("os^Dv*"), strict=False))
    for game, loss in dict.fromkeys((p.score.game, p.loss) for p in points):
        of = [p for p in points if (p.score.game, p.loss) == (game, loss)]
        y = [p.score.normalized for p in of]
        errors = np.array(
            [[y - low, high - y] for y, (low, high) in ((p.score.normalized, p.score.normalized_ci95) for p in of)]
        ).T
        x = [p.held_out[name] for p in of]
        label = f"{game}, {loss}"
        axes.errorbar(x, y, yerr=errors, fmt=marks[loss], color=colours[game], label=label, capsize=2, ms=5, elinewidth=0.8)
    if name not in RISING:
        axes.set_xscale("log")
    axes.axhline(100.0, color="#444444", linewidth=1)
    axes.set_xlabel(PREDICTORS[name])
    axes.set_ylabel("normalised score, %")
    axes.legend(fontsize=8, ncols=2)
    return svg(figure)


def student_curves(students: Sequence[Evaluated], quantity: str, label: str) -> str:
    """A held-out quantity against updates, one line per student, of one loss and network each fainter than the last."""
    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    styles = {"dqn": "-", "net1": "--", "net2": "-.", "net3": ":"}
    alike = Counter[tuple[str | None, str]]()
    for who in students:
        if who.curve is None or "updates" not in (curve := read_curve(who.curve))[0]:
            continue
        of_games = [name for name in curve[0] if name.startswith(f"{quantity}_")]  # of a student of several
        mine = f"{quantity}_{who.game}" if of_games else quantity
        if mine not in curve[0]:
            continue  # it could play this game before
        x, y = _points(curve, "updates", mine)
        axes.plot(
            x,
            y,
            styles.get(who.network, "-"),
            color=LOSS_COLOURS.get(who.loss or "", "#333333"),
            alpha=0.65 ** alike[who.loss, who.network],
            label=short_name(who.agent),
        )
        alike[who.loss, who.network] += 1
    if quantity in ("kl", "regret"):
        axes.set_yscale("log")
    axes.set_xlabel("updates")
    axes.set_ylabel(label)
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return svg(figure)


def race(teacher: Evaluated, several: Sequence[Evaluated]) -> str:
    """Return in one game while agents of several games learn, and while the game's own teacher did, against states of the game
    learned from: steps of those who learn from reward, stored states of those who learn from the teacher. One that could play
    the game before and learns others is drawn against the states of those.
    """
    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    if teacher.curve is not None:
        _line(axes, read_curve(teacher.curve), "steps", "eval_return", color="#888888", label="teacher, this game alone")
    colourful = [colour for colour in mpl.color_sequences["tab10"] if len(set(colour)) > 1]  # the teacher is grey
    colours = itertools.cycle([*colourful, "#111111"])
    for who in several:
        assert who.curve is not None
        curve = read_curve(who.curve)
        own, reward = (f"states_{who.game}", f"return_{who.game}"), ("steps", f"eval_return_{who.game}")
        x, y = reward if reward[1] in curve[0] else own
        label = short_name(who.agent)
        if y not in curve[0]:
            continue  # it was not played while learning
        if x not in curve[0]:
            others = [name for name in curve[0] if name.startswith("states_")]
            curve = [row | {x: str(sum(float(row[name]) for name in others))} for row in curve]
            label += f", learning {', '.join(name.removeprefix('states_') for name in others)}"
        _line(axes, curve, x, y, color=next(colours), label=label)
    axes.axhline(read_returns(teacher.episodes)[0].mean(), color="#444444", linewidth=1)
    axes.set_xlabel(f"million states of {teacher.game} learned from")
    axes.set_ylabel("return")
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return svg(figure)


def following(runs: Sequence[Run]) -> str:
    """Return against frames of the teacher as it learned, of the best so far, and of the student; a thin line per seed."""
    figure, axes = plt.subplots(figsize=(7.5, 3.8))
    for name, label, colour, style in (
        ("teacher", "teacher as it learned", "#999999", "-"),
        ("best", "best policy so far", "#444444", ":"),
        ("student", "student", "#0b6e99", "-"),
    ):
        for number, run in enumerate(runs):
            millions = [frame / 1e6 for frame in run.frame_P]
            means = run.returns(name).mean(axis=1)
            axes.plot(millions, means, style, color=colour, linewidth=1.3, alpha=0.8, label="" if number else label)
    axes.set_xlabel("million frames that the teacher learned from")
    axes.set_ylabel("return")
    axes.legend(fontsize=9)
    return svg(figure)


def _line(axes: Any, curve: list[dict[str, str]], x: str, y: str, **style: Any) -> None:
    at, values = _points(curve, x, y)
    axes.plot([value / 1e6 for value in at], values, "o-", markersize=3, **style)


def over_training(who: Evaluated, prefix: str, label: str) -> str:
    """Every column of an agent's curve whose name begins with `prefix`, against how far its training is; empty without any, and
    of a share that is the whole.
    """
    assert who.curve is not None
    curve = read_curve(who.curve)
    names = [name for name in curve[0] if name.startswith(prefix)]
    if len(names) < (2 if prefix == "share_" else 1):
        return ""
    x = "updates" if "updates" in curve[0] else "steps"
    figure, axes = plt.subplots(figsize=(7.5, 3.2))
    for name in names:
        axes.plot(*_points(curve, x, name), label=name.removeprefix(prefix).replace("_", " / "))
    axes.set_xlabel({"updates": "updates", "steps": "steps of each game"}[x])
    axes.set_ylabel(label)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return svg(figure)


def teacher_curve(teacher: Evaluated, gate: Mapping[str, Any] | None) -> str:
    """Return in training and at the evaluations that chose the snapshot, against steps, and what it reached at its gate."""
    assert teacher.curve is not None
    curve = read_curve(teacher.curve)
    figure, axes = plt.subplots(figsize=(7.5, 3.2))
    axes.plot(
        *_points(curve, "steps", "train_return"),
        color="#888888",
        label="last 100 training episodes",
    )
    axes.plot(*_points(curve, "steps", "eval_return"), "o-", color="#0b6e99", label="evaluations that choose the snapshot")
    if gate is not None:
        axes.axhline(gate["mean_return"], color="#444444", linewidth=1, label=f"gate: {gate['episodes']} fresh episodes")
    axes.set_xlabel("steps (agent decisions)")
    axes.set_ylabel("return")
    axes.legend(fontsize=9, loc="lower right")
    return svg(figure)
