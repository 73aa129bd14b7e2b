"""Which tokens does a discriminator take for replaced? For `electra-fast inspect`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from electra_fast.checkpoints import find_checkpoint, load_model, read_architectures
from electra_fast.data.documents import check_inputs, read_documents
from electra_fast.inspection_shades import SHADES, VERDICT, printable, shade_index

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from electra_fast.models import ElectraForPreTraining

CUT_NOTE = (
    "Texts longer than the model's position table were read in parts, cut between sentences or words where there is "
    "a | that is not in the text; beside it the model saw no context across it."
)
# A full stop and closing quotes or brackets before a space; or those of Chinese and Japanese, which need no space.
_SENTENCE_START = re.compile(
    r"(?:[.!?\u2026][\"'\u201d\u2019\u00bb)\]]*\s+|[\u3002\uff01\uff1f][\u201d\u2019\u300d\u300f\uff09]*\s*)(?=\S)"
)
_WORD_START = re.compile(r"\S+")


@dataclass(frozen=True)
class InspectedText:
    """A text and its tokens without [CLS] and [SEP].

    Args:
        text: as given.
        tokens: the tokenizer's, e.g. "un", "##able" of WordPiece.
        probabilities: that each was replaced, in [0, 1].
        offsets: where each stands in `text`, [start, end).
        cuts: where in `text` the model's next sequence starts, if one could not hold it all; ascending.
        word_ids: which word each token is of, by the tokenizer; None: pieces with "##" belong to the word before.
    """

    text: str
    tokens: list[str]
    probabilities: list[float]
    offsets: list[tuple[int, int]]
    cuts: tuple[int, ...] = ()
    word_ids: tuple[int | None, ...] | None = None

    def word_spans(self) -> Iterator[tuple[int, int]]:
        """The tokens [first, last) of each word, which no cut and nothing left out by the tokenizer parts."""
        cuts, first = set(self.cuts), 0
        for index in range(1, len(self.tokens)):
            start = self.offsets[index][0]
            if self.word_ids is None:
                same_word = self.tokens[index].startswith("##")
            else:
                same_word = self.word_ids[index] == self.word_ids[index - 1]
            # Tokens may overlap: of byte-level BPE several make one character.
            if not same_word or start > self.offsets[index - 1][1] or start in cuts:
                yield first, index
                first = index
        if self.tokens:
            yield first, len(self.tokens)

    def words(self) -> Iterator[tuple[str, list[float]]]:
        """The words as typed, each with the probabilities of its pieces."""
        for first, last in self.word_spans():
            yield self.text[self.offsets[first][0] : self.offsets[last - 1][1]], self.probabilities[first:last]


def read_paragraphs(path: str | Path) -> list[str]:
    """The paragraphs of a UTF-8 text file, one a line; lines without text are left out.

    Raises:
        ValueError: the file is not there, is not UTF-8, or holds no text.
    """
    (path,) = check_inputs(path)
    paragraphs = [line for document in read_documents(path, format="text") for line in document.split("\n")]
    if not paragraphs:
        raise ValueError(f"{path} holds no text: give a UTF-8 file with a paragraph a line")
    return paragraphs


@dataclass(frozen=True)
class TokenizedText:
    """A text's tokens, and the sequences in which a model reads them: one, or several of a long text.

    Args:
        ids: of the tokens, without [CLS] and [SEP].
        offsets, word_ids: of each token, as in `InspectedText`.
        parts: the tokens [first, last) of each sequence; none of an empty text.
    """

    text: str
    tokens: list[str]
    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: tuple[int | None, ...]
    parts: list[tuple[int, int]]

    def sequences(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """`[CLS] part [SEP]` as ids, for each part."""
        return [[tokenizer.cls_token_id, *self.ids[first:last], tokenizer.sep_token_id] for first, last in self.parts]

    def inspected(self, probabilities: list[float]) -> InspectedText:
        """With the probability of each token."""
        cuts = tuple(self.offsets[first][0] for first, _ in self.parts[1:])
        return InspectedText(self.text, self.tokens, probabilities, self.offsets, cuts, self.word_ids)


def tokenize(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizedText:
    """A text in sequences of at most `max_length` tokens, cut as `inspect_text` says."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = encoding["input_ids"]
    offsets, word_ids = _without_spaces(text, encoding["offset_mapping"], encoding.word_ids())
    parts = list(_parts(text, offsets, word_ids, max_length - 2))
    return TokenizedText(text, tokenizer.convert_ids_to_tokens(ids), ids, offsets, tuple(word_ids), parts)


