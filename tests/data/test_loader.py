from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from electra_fast.data import streams
from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import Batch, BatchLoader, CurriculumLoader, open_loader
from electra_fast.data.pieces import MIN_PIECE
from electra_fast.data.prepare import prepare
from electra_fast.data.segments import SENTENCE_ENDS
from electra_fast.data.streams import quotas, shares_by_size
from electra_fast.pretraining.config import CorpusConfig, DataConfig, StageConfig
from tests.data.plain_loader import PlainLoader
from tests.data.texts import random_documents, write_text


def expected_pieces(corpus: Corpus, max_length: int) -> list[list[int]]:
    """The pieces of the corpus in order, cut the plain way."""
    pieces = []
    for index in range(corpus.num_documents):
        tokens = corpus.document(index).tolist()
        cut = [tokens[i : i + max_length - 2] for i in range(0, len(tokens), max_length - 2)]
        if len(cut) > 1 and len(cut[-1]) < MIN_PIECE and len(cut[-1]) < max_length - 2:
            cut.pop()
        pieces += cut
    meta = corpus.meta
    return [[meta.cls_token_id, *piece, meta.sep_token_id] for piece in pieces]


def sequences(batch: Batch) -> list[tuple[int, list[int]]]:
    cu = batch.cu_seqlens.tolist()
    ids = batch.input_ids.tolist()
    assert cu[0] == 0
    assert cu[-1] == len(ids)
    return [(s, ids[a:b]) for s, a, b in zip(batch.sequence_ids.tolist(), cu, cu[1:], strict=False)]


