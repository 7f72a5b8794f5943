"""What a stage measures as it runs, as TensorBoard events."""

import signal
from collections.abc import Iterator
from contextlib import suppress
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
    monkeypatch.setattr(runlog, "_writers", {})
    assert CliRunner().invoke(main, ["--tensorboard", str(tmp_path), "games", "--json"]).exit_code == 0
    return tmp_path


def work() -> Iterator[Progress]:
    for done in range(1, 4):
        yield Progress(done=done * 100, total=300, unit="steps", metrics={"return": done / 2, "loss": 1 / done})


def test_what_learning_measures_is_written(events: Path) -> None:
    for _ in runlog.show(work(), "play Pong"):
        pass
    assert not list(events.iterdir())
    read: EventAccumulator | None = None
    for p in runlog.show(work(), "train Pong", learning=True):
        read = read or EventAccumulator(str(events / "train-Pong"))  # one that looks on while it is written
        read.Reload()
        assert [event.step for event in read.Scalars("loss")] == list(range(100, p.done + 1, 100))
        if p.done == 200:
            runlog.mark("train Pong", 200, {"eval_return": 7.0})
    assert read is not None
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("return")] == [(100, 0.5), (200, 1.0), (300, 1.5)]
    assert [(event.step, event.value) for event in read.Scalars("eval_return")] == [(200, 7.0)]
    assert [path.name for path in events.iterdir()] == ["train-Pong"]


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runlog, "find_spec", lambda _: None)
    done = CliRunner().invoke(main, ["--tensorboard", str(tmp_path), "games"])
    assert done.exit_code == 1
    assert (
        done.stderr == "Error: --tensorboard wants the package tensorboard, which is not installed: pip install tensorboard\n"
    )


@pytest.mark.parametrize(("times", "kept"), [(1, [2]), (2, [])])
def test_what_learns_is_saved_between_two_yields_alone(times: int, kept: list[int]) -> None:
    """One Ctrl-C is heeded at the next yield, which is safe; a second one at once, where half a step may be done."""
    saved: list[int] = []
    state = 0

    def learning() -> Iterator[Progress]:
        nonlocal state
        for state in range(1, 4):
            if state == 2:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            yield Progress(done=state, total=3, unit="steps", metrics={})

    with suppress(KeyboardInterrupt), runlog.saved_when_stopped(lambda: saved.append(state), lambda: f"{state} steps"):
        for _ in runlog.show(learning(), "train Pong"):
            pass
    assert (state, saved) == (2, kept)


def test_what_is_shown_tidies_up_before_its_surroundings_do() -> None:
    """A collection cancels what its workers play, for which it needs the client that is closed after it."""
    happened: list[str] = []

    def collecting() -> Iterator[Progress]:
        try:
            for done in range(1, 4):
                if done == 2:
                    signal.raise_signal(signal.SIGINT)
                yield Progress(done=done, total=3, unit="states", metrics={})
        finally:
            happened.append("tidied up")

    with pytest.raises(KeyboardInterrupt) as interrupted:  # its traceback holds the generators for as long as it is held
        for _ in runlog.show(collecting(), "collect Pong"):
            pass
    happened.append("client closed")
    assert happened == ["tidied up", "client closed"]
    del interrupted
