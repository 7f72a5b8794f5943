"""Files appear whole or not at all, whatever disk they come from; two processes never work in one folder."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.datasets.folders import Folder
from stages.publish import alone_in, replace_folder, upload_folder


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of another file system than `tmp_path`'s."""
    memory = Path("/dev/shm")  # noqa: S108
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has one file system")
    folder = memory / tmp_path.name
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_a_folder_is_published_onto_another_disk(other_disk: Path, tmp_path: Path) -> None:
    for text in ("old", "new"):
        (tmp_path / "finished").mkdir()
        (tmp_path / "finished/file").write_text(text)
        replace_folder(tmp_path / "finished", other_disk / "target")
        assert (other_disk / "target/file").read_text() == text
        assert not (tmp_path / "finished").exists()
    assert [p.name for p in other_disk.iterdir()] == ["target"]


def test_a_second_process_is_kept_out_of_a_folder(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from stages.publish import alone_in\nwith alone_in(Path({str(tmp_path)!r})): pass"
    with alone_in(tmp_path):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"another process works in {tmp_path}" in second.stderr
    with alone_in(tmp_path):
        pass


def test_a_second_process_may_wait(tmp_path: Path) -> None:
    told = f"Path({str(tmp_path)!r}), wait=True"
    code = f"from pathlib import Path; from stages.publish import alone_in\nwith alone_in({told}): pass"
    with alone_in(tmp_path):
        second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert second.stdout is not None
        assert second.stdout.readline() == f"another process works in {tmp_path}: waiting for it\n"
        assert second.poll() is None
    rest, _ = second.communicate()
    assert (rest, second.returncode) == ("", 0)


def test_killed_between_two_renames_the_old_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finished(text: str) -> Path:
        (tmp_path / "finished").mkdir(exist_ok=True)
        (tmp_path / "finished/file").write_text(text)
        return tmp_path / "finished"

    def killed(path: Path, target: Path) -> Path:
        if path.name == "finished":
            raise KeyboardInterrupt
        return real(path, target)

    real, target = Path.rename, tmp_path / "target"
    replace_folder(finished("old"), target)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                replace_folder(finished("new"), target)
            assert (tmp_path / ".target.old/file").read_text() == "old"
    replace_folder(finished("new"), target)
    assert (target / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_an_upload_sends_what_is_new_first_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finished(**files: str) -> Path:
        folder = tmp_path / "finished"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        digests = {name: Folder(folder).digest(name) for name in files}
        (folder / "mark").write_text(json.dumps({"files": digests}))
        return folder

    sent: list[tuple[str, bool]] = []

    def write(folder: Folder, name: str, data: bytes) -> None:
        sent.append((name, folder.exists("mark")))
        real(folder, name, data)

    real, target = Folder.write, Folder(tmp_path / "target")
    monkeypatch.setattr(Folder, "write", write)
    list(upload_folder(finished(same="1", gone="2", other="3"), target, "mark"))
    assert [name for name, _ in sent] == ["gone", "other", "same", "mark"]
    sent.clear()
    later = finished(same="1", other="4", new="5")
    list(upload_folder(later, target, "mark"))
    assert sent == [("new", True), ("other", False), ("mark", False)]
    assert {name: target.read(name) for name in target.files()} == {p.name: p.read_bytes() for p in later.iterdir()}
    with monkeypatch.context() as patch:  # a request that fails tells nothing of what is there
        patch.setattr(Folder, "read", lambda *_: (_ for _ in ()).throw(ValueError("cannot be reached")))
        sent.clear()
        with pytest.raises(ValueError, match="cannot be reached"):
            list(upload_folder(later, target, "mark"))
        assert not sent
    sent.clear()
    target.remove("mark")  # as where it was killed: nobody knows what is there
    list(upload_folder(later, target, "mark"))
    assert len(sent) == 4
