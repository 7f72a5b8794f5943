"""A revision of a stranger's repository, looked at before DVC reads it.

DVC does as a repository tells it: the AWS configuration of a repository's choice may name commands that are then run, other
settings read files or ask for passwords. Git, which is made for strangers, fetches the revision once, its settings are checked,
and DVC is given that very commit.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
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
    tree = next((place for place in (here, *here.parents) if (place / ".git").exists()), None) if here.exists() else None
    source = tree or (here if here.exists() else repository)
    _git(folder, "init", "--quiet")
    try:
        _git(folder, "fetch", "--quiet", "--no-tags", "--depth=1", "--", source, revision)
        wanted = "FETCH_HEAD"
    except ValueError:  # an abbreviated commit, or one that the server gives to nobody by its name
        _git(folder, "fetch", "--quiet", "--update-head-ok", "--", source, "+refs/*:refs/*")
        wanted = revision
    try:
        commit = _git(folder, "rev-parse", "--verify", "--end-of-options", f"{wanted}^{{commit}}").decode().strip()
    except ValueError:
        raise ValueError(f"there is no revision {revision}") from None
    for held in _git(folder, "ls-tree", "-r", "-z", "--name-only", commit).split(b"\0"):
        file = os.fsdecode(held)
        if file.endswith((".dvc", ".dvc/config")):
            text = _git(folder, "cat-file", "blob", f"{commit}:{file}").decode(errors="replace")
            if file.endswith(".dvc"):
                check_stage(text, file, path)
            else:
                check_settings(text, file)
    if tree is None:
        return str(folder), commit
    root = next((place for place in (tree, *tree.parents) if (place / ".dvc").is_dir()), tree)
    for name in (".dvc/config", ".dvc/config.local"):  # DVC goes by these too
        if (root / name).exists():
            check_settings((root / name).read_text(errors="replace"), name)
    return str(tree), commit


def _git(folder: Path, *arguments: str | Path) -> bytes:
    """What a Git command says. ValueError with its first complaint if it fails."""
    command = ["git", f"--git-dir={folder}/.git", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
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
