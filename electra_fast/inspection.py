"""Which tokens does a discriminator take for replaced? For `electra-fast inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Backgrounds at probability 0, 1/2 and 1; black on each of them is readable on light and dark terminals.
_COLORS = ((150, 215, 150), (250, 230, 120), (240, 110, 100))


@dataclass(frozen=True)
class InspectedText:
    """A text and its tokens without [CLS] and [SEP].

    Args:
        text: as given.
        tokens: the tokenizer's, e.g. "un", "##able".
        probabilities: that each was replaced, in [0, 1].
        offsets: where each stands in `text`, [start, end).
    """

    text: str
    tokens: list[str]
    probabilities: list[float]
    offsets: list[tuple[int, int]]

    def words(self) -> Iterator[tuple[str, list[float]]]:
        """The words as typed, each with the probabilities of its pieces ("##" pieces belong to the word before)."""
        start, end, probabilities = 0, 0, list[float]()
        for token, probability, (first, last) in zip(self.tokens, self.probabilities, self.offsets, strict=True):
            if probabilities and not (token.startswith("##") and first == end):
                yield self.text[start:end], probabilities
                probabilities = []
            if not probabilities:
                start = first
            probabilities.append(probability)
            end = last
        if probabilities:
            yield self.text[start:end], probabilities


def inspect_text(model_folder: str | Path, texts: Sequence[str]) -> list[InspectedText]:
    """Ask a discriminator about every token of `texts`.

    Args:
        model_folder: an `ElectraForPreTraining` checkpoint with its tokenizer, or a run's folder that holds one as
            `discriminator`.
        texts: one sequence each.

    Raises:
        ValueError: the folder holds no discriminator, or a text is longer than its position table.
    """
    folder = _discriminator_folder(Path(model_folder))

    import torch

    from electra_fast.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    model = _load(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} entries and the model {model.config.vocab_size}: "
            "put the tokenizer there that the model was trained with"
        )
    longest = model.config.max_position_embeddings
    inspected = []
    for text in texts:
        encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        ids = encoding["input_ids"]
        if len(ids) > longest:
            raise ValueError(
                f"the text that starts {text[:40]!r} has {len(ids)} tokens with [CLS] and [SEP], and the model in "
                f"{folder} takes at most {longest}: split it"
            )
        with torch.inference_mode():
            probabilities = model(torch.tensor([ids])).logits[0].sigmoid().tolist()
        real = [i for i, special in enumerate(encoding["special_tokens_mask"]) if not special]
        inspected.append(
            InspectedText(
                text,
                tokenizer.convert_ids_to_tokens([ids[i] for i in real]),
                [probabilities[i] for i in real],
                [tuple(encoding["offset_mapping"][i]) for i in real],
            )
        )
    return inspected


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


def _discriminator_folder(folder: Path) -> Path:
    for candidate in (folder / "discriminator", folder):
        if (candidate / "config.json").is_file():
            break
    else:
        if (folder / "checkpoints").is_dir():
            raise ValueError(f"the run in {folder} is not finished, so it holds no discriminator: go on with --resume")
        there = "holds no config.json" if folder.is_dir() else "is no folder"
        raise ValueError(f"model {folder} {there}: give a discriminator's folder, or a run that holds one")
    try:
        architectures = json.loads((candidate / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{candidate / 'config.json'} is damaged: {error}") from error
    if "ElectraForPreTraining" not in architectures:
        found = ", ".join(map(str, architectures)) or "no known model"
        raise ValueError(f"{candidate} holds {found}: inspect needs a discriminator (ElectraForPreTraining)")
    return candidate


def _load(folder: Path) -> Any:
    from safetensors import SafetensorError

    from electra_fast.models import ElectraForPreTraining
    from electra_fast.models.progress import hidden_progress_bars

    try:
        with hidden_progress_bars():
            model, report = ElectraForPreTraining.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: transformers' word for weights of other shapes
        raise ValueError(f"can't read the model in {folder}: {error}") from error
    if report["missing_keys"]:
        raise ValueError(f"the model in {folder} lacks {min(report['missing_keys'])}: it is damaged or of another kind")
    return model.eval()


def _print_colored(item: InspectedText, console: Console) -> None:
    from rich.text import Text

    line = Text(item.text)
    for probability, (start, end) in zip(item.probabilities, item.offsets, strict=True):
        line.stylize(_style(probability, console), start, end)
    console.print(line)


def _print_legend(console: Console) -> None:
    from rich.text import Text

    legend = Text("replaced: ", style="dim")
    for percent in (0, 25, 50, 75, 100):
        legend.append(f" {percent}% ", style=_style(percent / 100, console))
    console.print(legend)


def _print_plain(item: InspectedText, console: Console) -> None:
    from rich.cells import cell_len

    rows = ("", "")
    for word, probabilities in item.words():
        percents = "+".join(f"{100 * p:.0f}" for p in probabilities) + "%"
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
    if console.color_system in ("standard", "windows"):  # 16 colours, to which shades would be rounded at random
        return "black on " + ("green" if probability < 1 / 3 else "yellow" if probability < 2 / 3 else "red")
    low, middle, high = _COLORS
    start, end, share = (low, middle, 2 * probability) if probability < 0.5 else (middle, high, 2 * probability - 1)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return f"black on rgb({red},{green},{blue})"
