"""repro: stages of a real DVC repository, several at a time."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.params import Params, load
from stages.paths import Layout
from stages.plan import Job
from stages.repro import run
from tests.repositories import new_repository
from tests.repositories import run as command

pytestmark = [pytest.mark.end_to_end, pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")]  # DVC's

ROOT = Path(__file__).parents[2]
UNTIL = "for i in $(seq 200); do [ -e {} ] && {}; sleep 0.1; done; exit 1"
"""Once a file is there, do something."""


def experiment(folder: Path, stages: Mapping[str, Any]) -> Layout:
    new_repository(folder)
    YAML().dump({"stages": stages}, folder / "dvc.yaml")
    return Layout(folder, folder / "zoo")


def makes(path: str, cmd: str | None = None, *deps: str, cached: bool = False) -> dict[str, Any]:
    """A stage that writes a file."""
    out = path if cached else {path: {"cache": False}}
    return {"cmd": cmd or f"echo {path} > {path}", "deps": list(deps), "outs": [out]}


def repro(layout: Layout, *targets: str, jobs: int = 2, commit: bool = False, dry: bool = False) -> str:
    """As from the experiment's folder, which its stages are named from."""
    with contextlib.chdir(layout.root):
        return run(layout, None, targets, jobs=jobs, commit=commit, dry=dry)


def test_stages_run_beside_each_other_and_after_what_they_read_and_are_committed(tmp_path: Path) -> None:
    meet = {
        "left": makes("left", f"touch l; {UNTIL.format('r', 'echo > left && exit 0')}"),
        "right": makes("right", f"touch r; {UNTIL.format('l', 'echo > right && exit 0')}", cached=True),
        "both": makes("both", "cat left right > both", "left", "right"),
    }
    layout = experiment(tmp_path / "repo", meet)
    assert repro(layout, dry=True).split() == ["left", "right", "both"]
    assert repro(layout, commit=True) == "3 stages"
    assert repro(layout) == "nothing to run"
    kept = subprocess.run(["git", "ls-files"], cwd=layout.root, capture_output=True, text=True, check=True).stdout.split()
    assert kept == [".gitignore", "both", "dvc.lock", "left"]
    log = subprocess.run(["git", "log", "--format=%s"], cwd=layout.root, capture_output=True, text=True, check=True).stdout
    assert sorted(log.splitlines()) == ["Run both", "Run left", "Run right"]


def test_what_git_refuses_is_committed_after_the_next_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = {"one": makes("one"), "two": makes("two", "rm .git/index.lock; echo > two", "one")}
    layout = experiment(tmp_path / "repo", stages)
    (layout.root / ".git/index.lock").touch()
    assert repro(layout, commit=True) == "2 stages"
    assert "one is not committed, `git add" in capsys.readouterr().err
    log = subprocess.run(["git", "log", "--format=%s"], cwd=layout.root, capture_output=True, text=True, check=True).stdout
    assert log.splitlines() == ["Run two", "Run one"]


def test_where_a_stage_fails_the_others_run_and_a_repetition_runs_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {
        "bad": makes("bad", "echo no luck; [ -e luck ] && echo > bad"),
        "worse": makes("worse", None, "bad"),
        "worst": makes("worst", None, "worse"),
        "good": makes("good"),
    }
    layout = experiment(tmp_path / "repo", stages)
    with pytest.raises(ValueError, match=r"1 of 4 stages failed.*\n  bad: .*repo/\.work/repro/bad\.log"):
        repro(layout, jobs=1)
    assert "no luck" in capsys.readouterr().err
    assert (layout.root / "good").exists()
    assert not (layout.root / "worse").exists()
    (layout.root / "luck").touch()
    assert repro(layout) == "3 stages"
    assert (layout.root / "worst").exists()


