"""What a setting of a PQN teacher does: short trainings that differ from a params.yaml in one setting each, one seed.

    python -m benchmarks.settings [--params params.yaml] [--game Pong] [--steps 2400000] SETTING=VALUE ...

Schedules end with the budget, so a score here is not one of a longer training's curve; and what is played are averages of the
weights, which say nothing before some 5,000 updates.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from stages import params as settings

EPISODES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--game", default="Pong")
    parser.add_argument("--steps", type=int, default=2_400_000)
    parser.add_argument("changes", nargs="+", help="as epochs=1, 'epsilon_low=0.05 epsilon_high=0.15' or '' for none")
    options = parser.parse_args()
    try:
        settings.pick(settings.load(options.params).teachers, options.game, "teacher")
    except ValueError as error:
        parser.error(str(error))
    print(f"{options.game}, {options.steps:,} steps each: the better of two snapshots over {EPISODES} episodes", flush=True)
    for change in options.changes:
        with tempfile.TemporaryDirectory() as name:
            value, minutes, half = _train(Path(name), options.params, options.game, options.steps, change)
        print(f"{change or 'as it is':40} {value:10.2f}  {half:10.2f} half way  {minutes:5.1f} minutes", flush=True)


def _train(folder: Path, source: Path, game: str, steps: int, change: str) -> tuple[float, float, float]:
    """The mean return of the better snapshot, minutes of training, and the mean return half way."""
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(source.read_text())
    teacher = params["teachers"][game]
    params["teachers"] = {game: teacher}
    params["zoo"] = "teachers"
    teacher |= {"steps": steps, "select_every": steps // 2, "gate_return": -1e9, "gate_episodes": EPISODES}
    params["teacher_presets"][teacher["preset"]]["pqn"] |= {
        name: yaml.load(value) for name, value in (pair.split("=") for pair in change.split())
    }
    yaml.dump(params, folder / "params.yaml")
    command = ["pd-pipeline", "--params", str(folder / "params.yaml"), "train-teacher", "--game", game]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    made = folder / "teachers" / game
    with (made / "curve.csv").open(newline="") as file:
        scored = [row for row in csv.DictReader(file) if row["eval_return"]]
    return (
        float(json.loads((made / "card.json").read_text())["evaluation"]["mean_return"]),
        float(scored[-1]["seconds"]) / 60,
        float(scored[0]["eval_return"]),
    )


if __name__ == "__main__":
    main()
