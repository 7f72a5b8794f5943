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


def work(unit: str) -> Iterator[Progress]:
    for done in range(1, 4):
        yield Progress(done=done * 100, total=300, unit=unit, metrics={"return": done / 2, "loss": 1 / done})


def test_what_learning_measures_is_written(events: Path) -> None:
    for title, unit in (("train Pong", "steps"), ("distill pong/kl-0", "updates"), ("select teachers/Pong", "episodes")):
        for p in runlog.show(work(unit), title):
            if p.done == 200 and unit == "steps":
                runlog.mark(title, 200, {"eval_return": 7.0})
    assert sorted(path.name for path in events.iterdir()) == ["distill-pong-kl-0", "train-Pong"]
    told = EventAccumulator(str(events / "train-Pong")).Reload()
    assert [(event.step, event.value) for event in told.Scalars("return")] == [(100, 0.5), (200, 1.0), (300, 1.5)]
    assert [event.step for event in told.Scalars("loss")] == [100, 200, 300]
    assert [(event.step, event.value) for event in told.Scalars("eval_return")] == [(200, 7.0)]


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runlog, "find_spec", lambda _: None)
    done = CliRunner().invoke(main, ["--tensorboard", str(tmp_path), "games"])
    assert done.exit_code == 1
    assert (
        done.stderr == "Error: --tensorboard wants the package tensorboard, which is not installed: pip install tensorboard\n"
    )