def load_discriminator(
    model_folder: str | Path,
) -> tuple[ElectraForPreTraining, PreTrainedTokenizerBase]:
    """A discriminator with its tokenizer. Raises ValueError: the folder holds none, or a damaged one."""
    folder = _discriminator_folder(Path(model_folder))

    from electra_fast.data.tokenizer import load_tokenizer
    from electra_fast.models import ElectraForPreTraining

    tokenizer = load_tokenizer(folder)
    model = load_model(ElectraForPreTraining, folder)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} entries and the model {model.config.vocab_size}: "
            "put the tokenizer there that the model was trained with"
        )
    return model, tokenizer


def inspect_text(model_folder: str | Path, texts: Sequence[str], *, show_progress: bool = False) -> list[InspectedText]:
    """Ask a discriminator about every token of `texts`.

    A text that is longer than the model's position table is read as several sequences, cut between sentences where
    that leaves none much shorter than the others, else between words.

    Args:
        model_folder: an `ElectraForPreTraining` checkpoint with its tokenizer, or a run's folder that holds one as
            `discriminator`.
        texts: one sequence each, `[CLS] text [SEP]`.
        show_progress: a bar over the texts on standard error.

    Raises:
        ValueError: the folder holds no discriminator, or a text is not valid Unicode.
    """
    _discriminator_folder(Path(model_folder))
    for text in texts:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"the text that starts {text[:40]!r} holds bytes that are not UTF-8: give it as UTF-8")

    from rich.console import Console
    from rich.progress import track

    model, tokenizer = load_discriminator(model_folder)
    bar = {"console": Console(stderr=True), "transient": True, "disable": not show_progress}
    return [_inspect(text, tokenizer, model) for text in track(texts, "Reading", **bar)]


