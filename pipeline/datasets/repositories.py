"""A revision of a stranger's repository, looked at before DVC reads it.

DVC does as a repository tells it: the AWS configuration of a repository's choice may name commands that are then run, other
settings read files or ask for passwords. Git, which is made for strangers, fetches the revision once, its settings are checked,
and DVC is given that very commit; or, where it need not be fetched whole, one of the same files as far as DVC reads them and of
what lies in Git itself at the path that is asked for.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

SETTINGS: Final = {
    *("url", "region", "endpointurl", "port", "user", "account_name", "projectname", "remote", "dir"),  # where the data lies
    *("access_key_id", "secret_access_key", "session_token", "account_key", "sas_token", "allow_anonymous_login"),  # gives away
    *("timeout", "read_timeout", "connect_timeout", "connection_timeout", "jobs", "checksum_jobs", "verify", "use_ssl"),
    *("cache_regions", "listobjects", "type", "shared", "protected", "slow_link_warning", "hardlink_lock", "no_scm"),
    *("analytics", "autostage", "check_update"),
}
"""What .dvc/config may set: values that say where data lies, and none that names a file, a command or a profile of ours."""
SCHEMES: Final = ("http", "https", "s3", "gs", "azure", "ssh", "file")
READ_BY_DVC: Final = (".dvc", ".dvc/config", ".dvcignore", "dvc.yaml", "dvc.lock", "params.yaml")
"""How the files end that DVC reads to know what a revision holds; besides, those that the `vars` of a dvc.yaml name."""
VARIABLES: Final = (".yaml", ".yml", ".json", ".toml", ".py")
"""What `vars` may be."""
fetched: Final[Counter[str]] = Counter()
"""Bytes that Git has brought here from each repository."""
_SECTION: Final = re.compile(r"\s*\[[^\[\]]+\]\s*(#.*)?")
_SETTING: Final = re.compile(r"\s*(?P<key>\w+)\s*=\s*(?P<value>.*)")
_IMPORT: Final = {"url", "rev", "rev_lock"}
_TRUST: Final = "look at it, and if you trust its author fetch the data with `dvc get`"


class UntrustedError(ValueError):
    """What a repository says of itself that a stranger should not decide here."""


def fetch(repository: str, revision: str, path: str, folder: Path) -> tuple[str, str]:
    """Fetch a revision of a repository into `folder`. Returns the repository that DVC may open and the commit to open it at.

    A repository on this machine is itself opened, so that its cache serves. ValueError says why it cannot be had,
    `UntrustedError` what in it is refused.
    """
    here = Path(repository).resolve()
    tree = next((above for above in (here, *here.parents) if (above / ".git").exists()), None) if here.exists() else None
    source = (tree or here).as_uri() if here.exists() else repository
    _git(folder, "init", "--quiet")
    try:
        _fetch(folder, source, revision, shallow=True)
        wanted = "FETCH_HEAD"
    except ValueError:  # an abbreviated commit, or one that the server gives to nobody by its name
        _fetch(folder, source, "+refs/*:refs/*")
        wanted = revision
    try:
        commit = _git(folder, "rev-parse", "--verify", "--end-of-options", f"{wanted}^{{commit}}").decode().strip()
    except ValueError:
        raise ValueError(f"there is no revision {revision}") from None
    files = _files(folder, commit)
    place = posixpath.normpath(f"/{path}")
    read = [file for file in files if file.endswith(READ_BY_DVC) or PurePosixPath(f"/{file}").is_relative_to(place)]
    _fetch(folder, source, *(files[file] for file in read))
    told = "".join(_text(folder, files[file]) for file in read if posixpath.basename(file) == "dvc.yaml")
    if "vars" in told:
        named = [file for file in files if file.endswith(VARIABLES) and posixpath.basename(file) in told]
        _fetch(folder, source, *(files[file] for file in named))
        read += named
    fetched[repository] += sum(pack.stat().st_size for pack in folder.glob(".git/objects/pack/*.pack"))
    for file in read:
        if file.endswith(".dvc"):
            check_stage(_text(folder, files[file]), file, path)
        elif file.endswith(".dvc/config"):
            check_settings(_text(folder, files[file]), file)
    if tree is None:
        return str(folder), _commit(folder, {file: files[file] for file in read})
    root = next((place for place in (tree, *tree.parents) if (place / ".dvc").is_dir()), tree)
    for name in (".dvc/config", ".dvc/config.local"):  # DVC goes by these too
        if (root / name).exists():
            check_settings((root / name).read_text(errors="replace"), name)
    return str(tree), commit


def _fetch(folder: Path, source: str, *wanted: str, shallow: bool = False) -> None:
    """Fetch these refs or objects; of files, only the contents that are among them, where the other side can leave them out."""
    if not wanted:
        return
    options = ["--quiet", "--no-tags", "--filter=blob:none", "--update-head-ok", "--stdin"]
    if shallow:
        options.append("--depth=1")
    if source.startswith("file://"):  # the other side is Git here
        options.append("--upload-pack=git -c uploadpack.allowFilter=true upload-pack")
    _git(folder, "-c", "fetch.unpackLimit=1", "fetch", *options, "--", source, told="\n".join(wanted))


def _files(folder: Path, commit: str) -> dict[str, str]:
    """The files of a commit, and the name of what each contains."""
    lines = [os.fsdecode(line).partition("\t") for line in _git(folder, "ls-tree", "-r", "-z", commit).split(b"\0") if line]
    return {file: facts.split()[2] for facts, _, file in lines if facts.split()[1] == "blob"}


def _commit(folder: Path, files: Mapping[str, str]) -> str:
    """A commit of these files alone: what was not fetched is then not there, which DVC can tell; a missing object hangs it."""
    _git(folder, "update-index", "-z", "--index-info", told="".join(f"100644 {blob}\t{file}\0" for file, blob in files.items()))
    tree = _git(folder, "write-tree").decode().strip()
    somebody = ("-c", "user.name=nobody", "-c", "user.email=nobody")
    return _git(folder, *somebody, "commit-tree", "-m", "What DVC reads", tree).decode().strip()


def _text(folder: Path, blob: str) -> str:
    return _git(folder, "cat-file", "blob", blob).decode(errors="replace")


def _git(folder: Path, *arguments: str, told: str = "") -> bytes:
    """What a Git command says that is `told` something. ValueError with its first complaint if it fails."""
    command = ["git", f"--git-dir={folder}/.git", *arguments]
    done = subprocess.run(command, input=os.fsencode(told), capture_output=True, check=False)
    if done.returncode:
        complaints = done.stderr.decode(errors="replace").splitlines()
        raise ValueError(next((line for line in complaints if line.startswith(("fatal:", "error:"))), f"git {arguments[0]!r}"))
    return done.stdout


def check_settings(text: str, where: str) -> None:
    """UntrustedError unless every line of a DVC configuration is a section, a comment or one of `SETTINGS`."""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#") or _SECTION.fullmatch(line):
            continue
        setting = _SETTING.fullmatch(line)
        key = setting["key"].lower() if setting else line.strip()[:40]
        if setting is None or key not in SETTINGS:
            raise UntrustedError(f"its {where} sets {key!r}, which could run commands or read files here: {_TRUST}")
        scheme = re.match(r"([^/@]+?):", setting["value"].strip(" \t'\""))
        if "%(" in line or (key == "url" and scheme and scheme[1] not in SCHEMES):
            raise UntrustedError(f"its {where} sets {line.strip()[:80]!r}, which is none of {', '.join(SCHEMES)}: {_TRUST}")


def check_stage(text: str, where: str, path: str) -> None:
    """UntrustedError if a .dvc file brings settings of its own, or imports what lies at `path` from yet another repository."""
    try:
        stage: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
        deps, outs = (list(stage.get(key) or []) for key in ("deps", "outs"))
        imported = [dep["repo"] for dep in deps if "repo" in dep]
        own = [key for entry in (*deps, *outs) for key in entry if key == "fs_config"]
        own += [key for repo in imported for key in repo if key not in _IMPORT]
        root = posixpath.join("/", posixpath.dirname(where), stage.get("wdir") or "")
        places = [PurePosixPath(posixpath.normpath(posixpath.join(root, out["path"]))) for out in outs]
    except (YAMLError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UntrustedError(f"its {where} is not DVC's ({type(error).__name__}): {_TRUST}") from None
    if own:
        raise UntrustedError(f"its {where} sets {own[0]!r}, which could run commands or read files here: {_TRUST}")
    wanted = PurePosixPath(posixpath.normpath(f"/{path}"))
    if imported and any(wanted.is_relative_to(place) or place.is_relative_to(wanted) for place in places):
        raise UntrustedError(f"its {where} imports it from {imported[0].get('url')}: open it there")
