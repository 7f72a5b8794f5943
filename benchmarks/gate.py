"""Minutes from nothing to a published Pong teacher, its selections and gate included, with the settings of params.yaml.

    python -m benchmarks.gate [--minutes 20]

`--minutes` bounds the training, as `pd-pipeline train-teacher --minutes` does; the gate comes on top.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GAME = "Pong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, before the gate")
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / GAME
        began = time.monotonic()
        command = ["pd-pipeline", "train-teacher", "--game", GAME, "--minutes", str(minutes), "--out", str(out)]
        done = subprocess.run(command, check=False)
        spent = time.monotonic() - began
        if done.returncode:
            sys.exit(f"{GAME}: no teacher after {spent / 60:.1f} minutes (see above)")
        card = json.loads((out / "card.json").read_text())
    evaluation = card["evaluation"]
    print(
        f"{GAME}: from nothing to a mean return of {evaluation['mean_return']:.2f} over {evaluation['episodes']} episodes "
        f"in {spent / 60:.1f} minutes, after {card['steps_trained']:,} steps"
    )


if __name__ == "__main__":
    main()
