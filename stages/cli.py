"""`pd-pipeline`: one command per stage. Commands import what they need when they run, so --help answers at once."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stages.dataset import dataset, licence_option, printable

if TYPE_CHECKING:
    from stages.params import Params
    from stages.paths import Layout


@dataclass(slots=True)
class Session:
    """The params file in use and what is read from it, once."""

    params_path: Path

    def load(self) -> tuple[Layout, Params]:
        from stages import params

        return params.load_project(self.params_path)


class Group(click.Group):
    """Turns the errors that users can mend into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            raise _shown(str(error)) from None
        except BrokenPipeError:
            raise  # `| head` has seen enough: click ends quietly
        except OSError as error:
            if error.errno == errno.ENOSPC:
                where = f" ({error.filename})" if error.filename else ""
                remedy = "free some space and run the same command again; finished work is kept"
                raise _shown(f"no space left on the disk{where}: {remedy}") from None
            raise _shown(": ".join(str(x) for x in (error.strerror or error, error.filename) if x)) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)


def _shown(fault: str) -> click.ClickException:
    """A fault, which may quote what a stranger wrote."""
    return click.ClickException("\n".join(map(printable, fault.split("\n"))))


device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pd-pipeline")
@click.option(
    "--params",
    "params_path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="The params file; its folder holds data/.",
)
@click.option(
    "--tensorboard",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also write what learning measures, and its evaluations, as TensorBoard events there.",
)
@click.pass_context
def main(ctx: click.Context, params_path: Path, tensorboard: Path | None) -> None:
    """Turn strong game-playing teachers into small, fast students, from versioned datasets."""
    ctx.obj = Session(params_path)
    if tensorboard is not None:
        from stages.runlog import record_in

        record_in(tensorboard)


@main.command()
@click.argument("game")
@click.option("--steps", type=click.IntRange(min=8), default=1_000_000, show_default=True, help="How long its teacher learns.")
@click.option(
    "--gate",
    type=float,
    help="Mean return that its teacher must reach. [default: the upper end of the random agent's interval over 30 episodes]",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="[default: experiments/GAME]")
@click.pass_obj
def new(session: Session, /, **options: Any) -> None:
    """Begin an experiment with GAME: params.yaml and dvc.yaml in a folder of its own, ready for `dvc repro`."""
    from stages import new as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, session.params_path, **options))


begin_option = click.option(
    "--from",
    "start",
    type=click.Path(path_type=Path),
    help="Begin from a published agent's folder, or the checkpoint of a run with other settings; the card tells.",
)
snapshot_option = click.option(
    "--snapshot",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Only publish there what the unfinished run has learned: --from goes on from it on another machine.",
)


@main.command("train-teacher")
@click.option("--game", required=True, help="An ALE name, any case: Pong, Breakout, MsPacman, ...")
@begin_option
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop learning after so much training time, if the steps are not spent by then, and try the gate.",
)
@click.option("--seed", type=click.IntRange(0, 99), help="Another seed than params.yaml's; wants --out.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder. [default: data/teachers/GAME, or where `zoo` is]"
)
@snapshot_option
@device_option
@click.pass_obj
def train_teacher(session: Session, /, device: str, game: str, **options: Any) -> None:
    """Train a teacher from reward and publish it if it passes its gate.

    Killed or stopped, the same command goes on where it was.
    """
    from stages import train_teacher as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, game, device_name=device, **options))


@main.command("import-teacher")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--from", "source", type=click.Choice(["sb3", "cleanrl"]), required=True, help="Who wrote FILE.")
@click.option("--game", required=True, help="An ALE name, any case: Pong, Breakout, MsPacman, ...")
@click.option(
    "--gate",
    "gate_return",
    type=float,
    help="Mean return it must exceed. [default: its 95 % interval must lie above the random agent's]",
)
@click.option("--episodes", type=click.IntRange(min=1), default=200, show_default=True, help="Episodes of its evaluation.")
@device_option
@click.pass_obj
def import_teacher(session: Session, /, device: str, game: str, **options: Any) -> None:
    """Accept somebody else's DQN checkpoint as the teacher of a game, after evaluating it. Nothing but tensors is loaded."""
    from stages import import_teacher as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, game, device_name=device, **options))


