"""A folder of files, on this machine or elsewhere, and how many bytes were read from it.

data/datasets/Pong                                        a path
s3://bucket/datasets/Pong                                 any fsspec URL; credentials and endpoint as its library finds them
git+https://host/team/repo@v1:data/datasets/Pong          what a DVC repository holds at a revision (fsspec's `dvc` protocol),
                                                          once `repositories` has looked at it
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import fsspec
from fsspec.caching import BaseCache
from fsspec.spec import AbstractBufferedFile
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

from pipeline.datasets import repositories

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

_REVISION: Final = re.compile(r"git\+(?P<repo>.+)@(?P<rev>[^@:]+):(?P<path>[^:]+)")


_REMEDY: Final = "check the address, the revision and your access"


class Folder:
    """The folder at `url`. Nothing is touched until something is asked for; `bytes_read` counts what was fetched."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.bytes_read = 0
        self.local: Path | None = None
        self._lock = threading.Lock()
        self._fs: Any = None
        if self.url.startswith("git+"):
            if _REVISION.fullmatch(self.url) is None:
                raise ValueError(f"{url} is not git+URL@REVISION:PATH, as in git+https://host/team/repo@v1:data/datasets/Pong")
        elif "://" not in self.url or self.url.startswith("file://"):
            self.local = Path(self.url.removeprefix("file://"))

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        """Another process, as a Dask worker, opens it for itself."""
        return Folder, (self.url,)

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url.rstrip('/')}/{name}")

    def _where(self, name: str = "") -> tuple[Any, str]:
        """The file system and the path there. ValueError if it cannot be reached."""
        if self._fs is None:
            try:
                if (revision := _REVISION.fullmatch(self.url)) is not None:
                    repository, commit = self._fetch(revision["repo"], revision["rev"], revision["path"])
                    self._fs = fsspec.filesystem("dvc", url=repository, rev=commit)
                    self._root = revision["path"].rstrip("/")
                else:
                    # Others write there too: what was listed a moment ago tells nothing.
                    self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
            except repositories.UntrustedError as error:
                raise ValueError(f"{self.url}: {error}") from None
            except Exception as error:  # each file system and DVC raise their own
                raise ValueError(f"{self.url} cannot be reached ({_line(error)}): {_REMEDY}") from None
        return self._fs, f"{self._root}/{name}" if name else self._root

    def _fetch(self, repository: str, revision: str, path: str) -> tuple[str, str]:
        """`repositories.fetch` into a folder that goes when this object does."""
        folder = Path(tempfile.mkdtemp(prefix="pd-pipeline-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return repositories.fetch(repository, revision, path, folder)

    def _ask(self, what: Callable[[Any, str], Any], name: str) -> Any:
        """`what`(file system, path), elsewhere than here. FileNotFoundError passes; any other failure is a ValueError."""
        fs, path = self._where(name)
        try:
            if fs.async_impl:
                return what(fs, path)
            with self._lock:  # DVC's index is not for several threads at once
                return what(fs, path)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{self.url}: {name or 'it'} cannot be reached ({_line(error)}): {_REMEDY}") from None

    def path(self, name: str) -> Path:
        """Where a file lies on this machine. FileNotFoundError if it is none and no link to one: a device may never end."""
        assert self.local is not None, self.url
        path = self.local / name
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return path

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of a file, or those from `start` to `stop`; a negative `start` counts from the end. FileNotFoundError."""
        data: bytes
        if self.local is not None:
            with self.path(name).open("rb") as file:
                data = _cut(file, start, stop)
        else:
            data = self._ask(lambda fs, path: _fetch(fs, path, start, stop), name)
        with self._lock:
            self.bytes_read += len(data)
        return data

    def write(self, name: str, data: bytes) -> None:
        """A file, whole or not at all."""
        if self.local is not None:
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # the same file may be written twice at once
            try:
                part.write_bytes(data)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            return
        self.check_writable()
        self._ask(lambda fs, path: fs.pipe_file(path, data), name)

    def check_writable(self) -> None:
        """ValueError for a revision of a repository."""
        if self.url.startswith("git+"):
            raise ValueError(f"{self.url} is a revision of a repository, to be read only: write to a path or a bucket")

    def exists(self, name: str) -> bool:
        """Whether there is such a file. ValueError where nobody can tell, which is not the same as that there is none."""
        if self.local is not None:
            return (self.local / name).is_file()
        return self._kind(name) == "file"

    def _kind(self, name: str) -> str | None:
        """ "file" or "directory", or None where there is nothing. fsspec's own `isfile` says False of whatever fails."""
        with contextlib.suppress(FileNotFoundError):
            return str(self._ask(lambda fs, path: fs.info(path)["type"], name))
        return None

    def is_folder(self) -> bool:
        """Whether there is a folder with anything in it."""
        if self.local is not None:
            return self.local.is_dir()
        kind = self._kind("")
        return kind == "directory" or (kind == "file" and bool(self._ask(lambda fs, path: fs.isdir(path), "")))  # of HTTP

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self.local is not None:
                (self.local / name).unlink()
            else:
                self._ask(lambda fs, path: fs.rm_file(path), name)

    def clear(self) -> None:
        """Remove the folder and everything in it."""
        if self.local is not None:
            shutil.rmtree(self.local, ignore_errors=True)
        elif self.is_folder():
            self._ask(lambda fs, path: fs.rm(path, recursive=True), "")

    def digest(self, name: str) -> str:
        """SHA-256 of a file's bytes. FileNotFoundError if it is not there."""
        if self.local is None:
            return hashlib.sha256(self.read(name)).hexdigest()
        with self.path(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def files(self) -> list[str]:
        """Every file in the folder and below it, by its path from here, sorted."""
        if self.local is not None:
            return sorted(p.relative_to(self.local).as_posix() for p in self.local.rglob("*") if p.is_file())
        return sorted(self._listing())

    def sizes(self) -> dict[str, int]:
        """Bytes of each of `files`; elsewhere one listing tells them all, except where DVC did not record them."""
        if self.local is not None:
            return {name: (self.local / name).stat().st_size for name in self.files()}
        listing = self._listing().items()
        return {name: size if size is not None else self._ask(_size, name) for name, size in listing}

    def _listing(self) -> dict[str, int | None]:
        with contextlib.suppress(FileNotFoundError):
            _, root = self._where()
            found: dict[str, Any] = self._ask(lambda fs, path: fs.find(path, detail=True), "")
            relative = {path.lstrip("/").removeprefix(root.lstrip("/")).lstrip("/"): info for path, info in found.items()}
            return {name: info.get("size") for name, info in relative.items()}
        return {}


def _fetch(fs: Any, path: str, start: int | None, stop: int | None) -> bytes:
    if fs.async_impl:
        fetched: bytes = fs.cat_file(path, start=start, end=stop)
        return fetched
    with fs.open(path, "rb") as file:
        if isinstance(file, AbstractBufferedFile):  # it would read ahead by megabytes
            file.cache = BaseCache(file.blocksize, file._fetch_range, file.size)
        return _cut(file, start, stop)


def _cut(file: Any, start: int | None, stop: int | None) -> bytes:
    if not file.seekable():  # what Git keeps itself
        everything: bytes = file.read()
        return everything[slice(start, stop)]
    if start is not None and start < 0:
        file.seek(max(start, -file.seek(0, 2)), 2)
        start = file.tell()
    else:
        file.seek(start or 0)
    data: bytes = file.read(-1 if stop is None else stop - (start or 0))
    return data


def _size(fs: Any, path: str) -> int:
    with fs.open(path, "rb") as file:
        return int(file.seek(0, 2)) if file.seekable() else len(file.read())


def _line(error: BaseException) -> str:
    """An error and what caused it, in one line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{text}: {_line(error.__cause__)}" if error.__cause__ else text


class FolderStore(Store):
    """A Zarr group in a folder, read-only, so that one class serves every kind of place and counts the bytes."""

    def __init__(self, folder: Folder, name: str) -> None:
        super().__init__(read_only=True)
        self.folder, self.name = folder, name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FolderStore) and (self.folder.url, self.name) == (other.folder.url, other.name)

    def __hash__(self) -> int:
        return hash((self.folder.url, self.name))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        match byte_range:
            case None:
                start, stop = None, None
            case RangeByteRequest():
                start, stop = byte_range.start, byte_range.end
            case OffsetByteRequest():
                start, stop = byte_range.offset, None
            case SuffixByteRequest():
                start, stop = -byte_range.suffix, None
        try:
            data = await asyncio.to_thread(self.folder.read, f"{self.name}/{key}", start, stop)
        except FileNotFoundError:
            if "/c/" in key:
                raise  # a chunk: Zarr would take it for zeros
            return None
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self.folder.exists, f"{self.name}/{key}")

    supports_writes = supports_deletes = supports_listing = False

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError(f"{key} in {self.folder} is read-only ({len(value)} bytes)")

    async def delete(self, key: str) -> None:
        raise NotImplementedError(f"{key} in {self.folder} is read-only")

    def list(self) -> AsyncIterator[str]:
        return self.list_prefix("")

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError(f"{prefix} in {self.folder} is not listed")

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self.list_prefix(prefix)
