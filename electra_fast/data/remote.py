"""Files behind URLs: s3://, gs://, https://, hf://datasets/..., memory://, whatever fsspec knows."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URL = re.compile(r"[A-Za-z][\w+.-]+(://|::.*://)")  # of two letters at least: "C://" is a drive


def is_url(path: object) -> bool:
    """Whether a path is a URL; "file://..." is one too."""
    return isinstance(path, str) and _URL.match(path) is not None


def as_path(path: str | Path) -> str | Path:
    """A file:// URL as the path that it names; all else as it is."""
    if is_url(path) and str(path).startswith("file:"):
        return Path(connect(str(path))[1])
    return path


def check_local(path: str | Path, what: str) -> None:
    """Raises ValueError for a URL: `what`, e.g. "output", is a folder or a file of this machine."""
    if is_url(path):
        raise ValueError(f"{what} {path} is a URL, where this can't be: give a path on this machine")


def connect(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path in it.

    Raises ValueError for a protocol that nobody knows, or whose library is not installed, naming that library.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:  # its text is fsspec's advice what to install
        raise ValueError(f"{url} can't be opened: {error}") from error
    except Exception as error:  # of a library's own credentials, say
        raise ValueError(f"{url} can't be opened: {_first_line(error)}") from error


@contextmanager
def explained(url: str, what: str) -> Iterator[None]:
    """In the block errors, of which each storage's library has its own, become ValueErrors: `url` can't be `what`."""
    try:
        yield
    except FileNotFoundError as error:
        reason = "" if error.__cause__ is None else f" ({_first_line(error.__cause__)})"
        raise ValueError(f"{url} is not there{reason}") from error
    except Exception as error:  # each file system's library has errors of its own
        raise ValueError(f"{url} can't be {what}: {_first_line(error)}") from error


def find_files(url: str) -> list[Path | RemoteFile]:
    """The file of a URL, or those that fit a pattern ("s3://texts/2024/*.jsonl.zst", "**" for folders), by name.

    Raises ValueError for a file that is not there or can't be reached, for a folder, and for a pattern nothing fits.
    """
    fs, path = connect(url)
    is_pattern = any(character in path for character in ("*[" if _is_web(url) else "*?["))
    with explained(url, "read"):
        found = fs.glob(path, detail=True) if is_pattern else {path: fs.info(path)}
    files = sorted(name for name, info in found.items() if info["type"] != "directory")
    if not files and is_pattern:
        raise ValueError(f"input {url}: no file has such a name")
    if not files:
        raise ValueError(f"input {url} is a folder: name the files in it, e.g. {url.rstrip('/')}/*.parquet")
    if url.startswith("file:"):
        return list(map(Path, files))
    return [RemoteFile(fs, file, fs.unstrip_protocol(file) if is_pattern else url) for file in files]


class RemoteFile:
    """A file of a storage, with what readers ask of a `Path`: `name`, `stat`, `open` and `is_file`."""

    def __init__(self, fs: AbstractFileSystem, path: str, url: str) -> None:
        self.name = PurePosixPath(urlsplit(url).path if _is_web(url) else path).name
        self._fs = fs
        self._path = path
        self._url = url

    def __str__(self) -> str:
        return self._url

    def is_file(self) -> bool:
        return True

    def stat(self) -> os.stat_result:
        """Of which the size is right, or 0 where the storage doesn't tell."""
        with explained(self._url, "read"):
            size = self._fs.info(self._path)["size"] or 0
        return os.stat_result((0o100444, 0, 0, 0, 0, 0, size, 0, 0, 0))

    def open(self, mode: str = "rb", buffering: int = 0) -> io.RawIOBase:
        """Its bytes, read ahead by the storage's library in blocks of megabytes."""
        with explained(self._url, "read"):
            return _RemoteContent(self._url, self._fs.open(self._path, "rb"))


class _RemoteContent(io.RawIOBase):
    """A remote file that was opened; an error on the way names it."""

    def __init__(self, url: str, file: Any) -> None:
        self._url = url
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        with explained(self._url, "read at any place, as its format asks for"):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:
        with explained(self._url, "read to its end"):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


InputFile = Path | RemoteFile


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))  # where "?" opens a query


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