@main.command()
@click.option("--game", help="An ALE name, any case: Pong, Breakout, MsPacman, ...")
@click.option("--dataset", metavar="NAME", help="Its name in params.yaml. [default: the game's]")
@click.option("--states", type=click.IntRange(min=1), help="Exactly this many states. [default: params.yaml]")
@click.option("--episodes", type=click.IntRange(min=1), help="This many whole episodes, instead of --states.")
@click.option("--epsilon", type=click.FloatRange(0, 1), help="Random-action probability. [default: params.yaml]")
@click.option("--seed", type=click.IntRange(0, 99), help="Root seed. [default: params.yaml]")
@click.option("--actor", metavar="AGENT", help="Who acts, in the teacher's place: students/MIX/VARIANT-SEED or a folder.")
@click.option(
    "--labels-from",
    metavar="TEACHER",
    type=click.Path(file_okay=False, path_type=Path),
    help="The teacher's folder, whose Q-values are recorded. [default: data/teachers/GAME, or where `zoo` is]",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Local worker processes, one core each. [default: all cores that it may use]"
)
@click.option("--scheduler", help="An existing Dask cluster, tcp://HOST:PORT, instead of local workers.")
@click.option("--out", help="Folder or URL (s3://...) of the dataset. [default: data/datasets/NAME]")
@licence_option
@click.option("--dry-run", is_flag=True, help="Play for ten seconds and tell blocks, size and time.")
@click.pass_obj
def collect(session: Session, /, **options: Any) -> None:
    """Let a teacher, or with --actor a student, play; store every state with the teacher's Q-values.

    The same command goes on where it was stopped, and from a smaller dataset of the same settings.
    """
    from stages import collect as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, **options))


@main.command()
@click.option("--mix", required=True, help="A name in params.yaml's `mixes`.")
@click.pass_obj
def mix(session: Session, mix: str) -> None:
    """Freeze, by digest, which datasets a mix's students learn from."""
    from stages import mix as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, mix))


@main.command()
@click.option("--student", required=True, metavar="MIX/VARIANT", help="A mix and a name in params.yaml's `students`.")
@click.option(
    "--seed", type=click.IntRange(0, 99), default=0, show_default=True, help="Weights, batches and held-out episodes."
)
@device_option
@click.pass_obj
def distill(session: Session, student: str, seed: int, device: str) -> None:
    """Train a student from a mix's stored datasets alone.

    Killed or stopped, the same command goes on where it was.
    """
    from stages import distill as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, student, seed, device))


@main.command("train-multitask")
@click.option("--baseline", required=True, metavar="MIX/VARIANT", help="A mix and a name in params.yaml's `multitask`.")
@click.option("--seed", type=click.IntRange(0, 99), default=0, show_default=True, help="Weights, minibatches and episodes.")
@begin_option
@snapshot_option
@device_option
@click.pass_obj
def train_multitask(session: Session, /, baseline: str, seed: int, device: str, **options: Any) -> None:
    """Train one network on a mix's games from reward, without teachers.

    Killed or stopped, the same command goes on where it was.
    """
    from stages import train_multitask as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, baseline, seed, device, **options))


@main.command("train-history")
@click.option("--game", required=True, help="An ALE name, any case: Pong, Breakout, MsPacman, ...")
@click.option("--seed", type=click.IntRange(0, 99), default=0, show_default=True, help="Weights, minibatches and episodes.")
@device_option
@click.pass_obj
def train_history(session: Session, game: str, seed: int, device: str) -> None:
    """Let a teacher learn and keep its snapshots, each with what it scored.

    Killed or stopped, the same command goes on where it was.
    """
    from stages import history as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, game, seed, device))


@main.command("distill-online")
@click.option("--game", required=True, help="An ALE name, any case: Pong, Breakout, MsPacman, ...")
@click.option(
    "--seed", type=click.IntRange(0, 99), default=0, show_default=True, help="Of the teacher's run and the student's."
)
@click.option("--replay", is_flag=True, help="Follow the history that train-history recorded, not a teacher that learns now.")
@device_option
@click.pass_obj
def distill_online(session: Session, game: str, seed: int, device: str, replay: bool) -> None:
    """Train a student from the best policy so far of a teacher that is still learning.

    Killed or stopped, the same command goes on after the last point: teacher, student and dataset together.
    """
    from stages import distill_online as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, game, seed, device, replay=replay))


