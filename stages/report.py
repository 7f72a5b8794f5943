"""report: every agent of the params' grid, scored and shown; fails on a missing cell, naming the command that makes it."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.agents.checkpoints import games_of, gives_q_values, load_agent, load_card
from pipeline.agents.cost import cost
from pipeline.agents.export import in_torch, latencies
from pipeline.agents.networks import NetworkSpec
from pipeline.datasets.describe import info
from pipeline.datasets.mix import Ingredient, read_mix
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.schema import MANIFEST
from pipeline.evaluate import PROTOCOLS
from pipeline.report import reproduction, tables
from pipeline.report.aggregate import aggregates, par
from pipeline.report.online import RETURNS, Run
from pipeline.report.page import Section, render
from pipeline.report.paper import LOSSES
from pipeline.report.predictors import predicted
from pipeline.report.results import Beside, Results, Several
from pipeline.report.scores import Baseline, Evaluated, learned_from, read_curve, read_returns, score
from pipeline.report.summary import Game, leads, summarise
from pipeline.report.tables import Row
from stages import params as settings
from stages.current import (
    earlier_following,
    earlier_settings,
    finished,
    other_collections,
    outdated,
    scored_otherwise,
    told_outdated,
)
from stages.disputes import disputes
from stages.grid import games_of_cell, scored_as
from stages.paths import CURVE, Layout
from stages.publish import alone_in, replace_folder, replaced_file
from stages.runlog import say
from stages.versions import code_version, processor


def run(layout: Layout, params: settings.Params, paper: Path | None, *, partial: bool = False, latency: bool = False) -> Path:
    """Write data/report: index.html, scores.json, table.md, and at `paper` the page that stands beside the paper's tables.

    `partial` leaves out, and names, what there is not yet; without it that is a ValueError. With `latency` the networks are
    timed on this machine. Returns the report's path.
    """
    if not params.grid and not params.online:
        raise ValueError("the params' grid names nothing to report on: add a mix with its students and seeds")
    cells = params.cells()
    runs = [(game, seed) for game, online in params.online.items() for seed in online.seeds]
    online = _runs(layout, params, runs, partial=partial)
    if partial:
        cells = finished(layout, params, cells, others=bool(online))
    earlier, apart = (_names_by(layout, params, cells, told) for told in (earlier_settings, _told_collections))
    for run in online:
        told = [earlier_following(layout, params, run.game, run.seed)]
        if (episodes := run.student_PN.shape[1]) < params.online[run.game].score_episodes:
            told.append(f"score_episodes {episodes}")
        if any(told):
            earlier.setdefault(", ".join(filter(None, told)), []).append(f"{run.game}-{run.seed}")
    if not partial:
        _refuse_outdated(layout, params, cells, earlier)
    taught = dict.fromkeys(cell.mix for cell in cells if cell.kind == "students")
    mixes = {mix: read_mix(layout.mix(mix)) for mix in taught}
    players = _players(layout, params, cells)
    sections = [_section(layout, params, game, found, latency=latency) for game, found in players.items()]
    games = {s.game: s.who for s in sections}
    alone = _only(games, lambda who: len(games_of(who.card)) == 1)
    summaries = summarise(alone)
    typical = [par(alone), *found] if len(alone) > 1 and (found := aggregates(alone)) else []
    ahead = leads(alone, "dqn", LOSSES)
    plays = (tuple(sorted(games_of_cell(layout, params, cell))) for cell in cells)
    sets = dict.fromkeys(names for names in plays if len(names) > 1)
    several = [_several({name: games[name] for name in names}) for names in sets]
    rows = [row for section in sections for row in section.rows]
    command = _command(layout.root.resolve(), partial=partial, paper=paper)
    facts = {
        "package": "{version}, revision {revision}".format(**code_version()),
        "command": command,
        "protocol": _protocol(params, rows, online),
        "evaluation seed": params.evaluation.seed,
        **{f"teacher of {s.game}": s.who.teacher.card["digest"] for s in sections},
        **{f"mix {name}": ", ".join(i.digest for of in mix.values() for i in of) for name, mix in mixes.items()},
        **({"ale-py": sections[0].who.teacher.card["environment"]["ale_py"]} if sections else {}),
        **{
            f"learned or scored by earlier settings ({differences})": ", ".join(names) for differences, names in earlier.items()
        },
        **{f"learned from another collection ({datasets})": ", ".join(names) for datasets, names in apart.items()},
        **({"latency": f"median of 500 calls in torch, one state, one core of {processor()}"} if latency else {}),
    }
    datasets = _datasets(layout, mixes, [who for game in games.values() for who in game.students])
    results = Results(
        protocol=facts["protocol"],
        command=command,
        timing=facts.get("latency", ""),
        games=games,
        predicted=predicted([(row.who, row.score) for row in rows]),
        summaries=summaries,
        aggregates=typical,
        leads=ahead,
        several=several,
        online=online,
        beside=[row for name in params.beside if paper for row in _beside(layout.root / name, games)],
        earlier=earlier,
        collections=apart,
        missing=[cell.name for cell in params.cells() if cell not in cells]
        + [f"{game}-{seed}" for game, seed in runs if (game, seed) not in {(run.game, run.seed) for run in online}],
    )
    _publish(
        layout,
        {
            "index.html": render(sections, results, facts, datasets),
            "scores.json": json.dumps([asdict(row.score) for row in rows], indent=2) + "\n",
            "table.md": tables.scores(rows).markdown(),
        },
    )
    if paper is not None:
        with replaced_file(paper) as part:
            part.write_text(reproduction.markdown(results))
    written = layout.report / "index.html"
    say(f"report: {written} ({written.stat().st_size / 1e6:.1f} MB)")
    return written


def _publish(layout: Layout, files: Mapping[str, str]) -> None:
    work = layout.work("report", "page", {})
    with alone_in(work):
        folder = work / "page"
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        replace_folder(folder, layout.report)


def _command(root: Path, *, partial: bool, paper: Path | None) -> str:
    """What makes everything below `root` anew, or `partial`, shows what there is."""
    within = f"experiments/{root.name}/" if root.parent.name == "experiments" else ""
    if partial:
        top = root.parent.parent if within else root
        written = f" --paper {os.path.relpath(paper, top)}" if paper else ""
        return f"pd-pipeline --params {within}params.yaml report --partial{written}"
    return f"cd {within.rstrip('/')}; pd-pipeline repro" if within else "dvc repro"


def _protocol(params: settings.Params, rows: Sequence[Row], online: Sequence[Run]) -> str:
    """How many episodes have been played, by agents and by teachers, and how they start and explore."""
    games: dict[int, dict[str, None]] = {}
    played = [(row.score.episodes, row.score.game) for row in rows if row.score.role not in ("teacher", "random")]
    for episodes, game in [*played, *((len(run.student_N), run.game) for run in online)]:
        games.setdefault(episodes, {})[game] = None
    counts = sorted(games) or [params.evaluation.episodes]
    each = " or ".join(f"{n} ({', '.join(games[n])})" for n in counts) if len(counts) > 1 else str(counts[0])
    taught = sorted({row.score.episodes for row in rows if row.score.role == "teacher"})
    apart = f", {' or '.join(map(str, taught))} per teacher" if taught and taught != counts else ""
    starts = f"up to {params.environment.noop_max} null-ops at the start"
    return f"{each} episodes per agent{apart}, epsilon {params.evaluation.epsilon:g}, {starts}"


def _players(layout: Layout, params: settings.Params, cells: Sequence[settings.Cell]) -> dict[str, list[tuple[str, Path]]]:
    """Of each game the agents, by what their scores are called, and their folders."""
    players: dict[str, list[tuple[str, Path]]] = {}
    mix_of: dict[tuple[str, str], str] = {}
    for cell in cells:
        played = games_of_cell(layout, params, cell)
        for game in played:
            players.setdefault(game, []).append((scored_as(cell.agent, played, game), layout.agent(cell.agent)))
            if len(played) == 1 and (other := mix_of.setdefault((game, cell.variant), cell.mix)) != cell.mix:
                raise ValueError(
                    f"{cell.variant} learns from mixes {other} and {cell.mix} of {game}: give it another name in one of them, "
                    f"or the report would take them for two runs of one student"
                )
    return players


def _only(games: Mapping[str, Game], wanted: Callable[[Evaluated], bool]) -> dict[str, Game]:
    """The games with those of their students alone; games without any are left out."""
    kept = {name: replace(game, students=[who for who in game.students if wanted(who)]) for name, game in games.items()}
    return {name: game for name, game in kept.items() if game.students}


def _several(games: Mapping[str, Game]) -> Several:
    """The agents that play all of these games and no other; before them those that they began with, if these play fewer."""
    cards = [who.card for game in games.values() for who in game.students if games_of(who.card).keys() == games.keys()]
    wanted = {card["digest"] for card in cards} | {card["begins_with"] for card in cards if "begins_with" in card}
    theirs = _only(games, lambda who: who.card["digest"] in wanted)
    return Several(summaries=sorted(summarise(theirs), key=lambda s: s.games.keys() == theirs.keys()), games=theirs)


def _beside(folder: Path, ours: Mapping[str, Game]) -> list[Beside]:
    """Teachers of another experiment and what became of their students of one game, as far as they are evaluated; says what is
    left out: what is not, and what was not under a protocol of ours.
    """
    protocols = {game.teacher.protocol for game in ours.values()}
    layout, params = settings.load_project(folder / "params.yaml")
    of_games: dict[str, list[Evaluated]] = {}
    for cell in finished(layout, params, params.cells(), others=True, where=f" in {folder}"):
        played = games_of_cell(layout, params, cell)
        if cell.kind == "students" and len(played) == 1:
            of_games.setdefault(played[0], []).append(_evaluated(layout, cell.agent, layout.agent(cell.agent)))
    rows = []
    for name, students in of_games.items():
        teacher = _evaluated(layout, f"teachers/{name}", layout.teacher(name))
        game = Game(teacher, _evaluated(layout, f"random/{name}", None), students)
        if unlike := [who.agent for who in (game.teacher, game.chance, *students) if who.protocol not in protocols]:
            say(f"left out of {folder}, of another protocol: {', '.join(unlike)}")
            continue
        rows.append(Beside(teacher=teacher, summaries=summarise({name: game}), leads=leads({name: game}, "dqn", LOSSES)))
    return rows


def _runs(layout: Layout, params: settings.Params, runs: Sequence[tuple[str, int]], *, partial: bool) -> list[Run]:
    """All of these runs, or with `partial` those that are whole and scored; says what the others lack."""
    found = []
    for game, seed in runs:
        try:
            found.append(_run(layout, params, game, seed))
        except ValueError as error:
            if not partial:
                raise
            say(f"left out, {game}-{seed}: {error}")
    return found


def _followed_another(layout: Layout, game: str, seed: int) -> bool:
    """Whether a student followed another history than the one whose best and last were scored."""
    name = f"{game}-{seed}"
    scored = [json.loads(layout.scores(f"history/{name}/{which}").read_text())["agent_digest"] for which in ("best", "last")]
    rows = read_curve(layout.online(name) / CURVE)
    return scored != [load_card(layout.online(name))["teacher"]["digest"], rows[-1]["snapshot"]]


def _ends(game: str, seed: int) -> dict[str, str]:
    """The agents that a run left, and the random one."""
    name = f"{game}-{seed}"
    return {
        "student_N": f"online/{name}",
        "best_N": f"history/{name}/best",
        "last_N": f"history/{name}/last",
        "random_N": f"random/{game}",
    }


def _run(layout: Layout, params: settings.Params, game: str, seed: int) -> Run:
    """How a student followed a teacher, and what became of both."""
    folder = layout.online(f"{game}-{seed}")
    for path in (folder / CURVE, folder / RETURNS):
        if not path.is_file():
            raise ValueError(
                f"the report lacks {path}: run `pd-pipeline distill-online --game {game} --seed {seed} --replay` or `dvc repro`"
            )
    if (following := load_card(folder).get("following")) is None:
        raise ValueError(f"{folder} does not tell how it followed: `dvc repro` makes it anew")
    rows, points = read_curve(folder / CURVE), read_curve(folder / RETURNS)
    teacher_PN, student_PN = (
        np.array([float(row[who]) for row in points]).reshape(len(rows), -1) for who in ("teacher", "student")
    )
    returns, seeds = {}, {}
    for who, agent in _ends(game, seed).items():
        episodes = layout.episodes(agent)
        for path in (episodes, layout.scores(agent)):
            if not path.is_file():
                raise ValueError(f"the report lacks {path}: run `pd-pipeline evaluate {agent}` or `dvc repro`")
        if scored_otherwise(layout, params, agent, agent, game):
            raise ValueError(
                f"{agent} was scored before it, the seeds or the protocol changed: "
                f"run `pd-pipeline evaluate {agent}` or `dvc repro`"
            )
        returns[who], seeds[who], _ = read_returns(episodes)
    if not np.array_equal(seeds["student_N"], seeds["best_N"]):
        raise ValueError(
            f"online/{game}-{seed} has played {len(seeds['student_N'])} episodes and history/{game}-{seed}/best "
            f"{len(seeds['best_N'])}, and the same are compared: `pd-pipeline evaluate` of both or `dvc repro`"
        )
    if _followed_another(layout, game, seed):
        raise ValueError(
            f"online/{game}-{seed} followed another history than history/{game}-{seed}, whose best was scored: run "
            f"`pd-pipeline distill-online --game {game} --seed {seed} --replay` or `dvc repro`"
        )
    return Run(
        game=game,
        seed=seed,
        frame_P=[float(row["frames"]) for row in rows],
        teacher_PN=teacher_PN,
        student_PN=student_PN,
        best_P=[int(row["best_point"]) for row in rows],
        states=following["states"],
        **returns,
    )


def _refuse_outdated(
    layout: Layout, params: settings.Params, cells: Sequence[settings.Cell], earlier: Mapping[str, Sequence[str]]
) -> None:
    """ValueError if a student is not what the params would make."""
    if others := [cell for cell in cells if outdated(layout, params, cell)]:
        told = told_outdated(layout, params, others)
        raise ValueError(f"{told}: `pd-pipeline evaluate` or `dvc repro` makes them anew, --partial leaves them out")
    if earlier:
        told = "; ".join(f"{', '.join(names)} ({differences})" for differences, names in earlier.items())
        raise ValueError(
            f"learned or scored by other settings than params.yaml has now: {told}: "
            f"`dvc repro` makes them anew, --partial says so"
        )


def _told_collections(layout: Layout, params: settings.Params, cell: settings.Cell) -> str:
    return ", ".join(other_collections(layout, params, cell) or ())


def _names_by(
    layout: Layout,
    params: settings.Params,
    cells: Sequence[settings.Cell],
    told: Callable[[Layout, settings.Params, settings.Cell], str],
) -> dict[str, list[str]]:
    """The names of cells by what is told of them, where anything is."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        if what := told(layout, params, cell):
            found.setdefault(what, []).append(cell.name)
    return found


