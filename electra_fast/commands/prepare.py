"""`electra-fast prepare`."""

from __future__ import annotations

import shlex
import time
from typing import Any

from electra_fast.arguments import ArgumentParser
from electra_fast.commands import PROG, Command, command_parser
from electra_fast.commands.options import add_inputs

SUMMARY = "Turn text into a tokenised corpus"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "prepare",
        SUMMARY,
        "INPUT... --tokenizer PATH --output DIR [OPTIONS]",
        "corpus.txt --tokenizer tokenizer --output corpus --workers 4",
        "part1.jsonl.zst part2.parquet --deduplicate --tokenizer vocab.txt --output corpus",
        "enwiki-latest-pages-articles.xml.bz2 --tokenizer tokenizer --output wiki --workers 16",
        more="\n\nShows MB/s of the input and the time left. The corpus is the same, byte for byte, for any number of\n"
        "workers and whether the input is compressed or not.",
    )
    add_inputs(parser)
    parser.add_argument(
        "--tokenizer", type=str, required=True, metavar="PATH", help="a tokenizer's folder, or a BERT vocab.txt"
    )
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="new folder of the corpus, or a URL")
    parser.add_argument("--workers", type=int, default=1, help="processes; as many as there are cores is fastest")
    parser.add_argument(
        "--deduplicate",
        action="store_true",
        help="leave out documents whose text was there before, spacing aside; takes 16 bytes of memory a document",
    )
    parser.add_argument(
        "--units",
        type=str,
        default="none",
        choices=["none", "word", "entity", "word,entity"],
        metavar="{none|word|entity|word,entity}",
        help="store where units for masking begin, a bit a token each: for data.mask_units of pretrain",
    )
    parser.add_argument(
        "--segmenter",
        type=str,
        default="none",
        choices=["none", "jieba"],
        metavar="{none,jieba}",
        help="what tells which Chinese characters make a word: jieba (pip install 'electra-fast[chinese]')",
    )
    parser.add_argument(
        "--entities_field",
        type=str,
        default="entities",
        help="the field of JSON lines that holds entities as [[start, end], ...] in characters",
    )
    parser.add_argument("--lowercase", type=bool, default=True, help="for a vocab.txt: it is of an uncased model")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is in the folder")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.data.prepare import prepare

    start = time.perf_counter()
    meta = prepare(
        args.inputs,
        args.tokenizer,
        args.output,
        workers=args.workers,
        format=args.format,
        text_field=args.text_field,
        deduplicate=args.deduplicate,
        units=() if args.units == "none" else args.units.split(","),
        segmenter=args.segmenter,
        entities_field=args.entities_field,
        lowercase=args.lowercase,
        overwrite=args.overwrite,
    )
    megabytes, seconds = meta.text_bytes / 1e6, time.perf_counter() - start
    print(
        f"{args.output}: {meta.documents:,} documents, {meta.tokens:,} tokens; "
        f"{megabytes:,.1f} MB of text in {seconds:,.1f} s, {megabytes / seconds:.2f} MB/s"
    )
    if meta.duplicate_documents is not None:
        share = meta.duplicate_documents / (meta.documents + meta.duplicate_documents)
        print(
            f"Duplicates left out: {meta.duplicate_documents:,} documents ({share:.1%}), "
            f"{meta.duplicate_tokens:,} tokens"
        )
    print(f"Look at it: {PROG} data stats {shlex.quote(args.output)}")
    print(f"Next: {PROG} pretrain --config small --data.train {shlex.quote(args.output)} --output runs/small")
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
