"""repro: what `dvc repro` does, several stages at a time, each a `dvc repro --single-item` of its own."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pipeline.cores import core_count
from pipeline.progress import Progress
from stages import params as settings
from stages import plan
from stages.paths import Layout
from stages.runlog import duration, say, show

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage
    from networkx import DiGraph

LOOK_EVERY_SECONDS = 0.2
OURS = "pd-pipeline "
MIX, DISTILL = f"{OURS}mix ", f"{OURS}distill "
TOLD_LINES = 5
"""The last of what a stage said are shown when it fails."""


class Work(NamedTuple):
    """A stage that may have to run, and which others must have ended before."""

    stage: Stage
    after: frozenset[str]


class Running(NamedTuple):
    """A stage's process and what it says."""

    process: subprocess.Popen[bytes]
    log: Path
    began: float


def run(layout: Layout, params: settings.Params | None, targets: Sequence[str], *, jobs: int, commit: bool, dry: bool) -> str:
    """Run what of `targets` (stages or dvc.yaml files, by default the folder's dvc.yaml) has changed or was never made, `jobs`
    at a time. What is merely not here is made again where a stage to run reads it.

    Says first about how long what `params` ask for takes. What a stage prints goes to .work/repro/ beside its dvc.yaml.
    ValueError if stages failed: those that do not wait for them have run.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    root = layout.root.resolve()
    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            with repo.lock:
                work = _work(repo, [_absolute(root, target) for target in targets or ["dvc.yaml"]])
            if dry:
                return "\n".join(work) or "nothing to run"
            for it in work.values():
                _open_log(it.stage).close()
            if params is not None and (cost := _cost(layout, params, work)):
                say(f"{len(work)} stages, {cost}, one after another")
            failed: dict[str, Path] = {}
            uncommitted: list[Stage] = []
            for _ in show(_run(repo, work, failed, uncommitted if commit else None, jobs=jobs), "repro"):
                pass
            uncommitted = [stage for stage in uncommitted if not _commit(repo, stage)]
    except DvcException as error:
        raise ValueError(str(error)) from None
    names = ", ".join(stage.addressing for stage in uncommitted)
    refused = (
        f"what these stages made is not committed, as Git refused: {names}: commit what `git status` shows\n" if names else ""
    )
    if failed:
        logs = "\n".join(f"  {name}: {log}" for name, log in failed.items())
        raise ValueError(f"{refused}{len(failed)} of {len(work)} stages failed; what they said is in\n{logs}")
    if refused:
        raise ValueError(refused.strip())
    return f"{len(work)} stages" if work else "nothing to run"


def _cost(layout: Layout, params: settings.Params, work: Mapping[str, Work]) -> str:
    """About how long this takes; '' where nobody knows anything of it."""
    root = layout.root.resolve()
    asked = [(it, plan.job_of(cmd)) for it in work.values() if (cmd := str(it.stage.cmd)).startswith(OURS)]
    dear = [(it, job) for it, job in asked if job[0] in plan.DEAR]
    wanted = {job for it, job in dear if Path(it.stage.path).parent == root}
    try:
        found = [job for job in plan.jobs(layout, params, wanted) if job[:2] in wanted] if wanted else []
    except ValueError:  # of what is there something cannot be read, which this run may make anew
        return ""
    return plan.told(found, unknown=len(dear) - len(found)) if found else ""


def _absolute(root: Path, target: str) -> str:
    """A stage's name, a file or FILE:STAGE, as seen from `root`."""
    if target.endswith((".yaml", ".dvc")):
        return str(root / target)
    file, _, stage = target.rpartition(":")
    return f"{root / (file or 'dvc.yaml')}:{stage}"


def _work(repo: Repo, targets: Sequence[str]) -> dict[str, Work]:
    """What may have to run, in an order in which each stands after what it reads."""
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    graph = get_active_graph(repo.index.graph)
    order: list[Stage] = plan_repro(graph, collect_stages(repo, targets))
    wanted: set[Stage] = set()

    def changed(stage: Stage, upstream: list[Stage]) -> bool:
        """Whether it was made of something else. Students depend on how the datasets of their mix were collected, not on what
        came out: where that is all that differs, nobody needs them collected.
        """
        if not _is_mix(stage):
            return bool(stage.changed(allow_missing=True, upstream=upstream))
        made = {out.fs_path for s in upstream for out in s.outs}
        return any(dep.status() for dep in stage.deps if dep.fs_path not in made)

    for stage in order:
        upstream = list(graph.successors(stage))
        never_run = not all(out.hash_info for out in stage.outs)  # DVC takes that for data that are merely missing
        if never_run or not wanted.isdisjoint(upstream) or changed(stage, upstream):
            wanted.add(stage)

    for stage in reversed(order):
        if stage in wanted:
            absent = {maker for maker in _read_by(graph, stage) if _lacks(graph, stage, maker)}
            wanted |= absent
            # What is made again may come out otherwise, as may what is there: the mix names it by its digest.
            for mix in filter(_is_mix, graph.successors(stage)):
                if absent.intersection(graph.successors(mix)) or any(dep.exists and dep.status() for dep in mix.deps):
                    wanted.add(mix)
    return {s.addressing: Work(s, frozenset(x.addressing for x in _read_by(graph, s) & wanted)) for s in order if s in wanted}