def _section(
    layout: Layout, params: settings.Params, game: str, players: Sequence[tuple[str, Path]], *, latency: bool
) -> Section:
    teacher = _evaluated(layout, f"teachers/{game}", layout.teacher(game))
    chance = _evaluated(layout, f"random/{game}", None)
    students = [_evaluated(layout, name, folder) for name, folder in players]
    if latency:
        teacher, *students = _timed(
            game, [(teacher, layout.teacher(game)), *zip(students, (f for _, f in players), strict=True)]
        )
    protocols = {who.protocol: who.agent for who in (teacher, chance, *students) if who.protocol}
    if len(protocols) > 1:
        told = ", ".join(f"{agent} under {digest}" for digest, agent in protocols.items())
        raise ValueError(f"scores of {game} are of different protocols ({told}): evaluate these agents again, `dvc repro` does")
    baseline = Baseline(teacher, chance)
    rows = [Row(score(who, baseline), who, teacher.parameters) for who in (teacher, chance, *students)]
    alone = [who for who in students if len(games_of(who.card)) == 1 and who.role == "student"]
    smallest = min(alone, key=lambda who: (who.loss != "kl", who.parameters, who.agent), default=None)
    return Section(
        game=game,
        rows=rows,
        who=Game(teacher, chance, students),
        actions=teacher.card["environment"]["actions"],
        disputed=smallest,
        disputed_policy=smallest is not None and not gives_q_values(smallest.card),
        disputes=disputes(layout, params, game, smallest.agent) if smallest else (),
        protocols=[row for who in (teacher, chance, *students) for row in _elsewise(layout, who)],
    )


