"""Formats other than text and JSON lines (test_documents.py), and that the format leaves no trace in the corpus."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from electra_fast.data.documents import open_inputs, read_documents
from electra_fast.data.prepare import prepare
from electra_fast.data.readers import FORMATS, find_format
from electra_fast.data.readers.hugging_face import parse_name
from tests.data.texts import random_documents, write_text
from tests.small import folder_bytes

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


def write_parquet(path: Path, texts: list[str | None], rows: int = 1000, **columns: list) -> Path:
    table = pyarrow.table({**columns, "text": pyarrow.array(texts, pyarrow.string())})
    pyarrow.parquet.write_table(table, path, row_group_size=rows)
    return path


def cached_dataset(cache: Path, texts: list[str]) -> None:
    """As `load_dataset("me/corpus")` left it."""
    saved = cache.parent / "saved_for_cache"
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(saved)
    folder = cache / "me___corpus" / "default" / "0.0.0" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (arrow,) = saved.glob("*.arrow")
    arrow.rename(folder / "corpus-train.arrow")
    split = {"name": "train", "num_bytes": 1, "num_examples": len(texts), "dataset_name": "corpus"}
    info = {"dataset_name": "corpus", "config_name": "default", "version": "0.0.0", "splits": {"train": split}}
    info["features"] = {"text": {"dtype": "string", "_type": "Value"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_the_same_bytes_from_every_format_and_compression(tmp_path: Path, tokenizer, rng_seed: int) -> None:
    documents = random_documents(np.random.default_rng(rng_seed), 200)
    text = write_text(tmp_path / "a.txt", documents).read_bytes()
    lines = "".join(json.dumps({"text": document, "n": 3}) + "\n" for document in documents).encode()
    files = {
        "a.txt.gz": gzip.compress(text),
        "a.txt.bz2": bz2.compress(text),
        "a.txt.xz": lzma.compress(text),
        "a.txt.zst": zstandard.compress(text),
        "no_suffix": gzip.compress(text),
        "a.jsonl": lines,
        "a.jsonl.zst": zstandard.compress(lines),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    write_parquet(tmp_path / "a.parquet", [*documents[:50], None, " \n", *documents[50:]], 33, n=[1] * 202)
    (tmp_path / "parquet_by_its_first_bytes").write_bytes((tmp_path / "a.parquet").read_bytes())
    datasets.Dataset.from_dict({"n": [1] * 200, "text": documents}).save_to_disk(tmp_path / "saved")
    (tmp_path / "local").mkdir()
    write_parquet(tmp_path / "local" / "train.parquet", documents)
    cached_dataset(tmp_path / "hf_cache", documents)
    names = ["parquet_by_its_first_bytes", "a.parquet", "saved", *files]
    inputs = [*(tmp_path / name for name in names), f"hf://{tmp_path / 'local'}:train", "hf://me/corpus"]

    prepare(tmp_path / "a.txt", tokenizer, tmp_path / "expected", progress=False)
    expected = folder_bytes(tmp_path / "expected")
    for number, given in enumerate(inputs):
        told: list[int] = []
        assert list(read_documents(given, progress=told.append)) == documents, given
        (reader,) = open_inputs(given)
        assert sum(told) == reader.size > 0
        prepare(given, tokenizer, tmp_path / str(number), progress=False)
        assert folder_bytes(tmp_path / str(number)) == expected, given


def test_a_whole_file_is_one_document(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_bytes(b"\xef\xbb\xbfCHAPTER I\r\n\r\nIt was\r\na night.\r\n\r\n\r\nThe end.")
    assert list(read_documents(book, format="whole")) == ["CHAPTER I\nIt was\na night.\nThe end."]
    book.write_bytes(b" \n\n")
    assert list(read_documents(book, format="whole")) == []


def test_parquet_reads_one_row_group_of_one_column_at_a_time(tmp_path: Path, rng_seed: int) -> None:
    """Memory is that of a few row groups of forty, and damage in another column does not matter."""
    g = np.random.default_rng(rng_seed)
    texts = ["".join(map(chr, g.integers(33, 127, 20_000))) for _ in range(400)]
    other = ["no text" + "".join(map(chr, g.integers(33, 127, 200))) for _ in range(400)]
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"other": other, "text": texts})
    pyarrow.parquet.write_table(table, path, row_group_size=10, use_dictionary=False, compression="none")
    content = bytearray(path.read_bytes())
    metadata = pyarrow.parquet.ParquetFile(path).metadata
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(0)
        content[column.data_page_offset : column.data_page_offset + 50] = b"\xff" * 50
    path.write_bytes(content)
    before, peak = pyarrow.total_allocated_bytes(), 0
    for text, expected in zip(read_documents(path), texts, strict=True):
        assert text == expected
        peak = max(peak, pyarrow.total_allocated_bytes() - before)
    assert peak < 400 * 20_000 / 4
    with pytest.raises(ValueError, match=r"a\.parquet is damaged, or no Parquet file: row group 0"):
        list(read_documents(path, text_field="other"))


def test_mistakes_with_columns_are_found_before_reading(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["x"], n=[1], title=["t"])
    datasets.Dataset.from_dict({"n": [1], "title": ["t"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="holds no column 'body'; its columns of text are title, text; name one with"):
        read_documents(path, text_field="body")
    with pytest.raises(ValueError, match="holds 'n' as int64, which is no text"):
        read_documents(path, text_field="n")
    with pytest.raises(ValueError, match="holds no column 'text'; its columns of text are title"):
        read_documents(tmp_path / "saved")


def test_text_that_is_not_utf8_is_named_with_its_row(tmp_path: Path) -> None:
    column = pyarrow.array([b"good", b"also", b"b\xff"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 2: not UTF-8 .* at byte 1"):
        list(read_documents(tmp_path / "a.parquet"))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["text"] * 1000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet is damaged, or no Parquet file"):
        read_documents(path)
    datasets.Dataset.from_dict({"text": ["x"] * 100}).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(ValueError, match="saved can't be loaded, a file of it is missing or damaged"):
        read_documents(tmp_path / "saved")


def test_what_can_not_be_read_as_asked(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(ValueError, match="parquet files are compressed inside, so unpack it first"):
        read_documents(tmp_path / "a.parquet.gz")
    with pytest.raises(ValueError, match="is a dataset: it can't be read as text"):
        read_documents("hf://a/b", format="text")
    with pytest.raises(ValueError, match="is a file: it can't be read as huggingface"):
        read_documents(write_text(tmp_path / "a.txt", ["x"]), format="huggingface")
    splits = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": ["x"]}) for name in ("train", "test")})
    splits.save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"holds the splits test, train: name one, e\.g\. .*test"):
        read_documents(tmp_path / "splits")
    assert list(read_documents(tmp_path / "splits" / "train")) == ["x"]


def test_names_of_datasets() -> None:
    assert parse_name("hf://wiki") == ([("wiki", None)], None)
    assert parse_name("hf://me/wiki:train[:1%]") == ([("me/wiki", None), ("me", "wiki")], "train[:1%]")
    assert parse_name("hf://me/wiki/20231101.en:test") == ([("me/wiki", "20231101.en")], "test")
    assert parse_name("hf://./some/folder/deep") == ([("./some/folder/deep", None)], None)
    for bad in ("hf://", "hf://a//b", "hf://a/b/c/d"):
        with pytest.raises(ValueError, match="expected hf://NAME"):
            parse_name(bad)


def test_a_name_that_is_not_in_the_cache_without_network_says_so(tmp_path: Path) -> None:
    for name in ("hf://me/unheard_of", "hf://unheard_of", "hf://me/unheard_of/config:train"):
        with pytest.raises(ValueError, match=r"can't be loaded: .* this needs the network"):
            read_documents(name)
    cached_dataset(tmp_path / "hf_cache", ["x"])
    with pytest.raises(ValueError, match="can't be loaded"):
        read_documents("hf://me/corpus:test")


def test_format_by_name_and_first_bytes(tmp_path: Path) -> None:
    for name, content, expected in (
        ("a.txt", b"PAR1", "text"),  # the name says
        ("a.json.xz", lzma.compress(b"{}"), "jsonl"),
        ("a.parquet", b"", "parquet"),
        ("a", b"PAR1", "parquet"),
        ("pages.xml.bz2", bz2.compress(b"<mediawiki>"), "wikipedia"),
        ("pages", bz2.compress(b"<mediawiki>"), "wikipedia"),
        ("a.unknown", b"words", "text"),
    ):
        (tmp_path / name).write_bytes(content)
        assert find_format(tmp_path / name) == expected
    assert find_format("hf://x") == "huggingface"
    assert set(FORMATS) == {"text", "whole", "jsonl", "parquet", "huggingface", "wikipedia"}


def test_reading_text_needs_no_other_library() -> None:
    code = (
        "import sys, electra_fast.data.documents; print({'pyarrow', 'datasets', 'mwparserfromhell'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.stdout.strip() == "set()", result.stderr
