"""Where units for masking begin, beside a plain rule for each kind; and how they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from electra_fast.data import encoding, units
from electra_fast.data.checksum import sealed, unsealed
from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import BatchLoader
from electra_fast.data.prepare import prepare
from electra_fast.data.spans import span_length_probabilities, span_starts
from tests.data.texts import random_documents, write_text


def prepared(folder: Path, source: Path, tokenizer: Any, **options: Any) -> Corpus:
    prepare([source], tokenizer, folder, progress=False, overwrite=True, **options)
    return Corpus.open(folder, verify=True)


def units_of(corpus: Corpus, kind: str, document: int) -> list[list[int]]:
    """A document's token places, unit by unit."""
    first, stop = corpus.offsets[document : document + 2].tolist()
    starts = corpus.unit_starts(kind, np.arange(first, stop))
    assert starts.dtype == bool
    assert starts[0]
    return [part.tolist() for part in np.split(np.arange(stop - first), np.flatnonzero(starts)[1:])]


def test_words_of_wordpiece_begin_without_hashes(tmp_path: Path, tokenizer, rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    source = write_text(tmp_path / "a.txt", random_documents(g, int(g.integers(1, 60))))
    corpus = prepared(tmp_path / "c", source, tokenizer, units=["word"], shard_tokens=77)
    tokens = tokenizer.convert_ids_to_tokens(corpus.read(0, corpus.num_tokens).tolist())
    starts = corpus.unit_starts("word", np.arange(corpus.num_tokens))
    assert starts.tolist() == [not token.startswith("##") for token in tokens]
    places = g.integers(0, corpus.num_tokens, 50)
    assert corpus.unit_starts("word", places).tolist() == starts[places].tolist()
    plain = prepared(tmp_path / "plain", source, tokenizer, shard_tokens=77)
    assert plain.meta.shards == corpus.meta.shards  # the tokens are the same with and without
    assert plain.meta.content_hash() != corpus.meta.content_hash()


@pytest.mark.parametrize("kind", ["byte-level", "metaspace", "metaspace, not split"])
def test_words_of_other_tokenizers_begin_at_spaces(tmp_path: Path, rng_seed: int, kind: str) -> None:
    g = np.random.default_rng(rng_seed)
    words = [["".join(g.choice(list("abcdeé"), g.integers(1, 9))) for _ in range(30)] for _ in range(20)]
    documents = [" ".join(each) for each in words]
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    if kind == "byte-level":
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(split=kind == "metaspace")
        backend.decoder, alphabet = decoders.Metaspace(), []
    names = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    # Trained on words, as merges over a space would make it a part of one.
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 40, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([word for document in documents for word in document.split()], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name[1:-1].lower()}_token": name for name in names}
    )
    corpus = prepared(tmp_path / "c", write_text(tmp_path / "a.txt", documents), tokenizer, units=["word"])
    for index, expected in enumerate(words):
        tokens = corpus.document(index).tolist()
        read = [tokenizer.decode([tokens[i] for i in unit]).strip() for unit in units_of(corpus, "word", index)]
        assert read == expected
    assert corpus.num_tokens > 1.5 * 20 * 30  # words of several tokens


def test_punctuation_is_a_word_by_itself(tmp_path: Path) -> None:
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "un",
        "##believ",
        "##able",
        ",",
        "isn",
        "'",
        "t",
        "it",
        "?",
    ]
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)})
    source = write_text(tmp_path / "a.txt", ["Unbelievable, isn't it?"])
    corpus = prepared(tmp_path / "c", source, tokenizer, units=["word"])
    assert units_of(corpus, "word", 0) == [[0, 1, 2], [3], [4], [5], [6], [7], [8]]


def test_chinese_words_are_those_of_jieba(tmp_path: Path, shared_data, monkeypatch) -> None:
    pytest.importorskip("jieba", reason="the extra chinese is not installed")
    jieba = units._load_jieba()  # once: it reads its dictionary for seconds
    monkeypatch.setattr(units, "_load_jieba", lambda: jieba)
    vocab, source = shared_data("vocab/bert-base-chinese.vocab.txt"), shared_data("pretrain_zh/wiki_zh.valid.txt")
    documents = source.read_text(encoding="utf-8").strip().split("\n\n")[:8]
    corpus = prepared(
        tmp_path / "c", write_text(tmp_path / "a.txt", documents), vocab, units=["word"], segmenter="jieba"
    )
    assert corpus.meta.units[0].segmenter == "jieba"
    tokenizer, longer = corpus.load_tokenizer(), 0
    for index, text in enumerate(documents):
        # The plain rule: a Chinese character joins the one before where jieba's word goes on over both.
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        word_of = [number for number, word in enumerate(jieba.cut(text)) for _ in word]
        tokens, expected = tokenizer.convert_ids_to_tokens(corpus.document(index).tolist()), []
        for i, (start, stop) in enumerate(places):
            character = "\u4e00" <= text[start] <= "\u9fff"
            follows = i > 0 and places[i - 1][1] == start and "\u4e00" <= text[places[i - 1][0]] <= "\u9fff"
            joined = character and follows and word_of[start] == word_of[start - 1]
            expected.append(not tokens[i].startswith("##") and not joined)
            assert not character or stop == start + 1
        found = units_of(corpus, "word", index)
        assert [unit[0] for unit in found] == np.flatnonzero(expected).tolist()
        longer += sum(len(unit) > 1 for unit in found)
    assert longer > 100


