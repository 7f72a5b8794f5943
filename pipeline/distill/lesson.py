"""What one game teaches, on the device, and whose turn it is when there are several games.

Dimensions: B batch, C stacked frames, H W pixels, A actions, M frames in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets.loader import Frames, Loader, Window
from pipeline.distill import losses
from pipeline.seeding import stream

Interleave = int | Literal["episode", "together"]
"""After how many updates the next game has its turn; `episode`: after as many as an episode of it has minibatches. `together`:
there are no turns, every update is of all games.
"""


class Batch(NamedTuple):
    """States (B, C, H, W) and the teacher's Q-values (B, A) of one game."""

    obs_BCHW: Tensor
    q_BA: Tensor
    game: str


class Lesson:
    """A game's stored states and Q-values as minibatches on the device, and the scale of these Q-values."""

    def __init__(self, game: str, loader: Loader, device: torch.device) -> None:
        self.game, self.loader, self.device = game, loader, device
        self._q_NA = torch.from_numpy(loader.q_NA).to(device)
        self._window: Window | None = None
        self._frames: Frames | None = None
        self._frame_MHW = torch.empty(0)
        self._checked_NCHW = None if loader.resident else torch.from_numpy(loader.states(loader.checked_N))
        self.scale = losses.scale(self.train_q_NA)

    @property
    def train_q_NA(self) -> Tensor:
        """Q-values of all training states."""
        return self._q_NA[torch.from_numpy(self.loader.train_N)]

    @property
    def checked(self) -> int:
        """How many held-out states there are to measure a student on."""
        return len(self.loader.checked_N)

    def gather(self, window: Window, step_B: npt.NDArray[np.int64]) -> Batch:
        """What these steps of a window show."""
        if self._frames is None or (window != self._window and not self.loader.resident):
            self._frames, self._frame_MHW = None, torch.empty(0)  # or two windows would be here when the third is begun
            self._frames, self._window = self.loader.frames(window), window
            self._frame_MHW = torch.from_numpy(self._frames.frame_MHW).to(self.device)
        index_BC = torch.from_numpy(self._frames.stack_index(step_B)).to(self.device)
        obs_BCHW = self._frame_MHW.index_select(0, index_BC.flatten()).view(*index_BC.shape, 84, 84)
        return Batch(obs_BCHW, self._labels(step_B), self.game)

    def _labels(self, step_B: npt.NDArray[np.int64]) -> Tensor:
        return self._q_NA.index_select(0, torch.from_numpy(step_B).to(self.device))

    def batch(self, number: int) -> Batch:
        """Minibatch `number` of this game, from 0."""
        return self.gather(*self.loader.place(number))

    def first(self, count: int) -> Batch:
        """The first `count` training states, or all of the first window."""
        return self.gather(*self.loader.order(count))

    def held_out(self, rows: slice) -> Batch:
        """These of the held-out states to be measured on."""
        step_B = self.loader.checked_N[rows]
        if self._checked_NCHW is None:
            return self.gather(Window(0, 0), step_B)
        return Batch(self._checked_NCHW[rows].to(self.device), self._labels(step_B), self.game)

    def held_out_sample(self, count: int) -> Batch:
        """About `count` held-out states, from all of the held-out episodes."""
        return self.held_out(slice(None, None, max(1, self.checked // count)))


class Turns:
    """Which game each minibatch is of, and the how manieth of its game: a function of (seed, update) alone.

    The games have their turns one after another. A turn lasts `interleave` updates, or an episode: as many as one of the
    game's episodes, drawn anew each time, has minibatches (Rusu et al. 2015 switch after every episode).
    """

    def __init__(
        self, episode_steps: Mapping[str, npt.NDArray[np.int64]], interleave: int | Literal["episode"], batch: int, seed: int
    ) -> None:
        self._games = list(episode_steps)
        self._steps, self._interleave, self._batch, self._seed = dict(episode_steps), interleave, batch, seed
        self._begins = [0]  # the update at which each turn begins, and the last one's end
        self._had: list[int] = []  # minibatches that each turn's game has had by then
        self._total = dict.fromkeys(self._games, 0)

    def place(self, update: int) -> tuple[str, int]:
        """The game of minibatch `update`, from 0, and its number among those of that game."""
        if len(self._games) == 1:
            return self._games[0], update
        turn = self._turn(update)
        return self._games[turn % len(self._games)], self._had[turn] + update - self._begins[turn]

    def counts(self, updates: int) -> dict[str, int]:
        """How many of the first `updates` minibatches are of each game."""
        if len(self._games) == 1:
            return {self._games[0]: updates}
        turn = self._turn(updates)
        self._plan(turn + len(self._games))
        following = {self._games[t % len(self._games)]: self._had[t] for t in range(turn, turn + len(self._games))}
        game, number = self.place(updates)
        return {**following, game: number}

    def _turn(self, update: int) -> int:
        while update >= self._begins[-1]:
            self._plan(len(self._had) + 1)
        return bisect_right(self._begins, update) - 1

    def _plan(self, turns: int) -> None:
        """Bring the plan to so many turns."""
        for turn in range(len(self._had), turns):
            game = self._games[turn % len(self._games)]
            length = self._length(game, turn // len(self._games))
            self._had.append(self._total[game])
            self._begins.append(self._begins[-1] + length)
            self._total[game] += length

    def _length(self, game: str, turn: int) -> int:
        if self._interleave != "episode":
            return self._interleave
        steps = self._steps[game]
        epoch, position = divmod(turn, len(steps))
        drawn = stream(self._seed, "turns", game, epoch).permutation(len(steps))[position]
        return max(1, round(int(steps[drawn]) / self._batch))