def _timed(game: str, players: Sequence[tuple[Evaluated, Path]]) -> list[Evaluated]:
    """The same agents with what one state takes each network on one core; those of one network take turns as one."""
    folders = {who.network: folder for who, folder in reversed(players)}
    say(f"timing {len(folders)} networks of {game} ...")
    cpu = torch.device("cpu")
    networks = {name: load_agent(folder, cpu).network for name, folder in folders.items()}
    states = np.random.default_rng(0).integers(0, 256, (64, 4, 84, 84), dtype=np.uint8)
    took = latencies({name: in_torch(functools.partial(network, game=game)) for name, network in networks.items()}, states)
    return [replace(who, latency_ms=took[who.network]) for who, _ in players]


def _elsewise(layout: Layout, who: Evaluated) -> list[dict[str, str]]:
    """What an agent scored under other protocols."""
    found = []
    for name in PROTOCOLS:
        path = layout.scores(f"{who.agent}@{name}")
        if path.is_file():
            told = json.loads(path.read_text())
            if told.get("agent_digest") != who.card.get("digest"):
                say(f"left out: {path} is of an earlier {who.agent}, evaluate it again")
                continue
            low, high = told["ci95"]
            found.append(
                {
                    "agent": tables.short_name(who.agent),
                    "protocol": name,
                    "mean return [95 %]": f"{told['mean']:.2f} [{low:.1f}, {high:.1f}]",
                    "episodes": str(told["episodes"]),
                    "digest": told["protocol"]["digest"],
                }
            )
    return found