def render(inspected: Sequence[InspectedText], *, console: Console | None = None) -> None:
    """Print each text with its tokens coloured; where there is no colour, each word over its pieces' percentages.

    `console`: default standard output, whose colours follow the terminal, NO_COLOR and TERM.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    colored = console.color_system is not None and not console.no_color
    for item in inspected:
        if colored:
            _print_colored(item, console)
        else:
            _print_plain(item, console)
    if colored:
        _print_legend(console)
    if any(item.cuts for item in inspected):
        console.print(CUT_NOTE, style="dim", markup=False)


def _inspect(text: str, tokenizer: PreTrainedTokenizerBase, model: ElectraForPreTraining) -> InspectedText:
    import torch

    tokenized = tokenize(text, tokenizer, model.config.max_position_embeddings)
    probabilities: list[float] = []
    for sequence in tokenized.sequences(tokenizer):
        with torch.inference_mode():
            probabilities += model(torch.tensor([sequence])).logits[0, 1:-1].sigmoid().tolist()
    return tokenized.inspected(probabilities)


def _without_spaces(
    text: str, offsets: Sequence[tuple[int, int]], word_ids: Sequence[int | None]
) -> tuple[list[tuple[int, int]], list[int | None]]:
    """Where tokens stand and their words, as a reader sees them.

    To Unigram and byte-level BPE the space before a word is part of it, or a token by itself: then of the next word.
    """
    shown, words = [], list(word_ids)
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        shown.append((start, end))
    for index in reversed(range(len(words) - 1)):
        if shown[index][0] == shown[index][1]:
            shown[index] = (shown[index + 1][0],) * 2
            words[index] = words[index + 1]
    return shown, words


def _parts(
    text: str, offsets: Sequence[tuple[int, int]], word_ids: Sequence[int | None], longest: int
) -> Iterator[tuple[int, int]]:
    """Tokens [first, last) of at most `longest` each, that together are all: of about equal lengths, well cut."""
    tokens = len(offsets)
    sentences = {match.end() for match in _SENTENCE_START.finditer(text)}
    words = {match.start() for match in _WORD_START.finditer(text)}
    first = 0
    while tokens - first > longest:
        even = -(-(tokens - first) // -(-(tokens - first) // longest))  # so that no short rest is left
        fitting = range(first + 1, first + longest + 1)
        last = next(
            min(candidates, key=lambda i: abs(i - first - even))
            for candidates in (
                [i for i in fitting if offsets[i][0] in sentences and i - first >= even / 2],
                [i for i in fitting if offsets[i][0] in words],
                [i for i in fitting if word_ids[i] != word_ids[i - 1]],  # e.g. in Chinese, or at a hyphen
                fitting,
            )
            if candidates
        )
        yield first, last
        first = last
    if first < tokens:
        yield first, tokens


def _discriminator_folder(folder: Path) -> Path:
    folder = find_checkpoint(folder, "give a discriminator's folder, or a run that holds one")
    architectures = read_architectures(folder)
    if "ElectraForPreTraining" not in architectures:
        found = ", ".join(architectures) or "no known model"
        raise ValueError(f"{folder} holds {found}: inspect needs a discriminator (ElectraForPreTraining)")
    return folder


def _print_colored(item: InspectedText, console: Console) -> None:
    from rich.text import Text

    line = Text(printable(item.text))
    for probability, (start, end) in zip(item.probabilities, item.offsets, strict=True):
        line.stylize(_style(probability, console), start, end)
    first, *others = line.divide(item.cuts)
    console.print(Text.assemble(first, *(part for other in others for part in (("| ", "dim"), other))))


def _print_legend(console: Console) -> None:
    from rich.text import Text

    legend = Text.assemble(("replaced, from ", "dim"))
    shown = None
    for shade in SHADES:
        style = _style(shade.percent / 100, console)
        if style != shown:
            legend.append(f" {shade.percent} ", style=style)
        shown = style
    legend.append(" percent up", style="dim")
    console.print(legend)
    console.print(
        "Underlined: the model says replaced. Shades are finest around 15%, which a model that can't tell gives every "
        "token.",
        style="dim",
        markup=False,
    )


def _print_plain(item: InspectedText, console: Console) -> None:
    from rich.cells import cell_len

    rows, columns, cuts = ("", ""), [], set(item.cuts)
    for (first, _), (word, probabilities) in zip(item.word_spans(), item.words(), strict=True):
        if item.offsets[first][0] in cuts:
            columns.append(("|", ""))
        columns.append((printable(word), "+".join(f"{100 * p:.0f}" for p in probabilities) + "%"))
    for word, percents in columns:
        width = max(cell_len(word), len(percents))
        if rows[0] and cell_len(rows[0]) + width > console.width:
            _print_rows(rows, console)
            rows = ("", "")
        rows = (rows[0] + word + " " * (width - cell_len(word) + 1), rows[1] + percents.ljust(width + 1))
    _print_rows(rows, console)


def _print_rows(rows: tuple[str, str], console: Console) -> None:
    for row in rows:
        console.print(row.rstrip(), markup=False, soft_wrap=True)


def _style(probability: float, console: Console) -> str:
    shade = SHADES[shade_index(probability)]
    if console.color_system == "truecolor":
        black, background = "#000000", shade.true_color
    elif console.color_system == "256":
        black, background = "color(16)", shade.indexed  # the "black" of the first 16 is grey in many themes
    else:  # 16 colours, on a terminal or an old Windows console
        black, background = "black", shade.basic
    color = f"{black} on {background}" if background else "default"
    return f"{color} underline" if probability >= VERDICT else color