def assert_equal(a: Batch, b: Batch) -> None:
    assert (a.epoch, a.max_seqlen, a.num_tokens) == (b.epoch, b.max_seqlen, b.num_tokens)
    for name in ("input_ids", "cu_seqlens", "sequence_ids", "token_type_ids", "unit_starts"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            assert x.dtype == y.dtype
            assert torch.equal(x, y), name


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(streams, "WINDOW", 16)
    monkeypatch.setattr(streams, "BLOCK", 64)
    return 16


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("max_length", [3, 7, 12, 33, 512])
def test_every_piece_once_an_epoch(make_corpus, rng_seed: int, small_windows: int, max_length: int, shuffle: bool):
    g = np.random.default_rng(rng_seed)
    corpus = make_corpus(random_documents(g, int(g.integers(1, 40)), most_words=30), shard_tokens=101)
    pieces = expected_pieces(corpus, max_length)
    batch_size = int(g.integers(1, 20))
    loader = BatchLoader(corpus, batch_size=batch_size, max_length=max_length, seed=rng_seed, shuffle=shuffle)
    assert loader.num_sequences == len(pieces)
    assert loader.steps_per_epoch == len(pieces) / batch_size

    steps = -(-3 * len(pieces) // batch_size)
    stream = []
    for step in range(steps):
        batch = loader.batch(step)
        assert batch.epoch == step * batch_size // len(pieces)
        assert (batch.input_ids.dtype, batch.cu_seqlens.dtype, batch.sequence_ids.dtype) == (
            torch.int64,
            torch.int32,
            torch.int64,
        )
        stream += sequences(batch)
    for index, ids in stream:
        assert ids == pieces[index]
    order = [index for index, _ in stream]
    n = len(pieces)
    epochs = [order[i * n : (i + 1) * n] for i in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if not shuffle:
        assert epochs[0] == list(range(n))
    elif n > 40:  # two orders of 40 are the same once in 40!
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        assert epochs[0] != list(range(n))


def test_batches_are_a_pure_function_of_step(make_corpus, rng_seed: int, small_windows: int) -> None:
    g = np.random.default_rng(rng_seed)
    corpus = make_corpus(random_documents(g, 60))
    options = {"batch_size": 7, "max_length": 16, "seed": rng_seed}
    one = BatchLoader(corpus, **options)
    steps = int(2.5 * one.steps_per_epoch)
    forward = [one.batch(step) for step in range(steps)]
    for step in g.permutation(steps).tolist():  # any order, an object used before
        assert_equal(one.batch(step), forward[step])
    for step in g.integers(0, steps, 5).tolist():  # an object and a corpus opened anew
        assert_equal(BatchLoader(Corpus.open(corpus.folder), **options).batch(step), forward[step])
    other = BatchLoader(corpus, **{**options, "seed": rng_seed + 1})
    assert other.batch(0).sequence_ids.tolist() != forward[0].sequence_ids.tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 10])
def test_ranks_make_up_the_global_batch(make_corpus, rng_seed: int, small_windows: int, world_size: int) -> None:
    corpus = make_corpus(random_documents(np.random.default_rng(rng_seed), 30))
    loader = BatchLoader(corpus, batch_size=10, max_length=16, seed=rng_seed)
    for step in range(12):
        parts = [loader.batch(step, rank, world_size) for rank in range(world_size)]
        assert [s for part in parts for s in sequences(part)] == sequences(loader.batch(step))
        sizes = [len(part.sequence_ids) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_a_corpus_smaller_than_a_batch_repeats(make_corpus) -> None:
    corpus = make_corpus(["ba de", "ki lo mu"])
    batch = BatchLoader(corpus, batch_size=7, max_length=512, seed=3).batch(1)
    ids = batch.sequence_ids.tolist()  # places 7 .. 13 of the stream
    assert batch.epoch == 3
    assert len(ids) == 7
    assert sorted(ids[1:3]) == sorted(ids[3:5]) == sorted(ids[5:7]) == [0, 1]


def test_short_remainders_are_dropped_but_no_short_document(make_corpus, tokenizer) -> None:
    lengths = [1, MIN_PIECE - 1, 20, 20 + MIN_PIECE - 1, 20 + MIN_PIECE, 47, 48]
    corpus = make_corpus([" ".join("a" * n) for n in lengths])
    assert np.diff(corpus.offsets).tolist() == lengths
    batch = BatchLoader(corpus, batch_size=11, max_length=22, shuffle=False).batch(0)
    content = (np.diff(batch.cu_seqlens.numpy()) - 2).tolist()
    assert content == [1, 7, 20, 20, 20, 8, 20, 20, 20, 20, 8]


def test_the_order_is_fixed_for_ever(make_corpus, small_windows: int) -> None:
    """A resumed run depends on it: windows and pieces sort the raw words of PCG64, keyed by (seed, epoch, key)."""
    corpus = make_corpus([" ".join("a" * (40 * 10))])
    loader = BatchLoader(corpus, batch_size=40, max_length=12, seed=2**40 + 5)
    assert loader.num_sequences == 40

    def order(key: int, size: int) -> np.ndarray:
        words = [5, 2**8, 1, 0, key, 0]  # low and high word of seed, epoch and key
        return np.argsort(np.random.PCG64(np.random.SeedSequence(words)).random_raw(size))

    sizes = [16, 16, 8]
    expected = [16 * w + int(i) for w in order(0, 3) for i in order(1 + int(w), sizes[w])]
    assert loader.batch(1).sequence_ids.tolist() == expected
    assert loader.batch(0).sequence_ids.tolist() != expected


def test_bad_arguments(make_corpus) -> None:
    corpus = make_corpus(["ba de"])
    for options, message in (
        ({"batch_size": 0, "max_length": 8}, "batch_size must be at least 1"),
        ({"batch_size": 1, "max_length": 2}, "max_length must be at least 3"),
        ({"batch_size": 1, "max_length": 8, "seed": 2**64}, "seed must lie"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchLoader(corpus, **options)
    loader = BatchLoader(corpus, batch_size=2, max_length=8)
    for call, message in (((-1,), "step must be"), ((0, 2, 2), "rank must lie"), ((0, 0, 3), "batch_size=2 is less")):
        with pytest.raises(ValueError, match=message):
            loader.batch(*call)
    with pytest.raises(ValueError, match=r"batch_tokens=30 may leave one of 4 ranks .* give at least 32"):
        BatchLoader(corpus, batch_tokens=30, max_length=8).batch(0, 0, 4)


# Every mode, exactly as the plain loader says


@pytest.fixture
def make_corpora(tmp_path: Path, tokenizer) -> Callable[..., list[Corpus]]:
    def make(g: np.random.Generator, count: int, **options: Any) -> list[Corpus]:
        corpora = []
        for number in range(count):
            documents = random_documents(g, int(g.integers(1, 50)), most_words=int(g.choice([3, 30, 80])))
            documents = [text.replace(" de", ". ") for text in documents]
            source, output = write_text(tmp_path / f"{number}.txt", documents), tmp_path / f"corpus{number}"
            prepare([source], tokenizer, output, progress=False, overwrite=True, shard_tokens=301, **options)
            corpora.append(Corpus.open(output, verify=True))
        return corpora

    return make


def random_options(g: np.random.Generator, corpora: int) -> dict[str, Any]:
    segments = int(g.integers(1, 3))
    length = int(g.integers(3 if segments == 1 else 8, 40))
    options = {"max_length": length, "segments": segments, "seed": int(g.integers(2**63)) * 2 + 1}
    size = (
        {"batch_size": int(g.integers(1, 20))} if g.random() < 0.5 else {"batch_tokens": int(length * g.uniform(2, 9))}
    )
    options |= {"join_documents": bool(g.random() < 0.3), "fixed_shapes": bool(g.random() < 0.3), **size}
    options["mask_units"] = str(g.choice(["token", "word", "span"]))
    if corpora == 1:
        options["shuffle"] = bool(g.random() < 0.8)
    elif g.random() < 0.5:
        options["weights"] = g.uniform(0.3, 1, corpora).tolist()
    else:
        options["alpha"] = float(g.choice([0.0, 0.3]))
    return options


def assert_as_plain(batch: Batch, expected: dict[str, Any], options: dict[str, Any]) -> None:
    assert batch.epoch == expected["epoch"]
    assert batch.num_tokens == expected["num_tokens"]
    assert batch.max_seqlen == options["max_length"]
    for name in ("input_ids", "cu_seqlens", "sequence_ids"):
        assert getattr(batch, name).tolist() == expected[name], name
    assert (batch.token_type_ids is not None) == (options["segments"] == 2)
    assert (batch.unit_starts is not None) == (options["mask_units"] != "token")
    if batch.token_type_ids is not None:
        assert batch.token_type_ids.dtype == torch.int64
        assert batch.token_type_ids.tolist() == expected["token_type_ids"]
    if batch.unit_starts is not None:
        assert batch.unit_starts.dtype == torch.bool
        assert batch.unit_starts.tolist() == expected["unit_starts"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_are_those_of_the_plain_loader(make_corpora, tokenizer, rng_seed: int, small_windows: int, count: int):
    g = np.random.default_rng(rng_seed)
    ends = {tokenizer.get_vocab()[end] for end in SENTENCE_ENDS if end in tokenizer.get_vocab()}
    assert ends
    for _ in range(3):
        corpora = make_corpora(g, count, units=["word"])
        for _ in range(6):
            options = random_options(g, count)
            print(options)
            plain = PlainLoader(corpora, window=16, block=64, ends=ends, **options)
            loader = BatchLoader(corpora if count > 1 else corpora[0], **options)
            assert loader.num_sequences == plain.num_sequences
            for step in [0, 1, 2, int(g.integers(3, 30)), int(g.integers(3, 30))]:  # far on, and back again
                assert_as_plain(loader.batch(step), plain.batch(step), options)
                world_size = 2
                for rank in range(world_size if options.get("batch_size", 2) >= 2 else 0):
                    if "batch_tokens" in options and options["batch_tokens"] < (world_size + 1) * options["max_length"]:
                        continue
                    expected = plain.batch(step, rank, world_size)
                    assert_as_plain(loader.batch(step, rank, world_size), expected, options)


def test_a_sequence_may_be_the_separator_of_two_joined_documents(make_corpus) -> None:
    corpus = make_corpus(["a b", "c"])
    options = {"max_length": 3, "batch_size": 1, "join_documents": True, "shuffle": False}
    plain, loader = PlainLoader([corpus], window=16, block=64, **options), BatchLoader(corpus, **options)
    assert loader.num_sequences == 4
    for step in range(4):
        assert loader.batch(step).input_ids.tolist() == plain.batch(step)["input_ids"]


@pytest.mark.parametrize("count", [1, 2])
def test_any_mode_is_a_pure_function_of_the_step(make_corpora, rng_seed: int, small_windows: int, count: int) -> None:
    g = np.random.default_rng(rng_seed)
    corpora = make_corpora(g, count, units=["word"])
    for _ in range(4):
        options = random_options(g, count)
        print(options)
        loader = BatchLoader(corpora, **options)
        forward = [loader.batch(step) for step in range(25)]
        for step in g.permutation(25)[:8].tolist():
            assert_equal(loader.batch(step), forward[step])
            anew = [Corpus.open(corpus.folder) for corpus in corpora]
            assert_equal(BatchLoader(anew, **options).batch(step), forward[step])


@pytest.mark.parametrize("joined", [False, True])
def test_batches_of_tokens_hold_every_piece_once(make_corpora, rng_seed: int, small_windows: int, joined: bool) -> None:
    g = np.random.default_rng(rng_seed)
    [corpus] = make_corpora(g, 1)
    length, fixed = int(g.integers(3, 40)), bool(g.random() < 0.5)
    batch_tokens = int(length * g.uniform(2, 6))
    options = {"max_length": length, "seed": rng_seed, "join_documents": joined, "fixed_shapes": fixed}
    loader = BatchLoader(corpus, batch_tokens=batch_tokens, **options)
    ids, steps = [], int(3 * loader.steps_per_epoch)
    for step in range(steps + 1):
        batch = loader.batch(step)
        assert loader.place(step) == len(ids)
        ids += batch.sequence_ids[: int((batch.cu_seqlens.diff() > 0).sum())].tolist()
        if fixed:
            assert batch.input_ids.shape == (batch_tokens,)
            assert len(batch.sequence_ids) % 64 == 0
            assert not batch.input_ids[batch.num_tokens :].any()  # the padding's id is 0
        else:
            assert batch.num_tokens < batch_tokens + length
    n = loader.num_sequences
    assert len(ids) >= 3 * n
    assert all(sorted(ids[i * n : (i + 1) * n]) == list(range(n)) for i in range(3))


def test_a_mixture_holds_its_shares_exactly_and_every_epoch_of_each_corpus(make_corpora, rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    corpora = make_corpora(g, 3)
    loader = BatchLoader(corpora, max_length=16, batch_size=streams.BLOCK // 16, seed=rng_seed, weights=[5, 3, 2])
    sizes = [BatchLoader(corpus, max_length=16, batch_size=1).num_sequences for corpus in corpora]
    total = sum(sizes)
    assert loader.num_sequences == total
    ids = np.concatenate([loader.batch(step).sequence_ids for step in range(16)])
    assert len(np.unique(ids)) == len(ids)  # never the same name twice, and so never the same masks
    source = np.searchsorted(np.cumsum(sizes), ids % total, side="right")
    counts = np.bincount(source, minlength=3)
    assert counts.tolist() == [32768, 19661, 13107]
    for i, size in enumerate(sizes):
        mine = ids[source == i]
        epochs = mine // total
        assert (np.diff(epochs) >= 0).all()
        for epoch in range(int(epochs.max())):
            pieces = mine[epochs == epoch] - epoch * total - sum(sizes[:i])
            assert sorted(pieces.tolist()) == list(range(size))
    # Well mixed: hypergeometric, 4,096 of 65,536; seven deviations are passed once in 10^11 runs.
    share = counts[0] / len(ids)
    deviation = (4096 * share * (1 - share) * (1 - 1 / 16)) ** 0.5
    for part in np.split(source == 0, 16):
        assert abs(part.sum() - 4096 * share) < 7 * deviation


def test_shares_and_quotas(rng_seed: int) -> None:
    assert shares_by_size([100, 50, 1], 1.0) == [1.0, 0.5, 0.01]
    assert shares_by_size([100, 50, 1], 0.0) == [1, 1, 1]
    exact = np.array([9e9, 3e7, 20.0]) ** 0.3
    np.testing.assert_allclose(np.divide(*shares_by_size([9_000_000_000, 30_000_000], 0.3)), exact[0] / exact[1])
    assert quotas([1, 1, 1], 64) == [22, 21, 21]
    assert quotas([1e-9, 1, 1e-9], 64) == [1, 62, 1]  # nobody is left out
    g = np.random.default_rng(rng_seed)
    for _ in range(200):
        shares = g.random(int(g.integers(1, 20))) + 0.05
        counts = quotas(shares.tolist(), 65_536)
        assert sum(counts) == 65_536
        assert np.abs(counts - 65_536 * shares / shares.sum()).max() < 1


def test_a_curriculum_goes_from_stage_to_stage(make_corpora, rng_seed: int, small_windows: int) -> None:
    g = np.random.default_rng(rng_seed)
    [corpus] = make_corpora(g, 1, units=["word"])
    data = DataConfig(
        train=str(corpus.folder),
        valid=str(corpus.folder),
        max_length=8,
        batch_size=3,
        mask_units="word",
        curriculum=[
            StageConfig(steps=5),
            StageConfig(steps=4, max_length=20, batch_tokens=50),
            StageConfig(steps=6, batch_size=7),  # goes on where the first ended, in larger batches
            StageConfig(max_length=20, batch_size=2),  # and this one where the second did
        ],
    )
    loader = open_loader(data, rng_seed)
    assert isinstance(loader, CurriculumLoader)
    common = {"window": 16, "block": 64, "seed": rng_seed, "mask_units": "word"}
    short = PlainLoader([corpus], max_length=8, batch_size=1, **common)
    long = PlainLoader([corpus], max_length=20, batch_size=1, **common)
    by_tokens = PlainLoader([corpus], max_length=20, batch_tokens=50, **common)
    seen = {"short": 0, "long": 0}
    for step in range(20):
        name, plain = ("short", short) if step < 5 or 9 <= step < 15 else ("long", long)
        count = 3 if step < 5 else len(by_tokens.places(step - 5)) if step < 9 else 7 if step < 15 else 2
        batch = loader.batch(step)
        assert batch.max_seqlen == plain.max_length
        parts = [plain.batch(seen[name] + i) for i in range(count)]
        assert batch.input_ids.tolist() == [token for part in parts for token in part["input_ids"]]
        assert batch.sequence_ids.tolist() == [part["sequence_ids"][0] for part in parts]
        assert batch.unit_starts.tolist() == [starts for part in parts for starts in part["unit_starts"]]
        assert batch.epoch == parts[0]["epoch"]
        ranks = [loader.batch(step, rank, 2) for rank in range(2)]
        assert [s for part in ranks for s in sequences(part)] == sequences(batch)
        seen[name] += count
    assert_equal(open_loader(data, rng_seed).batch(16), loader.batch(16))  # as a resumed run begins
    held_out = open_loader(data, rng_seed, held_out=True)
    expected = BatchLoader(corpus, max_length=20, batch_tokens=50, shuffle=False, mask_units="word")
    assert_equal(held_out.batch(0), expected.batch(0))


def test_a_configuration_opens_its_loader(make_corpora, rng_seed: int, small_windows: int) -> None:
    g = np.random.default_rng(rng_seed)
    corpora = make_corpora(g, 2)
    paths = [str(corpus.folder) for corpus in corpora]
    data = DataConfig(
        mixture=[CorpusConfig(path=paths[0], weight=1.0), CorpusConfig(path=paths[1], weight=3.0)],
        max_length=12,
        batch_tokens=100,
        fixed_shapes=True,
        segments=2,
        join_documents=True,
    )
    options = {"max_length": 12, "batch_tokens": 100, "fixed_shapes": True, "segments": 2, "join_documents": True}
    expected = BatchLoader(corpora, weights=[1.0, 3.0], seed=rng_seed, **options)
    assert_equal(open_loader(data, rng_seed).batch(3), expected.batch(3))
    weighted = replace(data, mixture=[CorpusConfig(path=path) for path in paths], alpha=0.3)
    expected = BatchLoader(corpora, alpha=0.3, seed=rng_seed, **options)
    assert_equal(open_loader(weighted, rng_seed).batch(3), expected.batch(3))
    single = DataConfig(train=paths[0])
    assert open_loader(single, 0).content_hash == corpora[0].meta.content_hash()
    path = corpora[1].folder / corpora[1].meta.shards[0].file
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        open_loader(data, rng_seed)


def test_corpora_of_two_tokenizers_are_not_mixed(tmp_path: Path, tokenizer, make_corpus) -> None:
    first = make_corpus(["ba de ki"])
    other = type(tokenizer)(vocab=tokenizer.get_vocab(), do_lower_case=False)
    prepare([tmp_path / "source.txt"], other, tmp_path / "other", progress=False)
    with pytest.raises(ValueError, match=r"other was prepared with another tokenizer than .*corpus: prepare it again"):
        BatchLoader([first, Corpus.open(tmp_path / "other")], batch_size=1, max_length=8)
    for options, message in (
        ({"weights": [1.0]}, "1 weights for 2 corpora"),
        ({"weights": [1.0, 0.0]}, "weights must be positive numbers"),
        ({"shuffle": False}, "only one corpus can be read in its order"),
        ({"segments": 3}, "segments must be 1 or 2"),
        ({"segments": 2, "max_length": 7}, "max_length must be at least 8 for two segments"),
        ({"mask_units": "letter"}, "mask_units must be one of token, word, span, entity"),
        ({"batch_tokens": 20}, "give batch_size or batch_tokens, one of the two"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchLoader([first, first], **({"batch_size": 1, "max_length": 8} | options))
    for stages, message in (
        ([(None, "loader"), (None, "loader")], "every stage but the last needs its steps"),
        ([(3, "loader")], "the last goes on for ever"),
        ([(0, "loader"), (None, "loader")], "at least one step"),
    ):
        with pytest.raises(ValueError, match=message):
            CurriculumLoader(stages)


def test_two_segments_have_the_shares_of_the_original(make_corpus, rng_seed: int) -> None:
    """On long text: 10% of one segment, 5% cut to a random length; limits that are passed once in 10^11 runs."""
    g = np.random.default_rng(rng_seed)
    words = g.choice(["ba", "de", "ki", "lo."], 60_000)
    corpus = make_corpus([" ".join(words)])
    loader = BatchLoader(corpus, batch_size=1000, max_length=40, segments=2, seed=rng_seed)
    batches = [loader.batch(step) for step in range(int(loader.steps_per_epoch))]
    lengths = np.concatenate([batch.cu_seqlens.diff() for batch in batches])
    second = np.concatenate([np.add.reduceat(b.token_type_ids.numpy(), b.cu_seqlens[:-1].numpy()) for b in batches])
    count = len(lengths)
    assert count > 1500

    def near(observed: int, share: float) -> bool:
        return abs(observed - count * share) < 7.5 * (count * share * (1 - share)) ** 0.5 + 1

    # Full pieces are 40 tokens, or 39 in one segment; of 36 lengths drawn at random, four can't be told from these.
    assert near(int((lengths < 37).sum()), 0.05 * 32 / 36)
    assert int((second == 0).sum()) / count > 0.1 - 7.5 * (0.09 / count) ** 0.5
    assert (lengths.max(), lengths.min() >= 4) == (40, True)
    ratio = (second / lengths)[(lengths > 36) & (second > 0)]
    assert abs(ratio.mean() - 0.5) < 0.03  # near the middle, at the end of a sentence
    assert 0.02 < ratio.std() < 0.2
