"""Our aggregates against those of rliable, the paper's own code, in an environment of its own (slow: it is installed)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.report.aggregate import Estimate, estimates, improvement
from pipeline.report.bootstrap import RESAMPLES

WANTED = ["rliable==1.2.0", "arch==7.2.0", "pandas<3"]  # this arch fails on import under pandas 3
SCRIPT = """
import json, sys
import numpy as np
from rliable import library, metrics

np.random.seed(0)  # rliable draws from numpy's own
given = json.load(open(sys.argv[1]))
x, y = (np.array(given[name]) for name in "xy")  # runs x tasks
functions = [
    metrics.aggregate_iqm,
    metrics.aggregate_median,
    metrics.aggregate_mean,
    lambda scores: metrics.aggregate_optimality_gap(scores, gamma=100.0),
]
told = {}
for name, scores in (("x", x), ("y", y)):
    point, ends = library.get_interval_estimates(
        {name: scores},
        lambda scores: np.array([function(scores) for function in functions]),
        reps=given["reps"],
    )
    told[name] = [[float(p), *map(float, e)] for p, e in zip(point[name], ends[name].T)]
point, ends = library.get_interval_estimates(
    {"x,y": (x, y)},
    lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
    reps=given["few_reps"],
)
told["x,y"] = [[float(point["x,y"][0]), *map(float, ends["x,y"][:, 0])]]
print(json.dumps(told))
"""
REPS = RESAMPLES
FEW_REPS = 2_000
"""Of the probability of improvement, for which rliable runs scipy's test once per task and resample."""


def tolerance(theirs: list[float], reps: int) -> float:
    """How far two ends of intervals may lie apart that differ by their draws alone: 5 standard errors.

    A quantile p of R draws has the standard error sqrt(p (1 - p) / R) / density; near normal, the density at 2.5 % is 0.0584
    standard deviations^-1, and the interval is 3.92 of them wide.
    """
    _, low, high = theirs
    return float(5 * (high - low) / 3.92 * np.sqrt(0.025 * 0.975 * (1 / RESAMPLES + 1 / reps)) / 0.0584)


@pytest.mark.slow
@pytest.mark.timeout(900)  # an installation from the index
def test_aggregates_are_those_of_rliable(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-I", "-m", "pip", "install", "--quiet", *WANTED], check=True)
    rng = np.random.default_rng(0)
    x = rng.normal([90, 60, 120, 80], [20, 40, 30, 10], (30, 4))
    y = np.round(rng.normal([95, 65, 100, 85], [20, 40, 30, 10], (25, 4)) / 5) * 5  # with ties
    x[::3] = np.round(x[::3] / 5) * 5  # some of them with y's
    given = tmp_path / "scores.json"
    given.write_text(json.dumps({"x": x.tolist(), "y": y.tolist(), "reps": REPS, "few_reps": FEW_REPS}))
    script = tmp_path / "with_rliable.py"
    script.write_text(SCRIPT)
    told = json.loads(subprocess.run([python, "-I", script, given], check=True, capture_output=True, text=True).stdout)

    games = {
        name: {task: [score_N] for task, score_N in zip("ABCD", scores.T, strict=True)} for name, scores in (("x", x), ("y", y))
    }
    ours: dict[str, list[Estimate]] = {}
    for name, scores in games.items():
        found = estimates(scores)
        ours[name] = [found.iqm, found.median, found.mean, found.optimality_gap]
    ours["x,y"] = [improvement(games["x"], games["y"])]
    theirs = told | {"x,y": [[100 * number for number in numbers] for numbers in told["x,y"]]}
    for name, found_ours in ours.items():
        for own, other in zip(found_ours, theirs[name], strict=True):
            assert own.value == pytest.approx(other[0], abs=1e-9, rel=1e-12)
            assert own[1:] == pytest.approx(other[1:], abs=tolerance(other, FEW_REPS if name == "x,y" else REPS))
