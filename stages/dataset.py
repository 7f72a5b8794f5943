"""`pd-pipeline dataset`: look into, check, cut and join datasets, here or elsewhere."""

from __future__ import annotations

import json
import math
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.agents.policies import QFunction
    from pipeline.datasets.edit import Part
    from pipeline.datasets.reader import Dataset
    from pipeline.datasets.schema import EpisodeRow
    from pipeline.progress import Progress

place = click.argument("place", metavar="PATH_OR_URL")
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Tell how many bytes were read.")


@click.group()
def dataset() -> None:
    """Look into, check, cut and join datasets.

    PATH_OR_URL is a folder, an fsspec URL such as s3://bucket/Pong, or git+URL@TAG:PATH in a DVC repository.
    """


@contextmanager
def _opened(where: str, verbose: bool = False) -> Iterator[Dataset]:
    """The dataset, and at the end, if asked, how much of it was read."""
    from pipeline.datasets.describe import size
    from pipeline.datasets.reader import open_dataset
    from pipeline.datasets.repositories import fetched
    from stages.runlog import say

    before = fetched.total()
    opened = open_dataset(where, count_bytes=verbose)
    yield opened
    if verbose:
        by_git = fetched.total() - before
        more = f"; Git fetched {by_git:,} more to find them" if by_git else ""
        say(f"read {opened.folder.bytes_read:,} of {size(opened):,} bytes{more}")


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        click.echo(f"{key:24}{printable(_shown(value))}")


def printable(line: str) -> str:
    """A line without what a terminal would take for a command: strangers write manifests and name files too."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _judged(where: str, as_json: bool) -> Dataset:
    """The dataset; that it cannot be opened is a verdict too, where --json asks for one."""
    from pipeline.datasets.reader import open_dataset

    try:
        return open_dataset(where)
    except ValueError as error:
        if as_json:
            _verdict(where, None, str(error).splitlines(), "", as_json, {})
        raise


def _verdict(where: str, digest: str | None, faults: list[str], good: str, as_json: bool, more: dict[str, Any]) -> NoReturn:
    """Print the faults or that there are none; exit code 1 tells of faults."""
    if as_json:
        facts = {"dataset": where, "digest": digest, "ok": not faults, "faults": faults}
        click.echo(json.dumps(facts | more, indent=2))
    else:
        click.echo("\n".join(map(printable, faults)) if faults else f"{where}: {good}")
    sys.exit(1 if faults else 0)


@dataset.command("info")
@place
@json_option
@verbose_option
def info(place: str, as_json: bool, verbose: bool) -> None:
    """What the dataset is: game, digest, states, size, teacher."""
    from pipeline.datasets.describe import info as describe

    with _opened(place, verbose) as opened:
        _print(describe(opened), as_json)


@dataset.command("stats")
@place
@json_option
@verbose_option
def stats(place: str, as_json: bool, verbose: bool) -> None:
    """Returns, lengths, actions and best Q-values of all its states; frames are not read."""
    from pipeline.datasets.describe import stats as describe

    with _opened(place, verbose) as opened:
        _print(describe(opened), as_json)


@dataset.command("validate")
@place
@json_option
def validate(place: str, as_json: bool) -> None:
    """Check that the records make sense: boundaries, returns, actions, Q-values, duplicates."""
    from pipeline.datasets.validate import validate as check
    from stages.runlog import show

    opened = _judged(place, as_json)
    found: list[str] = []
    for _ in show(check(opened, found), f"validate {opened.manifest.game}"):
        pass
    _verdict(place, opened.manifest.digest, found, f"{_held(opened)} make sense", as_json, {})


@dataset.command("verify")
@place
@click.option("--rederive", "percent", metavar="PERCENT", help="Also play so many of the episodes again, e.g. 2%.")
@click.option(
    "--teacher",
    type=click.Path(file_okay=False, path_type=Path),
    help="Its teacher. [default: the one that `train-teacher` publishes, if it is]",
)
@click.option("--actor", type=click.Path(file_okay=False, path_type=Path), help="The student that acted, if one did.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Which episodes. [default: drawn at random, which nobody can know before]"
)
@json_option
@click.pass_obj
def verify(
    session: Any,
    /,
    place: str,
    percent: str | None,
    teacher: Path | None,
    actor: Path | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Check every file and episode against its digests, and with --rederive against the game and the teacher.

    Exit code 1 and the exact place on a fault.
    """
    from stages.runlog import say, show

    if percent is None and (teacher, actor, seed) != (None, None, None):
        raise ValueError("--teacher, --actor and --seed choose how to play episodes again: add --rederive PERCENT")
    share = None if percent is None else _share(percent)
    opened = _judged(place, as_json)
    found = _unverified(opened)
    good, more = f"{_held(opened)} are as digest {opened.manifest.digest[:12]} says", {}
    if share is not None and not found:
        from pipeline.rederive import choose, described, driven, rederive

        q_values = _teacher(session, opened, teacher)
        acting = _q_values(opened, actor, driven(opened), "played by") if actor else None
        if q_values is None:
            say("Q-values are not checked: no teacher of theirs is at hand, give --teacher DIR")
        chosen = choose(opened, share, secrets.randbits(32) if seed is None else seed)
        for _ in show(rederive(opened, chosen, q_values, found, acting), f"rederive {opened.manifest.game}"):
            pass
        more = {"rederived": described(opened, chosen, q_values, acting)}
        good += f"; {len(chosen)} of them, played again, came out the same"
        for what, checked in (("actions", "who acted is unknown, or not given by --actor"), ("labels", "no teacher at hand")):
            good += "" if more["rederived"][what] else f" ({what} not checked: {checked})"
    _verdict(place, opened.manifest.digest, found, good, as_json, more)


