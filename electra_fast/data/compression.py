"""Compressed files as streams of their content: what is in a file is told by its first bytes."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from electra_fast.data.remote import InputFile
from electra_fast.extras import require

BUFFER = 1 << 17  # bytes
COMPRESSED = 1 << 14  # bytes decompressed at a time, as little as the worst of them may become much


class Compression(NamedTuple):
    """One way to compress: its name in messages, its suffixes, how its files begin, and what makes a decompressor.

    A decompressor is for one stream, of which a file may hold several: it has `decompress`, `eof` and `unused_data`.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: bytes
    decompressor: Callable[[], Any]


def _zstd_decompressor() -> Any:
    zstandard = require("zstandard", extra="zstd", purpose="Files compressed with zstd")
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()  # what `zstd --long=31` may ask for


COMPRESSIONS = (
    Compression("gzip", (".gz", ".gzip"), b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),  # 31: gzip's header
    Compression("bzip2", (".bz2",), b"BZh", bz2.BZ2Decompressor),
    Compression("xz", (".xz",), b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    Compression("zstd", (".zst", ".zstd"), b"\x28\xb5\x2f\xfd", _zstd_decompressor),
)


def strip_compression(name: str) -> str:
    """A file's name without the suffix of a compression: "a.jsonl.gz" -> "a.jsonl"."""
    for compression in COMPRESSIONS:
        for suffix in compression.suffixes:
            if name.lower().endswith(suffix):
                return name[: -len(suffix)]
    return name


@contextmanager
def open_content(path: InputFile, progress: Callable[[int], object] | None = None) -> Iterator[BinaryIO]:
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


def _compression(path: InputFile, head: bytes) -> Compression | None:
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
    """The content of all streams of a compressed file; damage becomes an error that names it.

    The libraries' own files are lenient: bz2 and lzma take what follows a stream and is none for the end of the file,
    so that a damaged header loses the rest in silence, and zstandard takes a file that was cut short for a whole one.
    """

    def __init__(self, path: InputFile, compression: Compression, file: BinaryIO) -> None:
        self._path = path
        self._compression = compression
        self._file = file
        self._stream = compression.decompressor()
        self._begun = False  # the stream was given bytes
        self._content = memoryview(b"")
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if not self._content:
            try:
                self._content = memoryview(self._next_content())
            except Exception as error:
                if isinstance(error, OSError) and error.errno is not None:  # of the system, not of bz2
                    raise
                raise ValueError(
                    f"{self._path} is damaged: its {self._compression.name} data breaks off or is wrong after "
                    f"{self._offset:,} bytes of content ({error}); get the file again"
                ) from error
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        self._offset += count
        return count

    def _next_content(self) -> bytes:
        """Empty only at the end."""
        while True:
            left = b""
            if self._stream.eof:
                left = self._stream.unused_data
                self._stream, self._begun = self._compression.decompressor(), False
            compressed = left or self._file.read(COMPRESSED)
            if not compressed:
                if self._begun:
                    raise EOFError("the file ends within a stream")
                return b""
            if not self._begun:
                compressed = compressed.lstrip(b"\0")  # padding between streams and at the end is allowed
            if compressed:
                self._begun = True
                if content := self._stream.decompress(compressed):
                    return content