def test_data_are_made_again_for_who_reads_them_alone(tmp_path: Path) -> None:
    """As in experiments: students are in Git, the datasets that their mix names are not."""
    stages = {
        "collect": makes("data", cached=True),
        "mix": makes("mix", "pd-pipeline mix --mix m", "data"),
        "distill-old": makes("old", "pd-pipeline distill --student old", "mix"),
        "distill-new": makes("new", "pd-pipeline distill --student new", "mix"),
        "evaluate": makes("scores", "pd-pipeline evaluate old", "old"),
        "report": makes("page", "pd-pipeline report", "mix"),
    }
    layout = experiment(tmp_path / "repo", stages)
    for name in ("data", "mix", "old"):
        (layout.root / name).touch()
    command(layout.root, "dvc", "commit", "-q", "-f", "mix", "collect", "distill-old")
    (layout.root / "data").unlink()
    assert repro(layout, "distill-old", dry=True) == "nothing to run"
    assert repro(layout, "evaluate", "report", dry=True).split() == ["evaluate", "report"]
    assert repro(layout, "dvc.yaml", dry=True).split() == ["collect", "mix", "distill-new", "evaluate", "report"]


def test_of_what_a_stage_makes_only_what_is_read_must_be_there(tmp_path: Path) -> None:
    """As of who follows a learning teacher: the student is in Git, what it learned from is not."""
    follow = makes("student", "touch student versions")
    follow["outs"].append("versions")
    stages = {"follow": follow, "evaluate": makes("scores", None, "student"), "history": makes("page", None, "versions")}
    layout = experiment(tmp_path / "repo", stages)
    for name in ("student", "versions"):
        (layout.root / name).touch()
    command(layout.root, "dvc", "commit", "-q", "-f", "follow")
    (layout.root / "versions").unlink()
    assert repro(layout, "follow", dry=True) == "nothing to run"
    assert repro(layout, "evaluate", dry=True) == "evaluate"
    assert repro(layout, "history", dry=True).split() == ["follow", "history"]


def test_students_are_not_made_anew_because_their_data_came_out_otherwise(tmp_path: Path) -> None:
    """As where they were collected on another make of CPU: the mix names other digests, and the same recipes."""
    collect = makes("data", "cat shade > data", "recipe", cached=True)  # the shade is what nobody records
    mix = makes("mix", "pd-pipeline mix --help > /dev/null; cp data mix; cp recipe recipes", "data", "recipe")
    mix["outs"].append({"recipes": {"cache": False}})
    old, new, newer = (
        makes(name, f"pd-pipeline distill --help > /dev/null; date +%N > {name}", "recipes") for name in ("old", "new", "newer")
    )
    layout = experiment(tmp_path / "repo", {"collect": collect, "mix": mix, "distill-old": old})
    (layout.root / "recipe").write_text("as asked")
    (layout.root / "shade").write_text("light")
    assert repro(layout) == "3 stages"
    learned = (layout.root / "old").read_bytes()
    (layout.root / "data").unlink()
    shutil.rmtree(layout.root / ".dvc/cache")
    (layout.root / "shade").write_text("dark")
    assert repro(layout, dry=True) == "nothing to run"
    YAML().dump({"stages": {"collect": collect, "mix": mix, "distill-old": old, "distill-new": new}}, layout.root / "dvc.yaml")
    assert repro(layout) == "3 stages"
    assert (layout.root / "mix").read_text().startswith("dark")
    assert (layout.root / "old").read_bytes() == learned
    assert repro(layout, dry=True) == "nothing to run"
    (layout.root / "shade").write_text("dusk")  # `repro` that was killed before the mix
    command(layout.root, "dvc", "repro", "-q", "-f", "-s", "collect")
    assert repro(layout, dry=True) == "nothing to run"
    (layout.root / "new").unlink()
    assert repro(layout, "distill-new", dry=True) == "nothing to run"  # DVC's cache has none: it is merely missing
    stages = {"collect": collect, "mix": mix, "distill-old": old, "distill-new": new, "distill-newer": newer}
    YAML().dump({"stages": stages}, layout.root / "dvc.yaml")
    assert repro(layout, dry=True).split() == ["mix", "distill-newer"]
    (layout.root / "recipe").write_text("otherwise")
    assert repro(layout, dry=True).split() == ["collect", "mix", "distill-old", "distill-new", "distill-newer"]


