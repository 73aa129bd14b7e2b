"""What is in a prepared corpus? For `electra-fast data stats`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from electra_fast.data.corpus import Corpus

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SEQUENCE_LENGTHS = (128, 512)  # of the recipes, [CLS] and [SEP] included
EXAMPLES = 3
EXAMPLE_TOKENS = 60
READ = 1 << 24  # tokens at a time


@dataclass(frozen=True)
class CorpusStats:
    """Figures of a corpus.

    Args:
        documents, tokens, text_bytes, duplicate_documents, duplicate_tokens: as in `CorpusMeta`.
        vocab_size: entries of the tokenizer, special ones included.
        unused: entries that never occur, special ones (which a corpus holds none of, but for [UNK]) left out.
        unknown_share: of the tokens that are [UNK].
        frequent: the most frequent tokens, each with its share of all.
        mean_length: of a document, in tokens.
        length_quantiles: quantile -> documents' length in tokens, without [CLS] and [SEP].
        longer_than: sequence length -> share of the documents that don't fit one sequence of it, which are cut.
        examples: (index of the document, its first tokens decoded).
    """

    documents: int
    tokens: int
    text_bytes: int
    duplicate_documents: int | None
    duplicate_tokens: int | None
    vocab_size: int
    unused: int
    unknown_share: float
    frequent: list[tuple[str, float]]
    mean_length: float
    length_quantiles: dict[float, int]
    longer_than: dict[int, float]
    examples: list[tuple[int, str]]


def corpus_stats(folder: str | Path) -> CorpusStats:
    """Reads all of a corpus, in memory of about 30 bytes a document.

    Raises ValueError naming the file that is missing or damaged.
    """
    corpus = Corpus.open(folder)
    meta, tokenizer = corpus.meta, corpus.load_tokenizer()
    counts = np.zeros(meta.vocab_size, np.int64)
    for start in range(0, corpus.num_tokens, READ):
        ids = corpus.read(start, min(start + READ, corpus.num_tokens))
        found = np.bincount(ids, minlength=meta.vocab_size)
        if len(found) > meta.vocab_size:
            raise ValueError(f"{folder} is damaged: token id {len(found) - 1}, but {meta.vocab_size} entries")
        counts += found
    vocabulary = np.unique(list(tokenizer.get_vocab().values()))
    ordinary = np.setdiff1d(vocabulary, tokenizer.all_special_ids)
    lengths = np.diff(corpus.offsets)
    frequent = np.argsort(-counts, kind="stable")[:10].tolist()
    quantiles = np.quantile(lengths, QUANTILES, method="inverted_cdf").tolist()
    return CorpusStats(
        documents=meta.documents,
        tokens=meta.tokens,
        text_bytes=meta.text_bytes,
        duplicate_documents=meta.duplicate_documents,
        duplicate_tokens=meta.duplicate_tokens,
        vocab_size=len(vocabulary),
        unused=int((counts[ordinary] == 0).sum()),
        unknown_share=float(counts[tokenizer.unk_token_id] / meta.tokens),
        frequent=[(tokenizer.convert_ids_to_tokens(i), float(counts[i] / meta.tokens)) for i in frequent if counts[i]],
        mean_length=meta.tokens / meta.documents,
        length_quantiles={q: int(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        longer_than={n: float((lengths > n - 2).mean()) for n in SEQUENCE_LENGTHS},
        examples=[(index, _decoded(corpus, tokenizer, index)) for index in _spread(meta.documents)],
    )


def plot_lengths(folder: str | Path, picture: str | Path) -> None:
    """Draws a PNG of the documents' lengths: how many documents, and how many of all tokens, are of which length.

    Raises ValueError for a damaged corpus, OSError where the picture can't be written.
    """
    # The object interface draws without a display and leaves pyplot's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = np.diff(Corpus.open(folder).offsets)
    edges = np.unique(np.geomspace(min(lengths.min(), 100), lengths.max() + 1, 60).round())
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {"documents": ("Documents by length", None), "tokens": ("Tokens by the length of their document", lengths)}
    for axes, (what, (title, weights)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        axes.hist(lengths, edges, weights=weights, color="C0", edgecolor="white", linewidth=0.4)
        for index, length in enumerate(SEQUENCE_LENGTHS):
            axes.axvline(length - 2, color=f"C{index + 1}", linestyle="--", label=f"sequences of {length}")
        axes.set_xscale("log")
        axes.set_title(title)
        axes.set_xlabel("tokens a document")
        axes.set_ylabel(what)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(picture, dpi=110, format="png")


def render(stats: CorpusStats) -> None:
    """Prints the figures as a table, then the examples."""
    from rich.table import Table
    from rich.text import Text

    from electra_fast.console import standard_console

    console = standard_console()
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _rows(stats):
        table.add_row(name, Text(value))
    console.print(table)
    for index, text in stats.examples:
        console.print(Text.assemble((f"\nDocument {index:,}: ", "bold"), text))


def _rows(stats: CorpusStats) -> list[tuple[str, str]]:
    quantiles = "  ".join(f"{100 * q:g}%: {length:,}" for q, length in stats.length_quantiles.items())
    rows = [
        ("documents", f"{stats.documents:,}"),
        ("tokens", f"{stats.tokens:,}, one for {stats.text_bytes / stats.tokens:.2f} bytes of text"),
        ("text", f"{stats.text_bytes / 1e6:,.1f} MB"),
        ("[UNK]", f"{stats.unknown_share:.4%} of the tokens"),
        ("vocabulary", f"{stats.vocab_size:,} entries, {stats.unused:,} of them unused"),
        ("most frequent", "  ".join(f"{token} {share:.1%}" for token, share in stats.frequent)),
        ("mean length", f"{stats.mean_length:,.1f} tokens a document"),
        ("lengths, quantiles", quantiles),
    ]
    rows += [(f"longer than {n}", f"{share:.1%} of the documents") for n, share in stats.longer_than.items()]
    if stats.duplicate_documents is not None:
        left_out = f"{stats.duplicate_documents:,} documents, {stats.duplicate_tokens:,} tokens"
        rows.append(("duplicates left out", left_out))
    return rows


def _spread(documents: int) -> list[int]:
    """The first, the last and what lies evenly between."""
    return sorted({round(i * (documents - 1) / (EXAMPLES - 1)) for i in range(EXAMPLES)})


def _decoded(corpus: Corpus, tokenizer: Any, index: int) -> str:
    ids = corpus.document(index)
    text = " ".join(tokenizer.decode(ids[:EXAMPLE_TOKENS].tolist()).split())
    return text + (" ..." if len(ids) > EXAMPLE_TOKENS else "")