def _mixed(graph: DiGraph, stage: Stage) -> set[Stage]:
    """What makes the datasets of a mix that a stage learns from: a mix is a list, these are read as well."""
    learns = str(stage.cmd).startswith(DISTILL)
    return {maker for mix in graph.successors(stage) if learns and _is_mix(mix) for maker in graph.successors(mix)}


def _read_by(graph: DiGraph, stage: Stage) -> set[Stage]:
    """What makes the inputs of a stage."""
    return {*graph.successors(stage), *_mixed(graph, stage)}


def _is_mix(stage: Stage) -> bool:
    return str(stage.cmd).startswith(MIX)


def _lacks(graph: DiGraph, stage: Stage, maker: Stage) -> bool:
    """Whether something is missing of what a stage reads of another's: it need not read all."""
    outs = [out for out in maker.outs if not out.exists]
    return bool(outs) and (maker in _mixed(graph, stage) or any(_overlap(out, dep) for out in outs for dep in stage.deps))


def _overlap(out: Output, dep: Output) -> bool:
    """Whether one lies in the other, or is it."""
    made, read = Path(out.fs_path), Path(dep.fs_path)
    return made.is_relative_to(read) or read.is_relative_to(made)


def _run(
    repo: Repo, work: dict[str, Work], failed: dict[str, Path], uncommitted: list[Stage] | None, *, jobs: int
) -> Generator[Progress, None, None]:
    """Run all of it, and tell how many have ended. Those that fail are put in `failed` with what they said, those that wait
    for them are left out. With `uncommitted` each is committed as it ends; there stand
    those that Git refused. Closed before its end, it interrupts what runs and waits: all of ours save what they have.
    """
    waiting, running, ended = dict(work), dict[str, Running](), set[str]()
    environment = {"OMP_NUM_THREADS": str(max(1, core_count() // jobs))} | os.environ
    try:
        while waiting or running:
            for name, job in list(waiting.items()):
                if len(running) < jobs and job.after <= ended:
                    running[name] = _start(waiting.pop(name).stage, environment)
                    say(f"{name} runs, and says how far it is in {running[name].log}")
            for name, it in list(running.items()):
                if (status := it.process.poll()) is None:
                    continue
                del running[name]
                ended.add(name)
                took = duration(time.monotonic() - it.began)
                if status:
                    failed[name] = it.log
                    said = it.log.read_text(errors="replace").splitlines()[-TOLD_LINES:]
                    say("\n".join([f"{name} failed after {took}:", *(f"  {line}" for line in said)]))
                    _leave_out(waiting, name)
                else:
                    say(f"{name} in {took}")
                    if uncommitted is not None:
                        uncommitted[:] = [stage for stage in [*uncommitted, work[name].stage] if not _commit(repo, stage)]
            yield Progress(done=len(ended), total=len(ended) + len(running) + len(waiting), unit="stages", metrics={})
            time.sleep(LOOK_EVERY_SECONDS)
    finally:
        for it in running.values():
            os.killpg(it.process.pid, signal.SIGINT)
        for it in running.values():
            it.process.wait()


def _start(stage: Stage, environment: Mapping[str, str]) -> Running:
    """Its processes are a group of their own: an interrupt reaches them once, from us."""
    file = Path(stage.path)
    address = f"{file.name}:{stage.name}"
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", address]
    with _open_log(stage) as out:
        out.truncate(0)
        process = subprocess.Popen(
            command, cwd=file.parent, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Running(process, Path(out.name), time.monotonic())


def _open_log(stage: Stage) -> BinaryIO:
    """Where a stage says how far it is, locked for as long as one of its processes has it. ValueError where one has: a `repro`
    that is killed leaves them running.
    """
    log = Path(stage.path).parent / ".work/repro" / f"{stage.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    out = log.open("ab")
    try:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        out.close()
        raise ValueError(
            f"{stage.addressing} is running, begun by another `repro` or one that was killed: wait until it has ended "
            f"(it tells how far it is in {log}), or stop it"
        ) from None
    return out


def _leave_out(waiting: dict[str, Work], failed: str) -> None:
    """Whatever waits for it, and whatever waits for that."""
    for name in [name for name, job in waiting.items() if failed in job.after]:
        if waiting.pop(name, None):
            _leave_out(waiting, name)


def _commit(repo: Repo, stage: Stage) -> bool:
    """What it made that Git keeps, and where DVC notes the rest. False, and says so, where Git refuses: stages go on."""
    root = Path(repo.root_dir)
    made = [str(out.fs_path) for out in stage.outs if not out.use_cache]
    ignored = [str(Path(out.fs_path).parent / ".gitignore") for out in stage.outs if out.use_cache]
    paths = [path for path in (str(Path(stage.path).parent / "dvc.lock"), *made, *ignored) if Path(path).exists()]
    with repo.lock:  # nobody writes dvc.lock meanwhile
        try:
            subprocess.run(["git", "add", "--", *paths], cwd=root, check=True)
            changed = subprocess.run(["git", "diff", "--cached", "--quiet", "--", *paths], cwd=root, check=False).returncode
            if changed:
                subprocess.run(
                    ["git", "commit", "--quiet", "-m", f"Run {stage.addressing}", "--", *paths], cwd=root, check=True
                )
        except subprocess.CalledProcessError as error:
            say(f"{stage.addressing} is not committed, `{shlex.join(error.cmd)}` failed")
            return False
    return True
