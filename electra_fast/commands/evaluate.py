"""`electra-fast evaluate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser
from electra_fast.commands import Command, command_parser

SUMMARY = "Score a fine-tuned model on labelled data"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "evaluate",
        SUMMARY,
        "--model DIR --data PATH [--json] [OPTIONS]",
        "--model runs/reviews --data reviews",
        "--model runs/reviews --data more_reviews.csv --json",
    )
    parser.add_argument("--model", type=str, required=True, metavar="DIR", help="what `finetune` wrote, or its model/")
    parser.add_argument(
        "--data",
        type=str,
        required=True,
        metavar="PATH",
        help="a file; or a folder, all with labels but the training data",
    )
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, or auto: the GPU where there is one")
    parser.add_argument("--batch_tokens", type=int, default=4096, help="of a batch, at most")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.finetuning.predict import evaluate, open_finetuned

    finetuned = open_finetuned(Path(args.model), args.device)
    results = evaluate(finetuned, Path(args.data), batch_tokens=args.batch_tokens, show_progress=sys.stderr.isatty())
    if args.json:
        print(json.dumps({split: evaluated.metrics for split, evaluated in results.items()}, indent=2))
        return 0
    for split, evaluated in results.items():
        print(f"{split}: {evaluated.predicted.throughput}")
        for name, value in evaluated.metrics.items():
            print(f"  {name:<24} {value:.2f}")
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
