"""import-teacher: somebody else's DQN checkpoint becomes a teacher, once it has played our protocol well enough."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from pipeline.agents.checkpoints import CARD, save_agent
from pipeline.agents.device import exact, pick_device
from pipeline.agents.imports import Source, load_foreign
from pipeline.agents.networks import place
from pipeline.atari.envs import action_meanings, fingerprint
from pipeline.atari.games import find_game
from pipeline.report.bootstrap import interval
from stages import params as settings
from stages.contest import Notes, find_contestant, played, record, tried
from stages.paths import Layout
from stages.publish import alone_in, replace_folder
from stages.runlog import say
from stages.versions import code_version


def run(
    layout: Layout,
    params: settings.Params,
    game: str,
    *,
    file: Path,
    source: Source,
    gate_return: float | None,
    episodes: int,
    device_name: str,
) -> Path:
    """Check, evaluate and publish `file` as the teacher of `game`; returns the published folder.

    Without a `gate_return` its 95 % interval must lie above that of the random agent on the same episodes, which that of an
    agent that is shown another action set or other frames than it was trained on does not.
    """
    game = find_game(game).name
    target = layout.teacher(game)
    if target.exists():
        raise ValueError(f"{target} holds a teacher already: move it away first, or use the params file of another folder")
    actions = len(action_meanings(game, params.environment))
    device = pick_device(device_name)
    network = place(load_foreign(file, source, game, actions), device).eval()
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    environment = fingerprint(game, params.environment)
    decides = {"file": checksum, "environment": environment, "epsilon": params.evaluation.epsilon}
    work = layout.work("import-teacher", game, decides)

    with alone_in(work):
        notes = Notes(work / "teachers.jsonl")
        finished = tried(network, exact(device), params, game, "gate", 0, episodes, name=f"teachers/{game}", notes=notes)
        evaluation = record([e.episode_return for e in finished], params)
        reached, (low, high) = evaluation["mean_return"], evaluation["ci95"]
        if gate_return is None:
            chance = find_contestant(layout, params, f"random/{game}", device)
            _, by_chance = interval(
                [e.episode_return for e in played(chance, params, "gate", 0, episodes, Notes(work / "random.jsonl"))]
            )
            passed, what = low > by_chance, f"the random agent's interval, which ends at {by_chance:.2f}"
        else:
            passed, what = reached > gate_return, f"its gate, {gate_return:g}"
        if not passed:
            raise ValueError(
                f"{file} reached a mean return of {reached:.2f} [{low:.2f}, {high:.2f}] over {episodes} episodes of {game}, "
                f"not above {what}: check --game, and that it was trained on this environment (frame skip, frames, actions)"
            )
        folder = work / "publish"
        card = save_agent(
            folder,
            network,
            {
                "role": "teacher",
                "game": game,
                "algorithm": "dqn",
                "imported": {"from": source, "file": file.name, "sha256": checksum},
                "evaluation": evaluation,
                "environment": environment,
                "code": code_version(),
            },
        )
        replace_folder(folder, target)
        shutil.rmtree(work)
    say(f"published {target / CARD}: mean return {reached:.2f} over {episodes} episodes, digest {card['digest'][:12]}")
    if (layout.root / "dvc.yaml").is_file():
        say(f"dvc repro would train another in its place, unless you `dvc commit -f train-teacher@{game}`")
    return target
