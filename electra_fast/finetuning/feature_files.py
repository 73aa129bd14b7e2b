"""Vectors of the texts in a file, written as .npy or Parquet: `electra-fast features`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from electra_fast.extras import require
from electra_fast.files import flush
from electra_fast.finetuning.features import FeatureExtractor
from electra_fast.finetuning.inference import BATCH_TOKENS, batches_of
from electra_fast.finetuning.tables import ENDINGS, read_rows

FORMATS = (".npy", ".parquet")
DTYPES = ("float32", "float16")
_CHUNK = 10_000  # texts that are tokenised at once


class Written(NamedTuple):
    """What `write_features` did."""

    texts: int
    tokens: int
    seconds: float
    files: list[Path]


def read_texts(file: Path, column: str = "text") -> list[str]:
    """The texts of a file: of a CSV, TSV or JSONL file its `column`; of any other file its lines, blank ones too.

    Raises:
        ValueError: about file and row.
    """
    if file.suffix in ENDINGS:
        texts = []
        for row in read_rows(file):
            value = row.get(column)
            if not isinstance(value, str):
                raise row.error(f"{column} must be text")
            texts.append(value)
        return texts
    try:
        texts = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason} at byte {error.start}): convert the file") from error
    if not texts:
        raise ValueError(f"{file} holds no text")
    return texts


def write_features(
    extractor: FeatureExtractor,
    texts: list[str],
    output: Path,
    *,
    dtype: str = "float32",
    batch_tokens: int = BATCH_TOKENS,
    show_progress: bool = False,
) -> Written:
    """Write the vectors of `texts`, in their order.

    `.npy` holds [texts, dim]; with pooling "tokens" it holds the tokens of all texts one after another, [T, dim], and
    `NAME.offsets.npy` beside it, int64 [texts + 1], where each text begins. Parquet has columns `text` and `vector`;
    with "tokens" `text`, `tokens` (the tokenizer's pieces) and `vectors`. Files are whole or not there.

    Args:
        dtype: "float32" or "float16", of the file.
        batch_tokens: tokens of one forward.

    Raises:
        ValueError: another ending, or a folder that is not there.
    """
    check_output(output)
    start = time.perf_counter()
    ids = _tokenized(extractor, texts)
    lengths = [len(row) for row in ids]
    is_tokens = extractor.pooling == "tokens"
    with tqdm(total=len(texts), unit=" texts", disable=not show_progress, leave=False) as bar:

        def batches() -> Iterator[tuple[slice, np.ndarray]]:
            for part in batches_of(lengths, batch_tokens):
                vectors = extractor.packed(ids[part]).detach().float().cpu().numpy().astype(dtype)
                yield part, vectors
                bar.update(part.stop - part.start)

        if output.suffix == ".npy":
            offsets = np.concatenate([[0], np.cumsum(lengths)]) if is_tokens else np.arange(len(texts) + 1)
            files = _write_npy(output, batches(), offsets, extractor.dim, dtype, with_offsets=is_tokens)
        else:
            files = _write_parquet(output, batches(), texts, ids if is_tokens else None, extractor, dtype)
    return Written(len(texts), sum(lengths), time.perf_counter() - start, files)


def check_output(output: Path) -> None:
    """Raises ValueError for another ending than .npy and .parquet, and for a folder that is not there."""
    if output.suffix not in FORMATS:
        raise ValueError(f"{output}: expected a file whose name ends in {' or '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise ValueError(f"the folder {output.parent} is not there: make it, or choose another")


def _tokenized(extractor: FeatureExtractor, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = []
    for first in range(0, len(texts), _CHUNK):
        chunk = texts[first : first + _CHUNK]
        ids += extractor.tokenizer(chunk, truncation=True, max_length=extractor.max_length)["input_ids"]
    return ids


def _write_npy(
    output: Path,
    batches: Iterator[tuple[slice, np.ndarray]],
    offsets: np.ndarray,
    dim: int,
    dtype: str,
    *,
    with_offsets: bool,
) -> list[Path]:
    aside = output.with_name(f".{output.name}.partial")
    try:
        array = np.lib.format.open_memmap(aside, mode="w+", dtype=dtype, shape=(int(offsets[-1]), dim))
        for part, vectors in batches:
            array[offsets[part.start] : offsets[part.stop]] = vectors
        array.flush()
        del array
        files = [output]
        if with_offsets:
            files.append(output.with_name(f"{output.stem}.offsets.npy"))
            np.save(files[1], offsets.astype(np.int64))
        _put(aside, output)
    finally:
        aside.unlink(missing_ok=True)
    return files


def _write_parquet(
    output: Path,
    batches: Iterator[tuple[slice, np.ndarray]],
    texts: list[str],
    ids: list[list[int]] | None,
    extractor: FeatureExtractor,
    dtype: str,
) -> list[Path]:
    pa = require("pyarrow", extra="parquet", purpose="Parquet files")
    parquet = require("pyarrow.parquet", extra="parquet", purpose="Parquet files")
    vector = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), extractor.dim)
    columns = [("text", pa.string())]
    columns += (
        [("vector", vector)] if ids is None else [("tokens", pa.list_(pa.string())), ("vectors", pa.list_(vector))]
    )
    schema = pa.schema(columns)
    aside = output.with_name(f".{output.name}.partial")
    try:
        with parquet.ParquetWriter(aside, schema) as writer:
            for part, vectors in batches:
                values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), extractor.dim)
                arrays = [pa.array(texts[part])]
                if ids is not None:
                    offsets = pa.array(np.concatenate([[0], np.cumsum([len(row) for row in ids[part]])]), pa.int32())
                    arrays.append(pa.array([extractor.tokenizer.convert_ids_to_tokens(row) for row in ids[part]]))
                    values = pa.ListArray.from_arrays(offsets, values)
                writer.write_table(pa.Table.from_arrays([*arrays, values], schema=schema))
        _put(aside, output)
    finally:
        aside.unlink(missing_ok=True)
    return [output]


def _put(aside: Path, output: Path) -> None:
    flush(aside)
    os.replace(aside, output)
    flush(output.parent)