@main.command()
@click.option("--game", required=True, help="An ALE name, any case: Pong, Breakout, MsPacman, ...")
@click.option("--seed", type=click.IntRange(0, 99), default=0, show_default=True, help="Of the recorded run.")
@click.option("--dataset", metavar="PATH_OR_URL", help="Whose states are shown. [default: those of the student's last]")
@click.option("--states", type=click.IntRange(1, 100), default=8, show_default=True, help="How many.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: data/history-GAME-SEED.html]")
@click.pass_obj
def history(session: Session, /, **options: Any) -> None:
    """Show how a recorded policy came to be: which action each snapshot preferred, in states where that matters most."""
    from stages import show_history as stage

    layout, _ = session.load()
    click.echo(stage.run(layout, **options))


protocol_option = click.option(
    "--protocol",
    type=click.Choice(["paper", "greedy", "sticky"]),
    help="Starts, epsilon and limit by name; results are those of AGENT@PROTOCOL. [default: params.yaml's]",
)


elsewhere_option = click.option(
    "--other-environment", is_flag=True, help="Let agents play that were made in another environment; scores are marked."
)


@main.command()
@click.argument("agents", nargs=-1, required=True, metavar="AGENT...")
@click.option("--game", help="Which of their games, for agents of several.")
@protocol_option
@elsewhere_option
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Play on so many worker processes, one core each. [default: none, in this process]",
)
@click.option("--scheduler", help="Play on an existing Dask cluster, tcp://HOST:PORT.")
@device_option
@click.pass_obj
def evaluate(session: Session, /, device: str, agents: tuple[str, ...], **options: Any) -> None:
    """Play whole episodes with AGENTs, on seeds that neither training, collecting nor selection uses: teachers/GAME,
    students/MIX/VARIANT-SEED, multitask/MIX/VARIANT-SEED, online/GAME-SEED, history/GAME-SEED/best (or /last, or a snapshot,
    /007), followers/GAME-SEED/007 (who followed, as it was there), random/GAME or an agent's folder, whose results are called
    what the folder is.

    Killed or stopped, the same command goes on where it was, and from fewer episodes of the same agent, protocol and seeds
    to more. Where and how many play at once does not change the scores.
    """
    from stages import evaluate as stage

    layout, params = session.load()
    for path in stage.run(layout, params, agents, device_name=device, **options):
        click.echo(path)


@main.command()
@click.argument("agents", nargs=-1, required=True, metavar="AGENT...")
@click.option("--game", help="Which of their games, for agents of several.")
@click.option(
    "--episode", type=click.IntRange(0, 999_999), default=0, show_default=True, help="Which of the evaluation's episodes."
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="The episode of this environment seed instead.")
@click.option("--epsilon", type=click.FloatRange(0, 1), help="Random-action probability. [default: the protocol's]")
@protocol_option
@elsewhere_option
@click.option(
    "--video", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.mp4", help="Film it; several side by side."
)
@click.option("--steps", type=click.IntRange(min=1), help="Only so many; 15 are a second. [default: the whole episode]")
@click.option(
    "--scale", type=click.IntRange(1, 8), default=3, show_default=True, help="Pixels of the video per pixel of the game."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@device_option
@click.pass_obj
def play(session: Session, /, device: str, agents: tuple[str, ...], **options: Any) -> None:
    """Watch AGENTs play an episode: what they see, what they think of each action, what they do.

    Unless --seed or --epsilon say otherwise it is the very episode that `evaluate` scored.
    """
    from stages import play as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, agents, device_name=device, **options))


@main.command()
@click.argument("agent")
@click.option("--game", required=True, help="Which of its games.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The new agent's folder.")
@click.pass_obj
def cut(session: Session, agent: str, game: str, out: Path) -> None:
    """Make an agent of one game out of AGENT, which plays several: the trunk and that game's head, as they are."""
    from stages import cut as stage

    layout, _ = session.load()
    click.echo(stage.run(layout, agent, game, out))


