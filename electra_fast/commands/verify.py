"""`electra-fast verify`."""

from __future__ import annotations

from typing import Any

from electra_fast.arguments import ArgumentParser
from electra_fast.commands import Command, command_parser
from electra_fast.commands.options import add_model

SUMMARY = "Check the fast model of a checkpoint against stock transformers"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "verify",
        SUMMARY,
        "MODEL [--data FILE] [OPTIONS]",
        "runs/demo",
        "runs/demo --data text.txt --dtype bfloat16",
        more="\n\nLogits and gradients of both without dropout, and the error of each to float64. The exit code is 1\n"
        "if the fast model is further off than it may be.",
    )
    add_model(parser)
    parser.add_argument(
        "--dtype",
        type=str,
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        metavar="{float32,bfloat16,float16}",
        help="of both models",
    )
    parser.add_argument("--batches", type=int, default=4, help="how many, of 8 texts each")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.verify import render, verify

    result = verify(
        args.model,
        data=args.data,
        dtype=args.dtype,
        device=args.device,
        batches=args.batches,
        max_length=args.max_length,
        seed=args.seed,
    )
    render(result)
    return 0 if result.passed else 1


COMMAND = Command(SUMMARY, _parser, _run)
