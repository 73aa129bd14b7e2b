"""`electra-fast features`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import Command, command_parser

SUMMARY = "Write the vectors of texts, of each text or each token, to .npy or Parquet"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "features",
        SUMMARY,
        "MODEL --input FILE --output FILE [OPTIONS]",
        "runs/small --input texts.txt --output texts.npy",
        "runs/small --input reviews.jsonl --text review --layers -1 -2 --output reviews.parquet",
        more="\n\nThe input is a text a line, or CSV, TSV or JSONL with a column of texts. In Python:\n"
        "electra_fast.FeatureExtractor, a module that other models train with.",
    )
    parser.add_argument(
        "model", type=str, metavar="MODEL", help="folder of an ELECTRA or BERT checkpoint or of a run, or a cached name"
    )
    parser.add_argument("--input", type=str, required=True, metavar="FILE", help="the texts, UTF-8")
    parser.add_argument("--output", type=str, required=True, metavar="FILE", help=".npy or .parquet")
    parser.add_argument("--text", type=str, default="text", metavar="COLUMN", help="of CSV, TSV or JSONL")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[-1], metavar="INT", help="1 is the first, -1 the last, 0 embeddings"
    )
    parser.add_argument(
        "--pooling",
        type=str,
        default="mean",
        choices=["mean", "cls", "max", "tokens"],
        metavar="{mean,cls,max,tokens}",
        help="over the tokens of a text; tokens: a vector for each",
    )
    parser.add_argument("--max_length", type=int | None, default=None, help="tokens of a text, if not all it takes")
    parser.add_argument(
        "--dtype",
        type=str,
        default="float32",
        choices=["float32", "float16"],
        metavar="{float32,float16}",
        help="in the file",
    )
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, or auto: the GPU where there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    return parser


def _run(args: Any, _: list[str]) -> int:
    output = Path(args.output)
    if output.exists() and not args.overwrite:
        raise UsageError(f"{output} is there already: name another file, or give --overwrite")
    from electra_fast.finetuning.feature_files import check_output, read_texts, write_features
    from electra_fast.finetuning.features import FeatureExtractor
    from electra_fast.twins import choose_device

    check_output(output)
    texts = read_texts(Path(args.input), args.text)
    extractor = FeatureExtractor(args.model, layers=args.layers, pooling=args.pooling, max_length=args.max_length)
    extractor.to(choose_device(args.device))
    written = write_features(extractor, texts, output, dtype=args.dtype, show_progress=sys.stderr.isatty())
    rate = written.texts / written.seconds
    print(
        f"{' and '.join(map(str, written.files))}: {written.texts:,} texts of {written.tokens:,} tokens, "
        f"vectors of {extractor.dim:,}; {rate:,.0f} texts/s, {written.tokens / written.seconds:,.0f} tokens/s"
    )
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
