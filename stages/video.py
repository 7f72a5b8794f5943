"""Agents at play as videos: in colour, with what they think of each action."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from pipeline.agents.checkpoints import gives_q_values
from pipeline.atari.envs import action_meanings
from pipeline.report.film import drawn
from pipeline.watch import Sight, watch
from stages.contest import Contestant

CLIP_STEPS: Final = 450
"""Agent steps of a clip: half a minute at 15 per second."""
FPS: Final = 15


@dataclass(slots=True)
class Reel:
    """One agent in one episode, frame by frame. `returned`, `steps` and `stalled` are of what has been seen so far."""

    contestant: Contestant
    seed: int
    title: str = ""
    returned: float = 0.0
    steps: int = 0
    stalled: bool = False

    def sights(self) -> Iterator[Sight]:
        """The episode to its end."""
        who = self.contestant
        for sight in watch(who.game, who.environment, who.policy, self.seed):
            self.returned += sight.reward
            self.steps += 1
            self.stalled = sight.stalled
            yield sight

    def frames(self, scale: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Pictures (H, W, 3), one per agent step."""
        actions = action_meanings(self.contestant.game, self.contestant.environment)
        logits = not gives_q_values(self.contestant.card)
        for sight in self.sights():
            title = f"{self.title}step {self.steps - 1:,}  return {self.returned - sight.reward:g}"
            yield drawn(
                *(sight.frame_HW3, sight.value_A, actions),
                chosen=sight.action,
                random=sight.random,
                title=title,
                policy=logits,
                scale=scale,
            )


def write_video(path: Path, reels: Sequence[Reel], *, steps: int | None = None, scale: int = 1) -> Iterator[int]:
    """An MP4 of the reels side by side, at most so many steps; one that ends before the others keeps its last frame.

    Yields how many steps have been written.
    """
    # Without this ffmpeg is started by a plain fork, and the child of a process with many threads may crash before it runs.
    os.environ["IMAGEIO_FFMPEG_NO_PREVENT_SIGINT"] = "1"
    rows = islice(zip_longest(*(reel.frames(scale) for reel in reels)), steps)
    last: list[npt.NDArray[np.uint8]] = []
    writer = None
    try:
        for number, row in enumerate(rows, start=1):
            last = [frame if frame is not None else last[i] for i, frame in enumerate(row)]
            picture_HW3 = np.concatenate(last, axis=1)
            if writer is None:
                height, width, _ = picture_HW3.shape
                writer = imageio_ffmpeg.write_frames(
                    str(path),
                    (width, height),
                    fps=FPS,
                    codec="libx264",
                    macro_block_size=2,
                    output_params=["-crf", "28", "-threads", "1", "-f", "mp4"],
                )
                writer.send(None)
            writer.send(np.ascontiguousarray(picture_HW3))
            yield number
    finally:
        if writer is not None:
            writer.close()
