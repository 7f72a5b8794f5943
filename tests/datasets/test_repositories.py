"""A stranger's repository: what of its settings could run or read something here is refused before DVC sees it."""

import gc
import os
import secrets
import subprocess
from pathlib import Path

import pytest

from pipeline.datasets.folders import Folder
from pipeline.datasets.reader import open_dataset
from pipeline.datasets.repositories import UntrustedError, check_settings, check_stage, fetched
from tests.datasets.test_folders import repository
from tests.fakes import corridor_dataset
from tests.repositories import add_remotes, new_repository, publish, run

__all__ = ["repository"]


def committed(folder: Path, tag: str, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("__", "/")).write_text(text)
    run(folder, "git", "add", "--all", "--force")
    run(folder, "git", "commit", "-q", "-m", tag)
    run(folder, "git", "tag", tag)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, tagged v1, of a dataset on S3; nobody answers there, and a command waits to be run."""
    folder = new_repository(tmp_path_factory.mktemp("stranger") / "hostile")
    corridor_dataset(folder / "data", 3)
    aws = f"[default]\ncredential_process = touch {folder.parent / 'ran'}\nregion = eu-west-1\n"
    (folder / "aws").write_text(aws)
    settings = {"url": "s3://bucket/x", "endpointurl": "http://127.0.0.1:9", "configpath": "../aws"}
    add_remotes(folder, "cloud", cloud=settings)
    publish(folder, "data", "v1")
    run(folder, "rm", "-r", "data", ".dvc/cache")
    return folder


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_command_in_a_configuration_is_not_run(hostile: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    url = f"git+{form.format(hostile)}@v1:data"
    with pytest.raises(
        ValueError, match=r"@v1:data: its \.dvc/config sets 'configpath', .*: look at it, .* `dvc get`"
    ) as caught:
        open_dataset(url)
    assert "\n" not in str(caught.value)
    assert "AWS_CONFIG_FILE" not in os.environ
    assert not (hostile.parent / "ran").exists()


def test_the_revision_that_is_read_is_the_one_that_is_checked(repository: Path, tmp_path: Path) -> None:
    run(tmp_path, "git", "clone", "-q", str(repository), "clone")
    folder = tmp_path / "clone"
    config = (folder / ".dvc/config").read_text()
    committed(folder, "bad", **{".dvc__config": config + "    profile = theirs\n"})
    committed(folder, "mended", **{".dvc__config": config})
    commit = "mended~1"
    for form in ("{}", "file://{}"):
        where = form.format(folder)
        assert len(open_dataset(f"git+{where}@v1:data/corridor").episodes) == 400
        assert len(open_dataset(f"git+{where}@mended:data/corridor").episodes) == 400
        for revision in ("bad", commit):
            with pytest.raises(ValueError, match=r"its \.dvc/config sets 'profile'"):
                open_dataset(f"git+{where}@{revision}:data/corridor")
    (folder / ".dvc/config.local").write_text("[core]\n    site_cache_dir = /tmp\n")
    with pytest.raises(ValueError, match=r"its \.dvc/config\.local sets 'site_cache_dir'"):
        open_dataset(f"git+{folder}@v1:data/corridor")
    assert len(open_dataset(f"git+file://{folder}@v1:data/corridor").episodes) == 400  # which does not bring that along


def test_git_fetches_only_what_dvc_reads(repository: Path, tmp_path: Path) -> None:
    run(tmp_path, "git", "clone", "-q", str(repository), "clone")
    folder = tmp_path / "clone"
    corridor_dataset(folder / "data/plain", 3)
    pipeline = "vars: [size.json]\nstages:\n  make:\n    cmd: make ${size}\n    outs:\n    - data/made-${size}\n"
    large = {f"large{i}": secrets.token_hex(100_000) for i in range(3)}
    committed(folder, "large", **large, **{"dvc.yaml": pipeline, "size.json": '{"size": 3}'})
    commit = subprocess.check_output(["git", "rev-parse", "--short", "large"], cwd=folder, text=True).strip()
    for address, revision, path, episodes in (
        (f"file://{folder}", "large", "data/corridor", 400),
        (f"file://{folder}", commit, "data/plain", 3),
        (f"{folder}", "large", "data/corridor", 400),
    ):
        before = fetched[address]
        assert len(open_dataset(f"git+{address}@{revision}:{path}").episodes) == episodes
        assert 500 < fetched[address] - before < 30_000


def test_what_was_fetched_goes_again(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Folder(f"git+file://{repository}@v1:data/corridor")
    assert folder.exists("manifest.json")
    assert list(tmp_path.glob("pd-pipeline-*/.git"))
    del folder
    gc.collect()
    assert not list(tmp_path.glob("pd-pipeline-*"))


@pytest.mark.parametrize(
    "text",
    [
        "[core]\n    remote = storage\n['remote \"storage\"']\n    url = s3://bucket/x\n    # a comment\n\n",
        '[\'remote "a"\']\n    url = /some/where\n    URL = "https://host/x"\n[\'remote "b"\']\n    url=user@host:path\n',
    ],
)
def test_harmless_settings_pass(text: str) -> None:
    check_settings(text, ".dvc/config")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("credentialpath = x", "'credentialpath'"),
        ("  ConfigPath = x", "'configpath'"),
        ('"configpath" = x', "configpath"),
        ("url = webdavs://host", "none of http, https"),
        ("url = 'remote://mine/x'", "none of http, https"),
        ("url = %(evil)s", "none of http, https"),
        ("url = '''", "'"),
        ("[[deeper]]", "deeper"),
        ("ask_password = true", "'ask_password'"),
        ("\N{BYTE ORDER MARK}[core]", "core"),
    ],
)
def test_other_settings_are_refused(line: str, told: str) -> None:
    text = f"[core]\n{line}\n'''\n" if "'''" in line else f"[core]\n{line}\n"
    with pytest.raises(UntrustedError, match=r"its \.dvc/config sets") as caught:
        check_settings(text, ".dvc/config")
    assert told in str(caught.value)


IMPORT = "deps:\n- path: a\n  repo: {url: https://host/b, rev_lock: abc}\nouts:\n- path: set\n"


@pytest.mark.parametrize(
    ("text", "path", "told"),
    [
        ("deps:\n- path: s3://b/x\n  fs_config: {configpath: x}\nouts:\n- path: y\n", "data/set", "sets 'fs_config'"),
        ("outs:\n- path: y\n  'fs\\_config': {}\n  \"fs\\x5fconfig\": {}\n", "data/set", "sets 'fs_config'"),
        (IMPORT.replace("abc", "abc, config: x"), "elsewhere", "sets 'config'"),
        (IMPORT.replace("abc", "abc, remote: {url: x}"), "elsewhere", "sets 'remote'"),
        (IMPORT, "data/set", "data/set.dvc imports it from https://host/b: open it there"),
        (IMPORT, "data/set/", "imports it"),
        (IMPORT, "data/./set/part", "imports it"),
        (IMPORT, "data", "imports it"),
        (IMPORT + "wdir: ../other\n", "other/set", "imports it"),
        ("set", "data/set", "is not DVC's"),
        ("{", "data/set", "is not DVC's"),
        ("outs: 3", "data/set", "is not DVC's"),
    ],
)
def test_a_stage_with_settings_of_its_own_is_refused(text: str, path: str, told: str) -> None:
    with pytest.raises(UntrustedError) as caught:
        check_stage(text, "data/set.dvc", path)
    assert told in str(caught.value)


@pytest.mark.parametrize("path", ["data/other", "set", "data/set-2"])
def test_an_import_of_something_else_is_none_of_our_business(path: str) -> None:
    check_stage(IMPORT, "data/set.dvc", path)
    check_stage("outs:\n- md5: abc.dir\n  size: 3\n  hash: md5\n  path: set\n", "data/set.dvc", "data/set")
