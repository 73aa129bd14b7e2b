"""WordPiece tokenizers: trained on own text, or loaded from a folder or a BERT vocab.txt; never from a network."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from electra_fast.data.documents import check_inputs, read_documents
from electra_fast.data.remote import check_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0..4
CONTINUATION = "##"


def train_wordpiece(
    inputs: Sequence[str | Path],
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
    """Trains BERT's tokenizer (normaliser, pre-tokeniser, WordPiece) on `inputs` and saves it into the folder `output`.

    `AutoTokenizer.from_pretrained(output)` loads it, as does `load_tokenizer`. The special tokens are ids 0..4 in the
    order `[PAD] [UNK] [CLS] [SEP] [MASK]`; then characters, continued characters ("##x"), and merged pieces in the
    order they were learned, at most `vocab_size` in all (fewer if the text has fewer pieces that occur `min_frequency`
    times). Only the `limit_alphabet` most frequent characters are kept. The same text gives the same vocabulary.
    `format` and `text_field` as in `read_documents`; `max_length` becomes `model_max_length`.

    Raises ValueError for text without a document, and for a `vocab_size` too small for the alphabet.
    """
    from transformers import BertTokenizer

    def documents() -> Iterator[str]:
        return read_documents(inputs, format=format, text_field=text_field)

    blank = BertTokenizer(do_lower_case=lowercase).backend_tokenizer
    alphabet = _alphabet(documents(), blank.normalizer.normalize_str, limit_alphabet)
    if not alphabet:
        raise ValueError(f"no text to train on in {', '.join(map(str, check_inputs(inputs)))}: every line is blank")

    # The trainer numbers "##x" in the order of a randomly seeded hash map, and numbers break its ties between pieces:
    # so learn first which of them occur, and give them to the real run as reserved tokens, in a fixed order.
    base = _train(documents(), blank, 0, list(SPECIAL_TOKENS), alphabet, min_frequency, False)
    continued = [token for token in sorted(base) if token.startswith(CONTINUATION) and token[2:] in alphabet]
    reserved = [*SPECIAL_TOKENS, *continued]
    smallest = len(reserved) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} cannot hold the {len(SPECIAL_TOKENS)} special tokens and the alphabet of "
            f"{len(alphabet)} characters: needs {smallest}; raise vocab_size or lower limit_alphabet"
        )
    learned = _train(documents(), blank, vocab_size, reserved, alphabet, min_frequency, show_progress)
    merged = [token for token in sorted(learned, key=learned.get) if token not in {*reserved, *alphabet}]
    vocabulary = [*SPECIAL_TOKENS, *alphabet, *continued, *merged]
    tokenizer = BertTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        do_lower_case=lowercase,
        model_max_length=max_length,
    )
    if output is not None:
        save_tokenizer(tokenizer, output)
    return tokenizer


def _alphabet(documents: Iterator[str], normalize, limit: int) -> list[str]:
    """The most frequent characters after normalisation, in code point order."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(normalize(document))
    frequent = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    return sorted(frequent[:limit])


def _train(documents, blank, vocab_size, special_tokens, alphabet, min_frequency, show_progress) -> dict[str, int]:
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special_tokens,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUATION,
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer.get_vocab()


def load_tokenizer(path: str | Path, *, lowercase: bool = True, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Loads a tokenizer folder (anything `AutoTokenizer` loads as a fast tokenizer), or a BERT vocab.txt.

    `lowercase` and `max_length` are used for a vocab.txt only: a folder says both itself.

    Raises ValueError if `path` is neither, if the tokenizer is not backed by the `tokenizers` library, or if it lacks
    one of the special tokens ELECTRA needs.
    """
    from transformers import AutoTokenizer, BertTokenizer

    check_local(path, "tokenizer")
    path = Path(path)
    if path.is_dir():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of a damaged file, transformers and tokenizers raise whatever comes
            reason = " ".join(str(error).split())[:160]
            raise ValueError(
                f"tokenizer {path} can't be loaded, a file of it is missing or damaged: {reason}"
            ) from error
    elif path.is_file() and path.suffix == ".txt":
        tokenizer = BertTokenizer(vocab=_read_vocab(path), do_lower_case=lowercase, model_max_length=max_length)
    else:
        raise ValueError(f"tokenizer {path}: expected a folder with tokenizer.json, or a vocab.txt, that exists")
    check_tokenizer(tokenizer, str(path))
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Raises ValueError, naming it `name`, for a tokenizer that ELECTRA can't be trained with."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"tokenizer {name}: {type(tokenizer).__name__} has no tokenizer.json; save a fast one")
    for token in ("pad", "unk", "cls", "sep", "mask"):
        if getattr(tokenizer, f"{token}_token_id") is None:
            raise ValueError(f"tokenizer {name}: has no {token}_token, which ELECTRA needs")


def _read_vocab(path: Path) -> dict[str, int]:
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"tokenizer {path}: not UTF-8 at byte offset {error.start}") from error
    while tokens and not tokens[-1]:
        tokens.pop()
    vocabulary = {token.rstrip("\r"): index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError(f"tokenizer {path}: {len(tokens) - len(vocabulary)} tokens occur more than once")
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(f"tokenizer {path}: not a BERT vocabulary, it lacks {' '.join(missing)}")
    return vocabulary


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json; the same tokenizer gives the same bytes always.

    Raises OSError, or what `tokenizers` raises instead, where they can't be written; `folder` is then as it was.
    """
    check_local(folder, "output")
    folder = Path(folder)
    aside = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write(tokenizer, aside)
        folder.mkdir(parents=True, exist_ok=True)
        for path in aside.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(str(folder))
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    for how_it_was_loaded in ("is_local", "local_files_only", "name_or_path"):
        config.pop(how_it_was_loaded, None)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 (hex) of all that decides the ids: tokenizer.json in canonical form, without truncation and padding."""
    return tokenizer_json_hash(tokenizer.backend_tokenizer.to_str())


def tokenizer_json_hash(text: str) -> str:
    """`tokenizer_hash`, of what tokenizer.json holds."""
    content = json.loads(text)
    for runtime_state in ("truncation", "padding"):
        content.pop(runtime_state, None)
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
