"""`pd-pipeline`: one command per stage. Commands import what they need when they run, so --help answers at once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stages.params import Params
    from stages.paths import Layout


@dataclass(slots=True)
class Session:
    """The params file in use and what is read from it, once."""

    params_path: Path

    def load(self) -> tuple[Layout, Params]:
        from stages import params
        from stages.paths import Layout

        loaded = params.load(self.params_path)
        root = self.params_path.parent
        return Layout(root=root, zoo=root / loaded.zoo), loaded


class Group(click.Group):
    """Turns the errors that users can mend into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, FileNotFoundError, PermissionError) as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)


device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pd-pipeline")
@click.option(
    "--params", "params_path", type=click.Path(dir_okay=False, path_type=Path), default=Path("params.yaml"), show_default=True,
    help="The params file; its folder holds data/.",
)
@click.pass_context
def main(ctx: click.Context, params_path: Path) -> None:
    """Turn strong game-playing teachers into small, fast students, from versioned datasets."""
    ctx.obj = Session(params_path)


@main.command("train-teacher")
@click.option("--game", required=True, help="An ALE name, any case: Pong, Breakout, MsPacman, ...")
@device_option
@click.pass_obj
def train_teacher(session: Session, game: str, device: str) -> None:
    """Train a teacher from reward and publish it if it passes its gate."""
    from stages import train_teacher as stage

    layout, params = session.load()
    click.echo(stage.run(layout, params, game, device))


if __name__ == "__main__":
    main()