def _datasets(
    layout: Layout, mixes: Mapping[str, Mapping[str, Sequence[Ingredient]]], students: Sequence[Evaluated]
) -> list[dict[str, str]]:
    """A row per dataset of the mixes; what only the dataset itself can tell is there where it is at hand."""
    cards = {who.card["digest"]: who.card for who in students}.values()  # once, however many games it plays
    states = {told["digest"]: told["states"] for card in cards for told in learned_from(card)}
    learned = Counter(told["digest"] for card in cards for told in learned_from(card))
    rows = []
    for digest, (name, game, teacher) in {
        one.digest: (one.dataset, game, one.teacher) for mix in mixes.values() for game, of in mix.items() for one in of
    }.items():
        row = {
            "dataset": name,
            "game": game,
            "states": f"{states[digest]:,}" if digest in states else "",
            "students": str(learned[digest]),
            "digest": digest[:12],
            "teacher": teacher[:12],
            "behaviour": "",
            "episodes": "",
            "bytes a state": "",
        }
        with suppress(ValueError):  # it is here in part only
            row |= _at_hand(layout.dataset(name), digest)
        rows.append(row)
    return rows


def _at_hand(folder: Path, digest: str) -> dict[str, str]:
    """What only the dataset itself can tell; nothing if it is not there, or another one. ValueError if it is damaged."""
    if not (folder / MANIFEST).is_file() or (opened := open_dataset(folder)).manifest.digest != digest:
        return {}
    told, how = info(opened), opened.manifest.collection
    return {
        "behaviour": f"{'student' if how.get('actor') else 'teacher'}, epsilon {how.get('epsilon', '?')}",
        "episodes": f"{told['episodes']:,}",
        "bytes a state": f"{told['bytes_per_state']:.1f}",
    }


