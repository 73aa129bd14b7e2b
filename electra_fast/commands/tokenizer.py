"""`electra-fast tokenizer`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import PROG, Command, command_parser
from electra_fast.commands.options import add_inputs

SUMMARY = "Train a tokenizer on text: WordPiece, Unigram or byte-level BPE"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "tokenizer",
        SUMMARY,
        "INPUT... --output DIR [OPTIONS]",
        "corpus.txt --output tokenizer",
        "part1.jsonl part2.jsonl.gz --output tokenizer --vocab_size 16000 --lowercase false",
        "zh.txt --output tokenizer --type unigram --limit_alphabet 8000",
        more="\n\nThe folder loads with transformers' AutoTokenizer.",
    )
    add_inputs(parser)
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="new folder of the tokenizer")
    parser.add_argument(
        "--type",
        type=str,
        default="wordpiece",
        choices=["wordpiece", "unigram", "bpe"],
        metavar="{wordpiece,unigram,bpe}",
        help="wordpiece: BERT's and ELECTRA's; unigram: ALBERT's, for any script; bpe: byte-level, RoBERTa's",
    )
    parser.add_argument("--vocab_size", type=int, default=30522, help="most entries, special tokens included")
    parser.add_argument("--lowercase", type=bool, default=True, help="fold case and strip accents, as in BERT uncased")
    parser.add_argument("--min_frequency", type=int, default=2, help="a piece occurs at least this often")
    parser.add_argument(
        "--limit_alphabet", type=int, default=1000, help="most characters kept; 8000 for Chinese. Not for bpe"
    )
    parser.add_argument("--max_length", type=int, default=512, help="model_max_length of the tokenizer")
    parser.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is in the folder")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.data.remote import check_local
    from electra_fast.data.tokenizer_training import TRAINERS

    check_local(args.output, "--output")
    output = Path(args.output)
    existing = any(output.iterdir()) if output.is_dir() else output.exists()
    if existing and not (args.overwrite and (output / "tokenizer.json").is_file()):
        raise UsageError(f"{output} exists: choose another --output, or --overwrite to replace a tokenizer")
    tokenizer = TRAINERS[args.type](
        args.inputs,
        output,
        vocab_size=args.vocab_size,
        lowercase=args.lowercase,
        min_frequency=args.min_frequency,
        limit_alphabet=args.limit_alphabet,
        max_length=args.max_length,
        format=args.format,
        text_field=args.text_field,
        show_progress=sys.stderr.isatty(),
    )
    print(f"{output}: a tokenizer of {len(tokenizer):,} entries")
    print(f"Next: {PROG} prepare {shlex.join(args.inputs)} --tokenizer {shlex.quote(args.output)} --output corpus")
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
