"""play: agents in one episode under the same seed, as an evaluation plays it, and as a video side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.agents.device import pick_device
from pipeline.progress import Progress
from pipeline.report.tables import short_name
from pipeline.seeding import episode_seeds
from stages import params as settings
from stages.contest import Contestant, find_contestant
from stages.paths import Layout
from stages.publish import replaced_file
from stages.runlog import say, show
from stages.video import Reel, write_video

WIDEST_TITLE = 12
"""Letters of an agent's name that fit above its actions."""


def run(
    layout: Layout,
    params: settings.Params,
    agents: Sequence[str],
    *,
    game: str | None,
    episode: int,
    seed: int | None,
    epsilon: float | None,
    protocol: str | None,
    other_environment: bool,
    video: Path | None,
    steps: int | None,
    scale: int,
    device_name: str,
    as_json: bool,
) -> str:
    """Play `episode` of params.yaml's evaluation, or the one of `seed`, at its epsilon or another, to the end or for so many
    `steps`. Returns what became of it, a line or a JSON object per agent.
    """
    rules, device = params.protocol(protocol), pick_device(device_name)
    contestants = [find_contestant(layout, params, agent, device, game, rules, elsewhere=other_environment) for agent in agents]
    games = list(dict.fromkeys(c.game for c in contestants))
    if len(games) > 1:
        raise ValueError(f"{', '.join(agents)} play different games, {', '.join(games)}: side by side they must play one")
    if video is not None and video.suffix != ".mp4":
        raise ValueError(f"{video} is not the name of an MP4: write --video FILE.mp4")
    if seed is None:
        seed = episode_seeds("evaluate", params.evaluation.seed) + episode
    reels = []
    for contestant in contestants:
        if epsilon is not None and not contestant.agent.startswith("random/"):
            contestant.policy.epsilon = epsilon
        alike = [short_name(other.agent) for other in contestants].count(short_name(contestant.agent)) > 1
        name = (contestant.agent if alike else short_name(contestant.agent))[-WIDEST_TITLE:]  # its end, which has the seed
        reels.append(Reel(contestant, seed, f"{name} " if len(agents) > 1 else ""))
    played = _filmed(reels, video, steps, scale) if video is not None else _played(reels, steps)
    for _ in show(played, f"play {games[0]}", ("return",)):
        pass
    if video is not None:
        say(f"{video}: {max(r.steps for r in reels):,} steps")
    told = [_told(layout, c, r, whole=steps is None, own=epsilon is not None) for c, r in zip(contestants, reels, strict=True)]
    return "\n".join(json.dumps(t) if as_json else _line(t) for t in told)


def _filmed(reels: Sequence[Reel], video: Path, steps: int | None, scale: int) -> Iterator[Progress]:
    with replaced_file(video) as part:
        for number in write_video(part, reels, steps=steps, scale=scale):
            yield _progress(number, reels, steps)


def _played(reels: Sequence[Reel], steps: int | None) -> Iterator[Progress]:
    for one in reels:
        for number, _ in enumerate(one.sights(), start=1):
            yield _progress(number, [one], steps)
            if number == steps:
                break


def _progress(number: int, reels: Sequence[Reel], steps: int | None) -> Progress:
    # How long an episode is shows when it ends, so without `steps` there is no time left to tell.
    return Progress(done=number, total=steps or number + 1, unit="steps", metrics={"return": reels[0].returned})


def _told(layout: Layout, contestant: Contestant, played: Reel, *, whole: bool, own: bool) -> dict[str, Any]:
    """What happened, and what the evaluation wrote down of the same episode, if it did."""
    found = {
        "agent": contestant.agent,
        "game": contestant.game,
        "seed": played.seed,
        "return": played.returned,
        "steps": played.steps,
        "stalled": played.stalled,
    }
    stored = layout.episodes(contestant.agent)
    if whole and not own and stored.is_file():
        scored = pq.read_table(stored, filters=[("seed", "=", played.seed)])["episode_return"].to_pylist()
        if scored:
            found["scored"] = scored[0]
    return found


def _line(told: dict[str, Any]) -> str:
    line = f"{told['agent']}, seed {told['seed']}: return {told['return']:g} in {told['steps']:,} steps"
    if "scored" in told:
        same = told["scored"] == told["return"]
        line += ", as scored" if same else f", scored {told['scored']:g}: by another version, or on another make of CPU"
    return line