def write_entities(path: Path, g: np.random.Generator, documents: list[str], field: str = "entities") -> list[list]:
    """JSON lines with random spans that don't overlap, in any order."""
    entities = []
    for text in documents:
        count = min(int(g.integers(0, 6)), (len(text) + 1) // 2)
        bounds = np.sort(g.choice(len(text) + 1, 2 * count, replace=False)).reshape(-1, 2)
        entities.append(g.permutation(bounds).tolist())
    lines = (json.dumps({"text": t, field: e}) for t, e in zip(documents, entities, strict=True))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return entities


def test_entities_are_units_and_the_rest_words(tmp_path: Path, tokenizer, rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    documents = random_documents(g, 40, most_words=20)
    entities = write_entities(tmp_path / "a.jsonl", g, documents, "names")
    options = {"units": ["entity", "word"], "entities_field": "names"}
    corpus = prepared(tmp_path / "c", tmp_path / "a.jsonl", tokenizer, **options)
    assert [unit.kind for unit in corpus.meta.units] == ["entity", "word"]
    for index, (text, spans) in enumerate(zip(documents, entities, strict=True)):
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
        starts = [not token.startswith("##") for token in tokenizer.convert_ids_to_tokens(encoding["input_ids"])]
        for span in sorted(spans):  # where two share a token, it is the second's
            inside = [a < span[1] and b > span[0] and a < b for a, b in encoding["offset_mapping"]]
            for i in np.flatnonzero(inside):
                starts[i] = not (i > 0 and inside[i - 1])
            if any(inside) and np.flatnonzero(inside)[-1] + 1 < len(starts):
                starts[np.flatnonzero(inside)[-1] + 1] = True
        expected = [part.tolist() for part in np.split(np.arange(len(starts)), np.flatnonzero(starts)[1:])]
        assert units_of(corpus, "entity", index) == [part for part in expected if part]


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path, tokenizer, rng_seed: int, monkeypatch) -> None:
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 300)
    g = np.random.default_rng(rng_seed)
    write_entities(tmp_path / "a.jsonl", g, random_documents(g, 40))
    for workers in (1, 2):
        prepared(tmp_path / str(workers), tmp_path / "a.jsonl", tokenizer, workers=workers, units=["word", "entity"])
    for name in ("starts-word.bin", "starts-entity.bin", "meta.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([[0, 2], [1, 3]], r"line 2: the entities \[0, 2\] and \[1, 3\] overlap"),
        ([[3, 3]], r"line 2: the entity \[3, 3\] is empty or outside of the text of 5 characters"),
        ([[0, 6]], r"line 2: the entity \[0, 6\] is empty or outside"),
        ([[0, 1, 2]], r"line 2: entities must be a list of \[start, end\] .* got \[0, 1, 2\]"),
        ([[True, 2]], "line 2: entities must be a list"),
        ("0-2", 'line 2: entities must be a list .* got "0-2"'),
    ],
)
def test_bad_entities_are_named(tmp_path: Path, tokenizer, entities: Any, message: str) -> None:
    good = json.dumps({"text": "ba de"})  # without entities: all words
    bad = json.dumps({"text": "ki lo", "entities": entities})
    (tmp_path / "a.jsonl").write_text(f"{good}\n{bad}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path / "c", tmp_path / "a.jsonl", tokenizer, units=["entity"])
    assert not (tmp_path / "c").exists()
    prepared(tmp_path / "c", tmp_path / "a.jsonl", tokenizer, units=["word"])  # which does not look at them


def test_what_cannot_be_found_is_refused(tmp_path: Path, tokenizer, monkeypatch) -> None:
    source = write_text(tmp_path / "a.txt", ["ba de"])
    for options, message in (
        ({"units": ["entity"]}, r"entities are read from JSON lines and wiki dumps, and .*a\.txt is something else"),
        ({"units": ["sentence"]}, "units must be of word, entity; got 'sentence'"),
        ({"units": ["word"], "segmenter": "hanlp"}, "segmenter must be of none, jieba; got 'hanlp'"),
    ):
        with pytest.raises(ValueError, match=message):
            prepared(tmp_path / "c", source, tokenizer, **options)
    corpus = prepared(tmp_path / "c", source, tokenizer)
    for unit, kind in (("word", "word"), ("span", "word"), ("entity", "entity")):
        with pytest.raises(ValueError, match=f"does not say where each {kind} begins: prepare it again with --units"):
            BatchLoader(corpus, batch_size=1, max_length=8, mask_units=unit)


def test_a_damaged_file_of_units_is_named(tmp_path: Path, tokenizer, rng_seed: int) -> None:
    source = write_text(tmp_path / "a.txt", random_documents(np.random.default_rng(rng_seed), 20))
    corpus = prepared(tmp_path / "c", source, tokenizer, units=["word"])
    path = corpus.folder / "starts-word.bin"
    good = path.read_bytes()
    assert len(good) == -(-corpus.num_tokens // 8)
    path.write_bytes(good[:-1])
    with pytest.raises(ValueError, match=rf"starts-word\.bin is damaged: {len(good) - 1} bytes, expected {len(good)}"):
        Corpus.open(corpus.folder)
    path.write_bytes(bytes([good[0] ^ 4]) + good[1:])
    with pytest.raises(ValueError, match=r"starts-word\.bin is damaged: its sha256"):
        Corpus.open(corpus.folder, verify=True)
    path.unlink()
    with pytest.raises(ValueError, match=r"starts-word\.bin is missing"):
        Corpus.open(corpus.folder)


def test_a_corpus_of_version_1_is_still_read(tmp_path: Path, tokenizer) -> None:
    corpus = prepared(tmp_path / "c", write_text(tmp_path / "a.txt", ["ba de ki", "lo"]), tokenizer)
    path = corpus.folder / "meta.json"
    content = unsealed(json.loads(path.read_text()))
    for name in ("units", "duplicate_documents", "duplicate_tokens", "text_bytes"):
        del content[name]
    path.write_text(json.dumps(sealed(content | {"version": 1, "bytes_read": 13})))
    old = Corpus.open(corpus.folder, verify=True)
    assert (old.meta.version, old.meta.units, old.meta.text_bytes) == (1, (), 13)
    assert old.document(0).tolist() == corpus.document(0).tolist()
    assert old.meta.content_hash() == corpus.meta.content_hash()  # so that a run can go on


def test_span_lengths_follow_the_clipped_geometric_law(rng_seed: int) -> None:
    """Chi-square of 50,000 sequences' first spans, which nothing cuts off; the limit is passed once in 10^10 runs."""
    count, words = 50_000, 12
    starts = span_starts(
        np.ones(count * words, bool),
        np.full(count, words),
        seed=rng_seed,
        epochs=np.zeros(count, np.int64),
        sequence_ids=np.arange(count),
    ).reshape(count, words)
    assert starts[:, 0].all()
    lengths = 1 + np.argmax(starts[:, 1:], axis=1)
    assert starts[:, 1:].any(axis=1).all()  # none is longer than 10
    probabilities = 0.8 ** np.arange(10) / sum(0.8**i for i in range(10))
    np.testing.assert_allclose(span_length_probabilities(), probabilities, rtol=1e-12)
    expected = count * probabilities
    observed = np.bincount(lengths, minlength=11)[1:]
    assert ((observed - expected) ** 2 / expected).sum() < 70  # 9 degrees of freedom


def test_spans_are_of_whole_words(rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    lengths = g.integers(1, 60, 200)
    words = g.random(int(lengths.sum())) < 0.6
    arguments = {"seed": rng_seed, "epochs": g.integers(0, 3, 200), "sequence_ids": g.integers(0, 10**9, 200)}
    starts = span_starts(words, lengths, **arguments)
    begins = np.cumsum(lengths) - lengths
    assert starts[begins].all()
    inner = np.setdiff1d(np.flatnonzero(starts), begins)
    assert words[inner].all()
    # A sequence's spans are its own: alone, or beside others, they are the same.
    for i in g.integers(0, 200, 20).tolist():
        here = slice(begins[i], begins[i] + lengths[i])
        alone = {name: value if name == "seed" else value[i : i + 1] for name, value in arguments.items()}
        assert span_starts(words[here], lengths[i : i + 1], **alone).tolist() == starts[here].tolist()