def _unverified(opened: Dataset) -> list[str]:
    """What of its files and episodes is not as its digests say, a line each."""
    from pipeline.datasets.verify import verify as check
    from stages.runlog import show

    found: list[str] = []
    for _ in show(check(opened, found), f"verify {opened.manifest.game}"):
        pass
    return found


def _held(opened: Dataset) -> str:
    return f"{opened.manifest.states:,} states in {opened.manifest.episodes} episodes"


def _share(percent: str) -> float:
    try:
        share = float(percent.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{percent} is not a percentage above 0% and up to 100%")
    return share


def _teacher(session: Any, opened: Dataset, folder: Path | None) -> QFunction | None:
    """The Q-values of the dataset's teacher, from `folder`, or from the zoo where that has it. ValueError if it is another."""
    from pipeline.agents.checkpoints import CARD, load_card

    wanted = opened.manifest.teacher["digest"]
    if folder is None:
        if not session.params_path.is_file():
            return None
        folder = session.load()[0].teacher(opened.manifest.game)
        if not (folder / CARD).is_file() or load_card(folder)["digest"] != wanted:
            return None
    return _q_values(opened, folder, wanted, "labelled by")


def _q_values(opened: Dataset, folder: Path, wanted: str | None, what: str) -> QFunction:
    """The Q-values of the agent in `folder`. ValueError if it is not the one of that digest."""
    import torch

    from pipeline.agents.checkpoints import load_agent
    from pipeline.agents.device import exact
    from pipeline.agents.policies import q_function

    agent = load_agent(folder, torch.device("cpu"))
    if agent.digest != wanted:
        raise ValueError(f"{folder} is {agent.digest[:12]}, the dataset was {what} {(wanted or 'its teacher')[:12]}")
    return q_function(agent.network, exact(torch.device("cpu")), opened.manifest.game)


@dataset.command("view")
@place
@click.option(
    "--episode", "indices", type=click.IntRange(min=0), multiple=True, help="Show this one. [default: best, median, worst]"
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The page. [default: GAME-DIGEST.html here]")
@verbose_option
def view(place: str, indices: tuple[int, ...], out: Path | None, verbose: bool) -> None:
    """Write one HTML page to look at it: film strips with Q-values, returns, actions, Q-gaps."""
    from pipeline.datasets.describe import gaps
    from pipeline.datasets.describe import info as describe
    from pipeline.datasets.validate import action_faults
    from pipeline.report.view import Film, Shown, render
    from stages.publish import replaced_file

    with _opened(place, verbose) as opened:
        manifest, rows = opened.manifest, opened.episodes
        if odd := [index for index in indices if index >= len(rows)]:
            raise ValueError(f"dataset {opened.folder} has episodes 0 to {len(rows) - 1}, not {odd[0]}")
        sampled = min(len(opened), 65_536)
        sample = {name: opened.read(name, 0, sampled) for name in ("q", "action", "reward")}

        def of_episode(row: EpisodeRow, name: str) -> NDArray[Any]:
            stop = row.start + row.length
            return sample[name][row.start : stop] if stop <= sampled else opened.read(name, row.start, stop)

        ranked = sorted(range(len(rows)), key=lambda index: rows[index].episode_return)
        films = []
        for index in indices or dict.fromkeys([ranked[-1], ranked[len(ranked) // 2], ranked[0]]):
            row = rows[index]
            films.append(
                Film(
                    title=f"Episode {index} (seed {row.seed}): return {row.episode_return:g}, {row.length:,} steps",
                    frames=lambda step_S, start=row.start: opened.frames(start + step_S),  # type: ignore[misc]
                    q_TA=of_episode(row, "q"),
                    action_T=of_episode(row, "action"),
                    reward_T=of_episode(row, "reward"),
                )
            )
        for action_N in (sample["action"], *(film.action_T for film in films)):
            for _, text in action_faults(action_N, manifest.actions):
                raise ValueError(f"dataset {opened.folder} {text}: look at it with `pd-pipeline dataset validate`")
        whole = [row for row in rows if row.complete]
        shown = Shown(
            title=f"{manifest.game}: {manifest.states:,} states of teacher {manifest.teacher['digest'][:12]}",
            facts={name: _shown(value) for name, value in describe(opened).items()},
            actions=manifest.environment.get("actions") or [str(a) for a in range(manifest.actions)],
            returns=[row.episode_return for row in whole],
            lengths=[row.length for row in whole],
            action_N=sample["action"],
            gap_N=gaps(sample["q"]),
            films=films,
        )
        path = out or Path(f"{manifest.game}-{manifest.digest[:12]}.html")
        with replaced_file(path) as part:
            part.write_text(render(shown))
    click.echo(path)


def _here(_: click.Context, __: click.Parameter, out: str) -> Path:
    """The folder of --out. ValueError for a URL."""
    if "://" in out:
        raise ValueError(f"--out {out} is a URL: write to a folder here, then copy or `dvc push` it")
    return Path(out)


def _licence(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    from pipeline.datasets.describe import LICENCE

    if name is not None and not LICENCE.fullmatch(name):
        raise ValueError(f"--license {name} is not a licence's short name: write it as SPDX does, e.g. cc-by-4.0")
    return name


licence_option = click.option(
    "--license",
    "licence",
    callback=_licence,
    metavar="NAME",
    help="Licence that its card names. [default: that of its parents, if they name one]",
)
out_option = click.option("--out", callback=_here, required=True, metavar="DIR", help="Folder to be made.")


@contextmanager
def _made(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` at the end, whole or not at all. ValueError if anything is there."""
    import shutil

    from stages.publish import replace_folder

    if out.exists():
        raise ValueError(f"{out} exists already: choose another --out or remove it")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        replace_folder(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(folder: Path, name: str, writing: Iterator[Progress]) -> None:
    """Write a dataset, telling what it has become."""
    from pipeline.datasets.reader import read_manifest
    from stages.runlog import say, show

    for _ in show(writing, f"write {name}"):
        pass
    manifest = read_manifest(folder)
    say(f"{manifest.states:,} states in {manifest.episodes} episodes, digest {manifest.digest[:12]}")


def _cut(out: Path, parts: list[Part], made_by: dict[str, Any], licence: str | None) -> None:
    """Make a dataset of parts of others."""
    from pipeline.datasets.edit import write

    with _made(out) as folder:
        _fill(folder, out.name, write(folder, parts, made_by, licence))
    click.echo(out)


@dataset.command("subset")
@place
@out_option
@licence_option
@click.option("--min-return", type=float, help="Episodes of at least this return.")
@click.option("--max-return", type=float, help="Episodes of at most this return.")
@click.option("--min-length", type=click.IntRange(min=1), help="Episodes of at least so many steps.")
@click.option("--max-length", type=click.IntRange(min=1), help="Episodes of at most so many steps.")
@click.option("--episodes", type=click.IntRange(min=1), help="The first so many of them.")
def subset(place: str, out: Path, licence: str | None, **bounds: Any) -> None:
    """Some of its episodes, whole, as a dataset of their own."""
    from pipeline.datasets.edit import chosen

    given = {name: value for name, value in bounds.items() if value is not None}
    if not given:
        raise ValueError("say which episodes: --min-return, --max-return, --min-length, --max-length or --episodes")
    for name, value in given.items():
        if not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')} {value} is no bound: give a number, or leave it out")
    with _opened(place) as opened:
        _cut(out, [(opened, chosen(opened, **given))], {"operation": "subset", **given}, licence)


@dataset.command("split")
@place
@click.option("--into", multiple=True, required=True, metavar="NAME=PERCENT", help="A part, e.g. train=90. Give all of them.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which episodes go where.")
@click.option("--out", callback=_here, required=True, metavar="DIR", help="Folder of the parts' folders.")
@licence_option
def split(place: str, into: tuple[str, ...], seed: int, out: Path, licence: str | None) -> None:
    """All its episodes, each whole in one of several datasets, at random; all the datasets appear or none."""
    from pipeline.datasets.edit import split as divide
    from pipeline.datasets.edit import write

    shares: dict[str, float] = {}
    for text in into:
        name, equals, percent = text.partition("=")
        if not equals or not name or Path(name).name != name or name in shares:
            raise ValueError(f"--into {text} is not NAME=PERCENT with a name of its own: write --into train=90 --into test=10")
        shares[name] = _share(percent)
    with _opened(place) as opened, _made(out) as folder:
        for name, indices in divide(opened, shares, seed).items():
            made_by = {"operation": "split", "part": name, "shares": shares, "seed": seed}
            _fill(folder / name, name, write(folder / name, [(opened, indices)], made_by, licence))
    click.echo("\n".join(str(out / name) for name in shares))


@dataset.command("merge")
@click.argument("places", nargs=-1, required=True, metavar="PATH_OR_URL...")
@out_option
@click.option("--any-teacher", is_flag=True, help="Join datasets of several teachers.")
@click.option("--any-environment", is_flag=True, help="Join datasets of several environments.")
@licence_option
def merge(places: tuple[str, ...], out: Path, any_teacher: bool, any_environment: bool, licence: str | None) -> None:
    """Several datasets of one game as one; an episode that several hold is taken once."""
    from contextlib import ExitStack

    from pipeline.datasets.edit import merged
    from stages.runlog import say

    with ExitStack() as stack:
        opened = [stack.enter_context(_opened(place)) for place in places]
        parts = merged(opened, any_teacher=any_teacher, any_environment=any_environment)
        if dropped := sum(len(d.episodes) for d in opened) - sum(len(indices) for _, indices in parts):
            say(f"{dropped} episodes are in more than one of them and are taken once")
        _cut(out, parts, {"operation": "merge"}, licence)


@dataset.command("export")
@place
@click.option("--to", "form", type=click.Choice(["parquet", "npz", "minari"]), required=True, help="The other format.")
@click.option("--frames", is_flag=True, help="minari: single frames as observations, a quarter of the size. [default: states]")
@out_option
def export(place: str, form: str, frames: bool, out: Path) -> None:
    """The same data in another format; nothing is lost."""
    from pipeline.datasets.exchange import EXPORTS
    from stages.runlog import show

    if frames and form != "minari":
        raise ValueError(f"--frames is for --to minari: --to {form} always has single frames")
    options = {"stacked": not frames} if form == "minari" else {}
    with _opened(place) as opened, _made(out) as part:
        for _ in show(EXPORTS[form](opened, part, **options), f"export to {form}"):
            pass
    click.echo(out)


@dataset.command("import")
@click.argument("source", metavar="DIR", type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.option("--from", "form", type=click.Choice(["minari"]), required=True, help="Its format.")
@click.option("--game", help="Its game, where it does not tell.")
@click.option("--labels", default="q", show_default=True, help="Which of its infos has the Q-values or logits.")
@licence_option
@out_option
def import_(source: Path, form: str, game: str | None, labels: str, licence: str | None, out: Path) -> None:  # noqa: ARG001
    """A dataset from another format."""
    from pipeline.atari.games import find_game
    from pipeline.datasets.exchange import from_minari

    name = None if game is None else find_game(game).name
    with _made(out) as folder:
        _fill(folder, out.name, from_minari(source, folder, game=name, labels=labels, licence=licence))
    click.echo(out)


@dataset.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@json_option
def compare(a: str, b: str, as_json: bool) -> None:
    """Tell whether two datasets hold the same data, in the same encoding, or what differs.

    Both are verified first. Exit code 1 if the data differs, 2 if one does not open or does not hold what it says.
    """
    from pipeline.datasets.compare import compare as set_side_by_side
    from pipeline.datasets.reader import open_dataset

    found: dict[str, Any] = dict.fromkeys(("same_data", "same_encoding", "episodes", "differences"))
    try:
        ours, theirs = open_dataset(a), open_dataset(b)
        faults = [fault for opened in (ours, theirs) for fault in _unverified(opened)]
        found |= {} if faults else set_side_by_side(ours, theirs)
    except ValueError as error:
        faults = str(error).splitlines()
    if as_json:
        click.echo(json.dumps(found | {"faults": faults}, indent=2))
    elif faults:
        click.echo("\n".join(map(printable, faults)))
    else:
        encoding = "the same files" if found["same_encoding"] else "other files"
        click.echo(f"{'the same data' if found['same_data'] else 'other data'}, {encoding}")
        counts = found["episodes"]
        click.echo(f"episodes: {counts['both']} in both, {counts['only_a']} only in A, {counts['only_b']} only in B")
        for line in found["differences"]:
            click.echo(printable(line))
    sys.exit(2 if faults else 0 if found["same_data"] else 1)