@main.command()
@click.argument("agent")
@click.option("--to", type=click.Choice(["onnx", "torchscript"]), required=True, help="The file's format.")
@click.option("--game", help="Which of its games, for an agent of several.")
@click.option(
    "--dataset",
    metavar="PATH_OR_URL",
    help="Whose states the file and AGENT are compared on. [default: those that it learned from, or the game's]",
)
@click.option("--states", type=click.IntRange(1, 65_536), default=4096, show_default=True, help="How many.")
@click.option("--out", type=click.Path(path_type=Path), help="The file. [default: data/exports/AGENT.onnx or .pt]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def export(session: Session, /, agent: str, **options: Any) -> None:
    """Write AGENT as one file that runs without pd-pipeline, once it is seen to choose as AGENT does; time both and teacher.

    AGENT is teachers/GAME, students/MIX/VARIANT-SEED, multitask/MIX/VARIANT-SEED, online/GAME-SEED, history/GAME-SEED/best or a
    folder. Exit code 1 and no file where fewer than 99.9 % of its actions are the same.
    """
    from stages import export as stage

    layout, _ = session.load()
    click.echo(stage.run(layout, agent, **options))


@main.command()
@click.option("--anew", is_flag=True, help="As if there were nothing yet.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def plan(session: Session, anew: bool, as_json: bool) -> None:
    """Tell what of params.yaml's grid is done, what is left, and about how long that takes on this machine.

    Speeds are measured, a second or two each. A stage that was stopped half way counts as a whole, though it resumes.
    """
    import json

    from stages.plan import jobs, told
    from stages.runlog import duration

    layout, params = session.load()
    found = list(jobs(layout, params, anew=anew))
    left = [job for job in found if not job.done]
    if as_json:
        seconds = sum(job.seconds or 0.0 for job in left)
        click.echo(json.dumps({"jobs": [job._asdict() for job in found], "seconds_left": seconds}))
        return
    for job in left:
        click.echo(f"{job.stage:17}{job.name:48}{'unknown' if job.seconds is None else duration(job.seconds):>9}")
    click.echo(f"{len(found) - len(left)} of {len(found)} done; what is left takes {told(left)}")


@main.command()
@click.argument("targets", nargs=-1)
@click.option("-j", "--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="So many stages at a time.")
@click.option("--commit", is_flag=True, help="Commit what each stage made that Git keeps, and its dvc.lock, as it ends.")
@click.option("--dry", is_flag=True, help="Only list the stages that would run.")
@click.pass_obj
def repro(session: Session, /, **options: Any) -> None:
    """Run what of TARGETs has changed or was never made, several stages at a time, which share the cores. `dvc repro` would
    have everything here that any of them reads.

    TARGETs are stages, or dvc.yaml files, of the folder of params.yaml; by default its dvc.yaml. It says first about how long
    they take. What is merely not here, as a dataset in a fresh clone, is made again only where a stage to run reads it: `dvc
    pull` or `dvc repro` brings the rest. Where a stage fails, those that wait for it are left out and the others run. Stopped
    or killed, the same command goes on where it was.
    """
    from stages import repro as stage

    if session.params_path.name != "params.yaml":
        raise ValueError(
            f"stages read params.yaml, not {session.params_path.name}: give the one beside the dvc.yaml, or change that"
        )
    click.echo(stage.run(*session.load(), **options))


@main.command()
@click.option(
    "--paper", type=click.Path(dir_okay=False, path_type=Path), help="Also write the paper's tables beside ours there."
)
@click.option("--partial", is_flag=True, help="Leave out what has not been evaluated yet.")
@click.option("--latency", is_flag=True, help="Time the networks on this machine, and draw scores against it too.")
@click.pass_obj
def report(session: Session, paper: Path | None, partial: bool, latency: bool) -> None:
    """Score every agent of params.yaml's grid and write data/report/index.html."""
    from stages import report as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, paper, partial=partial, latency=latency))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def doctor(session: Session, as_json: bool) -> None:
    """Examine this machine and checkout: what will be slow or fail, why, and what helps. Exit code 1 if something will fail."""
    from stages import doctor as stage

    text, fine = stage.run(session.params_path.parent, as_json=as_json)
    click.echo(text)
    if not fine:
        sys.exit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def games(as_json: bool) -> None:
    """List every game that the installed ale-py can play, with published scores of the paper's ten."""
    import json
    from dataclasses import asdict

    from pipeline.atari.games import games as known

    if as_json:
        click.echo(json.dumps([asdict(spec) for spec in known().values()], indent=2))
        return
    click.echo(f"{'game':22}{'random':>9}{'human':>9}{'DQN':>9}   Mnih et al. 2015, Extended Data Table 2")
    for spec in known().values():
        r = spec.reference
        click.echo(f"{spec.name:22}{r.random:9.1f}{r.human:9.1f}{r.dqn:9.1f}" if r else spec.name)


main.add_command(dataset)


if __name__ == "__main__":
    main()
