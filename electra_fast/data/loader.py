"""Batches of prepared corpora: stateless, so that resuming is one integer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from electra_fast.data.corpus import Corpus, content_hash
from electra_fast.data.pieces import DocumentPieces, JoinedPieces, aranges
from electra_fast.data.segments import TwoSegments, sentence_end_ids
from electra_fast.data.spans import span_starts
from electra_fast.data.streams import CorpusStream, MixtureStream, Sequences, Stream, shares_by_size
from electra_fast.ops.random import splitmix64

if TYPE_CHECKING:
    from electra_fast.pretraining.config import DataConfig, StageConfig

MASK_UNITS = ("token", "word", "span", "entity")
SHORTEST_OF_TWO = 8  # tokens of the shortest max_length that two segments make sense in
SEQUENCE_MULTIPLE = 64  # batches of tokens, with fixed shapes, have a multiple of this many sequences


@dataclass(frozen=True)
class Batch:
    """Sequences `[CLS] content [SEP]`, or `[CLS] A [SEP] B [SEP]`, one after another.

    With fixed shapes, padding follows: tokens that belong to no sequence, and empty sequences with the id 0.

    input_ids: int64 [T]. cu_seqlens: int32 [B + 1], where each sequence starts in input_ids, and where the last ends.
    sequence_ids: int64 [B], names of the texts: the index of each piece in the corpus, the same in every epoch; in a
    mixture, of each piece of each corpus in each epoch. epoch: the first sequence's of the whole batch, from 0.
    max_seqlen: no sequence is longer. token_type_ids: int64 [T], 1 in B; None for one segment. unit_starts: bool [T],
    where a unit for masking begins; None where each token is one. num_tokens: those in sequences; None: as cu_seqlens
    has it, for which a GPU must be waited for.
    """

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    sequence_ids: torch.Tensor
    epoch: int
    max_seqlen: int
    token_type_ids: torch.Tensor | None = None
    unit_starts: torch.Tensor | None = None
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.num_tokens is None:
            object.__setattr__(self, "num_tokens", int(self.cu_seqlens[-1]))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`; from pinned memory, the copy runs beside the device's work."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory from which a GPU copies by itself."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(x) for name, x in values.items() if isinstance(x, torch.Tensor)})


class BatchLoader:
    """`batch(step)` as a pure function of the corpora and the arguments.

    Documents are cut into pieces, of which every epoch holds each once, in a keyed order (see `CorpusStream` and
    `MixtureStream`). A batch holds `batch_size` sequences, or about `batch_tokens` tokens: those sequences, in order,
    whose start lies in the step's share of the tokens.

    Args:
        corpora: one, or several to be mixed, all prepared with one tokenizer.
        max_length: tokens of a sequence, at most, special ones included.
        batch_size, batch_tokens: sequences or tokens a step; one of the two.
        seed: of the order, below 2^64.
        shuffle: false: the order of the corpora (of one only), for evaluation.
        weights: shares of the corpora in the sequences, in any scale; None: size^alpha.
        alpha: 1 mixes in proportion to the corpora's sequences, 0 evenly.
        segments: 1, or 2 for the original's examples of two segments (see `TwoSegments`).
        join_documents: cut one row of all documents, [SEP] between them, instead of each document by itself.
        mask_units: "token", or units to be masked whole: "word" and "entity" as they were prepared, or "span", some
            words each (see `span_starts`).
        fixed_shapes: give every batch the same number of tokens and, by `batch_size`, of sequences; by `batch_tokens` a
            multiple of 64 sequences. Exactly batch_size * max_length or batch_tokens tokens, where one rank has all.

    Raises:
        ValueError: arguments out of range, corpora of different tokenizers, or without the units asked for.
    """

    def __init__(
        self,
        corpora: Corpus | Sequence[Corpus],
        *,
        max_length: int,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        weights: Sequence[float] | None = None,
        alpha: float = 1.0,
        segments: int = 1,
        join_documents: bool = False,
        mask_units: str = "token",
        fixed_shapes: bool = False,
    ) -> None:
        self.corpora = [corpora] if isinstance(corpora, Corpus) else list(corpora)
        _check_corpora(self.corpora, weights, shuffle)
        if (batch_size is None) == (batch_tokens is None):
            raise ValueError("give batch_size or batch_tokens, one of the two")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if segments not in (1, 2):
            raise ValueError(f"segments must be 1 or 2, got {segments}")
        if max_length < 3:
            raise ValueError(f"max_length must be at least 3 ([CLS], a token, [SEP]), got {max_length}")
        if segments == 2 and max_length < SHORTEST_OF_TWO:
            raise ValueError(f"max_length must be at least {SHORTEST_OF_TWO} for two segments, got {max_length}")
        if mask_units not in MASK_UNITS:
            raise ValueError(f"mask_units must be one of {', '.join(MASK_UNITS)}; got {mask_units!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must lie in 0 .. 2**64 - 1, got {seed}")
        self.max_length = max_length
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.mask_units = mask_units
        self.fixed_shapes = fixed_shapes
        self._unit_kind = {"token": None, "span": "word"}.get(mask_units, mask_units)
        if self._unit_kind is not None:
            for corpus in self.corpora:
                corpus.unit_starts(self._unit_kind, np.empty(0, np.int64))  # raises where it has none

        cut = JoinedPieces if join_documents else DocumentPieces
        self._pieces = [cut(corpus, max_length - 1 - segments) for corpus in self.corpora]
        self._stream = self._make_stream(weights, alpha, specials=1 + segments, shuffle=shuffle)
        self._first_ids = np.concatenate([[0], np.cumsum([pieces.count for pieces in self._pieces])])
        self._two_segments = None
        if segments == 2:
            ends = sentence_end_ids(self.corpora[0].load_tokenizer().get_vocab())
            ends = np.append(ends, self.corpora[0].meta.sep_token_id)  # between joined documents
            self._two_segments = TwoSegments(max_length=max_length, seed=seed, ends=ends)
        if batch_tokens is not None:
            # The sequences that start within n tokens hold at most n - 1 + max_length.
            self._step_tokens = batch_tokens - max_length + 1 if fixed_shapes else batch_tokens
            self.check_world(1)
        self.begin_at(0)

    @property
    def num_sequences(self) -> int:
        """Pieces of the corpora: the sequences of an epoch."""
        return self._stream.num_sequences

    @property
    def steps_per_epoch(self) -> float:
        """Steps for num_sequences sequences, not rounded: batches run over from one epoch into the next."""
        if self.batch_size is not None:
            return self.num_sequences / self.batch_size
        return self.num_sequences * self._stream.mean_length / self._step_tokens

    @property
    def content_hash(self) -> str:
        """One name for all that is read: of the corpora in their order, with their tokenizer and units."""
        return content_hash(self.corpora)

    def begin_at(self, place: int) -> None:
        """Let step 0 begin with the sequence at a place of the stream; 0 at first."""
        self._start = place
        self._start_tokens = self._stream.tokens_before(place) if place else 0

    def place(self, step: int) -> int:
        """How many sequences come before a step's first, counted from place 0 of the stream."""
        return self._places(step, 0, 1)[0]

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The sequences of a step; rank's contiguous part of them.

        The parts of all ranks, in order, are the batch of world_size=1; they have the same number of sequences, or of
        tokens' starts, to within one. Raises ValueError for a negative step, a rank outside the world, or a batch too
        small for as many ranks.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0 .. world_size - 1, got {rank} of {world_size}")
        self.check_world(world_size)
        first, stop = self._places(step, rank, world_size)
        epoch = (first if rank == 0 else self.place(step)) // self.num_sequences
        return self._make_batch(self._stream.take(first, stop), epoch, world_size)

    def _make_stream(self, weights: Sequence[float] | None, alpha: float, *, specials: int, shuffle: bool) -> Stream:
        if len(self._pieces) == 1:
            return CorpusStream(self._pieces[0], specials=specials, seed=self.seed, shuffle=shuffle)
        streams = [
            # Texts that stand side by side in two corpora should not come side by side: orders of their own.
            CorpusStream(pieces, specials=specials, seed=splitmix64(self.seed + number) % 2**64, shuffle=True)
            for number, pieces in enumerate(self._pieces)
        ]
        shares = shares_by_size([pieces.count for pieces in self._pieces], alpha) if weights is None else weights
        return MixtureStream(streams, shares, seed=self.seed)

    def check_world(self, world_size: int) -> None:
        """Raises ValueError for a batch too small for as many ranks."""
        if self.batch_size is not None:
            if world_size > self.batch_size:
                raise ValueError(
                    f"batch_size={self.batch_size} is less than one sequence for each of {world_size} ranks"
                )
        elif self._step_tokens < world_size * self.max_length:
            least = world_size * self.max_length + (self.batch_tokens - self._step_tokens)
            raise ValueError(
                f"batch_tokens={self.batch_tokens} may leave one of {world_size} ranks without a sequence of "
                f"{self.max_length} tokens: give at least {least}"
            )

    def _places(self, step: int, rank: int, world_size: int) -> tuple[int, int]:
        """The places in the stream of a rank's part of a step."""
        share = self._step_tokens if self.batch_size is None else self.batch_size
        first, stop = (step * share + share * part // world_size for part in (rank, rank + 1))
        if self.batch_size is not None:
            return self._start + first, self._start + stop
        return self._stream.place_at(self._start_tokens + first), self._stream.place_at(self._start_tokens + stop)

    def _make_batch(self, sequences: Sequences, epoch: int, world_size: int) -> Batch:
        texts = self._first_ids[sequences.sources] + sequences.pieces  # names without the epoch
        drawn = None if self._two_segments is None else self._two_segments.draw(sequences.epochs, texts)
        ids, lengths, units = self._read(sequences, None if drawn is None else drawn.targets - 3)
        if self.mask_units == "span":
            units = span_starts(units, lengths, seed=self.seed, epochs=sequences.epochs, sequence_ids=texts)

        begins = np.cumsum(lengths) - lengths  # [B], in ids
        cuts = lengths  # [B], tokens of the first segment
        if drawn is not None:
            cuts = self._two_segments.cuts(ids, lengths, drawn)
        has_two = cuts < lengths
        bounds = np.concatenate([[0], np.cumsum(lengths + 2 + has_two)])  # [B + 1]
        middles = (bounds[:-1] + 1 + cuts)[has_two]  # of sequences with two segments, the first [SEP]
        num_tokens = int(bounds[-1])
        width, count = self._shape(num_tokens, len(lengths), world_size)

        meta = self.corpora[0].meta
        is_text = np.ones(width, bool)
        is_text[num_tokens:] = False
        input_ids = np.full(width, meta.pad_token_id)
        for places, token in (
            (bounds[:-1], meta.cls_token_id),
            (bounds[1:] - 1, meta.sep_token_id),
            (middles, meta.sep_token_id),
        ):
            is_text[places] = False
            input_ids[places] = token
        input_ids[is_text] = ids
        cu_seqlens = np.full(count + 1, num_tokens, np.int32)
        cu_seqlens[: len(bounds)] = bounds
        sequence_ids = np.zeros(count, np.int64)
        sequence_ids[: len(texts)] = texts
        if len(self.corpora) > 1:  # whose epochs differ, and are not the batch's
            sequence_ids[: len(texts)] += sequences.epochs * self.num_sequences
        batch = Batch(
            input_ids=torch.from_numpy(input_ids),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            sequence_ids=torch.from_numpy(sequence_ids),
            epoch=epoch,
            max_seqlen=self.max_length,
            num_tokens=num_tokens,
        )
        if drawn is not None:
            token_type_ids = np.zeros(width, np.int64)
            token_type_ids[aranges(middles + 1, bounds[1:][has_two] - middles - 1)] = 1
            batch = replace(batch, token_type_ids=torch.from_numpy(token_type_ids))
        if units is not None:
            units[begins] = True
            units[(begins + cuts)[has_two]] = True
            unit_starts = np.ones(width, bool)
            unit_starts[is_text] = units
            batch = replace(batch, unit_starts=torch.from_numpy(unit_starts))
        return batch

    def _read(
        self, sequences: Sequences, longest: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """The tokens of sequences, one after another [tokens]; their lengths [B]; where units begin, bool [tokens].

        No more than `longest` (int64 [B]) of each.
        """
        starts, lengths = np.empty((2, len(sequences.pieces)), np.int64)
        of_source = [np.flatnonzero(sequences.sources == source) for source in range(len(self.corpora))]
        for pieces, here in zip(self._pieces, of_source, strict=True):
            starts[here], lengths[here] = pieces.spans(sequences.pieces[here])
        if longest is not None:
            lengths = np.minimum(lengths, longest)

        parts = [self._read_corpus(i, starts[here], lengths[here]) for i, here in enumerate(of_source)]
        if len(parts) == 1:
            return parts[0][0], lengths, parts[0][1]
        begins = np.cumsum(lengths) - lengths
        ids = np.empty(int(lengths.sum()), parts[0][0].dtype)
        units = None if self._unit_kind is None else np.empty(len(ids), bool)
        for here, (part_ids, part_units) in zip(of_source, parts, strict=True):
            targets = aranges(begins[here], lengths[here])
            ids[targets] = part_ids
            if units is not None:
                units[targets] = part_units
        return ids, lengths, units

    def _read_corpus(
        self, source: int, starts: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The tokens of spans of one corpus's pieces, one after another, and where units begin."""
        corpus = self.corpora[source]
        starts, lengths, separators = self._pieces[source].in_corpus(starts, lengths)
        ids = corpus.read_spans(starts, lengths)
        units = None if self._unit_kind is None else corpus.unit_starts(self._unit_kind, aranges(starts, lengths))
        if separators is None:
            return ids, units
        row = np.full(len(separators), corpus.meta.sep_token_id, corpus.dtype)
        row[~separators] = ids
        if units is None:
            return row, None
        row_units = np.ones(len(separators), bool)
        row_units[~separators] = units
        return row, row_units

    def _shape(self, num_tokens: int, num_sequences: int, world_size: int) -> tuple[int, int]:
        """T and B of a batch."""
        if not self.fixed_shapes:
            return num_tokens, num_sequences
        if self.batch_size is not None:
            count = -(-self.batch_size // world_size)
            return count * self.max_length, count
        width = -(-self._step_tokens // world_size) + self.max_length - 1
        return width, -(-num_sequences // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE


@dataclass(frozen=True)
class Stage:
    """A part of a curriculum: how many steps (None: all that follow), and the loader of their batches."""

    steps: int | None
    loader: BatchLoader


class CurriculumLoader:
    """One loader after another, each for so many steps: sequences of 128 tokens first, then of 512.

    A stage whose sequences are as long as those of one before goes on in the data where that one ended; one of another
    length starts at the beginning.
    """

    def __init__(self, stages: Sequence[tuple[int | None, BatchLoader]]) -> None:
        if not stages or any(steps is None for steps, _ in stages[:-1]) or stages[-1][0] is not None:
            raise ValueError("every stage but the last needs its steps, and the last goes on for ever: steps None")
        if any(steps < 1 for steps, _ in stages[:-1]):
            raise ValueError(f"a stage needs at least one step, got {[steps for steps, _ in stages]}")
        self.stages = [Stage(*stage) for stage in stages]
        self._starts = np.concatenate([[0], np.cumsum([steps for steps, _ in stages[:-1]])]).astype(np.int64)
        places: dict[int, int] = {}
        for stage in self.stages:
            stage.loader.begin_at(places.get(stage.loader.max_length, 0))
            if stage.steps is not None:
                places[stage.loader.max_length] = stage.loader.place(stage.steps)

    @property
    def corpora(self) -> list[Corpus]:
        return self.stages[-1].loader.corpora

    @property
    def num_sequences(self) -> int:
        """Of an epoch of the last stage."""
        return self.stages[-1].loader.num_sequences

    @property
    def steps_per_epoch(self) -> float:
        """Of the last stage."""
        return self.stages[-1].loader.steps_per_epoch

    @property
    def content_hash(self) -> str:
        return self.stages[-1].loader.content_hash

    def check_world(self, world_size: int) -> None:
        """As `BatchLoader.check_world`, of each stage."""
        for stage in self.stages:
            stage.loader.check_world(world_size)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """As `BatchLoader.batch`, of the step's stage."""
        number = max(int(np.searchsorted(self._starts, step, side="right")) - 1, 0)
        return self.stages[number].loader.batch(step - int(self._starts[number]), rank, world_size)


def open_loader(
    data: DataConfig, seed: int, *, held_out: bool = False, verify: bool = True
) -> BatchLoader | CurriculumLoader:
    """The loader that a configuration describes.

    Args:
        data: corpora and how they are cut into batches.
        seed: of the order, of segments and of spans.
        held_out: the loader of `data.valid` instead: in the corpus's order, at the longest of the curriculum's lengths,
            without padding.
        verify: read the corpora once and compare their checksums.

    Raises:
        ValueError: as `Corpus.open` and `BatchLoader`.
    """
    common = {"segments": data.segments, "mask_units": data.mask_units}
    common["join_documents"] = data.join_documents
    if held_out:
        corpus = Corpus.open(data.valid, verify=verify)
        stage = max(data.stages(), key=lambda stage: stage.max_length)
        return BatchLoader(corpus, shuffle=False, seed=seed, **_size(stage), **common)
    corpora = [Corpus.open(path, verify=verify) for path in data.train_corpora]
    common |= {"weights": data.weights, "alpha": data.alpha, "seed": seed, "fixed_shapes": data.fixed_shapes}
    stages = [(stage.steps, BatchLoader(corpora, **_size(stage), **common)) for stage in data.stages()]
    return stages[0][1] if len(stages) == 1 else CurriculumLoader(stages)


def _size(stage: StageConfig) -> dict[str, int | None]:
    size = {"batch_size": stage.batch_size} if stage.batch_tokens is None else {"batch_tokens": stage.batch_tokens}
    return {"max_length": stage.max_length, **size}


def _check_corpora(corpora: Sequence[Corpus], weights: Sequence[float] | None, shuffle: bool) -> None:
    if not corpora:
        raise ValueError("give at least one corpus")
    if len(corpora) > 1 and not shuffle:
        raise ValueError("only one corpus can be read in its order (shuffle=False), not a mixture")
    for corpus in corpora[1:]:
        if corpus.meta.tokenizer_sha256 != corpora[0].meta.tokenizer_sha256:
            raise ValueError(
                f"{corpus.folder} was prepared with another tokenizer than {corpora[0].folder}: prepare it again with "
                f"--tokenizer {corpora[0].tokenizer_folder}"
            )
    if weights is not None and len(weights) != len(corpora):
        raise ValueError(f"{len(weights)} weights for {len(corpora)} corpora: give one for each")
    if weights is not None and not all(0 < weight < np.inf for weight in weights):
        raise ValueError(f"weights must be positive numbers, got {list(weights)}: leave out a corpus of weight 0")
