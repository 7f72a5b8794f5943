"""What Rusu et al. 2015 (Policy Distillation, arXiv 1511.06295) published, to stand beside our numbers; what ours are to be.

Their protocol: human starts, epsilon = 0.05, per cent of a plain DQN teacher's raw score. Ours starts from null-ops.
"""

from __future__ import annotations

from typing import Final, NamedTuple

TABLE1: Final = {
    "Breakout": {"teacher": 303.9, "mse": 33.9, "nll": 77.6, "kl": 94.7},
    "Freeway": {"teacher": 25.8, "mse": 99.6, "nll": 101.6, "kl": 103.5},
    "Pong": {"teacher": 16.2, "mse": 94.4, "nll": 95.1, "kl": 100.6},
    "Qbert": {"teacher": 4589.8, "mse": 122.2, "nll": 147.6, "kl": 155.0},
}
"""Table 1, as published in the paper: teacher's score, and same-size students in per cent of it, by loss."""

LOSSES: Final = ("kl", "nll", "mse")
"""The best first."""

STUDENTS: Final = {"Breakout": 287.8, "Freeway": 26.7, "Pong": 16.3, "Qbert": 7112.8}
"""Mean returns of the paper's own KL students of the teacher's size: of ours no less is asked."""

TEMPERATURE: Final = 0.01
"""Of all that."""

LADDER: Final = {"net1": 108.3, "net2": 101.7, "net3": 83.9}
"""Compression, as published in the paper: KL students in per cent of the teacher, geometric mean over ten games."""


class Bar(NamedTuple):
    """What is asked of KL students of a network in `TABLE1`'s games: the geometric mean of their random-normalised per cents of
    the teacher, and the lower end of its 95 % interval. `rounds`: after the last student-driven round.
    """

    network: str
    rounds: bool
    mean: float
    low: float | None


BARS: Final = (
    Bar("dqn", False, 100.0, 95.0),
    Bar("net1", False, 100.0, 95.0),
    Bar("net2", False, 98.0, 95.0),
    Bar("net3", False, 90.0, None),
    Bar("net3", True, 98.0, None),
)

THREE_GAMES: Final = ("Freeway", "Pong", "Qbert")
MULTITASK: Final = {"dqn": 83.5, "nll": 105.1, "kl": 116.9}
"""One network for three games, as published in the paper, by what it learned from: reward (Multi-DQN), or teachers with a loss
(Multi-Dist-NLL, Multi-Dist-KL). Per cent of the single-game teachers, geometric mean."""
SEVERAL_MEAN: Final = 100.0
SEVERAL_LEAST: Final = 95.0
"""What is asked of a KL student of these games: the geometric mean and the least of its random-normalised per cents."""

DROP: Final = 1 / 3
KEPT: Final = 97.0
"""What is asked of a student that follows a learning teacher: its worst drop below the best policy so far, as a share of the
teacher's, at most; and the final student's per cent of the best policy, at least (`online.Run`)."""


def published_percent(game: str, loss: str, network: str) -> tuple[float, str] | None:
    """The paper's per cent of teacher for such a student and what it is of, or None where it has none."""
    if network == "dqn" and loss in TABLE1.get(game, {}):
        return TABLE1[game][loss], f"Table 1, {game}"
    if loss == "kl" and network in LADDER:
        return LADDER[network], "ten-game mean"
    return None
