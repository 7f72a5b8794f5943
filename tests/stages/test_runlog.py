"""What a stage measures as it runs, as TensorBoard events."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.progress import Progress
from stages import runlog
from stages.cli import main


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runlog, "_events", None)
    assert CliRunner().invoke(main, ["--tensorboard", str(tmp_path), "games", "--json"]).exit_code == 0
    return tmp_path


def work() -> Iterator[Progress]:
    for done in range(1, 4):
        yield Progress(done=done * 100, total=300, unit="steps", metrics={"return": done / 2, "loss": 1 / done})


def test_every_metric_of_every_moment_is_written(events: Path) -> None:
    for title in ("train Pong", "evaluate students/pong/kl-0@sticky"):
        for _ in runlog.show(work(), title):
            pass
    assert sorted(path.name for path in events.iterdir()) == ["evaluate-students-pong-kl-0@sticky", "train-Pong"]
    told = EventAccumulator(str(events / "train-Pong")).Reload()
    assert [(event.step, event.value) for event in told.Scalars("return")] == [(100, 0.5), (200, 1.0), (300, 1.5)]
    assert [event.step for event in told.Scalars("loss")] == [100, 200, 300]


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runlog, "find_spec", lambda _: None)
    done = CliRunner().invoke(main, ["--tensorboard", str(tmp_path), "games"])
    assert done.exit_code == 1
    assert (
        done.stderr == "Error: --tensorboard wants the package tensorboard, which is not installed: pip install tensorboard\n"
    )
