"""A text from a text: summaries, answers in a dialogue, rewriting, ..."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from electra_fast.arguments import shown
from electra_fast.finetuning.metrics.generation import (
    BLEU_TOKENIZERS,
    CJK,
    ROUGE_TOKENS,
    bleu,
    exact_match,
    rouge,
    share_of_letters,
)
from electra_fast.finetuning.tables import Row
from electra_fast.finetuning.task import Example, Feature, Output, Prediction, Task, is_labelled


@dataclass
class Seq2Seq(Task):
    """A target text for each source, from JSON lines, CSV or TSV.

    In JSON lines a source may be a list, the turns of a dialogue: [SEP] joins them, and of one that is too long the
    last tokens stay. Of any other source the first do.

    Attributes:
        source: column of the source.
        target: column of the target.
        max_target_length: tokens of a target, its [SEP] included.
        tie_embeddings: one table of word embeddings for encoder and decoder.
        max_new_tokens: of a generated text; None: max_target_length.
        num_beams: of beam search; 1: always the likeliest token.
        no_repeat_ngram_size: no n-gram of this size occurs twice in a generated text; 0: any may.
        length_penalty: of beam search: above 0 favours longer texts, below 0 shorter ones.
        rouge_tokens: "words", or "characters" for Chinese; None: as the training targets are written.
        bleu_tokenizer: sacreBLEU's: 13a, intl, zh, char or none; None: zh for Chinese, 13a for all else.
        lowercase: ignore case in BLEU and exact match, as ROUGE does; None: if the tokenizer does.
    """

    name: ClassVar[str] = "seq2seq"
    title: ClassVar[str] = "a text from a text or a dialogue (JSONL, CSV, TSV)"
    head: ClassVar[str] = "seq2seq"
    metric: ClassVar[str] = "rouge_l"
    epochs: ClassVar[float] = 10  # the paper has no such task; cross attention starts from nothing

    source: str = "source"
    target: str = "target"
    max_target_length: int = 128
    tie_embeddings: bool = False
    max_new_tokens: int | None = None
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    rouge_tokens: str | None = None
    bleu_tokenizer: str | None = None
    lowercase: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_target_length", 2), ("num_beams", 1), ("no_repeat_ngram_size", 0)):
            _check(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")
        _check(self.num_beams > 1 or self.length_penalty == 1, "length_penalty", self.length_penalty, "1 without beams")
        _check(self.new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "1 or more")
        for name, known in (("rouge_tokens", ROUGE_TOKENS), ("bleu_tokenizer", BLEU_TOKENIZERS)):
            _check(getattr(self, name) in (None, *known), name, getattr(self, name), " or ".join(known))

    @property
    def new_tokens(self) -> int:
        """The most tokens that are generated."""
        return self.max_target_length if self.max_new_tokens is None else self.max_new_tokens

    def from_rows(self, rows: Iterable[Row], split: str) -> list[Example]:
        return [self._example(row, is_labelled(split)) for row in rows]

    def _example(self, row: Row, is_labelled: bool) -> Example:
        example: Example = {"source": self._source(row)}
        if is_labelled or self.target in row.values:
            example["label"] = row.text(self.target)
        return example

    def _source(self, row: Row) -> str | list[str]:
        turns = row.get(self.source)
        if not isinstance(turns, list):
            return row.text(self.source)
        if not turns:
            raise row.error(f"{self.source} is empty")
        for number, turn in enumerate(turns, start=1):
            if not isinstance(turn, str) or not turn.strip():
                raise row.error(f"turn {number} of {self.source} must be text that is not empty; got {shown(turn)}")
        return [turn.strip() for turn in turns]

    def fit(self, examples: Sequence[Example]) -> None:
        targets = [example["label"] for example in examples]
        if self.rouge_tokens is None:
            self.rouge_tokens = "words" if share_of_letters(targets, "A-Za-z") > 0.5 else "characters"
        if self.bleu_tokenizer is None:
            self.bleu_tokenizer = "zh" if share_of_letters(targets, CJK) > 0.5 else "13a"

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        if self.lowercase is None:
            self.lowercase = is_uncased(tokenizer)
        features: list[Feature] = [
            {"input_ids": ids, "example": number} for number, ids in enumerate(self._source_ids(examples, tokenizer))
        ]
        labelled = [number for number, example in enumerate(examples) if "label" in example]
        for number, ids in zip(labelled, _ids([examples[n]["label"] for n in labelled], tokenizer), strict=True):
            features[number]["labels"] = [*ids[: self.max_target_length - 1], tokenizer.sep_token_id]
        return features

    def _source_ids(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
        room = self.max_length - 2  # [CLS] and the last [SEP]
        sources = [example["source"] for example in examples]
        turns = iter(_ids([turn for source in sources for turn in _turns(source)], tokenizer))
        for source in sources:
            joined = [[*next(turns), tokenizer.sep_token_id] for _ in _turns(source)]
            ids = list(chain.from_iterable(joined))[:-1]
            kept = ids[:room] if isinstance(source, str) else ids[-room:]
            yield [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id]

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Prediction]:
        return [{"text": text} for text in outputs]

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        references = [example["label"] for example in examples]
        texts = [prediction["text"] for prediction in predictions]
        lowercase = bool(self.lowercase)
        return {
            **rouge(references, texts, self.rouge_tokens or "words"),
            "bleu": bleu(references, texts, self.bleu_tokenizer or "13a", lowercase),
            "exact_match": exact_match(references, texts, lowercase),
        }


def _turns(source: str | list[str]) -> list[str]:
    return [source] if isinstance(source, str) else source


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if not texts:
        return []
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    return tokenizer(texts, verbose=False, **options)["input_ids"]


def is_uncased(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it makes all letters small."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def _check(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}; got {shown(value)}")
