"""A slow loader in plain Python: what every batch must be, written from the documentation, one sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from electra_fast.data.corpus import Corpus

MIN_PIECE = 8
WORD = 2**64


@dataclass
class Text:
    """One sequence of the stream: a piece's tokens, and for each whether a unit starts."""

    source: int
    epoch: int
    piece: int
    tokens: list[int]
    units: list[bool] = field(default_factory=list)


def mix(x: int) -> int:
    """SplitMix64 on Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) % WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def word(domain: int, seed: int, epoch: int, name: int, counter: int) -> int:
    return mix(mix(mix(mix(mix(domain) ^ seed) ^ epoch) ^ name) ^ counter) >> 32


def order(seed: int, epoch: int, key: int, size: int) -> list[int]:
    words = []
    for part in (seed, epoch, key):
        words += [part % 2**32, part // 2**32]
    raw = np.random.PCG64(np.random.SeedSequence(words)).random_raw(size).tolist()
    return sorted(range(size), key=lambda i: raw[i])


def pieces_of(corpus: Corpus, size: int, joined: bool, kind: str | None) -> list[tuple[list[int], list[bool]]]:
    """Each piece's tokens and unit starts."""
    bits = []
    if kind is not None:
        raw = (corpus.folder / f"starts-{kind}.bin").read_bytes()
        bits = [bool(raw[i // 8] >> (i % 8) & 1) for i in range(corpus.num_tokens)]
    documents = []
    for index in range(corpus.num_documents):
        tokens = corpus.document(index).tolist()
        first = int(corpus.offsets[index])
        documents.append(list(zip(tokens, bits[first : first + len(tokens)] or [True] * len(tokens), strict=True)))
    if joined:
        row = documents[0]
        for document in documents[1:]:
            row = [*row, (corpus.meta.sep_token_id, True), *document]
        documents = [row]
    pieces = []
    for document in documents:
        cut = [document[i : i + size] for i in range(0, len(document), size)]
        if len(cut) > 1 and len(cut[-1]) < MIN_PIECE and len(cut[-1]) < size:
            cut.pop()
        pieces += [([t for t, _ in piece], [u for _, u in piece]) for piece in cut]
    return pieces


def corpus_stream(pieces: list, seed: int, shuffle: bool, window: int, source: int) -> Iterator[Text]:
    epoch = 0
    while True:
        windows = [range(i, min(i + window, len(pieces))) for i in range(0, len(pieces), window)]
        for w in order(seed, epoch, 0, len(windows)) if shuffle else range(len(windows)):
            within = order(seed, epoch, 1 + w, len(windows[w])) if shuffle else range(len(windows[w]))
            for i in within:
                tokens, units = pieces[windows[w][i]]
                yield Text(source, epoch, windows[w][i], list(tokens), list(units))
        epoch += 1


def quotas(shares: Sequence[float], total: int) -> list[int]:
    """By largest remainders, for shares none of which is below one in `total`."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(part) for part in exact]
    for i in sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts


def mixture_stream(streams: list[Iterator[Text]], counts: list[int], seed: int) -> Iterator[Text]:
    block, total = 0, sum(counts)
    while True:
        places = order(seed, block, 2**63, total)
        owner = {}
        for source, count in enumerate(counts):
            for place in places[sum(counts[:source]) :][:count]:
                owner[place] = source
        for place in range(total):
            yield next(streams[owner[place]])
        block += 1


class PlainLoader:
    """Takes what `BatchLoader` takes, the two constants of the order besides."""

    def __init__(
        self,
        corpora: list[Corpus],
        *,
        window: int,
        block: int,
        max_length: int,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        weights: list[float] | None = None,
        alpha: float = 1.0,
        segments: int = 1,
        join_documents: bool = False,
        mask_units: str = "token",
        fixed_shapes: bool = False,
        ends: set[int] = frozenset(),
    ) -> None:
        self.corpora, self.max_length, self.segments = corpora, max_length, segments
        self.batch_size, self.batch_tokens, self.fixed_shapes = batch_size, batch_tokens, fixed_shapes
        self.seed, self.mask_units, self.ends = seed, mask_units, ends | {corpora[0].meta.sep_token_id}
        kind = {"token": None, "word": "word", "span": "word", "entity": "entity"}[mask_units]
        pieces = [pieces_of(corpus, max_length - 1 - segments, join_documents, kind) for corpus in corpora]
        self.counts = [len(each) for each in pieces]
        self.num_sequences = sum(self.counts)
        if len(corpora) == 1:
            self.stream = corpus_stream(pieces[0], seed, shuffle, window, 0)
        else:
            streams = [corpus_stream(p, mix((seed + i) % WORD), True, window, i) for i, p in enumerate(pieces)]
            shares = weights or [count**alpha for count in self.counts]
            self.stream = mixture_stream(streams, quotas(shares, block), seed)
        self.texts: list[Text] = []
        self.begins = [0]  # in nominal tokens

    def text(self, place: int) -> Text:
        while len(self.texts) <= place:
            self.texts.append(next(self.stream))
            self.begins.append(self.begins[-1] + len(self.texts[-1].tokens) + 1 + self.segments)
        return self.texts[place]

    def places(self, step: int, rank: int = 0, world_size: int = 1) -> list[int]:
        share = self.batch_size
        if share is None:
            share = self.batch_tokens - self.max_length + 1 if self.fixed_shapes else self.batch_tokens
        first, stop = step * share + share * rank // world_size, step * share + share * (rank + 1) // world_size
        if self.batch_size is not None:
            return list(range(first, stop))
        place, places = 0, []
        while True:
            self.text(place)
            if self.begins[place] >= stop:
                return places
            if self.begins[place] >= first:
                places.append(place)
            place += 1

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> dict[str, object]:
        """The fields of the batch as lists."""
        result = {"input_ids": [], "token_type_ids": [], "unit_starts": [], "cu_seqlens": [0], "sequence_ids": []}
        result["epoch"] = self.places(step)[0] // self.num_sequences
        meta = self.corpora[0].meta
        for place in self.places(step, rank, world_size):
            text = self.text(place)
            name = sum(self.counts[: text.source]) + text.piece
            first, second = self.cut(text, name)
            tokens, units = text.tokens[: first + second], text.units[: first + second]
            if self.mask_units == "span":
                units = self.spans(units, text.epoch, name)
            if tokens:
                units[0] = True
            sequence = [(meta.cls_token_id, 0, True)]
            sequence += [(t, 0, u) for t, u in zip(tokens[:first], units[:first], strict=True)]
            sequence += [(meta.sep_token_id, 0, True)]
            if second:
                units[first] = True
                sequence += [(t, 1, u) for t, u in zip(tokens[first:], units[first:], strict=True)]
                sequence += [(meta.sep_token_id, 1, True)]
            for token, kind, starts in sequence:
                result["input_ids"].append(token)
                result["token_type_ids"].append(kind)
                result["unit_starts"].append(starts)
            result["cu_seqlens"].append(len(result["input_ids"]))
            result["sequence_ids"].append(name + (text.epoch * self.num_sequences if len(self.corpora) > 1 else 0))
        result["num_tokens"] = len(result["input_ids"])
        if self.fixed_shapes:
            self.pad(result, world_size)
        return result

    def pad(self, result: dict, world_size: int) -> None:
        count = len(result["sequence_ids"])
        if self.batch_size is not None:
            more = int(np.ceil(self.batch_size / world_size)) - count
            width = int(np.ceil(self.batch_size / world_size)) * self.max_length
        else:
            more = -count % 64
            width = int(np.ceil((self.batch_tokens - self.max_length + 1) / world_size)) + self.max_length - 1
        result["sequence_ids"] += [0] * more
        result["cu_seqlens"] += [result["num_tokens"]] * more
        rest = width - result["num_tokens"]
        assert rest >= 0
        result["input_ids"] += [self.corpora[0].meta.pad_token_id] * rest
        result["token_type_ids"] += [0] * rest
        result["unit_starts"] += [True] * rest

    def cut(self, text: Text, name: int) -> tuple[int, int]:
        """The lengths of both segments; what they don't use is left out."""
        if self.segments == 1:
            return len(text.tokens), 0
        length, words = self.max_length, [word(3, self.seed, text.epoch, name, i) for i in range(4)]
        if words[0] < round(0.05 * 2**32):
            length = 5 + words[1] * (self.max_length - 5 + 1) // 2**32
        tokens = text.tokens[: length - 3]
        sentences, sentence = [], []
        for token in tokens:
            sentence.append(token)
            if token in self.ends:
                sentences.append(sentence)
                sentence = []
        if sentence:
            sentences.append(sentence)
        one_segment = words[3] < round(0.1 * 2**32)
        first, second = [], []
        for sentence in sentences:
            fits = len(first) + len(sentence) < (length - 3) // 2
            by_chance = len(first) < (length - 3) // 2 and words[2] % 2 == 1
            to_first = one_segment or not first or (not second and (fits or by_chance))
            (first if to_first else second).extend(sentence)
        return len(first), len(second)

    def spans(self, units: list[bool], epoch: int, name: int) -> list[bool]:
        weights = [0.8**i for i in range(10)]
        starts, left, drawn = [], 0, 0
        for i, begins in enumerate(units):
            if i == 0 or begins:  # a word
                starts.append(left == 0)
                if left == 0:
                    number = word(4, self.seed, epoch, name, drawn)
                    left = 1 + sum(number >= round(sum(weights[: n + 1]) / sum(weights) * 2**32) for n in range(9))
                    drawn += 1
                left -= 1
            else:
                starts.append(False)
        return starts
