"""The report: one self-contained HTML page. Nothing is fetched; figures, clips, style and script are inside."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pipeline.report import figures, tables
from pipeline.report.disputes import Dispute, picture
from pipeline.report.online import Run
from pipeline.report.predictors import PREDICTORS, Predicted
from pipeline.report.results import Results, Several
from pipeline.report.scores import Evaluated
from pipeline.report.summary import Game
from pipeline.report.tables import Row, short_name

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f23; --soft: #5b646d; --line: #d8dde2; --paper: #ffffff; --band: #f3f6f8; --accent: #0b6e99 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a3acb5; --line: #3a424a; --paper: #14181c; --band: #1d2329; --accent: #6cc0e5 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
h1 { font-size: 1.7rem; margin: 0 0 .3rem } h2 { margin: 2.2rem 0 .6rem; font-size: 1.25rem } p, li { max-width: 46rem }
.soft { color: var(--soft) } .scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .85rem } caption { text-align: left; padding-top: 1rem; color: var(--soft); padding-bottom: .4rem; white-space: normal; max-width: min(46rem, calc(100vw - 4rem)) }
th, td { padding: .35rem .45rem; border-bottom: 1px solid var(--line); text-align: left } .number { text-align: right; font-variant-numeric: tabular-nums } th { vertical-align: bottom }
th button { all: unset; cursor: pointer; font-weight: 600 } th button:focus-visible { outline: 2px solid var(--accent) } th[aria-sort] button { color: var(--accent) }
tr.teacher, tr.random { background: var(--band) }
figure { margin: 1rem 0 } figure svg { width: 100%; max-width: 46rem; height: auto; background: #fff; border-radius: 6px; padding: .5rem } figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem } .wide { overflow-x: auto } .wide svg { max-width: none; min-width: 44rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 1.5rem }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr)); gap: 1rem } .frames figure { margin: 0 } .frames img { width: 100%; image-rendering: pixelated; border-radius: 6px }
.clips { display: flex; flex-wrap: wrap; gap: 1rem } .clips figure { margin: 0; width: 11rem } video { width: 100%; border-radius: 6px; background: #000; image-rendering: pixelated; object-fit: contain; object-position: top }
dl { display: grid; grid-template-columns: fit-content(20rem) 1fr; gap: .2rem 1rem; font-size: .9rem } dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
@media print { video, .clips { display: none } body { max-width: none } }
"""

SCRIPT = """
for (const table of document.querySelectorAll('table')) {
  const value = (row, i) => { const t = row.cells[i].textContent.replace(/[,\\[]/g, ''); const n = parseFloat(t); return isNaN(n) ? t : n };
  table.querySelectorAll('th').forEach((th, i) => th.firstChild.addEventListener('click', () => {
    const up = th.getAttribute('aria-sort') !== 'ascending';
    table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = value(a, i), y = value(b, i);
      return (x > y ? 1 : x < y ? -1 : 0) * (up ? 1 : -1);
    });
    table.tBodies[0].append(...rows);
  }));
}
for (const button of document.querySelectorAll('[data-play]')) button.addEventListener('click', () => {
  for (const video of button.closest('div').querySelectorAll('video')) { video.currentTime = 0; video.play() }
});
for (const video of document.querySelectorAll('video')) {  // room for the controls below the picture, whose Q-values they would hide
  const grow = () => { video.style.aspectRatio = video.videoWidth / (video.videoHeight + 75 * video.videoWidth / video.clientWidth) };
  if (video.readyState) grow(); else video.addEventListener('loadedmetadata', grow);
}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One game's part of the report: score rows (teacher and random first) and the agents behind them.

    `actions` are what they mean; `disputes` are of `disputed`, a student, worst first, and `disputed_policy` tells whether its
    outputs are a policy's logits; `protocols` are rows of other protocols.
    """

    game: str
    rows: Sequence[Row]
    who: Game
    actions: Sequence[str] = ()
    disputed: Evaluated | None = None
    disputed_policy: bool = False
    disputes: Sequence[Dispute] = ()
    protocols: Sequence[Mapping[str, str]] = ()


def render(
    sections: Sequence[Section],
    results: Results,
    provenance: Mapping[str, Any],
    datasets: Sequence[Mapping[str, str]] = (),
) -> str:
    """The page as text; `datasets` are the facts of what students learned from."""
    body = _online(results.online) + "".join(_several(games) for games in results.several) + _over_games(results)
    body += "".join(_section(section) for section in sections) + _predictors(results.predicted)
    facts = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in provenance.items())
    return document(
        "Policy distillation report",
        "<h1>Policy distillation report</h1>"
        f"<p class='soft'>Students trained only from stored datasets of a teacher's states and Q-values"
        f"{', and baselines of several games that learn from reward,' if results.several else ','} measured on whole episodes "
        f"with fresh seeds, raw returns, {escape(results.protocol)}. The paper's numbers "
        "(Rusu et al. 2015) stand beside ours; its protocol starts from human play, so compare levels, not decimals.</p>"
        f"{body}{_datasets(datasets)}<h2>Provenance</h2><dl>{facts}</dl>",
    )


