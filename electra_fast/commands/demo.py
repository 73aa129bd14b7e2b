"""`electra-fast demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser
from electra_fast.commands import Command, command_parser

SUMMARY = "Train a small ELECTRA on text that is already here and look at it"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "demo",
        SUMMARY,
        "[--output DIR] [--seed INT] [--steps INT] [--overwrite]",
        "",
        "--output runs/seed1 --seed 1",
        more="\n\nThe text is the documentation that Python, PyTorch and transformers bring along; nothing is\n"
        "downloaded. Takes a few minutes on two CPU cores. Run again, it goes on where it stopped.",
    )
    parser.add_argument("--output", type=str, default="runs/demo", metavar="DIR", help="folder of the demo")
    parser.add_argument("--seed", type=int, default=0, help="of the training run")
    parser.add_argument("--steps", type=int | None, default=None, help="training steps, if not the recipe's")
    parser.add_argument("--overwrite", action="store_true", help="train anew where the folder holds a run")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.data.remote import check_local
    from electra_fast.demo import run_demo

    check_local(args.output, "--output")
    return run_demo(Path(args.output), seed=args.seed, steps=args.steps, overwrite=args.overwrite)


COMMAND = Command(SUMMARY, _parser, _run)
