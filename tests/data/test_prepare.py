from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from electra_fast.data import encoding
from electra_fast.data.corpus import Corpus
from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from tests.data.texts import random_documents, write_text

ROOT = Path(__file__).parents[2]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("shard_tokens", [1, 7, 1000, 1 << 28])
def test_tokens_are_the_tokenizers_own(tmp_path: Path, tokenizer, rng_seed: int, shard_tokens: int) -> None:
    most_words = 3 if shard_tokens == 1 else 80
    documents = random_documents(np.random.default_rng(rng_seed), 5 if shard_tokens == 1 else 50, most_words=most_words)
    source = write_text(tmp_path / "a.txt", [*documents, "\u00ad\u00ad"])  # the last has no token: left out
    meta = prepare([source], tokenizer, tmp_path / "c", shard_tokens=shard_tokens, progress=False)
    corpus = Corpus.open(tmp_path / "c", verify=True)
    expected = [tokenizer(d, add_special_tokens=False, split_special_tokens=True).input_ids for d in documents]
    assert corpus.num_documents == len(documents)
    assert [corpus.document(i).tolist() for i in range(len(documents))] == expected
    assert corpus.num_tokens == sum(map(len, expected))
    assert [s.tokens for s in meta.shards[:-1]] == [shard_tokens] * (len(meta.shards) - 1)
    assert 0 < meta.shards[-1].tokens <= shard_tokens
    assert meta == corpus.meta
    assert meta.text_bytes == sum(len(document.encode()) for document in documents)
    assert (meta.dtype, meta.vocab_size, meta.mask_token_id) == ("uint16", len(tokenizer), tokenizer.mask_token_id)
    assert meta.tokenizer_sha256 == tokenizer_hash(load_tokenizer(corpus.tokenizer_folder))
    special = {tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id}
    assert special.isdisjoint(corpus.read(0, corpus.num_tokens).tolist())  # "[MASK]" in the text is text
    for shard in meta.shards:
        content = (tmp_path / "c" / shard.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard.sha256
        assert len(content) == 2 * shard.tokens


def test_same_bytes_for_any_number_of_workers(tmp_path: Path, tokenizer, rng_seed: int, monkeypatch) -> None:
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 500)
    g = np.random.default_rng(rng_seed)
    paths = [write_text(tmp_path / f"{i}.txt", random_documents(g, 60)) for i in range(2)]
    jsonl = tmp_path / "2.jsonl"
    jsonl.write_text("".join(json.dumps({"text": d}) + "\n" for d in random_documents(g, 60)), encoding="utf-8")
    results = []
    for workers in (1, 2, 3):
        output = tmp_path / f"out{workers}"
        prepare([*paths, jsonl], tokenizer, output, workers=workers, shard_tokens=1001, progress=False)
        results.append(folder_bytes(output))
    assert results[0] == results[1] == results[2]
    # ... and for a tokenizer that went through a folder
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    prepare([*paths, jsonl], tmp_path / "tokenizer", tmp_path / "again", shard_tokens=1001, progress=False)
    assert folder_bytes(tmp_path / "again") == results[0]