def document(title: str, body: str) -> str:
    """A whole page around `body`: style and script inside, nothing fetched."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><link rel='icon' href='data:,'><style>{STYLE}</style></head><body><main>"
        f"{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _datasets(datasets: Sequence[Mapping[str, str]]) -> str:
    if not datasets:
        return ""
    caption = (
        "What the students learned from. The digest names exactly these records and where they come from; what is not at hand here, its "
        "repository's `dvc pull` fetches. Bytes a state: with Q-values; raw stacks of four frames take 28,224."
    )
    return f"<section><h2>Datasets</h2>{tables.facts(datasets).html(caption)}</section>"


def _over_games(results: Results) -> str:
    summaries, aggregates, leads = results.summaries, results.aggregates, results.leads
    if len(results.games) < 2 or not summaries:
        return ""
    table = tables.over_games(summaries).html(
        f"Random-normalised per cent of the teacher. Intervals: 95 % bootstrap over episodes, {tables.PAIRED}; with several runs also "
        "over training runs, else without the variance of training. * a game below 1 % counts as 1 %.",
    )
    if leads:
        table += tables.leads(leads, list(dict.fromkeys(game for lead in leads for game in lead.games))).html(
            "By how many points of these per cents the students of one loss are ahead of another's, at the teacher's size; the paper's "
            "points are of raw per cents.",
        )
    if aggregates:
        table += tables.aggregates(aggregates).html(
            "Students of every game by their single episodes, random-normalised per cents, games weighing alike (Agarwal et al. 2021). "
            + tables.TYPICAL,
        )
    return f"<section><h2>Over all games</h2>{table}</section>"


def _several(several: Several) -> str:
    """What became of these agents, and how their games got on with each other."""
    table = tables.several(several.summaries).html(
        "Each game's mean return in per cent of its teacher's, and their geometric mean, as the paper has them; the geometric mean of "
        f"the random-normalised per cents, and the least of those. Intervals: 95 % bootstrap over episodes, {tables.PAIRED}; "
        f"{tables.of_training(several.summaries)}. * a game below 1 % counts as 1 %."
        + tables.of_steps(several.summaries, several.teachers),
    )
    races = [
        figure(
            figures.race(game.teacher, game.students),
            f"{name}: return while learning. The line is the teacher as it was published. A student's states are repeats of "
            "stored ones, from a teacher that had steps of its own before it played them.",
        )
        for name, game in several.games.items()
    ]
    first = next(iter(several.games.values()))
    inside = []
    for who in first.students:
        name = short_name(who.agent)
        told = {
            "cosine": "do games pull the shared trunk the same way? 0: they do not matter to each other; below: they interfere.",
            "share of the loss": "whose loss it is.",
        }
        for what, caption in told.items():
            drawn = figures.over_training(who, f"{what.split()[0]}_", what)
            if drawn:
                inside.append(figure(drawn, f"{name}: {caption}"))
    interference = f"<h3>Interference</h3><div class='figures'>{''.join(inside)}</div>" if inside else ""
    return (
        f"<section><h2>One network for {escape(', '.join(several.games))}</h2>{table}"
        f"<div class='figures'>{''.join(races)}</div>{interference}</section>"
    )


def _online(runs: Sequence[Run]) -> str:
    """How students followed teachers that were still learning."""
    if not runs:
        return ""
    drawn = [
        figure(
            figures.following(of_game := [run for run in runs if run.game == game]),
            f"{game}: mean returns at each point of the teacher's learning, on seeds that did not choose the best; a line per seed. "
            f"Frames are those that the teacher learned from; for the student {_each([run.states for run in of_game])} steps more were played at each point where it learned.",
        )
        for game in dict.fromkeys(run.game for run in runs)
    ]
    table = tables.online(runs).html(tables.followed(runs))
    return f"<section><h2>Following a teacher that is still learning</h2>{table}<div class='figures'>{''.join(drawn)}</div></section>"


def _each(counts: Iterable[int]) -> str:
    return " or ".join(f"{count:,}" for count in dict.fromkeys(counts))


def _predictors(found: Predicted | None) -> str:
    """Which held-out number tells beforehand how a student will play."""
    if found is None:
        return ""
    drawn = [
        figure(
            figures.predictor(found.points, name),
            f"Normalised score against {label}, with 95 % intervals over episodes.",
        )
        for name, label in PREDICTORS.items()
    ]
    return (
        f"<section><h2>Which held-out number predicts the score?</h2><p class='soft'>{escape(tables.best_predictor(found))}</p>"
        f"{tables.correlations(found.groups).html(tables.CORRELATED)}<div class='figures'>{''.join(drawn)}</div></section>"
    )


def _section(section: Section) -> str:
    once = {who.variant or who.agent: who for who in reversed(section.who.students)}  # of several runs the first
    clips = [who for who in (section.who.teacher, *reversed(once.values())) if who.clip is not None]
    parts = [
        f"<section><h2>{escape(section.game)}</h2>",
        tables.scores(section.rows).html(
            f"Normalised: (mean - random) / (teacher - random). Intervals: 95 % bootstrap over episodes, {tables.PAIRED}; "
            "they do not include the variance between training runs.",
        ),
        _marks(section),
        figure(
            figures.compression([r.score for r in section.rows], section.who.teacher, section.who.students),
            "Compression against return. Every point is one student; bars are 95 % intervals over episodes; dotted: what the teacher costs.",
            wide=True,
        ),
        tables.costs(section.who.teacher, section.who.students).html(
            "What the networks cost. A multiply-add counts as two operations."
        ),
    ]
    if section.protocols:
        parts.append(tables.facts(section.protocols).html("Other protocols. Intervals: 95 % bootstrap over episodes."))
    if clips:
        videos = "".join(_clip(who) for who in clips)
        parts.append(
            f"<h3>The same seed, played by each</h3><p class='soft'>The first half minute of one episode, of several runs by the "
            f"first. Random actions fall on the same steps for everyone.</p><div><div class='clips'>{videos}</div>"
            "<p><button type='button' data-play>Play all from the start</button></p></div>"
        )
    if section.disputed is not None and section.disputes:
        parts.append(_disputes(section, section.disputed))
    used = {who.card.get("objective", {}).get("temperature") for who in section.who.students} - {None}
    temperatures = ", ".join(f"{t:g}" for t in sorted(used))
    held_out = [
        ("kl", f"held-out KL at tau = {temperatures} (nats)", "Held-out episodes: KL from the teacher's policy."),
        ("agreement", "action agreement", "Held-out episodes: how often the student prefers the teacher's action."),
        ("regret", "regret (Q units)", "Held-out episodes: what the student's choices cost by the teacher's own Q-values."),
    ]
    curves = [figure(figures.student_curves(section.who.students, name, label), caption) for name, label, caption in held_out]
    if section.who.teacher.curve is not None:
        curve = figures.teacher_curve(section.who.teacher, section.who.teacher.card.get("evaluation"))
        curves.append(figure(curve, "How the teacher learned."))
    return "".join(parts) + f"<h3>Learning curves</h3><div class='figures'>{''.join(curves)}</div></section>"


def _marks(section: Section) -> str:
    """What a dagger behind a name means."""
    told = {row.who.elsewhere for row in section.rows} - {""}
    return "".join(
        f"<p class='soft'>† made in another environment than the one it plays here: {escape(what)}</p>" for what in sorted(told)
    )


def _disputes(section: Section, student: Evaluated) -> str:
    logits = section.disputed_policy
    seen = []
    for dispute in section.disputes:
        png = base64.b64encode(picture(dispute, section.actions, policy=logits)).decode()
        wanted, chosen = (section.actions[int(value_A.argmax())] for value_A in (dispute.teacher_A, dispute.student_A))
        told = f"Step {dispute.step:,}: the teacher prefers {wanted}, the student {chosen}; regret {dispute.regret:.3g}."
        seen.append(
            f'<figure><img alt="{escape(told)}" src="data:image/png;base64,{png}"><figcaption>{escape(told)}</figcaption></figure>'
        )
    return (
        f"<h3>Where they disagree most</h3><p class='soft'>{escape(short_name(student.agent))} in the first five minutes of its first episode: the states in which "
        "what it prefers costs most by the teacher's Q-values, one of each two seconds at most. Left the teacher's Q-values, right what the "
        f"student thinks{', as probabilities' if logits else ''}.</p><div class='frames'>{''.join(seen)}</div>"
    )


def figure(svg: str, caption: str, *, wide: bool = False) -> str:
    """A drawing with its caption, which also tells it to those who do not see it."""
    kind = ' class="wide"' if wide else ""
    return f'<figure role="img"{kind} aria-label="{escape(caption)}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def _clip(who: Evaluated) -> str:
    assert who.clip is not None
    data = base64.b64encode(Path(who.clip).read_bytes()).decode()
    label = f"{short_name(who.agent)}: {who.parameters:,} parameters"
    return (
        f'<figure><video muted loop playsinline controls preload="auto" aria-label="{escape(label)}" '
        f'src="data:video/mp4;base64,{data}"></video><figcaption>{escape(label)}</figcaption></figure>'
    )
