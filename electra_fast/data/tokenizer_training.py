"""Tokenizers of other kinds than WordPiece, trained on own text: Unigram and byte-level BPE. And the table of all."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from electra_fast.data.documents import check_inputs, read_documents
from electra_fast.data.tokenizer import SPECIAL_TOKENS, save_tokenizer, train_wordpiece
from electra_fast.extras import require

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"  # opens a word of Unigram
LONGEST_WORD = 64  # characters; text without spaces is cut here for Unigram's training


def train_unigram(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path | None,
    *,
    vocab_size: int = 30522,
    lowercase: bool = True,
    min_frequency: int = 2,
    limit_alphabet: int = 1000,
    max_length: int = 512,
    format: str = "auto",
    text_field: str = "text",
    show_progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Trains a Unigram tokenizer, as ALBERT's and XLNet's, and saves it into the folder `output`.

    Arguments, special tokens and errors as of `train_wordpiece`. Words begin with U+2581; punctuation stands alone;
    text is normalised as by BERT after NFKC, with runs of spaces as one. After the special tokens come the pieces, the
    likeliest first. The same text gives the same bytes: the trainer is SentencePiece's, fed with counted words in
    sorted order, since the sums of the tokenizers library's own depend on the order of a randomly seeded hash map.

    Raises ValueError also if sentencepiece is not installed.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    sentencepiece = require("sentencepiece", extra="unigram", purpose="Training Unigram tokenizers")
    normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.BertNormalizer(handle_chinese_chars=False, strip_accents=lowercase, lowercase=lowercase),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(SPACE), pre_tokenizers.Punctuation("isolated")])
    words = _words(read_documents(inputs, format=format, text_field=text_field), normalizer, pre_tokenizer)
    alphabet = _alphabet(words, limit_alphabet)
    if not alphabet:
        raise _no_text(inputs)
    _check_size(vocab_size, alphabet)
    known: Counter[str] = Counter()
    for word, count in words.items():
        for part in "".join(character if character in alphabet else " " for character in word).split():
            if count >= min_frequency or len(part) == 1:
                known[part] += count
    known.update(dict.fromkeys(alphabet - known.keys(), 1))  # a character of rare words only is in the vocabulary too
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(f"{word}\t{count}" for word, count in sorted(known.items())),
        input_format="tsv",
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size - len(SPECIAL_TOKENS) + 1,  # and its unknown token
        hard_vocab_limit=False,  # fewer, if the text has no more
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_whitespace=False,
        split_by_unicode_script=False,
        split_by_number=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=2,  # fixed: the sums depend on it
        minloglevel=0 if show_progress else 2,
    )
    learned = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(learned.id_to_piece(i), learned.get_score(i)) for i in range(1, learned.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram([*((token, 0.0) for token in SPECIAL_TOKENS), *pieces], unk_id=1))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Metaspace(SPACE)
    return _finish(tokenizer, output, max_length)


def train_byte_level_bpe(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path | None,
    *,
    vocab_size: int = 30522,
    lowercase: bool = True,
    min_frequency: int = 2,
    limit_alphabet: int | None = None,
    max_length: int = 512,
    format: str = "auto",
    text_field: str = "text",
    show_progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer, as GPT-2's and RoBERTa's, and saves it into the folder `output`.

    Arguments, special tokens and errors as of `train_wordpiece`; `limit_alphabet` has no meaning here, since the
    alphabet is the 256 bytes: no text is unknown, and without `lowercase` decoding gives back the text to the byte.
    After the special tokens come the bytes and the merged pieces in the order they were learned.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _check_size(vocab_size, alphabet)
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=True
        )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=_special_tokens(),
        initial_alphabet=alphabet,
        show_progress=show_progress,
    )
    empty = True

    def documents() -> Iterator[str]:
        nonlocal empty
        for document in read_documents(inputs, format=format, text_field=text_field):
            empty = False
            yield document

    tokenizer.train_from_iterator(documents(), trainer)
    if empty:
        raise _no_text(inputs)
    return _finish(tokenizer, output, max_length)


TRAINERS: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    "wordpiece": train_wordpiece,
    "unigram": train_unigram,
    "bpe": train_byte_level_bpe,
}


def _words(documents: Iterator[str], normalizer: Any, pre_tokenizer: Any) -> Counter[str]:
    """How often each word occurs, as the tokenizer will cut them; those of text without spaces in parts."""
    between_spaces: Counter[str] = Counter()
    for document in documents:
        between_spaces.update(document.split())
    words: Counter[str] = Counter()
    for text, count in between_spaces.items():  # each text once: the library's cutting is slow from Python
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)):
            for start in range(0, len(word), LONGEST_WORD):
                words[word[start : start + LONGEST_WORD]] += count
    return words


def _alphabet(words: Counter[str], limit: int) -> set[str]:
    """The most frequent characters."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    return set(sorted(counts, key=lambda character: (-counts[character], character))[:limit])


def _finish(tokenizer: Tokenizer, output: str | Path | None, max_length: int) -> PreTrainedTokenizerFast:
    """Adds what makes a tokenizer ELECTRA's: `[CLS] a [SEP] b [SEP]`, and which tokens are special."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    finished = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token.content.strip('[]').lower()}_token": token for token in _special_tokens()},
    )
    if output is not None:
        save_tokenizer(finished, output)
    return finished


def _special_tokens() -> list[AddedToken]:
    from tokenizers import AddedToken

    # [MASK] stands for a word with the space before it, so that it takes that space.
    return [AddedToken(token, lstrip=token == "[MASK]", special=True, normalized=False) for token in SPECIAL_TOKENS]


def _check_size(vocab_size: int, alphabet: Collection[str]) -> None:
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} cannot hold the {len(SPECIAL_TOKENS)} special tokens and the alphabet of "
            f"{len(alphabet)} characters: needs {smallest}; raise vocab_size or lower limit_alphabet"
        )


def _no_text(inputs: str | Path | Sequence[str | Path]) -> ValueError:
    names = ", ".join(map(str, check_inputs(inputs)))
    return ValueError(f"no text to train on in {names}: every line is blank")
