"""report: every agent of the params' grid, scored and shown; fails on a missing cell, naming the command that makes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pipeline.agents.checkpoints import CARD, load_card
from pipeline.datasets.mix import Mix, read_mix
from pipeline.report import reproduction, tables
from pipeline.report.page import Section, render
from pipeline.report.scores import Contestant, score
from pipeline.report.summary import Game, summarise
from pipeline.report.tables import Row
from stages import params as settings
from stages.paths import Layout
from stages.publish import replace_folder, replaced_file
from stages.runlog import say
from stages.versions import code_version

COMMAND: Final = "dvc repro experiments/paper/dvc.yaml"


def run(layout: Layout, params: settings.Params, paper: Path | None, *, partial: bool) -> Path:
    """Write data/report: index.html, scores.json, table.md, and at `paper` the page that stands beside the paper's tables.

    `partial` leaves out, and names, what there is not yet; without it that is a ValueError. Returns the report's path.
    """
    if not params.grid:
        raise ValueError("the params' grid names nothing to report on: add a mix with its students and seeds")
    cells = params.cells()
    wanted = dict.fromkeys(cell.mix for cell in cells)
    mixes = {mix: read_mix(layout.mix(mix)) for mix in wanted if not partial or layout.mix(mix).is_file()}
    if partial:
        cells = _finished(layout, cells, mixes)
    students: dict[str, list[str]] = {}  # of each game
    mix_of: dict[tuple[str, str], str] = {}
    for cell in cells:
        (game,) = mixes[cell.mix]
        students.setdefault(game, []).append(cell.name)
        if (other := mix_of.setdefault((game, cell.variant), cell.mix)) != cell.mix:
            raise ValueError(
                f"{cell.variant} learns from mixes {other} and {cell.mix} of {game}: give it another name in one of them, "
                f"or the report would take them for two runs of one student"
            )
    sections = [_section(layout, game, names) for game, names in students.items()]
    games = {s.game: s.who for s in sections}
    summaries = summarise(games)
    rows = [row for section in sections for row in section.rows]
    folder = layout.work("report", "page", {})
    folder.mkdir(parents=True, exist_ok=True)
    scores = [asdict(row.score) for row in rows]
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    (folder / "table.md").write_text(tables.markdown(rows))
    protocol = f"epsilon {params.evaluation.epsilon:g}, up to {params.environment.noop_max} null-ops at the start"
    facts = {
        "package": code_version()["version"],
        "command": "dvc repro",
        "protocol": f"{params.evaluation.episodes} episodes per agent, {protocol}",
        "evaluation seed": params.evaluation.seed,
        **{f"teacher of {s.game}": s.who.teacher.card["digest"] for s in sections},
        **{f"mix {mix}": ", ".join(i.digest for several in mixes[mix].values() for i in several) for mix in mix_of.values()},
        "ale-py": sections[0].who.teacher.card["environment"]["ale_py"],
    }
    (folder / "index.html").write_text(render(sections, protocol, facts, summaries if len(games) > 1 else ()))
    replace_folder(folder, layout.report)
    if paper is not None:
        with replaced_file(paper) as part:
            teachers = {game: who.teacher for game, who in games.items()}
            part.write_text(reproduction.markdown(summaries, teachers, facts["protocol"], COMMAND))
    page = layout.report / "index.html"
    say(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    return page


def _finished(layout: Layout, cells: Sequence[settings.Cell], mixes: Mapping[str, Mix]) -> list[settings.Cell]:
    """Those of the cells that have been evaluated, as have their teacher and the random agent; says which have not.

    ValueError if none has.
    """

    def evaluated(agent: str) -> bool:
        return all(path.is_file() for path in (layout.episodes(agent), layout.scores(agent), layout.clip(agent)))

    begun = {
        mix for mix, games in mixes.items() if all(evaluated(f"{kind}/{g}") for g in games for kind in ("teachers", "random"))
    }
    done = [cell for cell in cells if cell.mix in begun and evaluated(f"students/{cell.name}")]
    if missing := [cell.name for cell in cells if cell not in done]:
        say(f"left out, not evaluated yet: {', '.join(missing)}")
    if not done:
        raise ValueError("no student of the params' grid has been evaluated yet: run `dvc repro`")
    return done


def _section(layout: Layout, game: str, names: Sequence[str]) -> Section:
    teacher = _contestant(layout, f"teachers/{game}", layout.teacher(game))
    chance = _contestant(layout, f"random/{game}", None)
    students = [_contestant(layout, f"students/{name}", layout.student(name)) for name in names]
    rows = [Row(score(who, teacher, chance), who, teacher.parameters) for who in (teacher, chance, *students)]
    return Section(game=game, rows=rows, who=Game(teacher, chance, students))


def _contestant(layout: Layout, agent: str, folder: Path | None) -> Contestant:
    episodes, scores = layout.episodes(agent), layout.scores(agent)
    clip = layout.clip(agent)
    for path in (episodes, scores, clip):
        if not path.is_file():
            raise ValueError(f"the report lacks {path}: run `pd-pipeline evaluate {agent}` or `dvc repro`")
    facts: dict[str, Any] = json.loads(scores.read_text())
    card = load_card(folder) if folder is not None else {}
    return Contestant(
        agent=agent,
        role=facts["role"],
        game=facts["game"],
        network=facts["network"],
        parameters=facts["parameters"],
        episodes=episodes,
        card=card,
        clip=clip if facts["role"] != "random" else None,
        curve=folder / "curve.csv" if folder is not None and (folder / CARD).is_file() else None,
        variant=card.get("variant"),
        loss=card.get("objective", {}).get("loss"),
        seed=card.get("seed") if facts["role"] == "student" else None,
    )