def test_over_65535_ids_are_uint32(tmp_path: Path, rng_seed: int) -> None:
    for size, dtype in ((65_535, "uint16"), (65_536, "uint32"), (70_000, "uint32")):
        vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
        vocabulary |= {f"w{i}": i for i in range(5, size)}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
        ids = np.append(np.random.default_rng(rng_seed).integers(5, size, 1000), size - 1)
        source = write_text(tmp_path / "a.txt", [" ".join(f"w{i}" for i in ids)])
        meta = prepare(source, tokenizer, tmp_path / f"c{size}", progress=False, shard_tokens=300)
        corpus = Corpus.open(tmp_path / f"c{size}", verify=True)
        assert (meta.dtype, meta.vocab_size) == (dtype, size)
        assert corpus.document(0).tolist() == ids.tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_on_the_way_leaves_nothing(tmp_path: Path, tokenizer, monkeypatch, workers: int) -> None:
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 10)
    source = tmp_path / "a.txt"
    source.write_bytes(b"fine words here\n\n" * 100 + b"bad \xe9 byte\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"a\.txt, line 201: byte 0xe9 at offset 1704"):
        prepare([source], tokenizer, tmp_path / "out" / "c", workers=workers, progress=False)
    assert list((tmp_path / "out").iterdir()) == []


# Prepares a text and never comes to its end, however late the signal is sent.
ENDLESS = """
import sys, time
from electra_fast.data import prepare as module

def endless(*arguments, read=module.chunked):
    yield from read(*arguments)
    time.sleep(3600)

if __name__ == "__main__":
    module.chunked = endless
    module.prepare(*sys.argv[1:4], workers=2, progress=False)
"""


@pytest.mark.timeout(900)
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("name", "leaves"), [("SIGINT", []), ("SIGKILL", [".c.partial"])])
def test_interrupted_work_leaves_no_corpus(tmp_path: Path, tokenizer, name: str, leaves: list[str]) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(b"some words to be cut into very many pieces\n\n" * 1_000_000)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    out = tmp_path / "out"
    out.mkdir()
    script = tmp_path / "script.py"
    script.write_text(ENDLESS)
    arguments = [sys.executable, script, source, tmp_path / "tokenizer", out / "c"]
    process = subprocess.Popen(
        arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, start_new_session=True
    )
    shard = out / ".c.partial" / "tokens-00000.bin"
    while not (shard.exists() and shard.stat().st_size > 0):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    else:
        os.kill(process.pid, signal.SIGKILL)  # the workers see their parent gone, and end
    # stderr reaches its end when parent and workers all have ended
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert [p.name for p in out.iterdir()] == leaves
    assert not (out / ".c.partial" / "meta.json").exists()
    small = write_text(tmp_path / "b.txt", ["ba de"])
    prepare([small], tokenizer, out / "c", progress=False)
    assert [p.name for p in out.iterdir()] == ["c"]
    assert Corpus.open(out / "c", verify=True).num_documents == 1


def test_only_a_corpus_is_overwritten(tmp_path: Path, tokenizer) -> None:
    first, second = (write_text(tmp_path / n, [t]) for n, t in (("1.txt", "ba"), ("2.txt", "de ki")))
    (tmp_path / "c").mkdir()  # an empty folder is as good as none
    prepare([first], tokenizer, tmp_path / "c", progress=False)
    before = folder_bytes(tmp_path / "c")
    with pytest.raises(ValueError, match="exists"):
        prepare([second], tokenizer, tmp_path / "c", progress=False)
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        prepare([tmp_path / "bad.txt"], tokenizer, tmp_path / "c", progress=False, overwrite=True)
    assert folder_bytes(tmp_path / "c") == before
    prepare([second], tokenizer, tmp_path / "c", progress=False, overwrite=True)
    assert Corpus.open(tmp_path / "c", verify=True).num_tokens > 1
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="no prepared corpus"):
        prepare([second], tokenizer, tmp_path / "home", progress=False, overwrite=True)
    assert (tmp_path / "home" / "letter.txt").exists()


def test_bad_arguments(tmp_path: Path, tokenizer) -> None:
    empty = write_text(tmp_path / "empty.txt", [" ", "\u00ad"])
    with pytest.raises(ValueError, match="no document with a token"):
        prepare([empty], tokenizer, tmp_path / "c", progress=False)
    for options in ({"workers": 0}, {"shard_tokens": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            prepare([empty], tokenizer, tmp_path / "c", progress=False, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.txt"]


def test_real_text_against_the_plain_tokenizer(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    source = shared_data("pretrain_en/wiki_en.valid.txt")
    vocab = shared_data("vocab/bert-base-uncased.vocab.txt")
    prepare([source], vocab, tmp_path / "c", workers=2, progress=False)
    corpus = Corpus.open(tmp_path / "c")
    tokenizer = load_tokenizer(vocab)
    documents = [d.strip("\n") for d in source.read_text(encoding="utf-8").split("\n\n") if d.strip()]
    assert corpus.num_documents == len(documents) == 264
    for index in range(0, 264, 13):
        assert corpus.document(index).tolist() == tokenizer(documents[index], add_special_tokens=False).input_ids


def test_workers_start_without_torch_and_transformers() -> None:
    code = "import sys, electra_fast.data.prepare; print({'torch', 'transformers'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
