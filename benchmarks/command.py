"""A benchmark's command line: its docstring is the help, and a user's mistake is one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any


def run(main: Callable[..., None], doc: str | None, **arguments: Any) -> None:
    """Call `main` with these positional arguments: each name with its default, or with a type where it has none; a list takes
    any number.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in arguments.items():
        if isinstance(default, type):
            parser.add_argument(name, type=default)
        elif isinstance(default, list):
            parser.add_argument(name, nargs="*", default=default)
        else:
            parser.add_argument(name, nargs="?", type=type(default), default=default)
    given = vars(parser.parse_args())
    try:
        main(**given)
    except ValueError as error:
        sys.exit(f"Error: {error}")
