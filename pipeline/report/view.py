"""One self-contained HTML page about a dataset: what the teacher saw, how it valued it, and the distributions.

Dimensions: T steps of one episode, S of them shown, A actions, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

from pipeline.report.figures import svg
from pipeline.report.page import document, figure

STRIP = 14
"""Frames of a film strip."""
LOOK = 28
"""Steps around the decisive one that are shown closely."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """One episode: every label, action and reward of it, and `frames`, which gives those (n, H, W) at ascending steps."""

    title: str
    frames: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]]
    q_TA: npt.NDArray[np.float32]
    action_T: npt.NDArray[np.uint8]
    reward_T: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What the page tells. `action_N` and `gap_N` are of the first `len(gap_N)` states; lengths are in steps."""

    title: str
    facts: Mapping[str, Any]
    actions: Sequence[str]
    returns: Sequence[float]
    lengths: Sequence[int]
    action_N: npt.NDArray[np.uint8]
    gap_N: npt.NDArray[np.float32]
    films: Sequence[Film]


def render(shown: Shown) -> str:
    """The page as text."""
    facts = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in shown.facts.items())
    sample = f"of the first {len(shown.gap_N):,} states"
    shares = np.bincount(shown.action_N, minlength=len(shown.actions)) / max(1, len(shown.action_N))
    body = (
        f"<h1>{escape(shown.title)}</h1><dl>{facts}</dl><h2>Distributions</h2><div class='figures'>"
        + figure(_histogram(shown.returns, "return of an episode"), f"Returns of {len(shown.returns)} whole episodes.")
        + figure(_histogram(shown.lengths, "steps of an episode"), f"Lengths of {len(shown.lengths)} whole episodes.")
        + figure(_bars(shown.actions, shares), f"Executed actions {sample}.")
        + figure(
            _histogram(np.log10(np.maximum(shown.gap_N, 1e-6)), "log10 of the Q-gap"),
            f"How far the best action's Q-value lies above the second best's, {sample}. A temperature of the size of a "
            "typical gap keeps what a student can learn from the second best.",
        )
        + "</div>"
        + "".join(f"<section class='wide'>{_film(film, shown.actions)}</section>" for film in shown.films)
    )
    return document(shown.title, body)


def _film(film: Film, actions: Sequence[str]) -> str:
    last = len(film.action_T) - 1
    whole = np.unique(np.linspace(0, last, STRIP).round().astype(int))
    top_T2 = np.sort(film.q_TA, axis=1)[:, -2:]
    with np.errstate(all="ignore"):  # of infinities, which `validate` reports
        decisive = int((top_T2[:, -1] - top_T2[:, 0]).argmax())
    begin = int(np.clip(decisive - LOOK // 2, 0, max(0, last - LOOK)))
    close = np.arange(begin, min(begin + LOOK, last) + 1, 2)
    shown = np.union1d(whole, close)
    frame_SHW = film.frames(shown)
    return (
        f"<h2>{escape(film.title)}</h2>"
        + figure(
            _strip(film, whole, frame_SHW[np.searchsorted(shown, whole)], 0, last, actions),
            "The whole episode: frames, and beneath them each action's Q-value. Dots: rewards.",
        )
        + figure(
            _strip(film, close, frame_SHW[np.searchsorted(shown, close)], int(close[0]), int(close[-1]), actions),
            f"Around step {decisive:,}, where the best action stands out most. The executed action is written over each frame.",
        )
    )


def _strip(
    film: Film,
    steps: npt.NDArray[np.int64],
    frame_SHW: npt.NDArray[np.uint8],
    first: int,
    last: int,
    actions: Sequence[str],
) -> str:
    """The frames of `steps` above the Q-values from step `first` to `last`."""
    picture, axes = plt.subplots(
        2, 1, figsize=(13, 4.4), gridspec_kw={"height_ratios": [1, 2.2], "hspace": 0.08}, squeeze=False
    )
    strip, trace = axes[0, 0], axes[1, 0]
    framed = np.pad(frame_SHW, ((0, 0), (0, 0), (2, 2)), constant_values=255)  # white between two frames
    strip.imshow(np.concatenate(framed, axis=1), cmap="gray", vmin=0, vmax=255, aspect="auto")
    strip.set_xticks([88 * (i + 0.5) for i in range(len(steps))], [f"{t:,}\n{actions[film.action_T[t]]}" for t in steps])
    strip.xaxis.tick_top()
    strip.tick_params(labelsize=8, length=0)
    strip.set_yticks([])
    strip.set_frame_on(False)
    strip.grid(visible=False)
    x = np.arange(first, last + 1)
    for a, name in enumerate(actions):
        trace.plot(x, film.q_TA[first : last + 1, a], label=name, linewidth=1.1)
    scored = x[film.reward_T[first : last + 1] != 0]
    trace.plot(scored, film.q_TA[scored].max(axis=1), "o", color="#444444", markersize=3.5)
    half = max(0.5, (last - first) / max(1, len(steps) - 1) / 2)  # so that every frame stands above its step
    trace.set_xlim(first - half, last + half)
    trace.set_xlabel("step")
    trace.set_ylabel("Q-value")
    trace.legend(fontsize=8, ncols=min(9, len(actions)), loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return svg(picture)


def _histogram(values: npt.ArrayLike, label: str) -> str:
    picture, axes = plt.subplots(figsize=(6, 2.8))
    numbers = np.asarray(values)
    axes.hist(numbers[np.isfinite(numbers)], bins=40, color="#0b6e99")
    axes.set_xlabel(label)
    axes.set_ylabel("count")
    return svg(picture)


def _bars(names: Sequence[str], shares: npt.NDArray[np.float64]) -> str:
    picture, axes = plt.subplots(figsize=(6, 2.8))
    axes.bar(range(len(names)), shares, color="#0b6e99")
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) < 10 else 90, fontsize=8)
    axes.set_ylabel("share")
    return svg(picture)
