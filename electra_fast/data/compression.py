"""Compressed files as streams of their content: what is in a file is told by its first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from electra_fast.extras import require

BUFFER = 1 << 17  # bytes


class Compression(NamedTuple):
    """One way to compress: its name in messages, its suffixes, how its files begin, and what opens them."""

    name: str
    suffixes: tuple[str, ...]
    magic: bytes
    open: Callable[[BinaryIO], BinaryIO]


class _ZstandardFile(io.RawIOBase):
    """The content of all frames. zstandard's own stream reader takes a file that was cut short for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._zstandard = require("zstandard", extra="zstd", purpose="Files compressed with zstd")
        self._frame = self._new_frame()
        self._begun = False  # the frame has been given bytes
        self._content = memoryview(b"")

    def _new_frame(self) -> object:
        # 2 GiB: what `zstd --long=31` may ask for
        return self._zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._content:
            compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._new_frame(), False
            compressed = compressed or self._file.read(1 << 16)
            if not compressed:
                if self._begun:
                    raise EOFError("it ends within a frame")
                return 0
            self._content, self._begun = memoryview(self._frame.decompress(compressed)), True
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count


COMPRESSIONS = (
    Compression("gzip", (".gz", ".gzip"), b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    Compression("bzip2", (".bz2",), b"BZh", bz2.BZ2File),
    Compression("xz", (".xz",), b"\xfd7zXZ\x00", lzma.LZMAFile),
    Compression("zstd", (".zst", ".zstd"), b"\x28\xb5\x2f\xfd", _ZstandardFile),
)


def strip_compression(name: str) -> str:
    """A file's name without the suffix of a compression: "a.jsonl.gz" -> "a.jsonl"."""
    for compression in COMPRESSIONS:
        for suffix in compression.suffixes:
            if name.lower().endswith(suffix):
                return name[: -len(suffix)]
    return name


@contextmanager
def open_content(path: Path, progress: Callable[[int], object] | None = None) -> Iterator[BinaryIO]:
    """The content of a file, decompressed if need be, as a buffered binary stream that can't seek.

    `progress` is called with the number of bytes of the file itself that were read since its last call.

    Raises ValueError naming the file for compressed data that is damaged or cut short, at the read that meets it, and
    for a file whose suffix promises a compression that is not there.
    """
    with path.open("rb", buffering=0) as raw:
        file = io.BufferedReader(_Counted(raw, progress or (lambda _: None)), BUFFER)
        compression = _compression(path, file.peek(16))
        if compression is None:
            yield file
        else:
            yield io.BufferedReader(_Decompressed(path, compression, file), BUFFER)


def _compression(path: Path, head: bytes) -> Compression | None:
    for compression in COMPRESSIONS:
        if head.startswith(compression.magic) and (compression.name != "bzip2" or head[4:7] in (b"1AY", b"\x17rE")):
            return compression
    for compression in COMPRESSIONS:
        if path.name.lower().endswith(compression.suffixes):
            raise ValueError(
                f"{path} is damaged, or has the wrong name: it does not begin as a file compressed with "
                f"{compression.name} does; get it again, or rename it if it is not compressed"
            )
    return None


class _Counted(io.RawIOBase):
    """A file that tells how much was read."""

    def __init__(self, file: io.RawIOBase, progress: Callable[[int], object]) -> None:
        self._file = file
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:
        count = self._file.readinto(buffer)
        if count:
            self._progress(count)
        return count


class _Decompressed(io.RawIOBase):
    """The content of a compressed file; the libraries' various errors become one that names the file."""

    def __init__(self, path: Path, compression: Compression, file: BinaryIO) -> None:
        self._path = path
        self._compression = compression
        self._file = compression.open(file)
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        try:
            count = self._file.readinto(buffer)
        except Exception as error:
            if not self._is_damage(error):
                raise
            raise ValueError(
                f"{self._path} is damaged: its {self._compression.name} data breaks off or is wrong after "
                f"{self._offset:,} bytes of content ({error}); get the file again"
            ) from error
        self._offset += count
        return count

    def _is_damage(self, error: Exception) -> bool:
        if isinstance(error, OSError):
            return error.errno is None  # the system's own errors have a number
        return isinstance(error, (EOFError, zlib.error, lzma.LZMAError)) or type(error).__name__ == "ZstdError"
