"""How a policy came to be: in chosen states, how each snapshot of a history ranked the actions.

Dimensions: P snapshots, S states, A actions, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

from pipeline.report.figures import svg
from pipeline.report.film import standing
from pipeline.report.page import document, figure


def render(
    title: str,
    facts: Mapping[str, Any],
    frame_SHW: npt.NDArray[np.uint8],
    q_PSA: npt.NDArray[np.float32],
    step_P: Sequence[int],
    actions: Sequence[str],
    titles: Sequence[str],
) -> str:
    """A page of one picture per state; `titles` name the states."""
    told = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    pictures = "".join(
        figure(
            _picture(frame_SHW[s], q_PSA[:, s], step_P, actions),
            f"{titles[s]}. Left, what is seen; right, a column per snapshot: the darker, the more an action was valued above "
            f"the others; the dot marks the one preferred. {_story(q_PSA[:, s], step_P, actions)}",
        )
        for s in range(len(titles))
    )
    return document(title, f"<h1>{escape(title)}</h1><dl>{told}</dl><section class='wide'>{pictures}</section>")


def _story(q_PA: npt.NDArray[np.float32], step_P: Sequence[int], actions: Sequence[str]) -> str:
    """Since when the last snapshot's action has been preferred."""
    preferred_P = q_PA.argmax(axis=1)
    last = preferred_P[-1]
    others = np.flatnonzero(preferred_P != last)
    since = int(others[-1]) + 1 if len(others) else 0
    changes = int(np.count_nonzero(np.diff(preferred_P)))
    told = {0: "never changed", 1: "changed once"}.get(changes, f"changed {changes} times")
    return f"{actions[last]} has been preferred since step {step_P[since]:,}; the preference {told}."


def _picture(
    frame_HW: npt.NDArray[np.uint8], q_PA: npt.NDArray[np.float32], step_P: Sequence[int], actions: Sequence[str]
) -> str:
    ratio = {"width_ratios": [1, 4], "wspace": 0.25}
    picture, axes = plt.subplots(1, 2, figsize=(11, 2.6), gridspec_kw=ratio, squeeze=False)
    seen, ranks = axes[0, 0], axes[0, 1]
    seen.imshow(frame_HW, cmap="gray", vmin=0, vmax=255)
    seen.set_axis_off()
    ranks.imshow(standing(q_PA).T, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    ranks.plot(range(len(step_P)), q_PA.argmax(axis=1), "o", color="#c2571a", markersize=4)
    ranks.set_yticks(range(len(actions)), actions, fontsize=8)
    shown = np.unique(np.linspace(0, len(step_P) - 1, 8).round().astype(int)).tolist()
    ranks.set_xticks(shown, [f"{step_P[p] / 1e3:,.0f}k" for p in shown], fontsize=8)
    ranks.set_xlabel("steps of learning")
    ranks.grid(visible=False)
    return svg(picture)
