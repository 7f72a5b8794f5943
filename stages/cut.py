"""cut: one game of an agent that plays several, as an agent of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.agents.checkpoints import CARD, games_of, load_agent, load_card, save_agent
from pipeline.agents.networks import QNetwork
from pipeline.datasets.folders import Folder
from stages.grid import chosen_game
from stages.paths import Layout
from stages.publish import check_target, replace_folder
from stages.runlog import say


def run(layout: Layout, agent: str, game: str, out: Path) -> Path:
    """Write the trunk of `agent` with its head of `game`, and what its card says of that, into `out`, which it returns."""
    whole = load_agent(layout.agent(agent), torch.device("cpu"))
    game = chosen_game(agent, whole, game)
    check_target(Folder(out), CARD, "an agent")
    if (out / CARD).exists() and "cut_from" not in load_card(out):
        raise ValueError(f"{out} holds an agent that was not cut from another: choose another --out")
    network = QNetwork(whole.network.spec, {game: whole.network.actions[game]})
    kept = {name: weights for name, weights in whole.network.state_dict().items() if name in network.state_dict()}
    network.load_state_dict(kept)
    part = out.with_name(f".{out.name}.part")
    rest = {key: value for key, value in whole.card.items() if key not in ("games", "held_out", "game")}
    card = save_agent(part, network, {**rest, "game": game, **games_of(whole.card)[game], "cut_from": whole.digest})
    replace_folder(part, out)
    say(f"wrote {out / CARD}: {game} alone, {card['parameters']:,} parameters, digest {card['digest'][:12]}")
    return out
