"""Batches of a corpus on disk: `BatchLoader` beside what people write; and, as a program, tokens a second.

`plain` is a loop over the sequences of a batch, `padded DataLoader` PyTorch's with a dataset of the same sequences and
transformers' padding collator, without worker processes: what a batch costs a core, wherever that core is.

`OMP_NUM_THREADS=1 python -m benchmarks.bench_loading` reads 256 MB on one thread: a whole epoch from the disk, with the
system's page cache emptied of the corpus, then the same from the page cache, then a quarter of it in each other mode.
It asks for 20 million tokens a second.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import BertTokenizer, DataCollatorWithPadding

from benchmarks.inputs import Arguments
from electra_fast.data.corpus import Corpus, CorpusMeta, Units
from electra_fast.data.corpus_writer import CorpusWriter, PartialFolder
from electra_fast.data.loader import BatchLoader
from electra_fast.data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash

ASKED = 20e6  # tokens a second
TOKENS = 128_000_000  # of the corpus: 256 MB
SHARD_TOKENS = 1 << 26
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *(f"w{i}" for i in range(30_516))]

MODES: dict[str, dict[str, Any]] = {
    "128 x 128": {"batch_size": 128, "max_length": 128},
    "16,384 tokens, at most 128": {"batch_tokens": 16_384, "max_length": 128},
    "32 x 512": {"batch_size": 32, "max_length": 512},
    "joined, 128 x 128": {"batch_size": 128, "max_length": 128, "join_documents": True},
    "two segments, 128 x 128": {"batch_size": 128, "max_length": 128, "segments": 2},
    "words, 128 x 128": {"batch_size": 128, "max_length": 128, "mask_units": "word"},
    "spans, 128 x 128": {"batch_size": 128, "max_length": 128, "mask_units": "span"},
    "two corpora, 128 x 128": {"batch_size": 128, "max_length": 128},
}


def write_corpus(folder: Path, tokens: int) -> Path:
    """A corpus of random ids, in documents as long as Wikipedia's: log-normal, 400 tokens in the median."""
    g = np.random.default_rng(0)
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(VOCABULARY)})
    with PartialFolder(folder) as partial:
        with CorpusWriter(partial, SHARD_TOKENS, np.dtype("<u2"), ["word"]) as writer:
            while writer.tokens < tokens:
                lengths = np.maximum(1, np.exp(g.normal(6, 1, 1000))).astype(np.int64)
                ids = g.integers(5, len(VOCABULARY), int(lengths.sum())).astype("<u2")
                ids[g.random(len(ids)) < 0.04] = VOCABULARY.index(".")
                writer.write(lengths, ids, 4 * lengths, {"word": g.random(len(ids)) < 0.8})
        save_tokenizer(tokenizer, partial / "tokenizer")
        CorpusMeta(
            tokenizer_sha256=tokenizer_hash(tokenizer),
            vocab_size=len(VOCABULARY),
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            mask_token_id=4,
            dtype="uint16",
            documents=writer.documents,
            tokens=writer.tokens,
            text_bytes=writer.text_bytes,
            duplicate_documents=None,
            duplicate_tokens=None,
            shards=tuple(writer.shards),
            offsets_sha256=writer.offsets_sha256,
            units=(Units("word", "none", "starts-word.bin", writer.units_sha256["word"]),),
        ).write(partial)
    return folder


def make_loader(folder: Path, mode: str) -> BatchLoader:
    corpora = [Corpus.open(folder)] * (2 if mode.startswith("two corpora") else 1)
    return BatchLoader(corpora, seed=1, **MODES[mode])


def plain_batch(loader: BatchLoader, step: int) -> dict[str, Any]:
    """The same sequences by a loop, each read, cut and put between its special tokens by itself."""
    corpus, size = loader.corpora[0], loader.max_length - 2
    first = step * loader.batch_size
    rows = []
    for piece in loader._stream.take(first, first + loader.batch_size).pieces.tolist():
        starts, lengths = loader._pieces[0].spans(np.array([piece]))
        tokens = corpus.read(int(starts[0]), int(starts[0]) + min(size, int(lengths[0])))
        rows.append(torch.tensor([2, *tokens.tolist(), 3]))
    lengths = torch.tensor([0, *map(len, rows)])
    return {"input_ids": torch.cat(rows), "cu_seqlens": lengths.cumsum(0).int()}


