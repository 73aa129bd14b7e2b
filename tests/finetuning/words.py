"""A tokenizer whose tokens are words, so that tests can write down what texts become."""

from __future__ import annotations

from transformers import ElectraTokenizerFast, PreTrainedTokenizerBase

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_tokenizer(text: str) -> PreTrainedTokenizerBase:
    """One entry for each word of `text`, after the special tokens."""
    return ElectraTokenizerFast(vocab={word: number for number, word in enumerate((*SPECIAL, *text.split()))})


def read_ids(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Tokens separated by spaces."""
    return " ".join(tokenizer.convert_ids_to_tokens(ids))