def _evaluated(layout: Layout, agent: str, folder: Path | None) -> Evaluated:
    episodes, scores = layout.episodes(agent), layout.scores(agent)
    clip = layout.clip(agent)
    for path in (episodes, scores, clip):
        if not path.is_file():
            kind, *names = agent.split("/")
            told = f"{kind}/{names[0]}/{names[1]} --game {names[2]}" if len(names) > 2 else agent
            raise ValueError(f"the report lacks {path}: run `pd-pipeline evaluate {told}` or `dvc repro`")
    facts: dict[str, Any] = json.loads(scores.read_text())
    card = load_card(folder) if folder is not None else {}
    held_out = games_of(card).get(facts["game"], {}).get("held_out")
    card = {key: value for key, value in card.items() if key != "held_out"} | ({"held_out": held_out} if held_out else {})
    variant = card.get("variant")
    return Evaluated(
        agent=agent,
        role=facts["role"],
        game=facts["game"],
        network=facts["network"],
        parameters=facts["parameters"],
        episodes=episodes,
        card=card,
        clip=clip if facts["role"] != "random" else None,
        curve=curve if folder is not None and (curve := folder / CURVE).is_file() else None,
        variant=f"{card['mix']}/{variant}" if variant and "games" in card else variant,
        loss=card.get("objective", {}).get("loss"),
        algorithm=card.get("algorithm"),
        seed=card.get("seed") if facts["role"] in ("student", "multitask") else None,
        flops=cost(NetworkSpec.from_json(card["architecture"]), card["heads"][facts["game"]]).flops if card else None,
        protocol=facts.get("protocol", {}).get("digest", ""),
        elsewhere=", ".join(f"{k} {v['there']}, here {v['here']}" for k, v in facts.get("made_elsewhere", {}).items()),
    )