class Sequences(Dataset):
    """The sequences of a loader's first steps, each read when it is asked for."""

    def __init__(self, loader: BatchLoader, steps: int) -> None:
        self._corpus, self._most = loader.corpora[0], loader.max_length - 2
        pieces = loader._stream.take(0, steps * loader.batch_size).pieces
        self._starts, self._lengths = loader._pieces[0].spans(pieces)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        start = int(self._starts[index])
        tokens = self._corpus.read(start, start + min(self._most, int(self._lengths[index])))
        return {"input_ids": [2, *tokens.tolist(), 3]}


def padded_batches(loader: BatchLoader, steps: int, folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the same sequences, [B, S] and padded, for ever."""
    collator = DataCollatorWithPadding(load_tokenizer(folder / "tokenizer"))
    made = DataLoader(Sequences(loader, steps), batch_size=loader.batch_size, collate_fn=collator)
    while True:
        yield from made


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders by their number of tokens; made when first asked for."""
    folder = tmp_path_factory.mktemp("loading")

    class Corpora(dict[int, Path]):
        def __missing__(self, tokens: int) -> Path:
            self[tokens] = write_corpus(folder / str(tokens), tokens)
            return self[tokens]

    return Corpora()


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="work of the CPU; on a machine with a GPU the suite measures that"
)
@pytest.mark.parametrize("mode", ["128 x 128", "32 x 512"])
def test_loading(compare, benchmark, corpora, mode):
    loader_folder = corpora[TOKENS // 4 if benchmark.enabled else 200_000]
    loader = make_loader(loader_folder, mode)
    steps = 200 if benchmark.enabled else 2
    inputs: list[Arguments] = [(step,) for step in range(steps)]
    batch, plain = loader.batch(0), plain_batch(loader, 0)
    assert torch.equal(batch.input_ids, plain["input_ids"])
    assert torch.equal(batch.cu_seqlens, plain["cu_seqlens"])
    padded = padded_batches(loader, steps, loader_folder)
    first = next(padded)
    assert torch.equal(first["input_ids"][first["attention_mask"] == 1], batch.input_ids)
    compare(
        "BatchLoader.batch",
        ours=loader.batch,
        plain=lambda step: plain_batch(loader, step),
        rivals={"padded DataLoader": lambda step: next(padded)},
        inputs=inputs,
        shape=mode,
        dtype="uint16",
        direction="a batch",
        bytes_moved=batch.num_tokens * (2 + 8),
        tokens=batch.num_tokens,
    )


def tokens_a_second(loader: BatchLoader, share: float) -> tuple[float, float]:
    """Of a share of an epoch: by the clock, and by this thread's time on a core, whatever else the machine does."""
    tokens, wall, core = 0, time.perf_counter(), time.thread_time()
    for step in range(int(share * loader.steps_per_epoch)):
        tokens += loader.batch(step).num_tokens
    return tokens / (time.perf_counter() - wall), tokens / (time.thread_time() - core)


def forget(folder: Path) -> bool:
    """Ask the system to drop the corpus from its page cache; whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.glob("*.bin"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def bytes_from_disk() -> int | None:
    """What this process has read from a disk so far; None where the system doesn't say."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_corpus(Path(temporary) / "corpus", TOKENS)
        print(f"{sum(path.stat().st_size for path in folder.glob('tokens-*')) / 1e6:.0f} MB of shards, one thread")
        print("million tokens a second: by the clock, and by the thread's time on a core")
        if forget(folder):
            before = bytes_from_disk()
            wall, core = tokens_a_second(make_loader(folder, "128 x 128"), 1.0)
            read = "" if before is None else f" ({(bytes_from_disk() - before) / 1e6:.0f} MB came from the disk)"
            print(f"{'128 x 128, cold':<30} {wall / 1e6:6.1f} {core / 1e6:6.1f}{read}")
        for number, mode in enumerate(MODES):
            wall, core = tokens_a_second(make_loader(folder, mode), 0.25 if number else 1.0)
            note = "" if wall >= ASKED else f"  less than the {ASKED / 1e6:.0f} asked"
            print(f"{mode:<30} {wall / 1e6:6.1f} {core / 1e6:6.1f}{note}")


if __name__ == "__main__":
    main()
