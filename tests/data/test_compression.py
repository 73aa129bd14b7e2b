from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from electra_fast.data.compression import open_content, strip_compression
from electra_fast.data.documents import read_documents


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def random_content(g: np.random.Generator, size: int) -> bytes:
    return bytes(g.integers(97, 103, size, np.uint8))


def read(path: Path) -> bytes:
    with open_content(path) as file:
        return file.read()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_content_and_progress(tmp_path: Path, rng_seed: int, suffix: str) -> None:
    g = np.random.default_rng(rng_seed)
    parts = [random_content(g, int(size)) for size in (g.integers(1, 400_000), 0, g.integers(1, 300))]
    compressed = b"".join(map(COMPRESS[suffix], parts))  # several streams one after another, as pbzip2 and pzstd write
    for name in (f"a.txt{suffix}", f"A.TXT{suffix.upper()}", "by_its_first_bytes"):
        path = tmp_path / name
        path.write_bytes(compressed)
        told: list[int] = []
        with open_content(path, told.append) as file:
            assert file.read() == b"".join(parts)
        assert sum(told) == len(compressed)
    assert strip_compression(f"a.JSONL{suffix.upper()}") == "a.JSONL"


def test_what_is_not_compressed_is_as_it_is(tmp_path: Path) -> None:
    for content in (b"", b"BZh, said the bee", b"x" * 300_000):
        (tmp_path / "a").write_bytes(content)
        assert read(tmp_path / "a") == content


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damage_names_the_file(tmp_path: Path, rng_seed: int, suffix: str) -> None:
    g = np.random.default_rng(rng_seed)
    content = random_content(g, 100_000)
    whole = COMPRESS[suffix](content)
    path = tmp_path / f"part 1.txt{suffix}"
    for cut in (0, 1, *g.integers(2, len(whole), 10).tolist(), len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"part 1\.txt.* is damaged"):
            read(path)
    for place in g.integers(0, len(whole), 4).tolist():
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(g.integers(8))
        path.write_bytes(flipped)
        try:
            assert read(path) == content  # a byte that carries nothing, as the time in gzip's header
        except ValueError as error:
            assert "part 1.txt" in str(error)  # noqa: PT017
    path.write_bytes(whole + b"garbage")
    with pytest.raises(ValueError, match=r"part 1\.txt.* is damaged"):
        read(path)
    path.write_bytes(whole + b"\0" * 1000 + whole + b"\0")  # padding
    assert read(path) == content + content
    path.write_bytes(b"plain text\n")
    with pytest.raises(ValueError, match=r"does not begin as a file compressed with"):
        read(path)


def test_an_error_of_the_disk_stays_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.gz"):
        read(tmp_path / "missing.gz")


@pytest.mark.parametrize(
    ("library", "name", "content", "extra"),
    [
        ("zstandard", "a.txt.zst", zstd(b"text"), "zstd"),
        ("pyarrow", "a.parquet", b"PAR1", "parquet"),
        ("mwparserfromhell", "a.xml", b"<mediawiki/>", "wikipedia"),
        ("datasets", "hf://a/b", b"", "datasets"),
    ],
)
def test_a_library_that_is_not_there_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, name: str, content: bytes, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    if not name.startswith("hf:"):
        name = str(tmp_path / name)
        Path(name).write_bytes(content)
    advice = rf"need {library}, which is not installed: pip install 'electra-fast\[{extra}\]'"
    with pytest.raises(ValueError, match=advice):
        list(read_documents(name))