def test_it_says_first_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = experiment(tmp_path / "repo", {"one": makes("one", "pd-pipeline evaluate --help > one"), "two": makes("two")})
    asked: list[tuple[str, str]] = []

    def jobs(layout: Layout, params: Params, wanted: Collection[tuple[str, str]]) -> list[Job]:
        asked.extend(wanted)
        return [Job("evaluate", ">/one", False, 90.0), Job("evaluate", "another", False, None)]

    monkeypatch.setattr("stages.plan.jobs", jobs)
    with contextlib.chdir(layout.root):
        run(layout, load(ROOT / "params.yaml"), [], jobs=1, commit=False, dry=False)
    assert asked == [("evaluate", ">/one")]
    assert "2 stages, about 1:30 on this machine, one after another" in capsys.readouterr().err


def test_an_unknown_stage_is_one_line(tmp_path: Path) -> None:
    layout = experiment(tmp_path / "repo", {"one": makes("one")})
    with pytest.raises(ValueError, match="Stage 'two' not found"):
        repro(layout, "two")


def begun(layout: Layout) -> subprocess.Popen[str]:
    """`repro` in a process of its own, of which a stage has touched the file `begun`."""
    code = "import sys, pathlib; from stages.paths import Layout; from stages.repro import run; \
run(Layout(pathlib.Path(sys.argv[1]), pathlib.Path('zoo')), None, [], jobs=2, commit=False, dry=False)"
    running = subprocess.Popen([sys.executable, "-c", code, str(layout.root)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (layout.root / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


def test_stopped_it_lets_its_stages_save_and_goes_on_later(tmp_path: Path) -> None:
    """SIGINT reaches each of them once."""
    script = (
        "import pathlib, time\n"
        "pathlib.Path('begun').touch()\n"
        "if pathlib.Path('saved').exists(): pathlib.Path('long').touch(); raise SystemExit\n"
        "try: time.sleep(100)\n"
        "except KeyboardInterrupt: time.sleep(1); pathlib.Path('saved').touch(); raise SystemExit(130)\n"
    )
    layout = experiment(tmp_path / "repo", {"long": makes("long", f"{sys.executable} work.py")})
    (layout.root / "work.py").write_text(script)
    running = begun(layout)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert "Stopped" in said
    assert (layout.root / "saved").exists()
    assert not (layout.root / "long").exists()
    assert repro(layout) == "1 stages"
    assert (layout.root / "long").exists()


def test_a_stage_that_outlives_a_killed_repro_is_not_begun_beside_itself(tmp_path: Path) -> None:
    layout = experiment(
        tmp_path / "repo", {"long": makes("long", f"touch begun; {UNTIL.format('go', 'echo > long && exit 0')}")}
    )
    with contextlib.chdir(layout.root):
        running = begun(layout)
    running.kill()
    running.communicate(timeout=60)
    with pytest.raises(ValueError, match="long is running, begun by another `repro` or one that was killed: wait"):
        repro(layout)
    (layout.root / "go").touch()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(ValueError):
            assert repro(layout) == "nothing to run"
            return
        time.sleep(0.2)
    pytest.fail("it never ended")


def test_what_dvc_says_of_a_stage_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = experiment(tmp_path / "repo", {"idle": makes("idle", "true")})
    with pytest.raises(ValueError, match="1 of 1 stages failed"):
        repro(layout)
    assert "output 'idle' does not exist" in capsys.readouterr().err


def test_what_git_refuses_to_the_end_is_an_error(tmp_path: Path) -> None:
    layout = experiment(
        tmp_path / "repo", {"one": makes("one"), "two": makes("two", "touch .git/index.lock; echo > two", "one")}
    )
    with pytest.raises(ValueError, match=r"not committed, as Git refused: two: commit what `git status` shows"):
        repro(layout, commit=True)
    assert (layout.root / "two").exists()
