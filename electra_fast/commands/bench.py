"""`electra-fast bench`."""

from __future__ import annotations

import sys
from typing import Any

from electra_fast.arguments import ArgumentParser
from electra_fast.commands import Command, command_parser
from electra_fast.commands.options import add_model

SUMMARY = "Time the fast model of a checkpoint beside stock transformers"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "bench",
        SUMMARY,
        "MODEL [--data FILE] [OPTIONS]",
        "runs/demo",
        "runs/demo --data text.txt --threads 2 --rounds 9",
        more="\n\nBoth in float32, in turn in one run. Minutes for a model of 13 million parameters on two cores.",
    )
    add_model(parser)
    parser.add_argument("--threads", type=int | None, default=None, help="of the CPU, if not as many as PyTorch takes")
    parser.add_argument("--batch_size", type=int, default=32, help="texts a batch, in the file's order")
    parser.add_argument("--batches", type=int, default=4, help="how many, spread evenly over the file")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed; the medians are shown")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.bench import bench, render

    report = bench(
        args.model,
        data=args.data,
        device=args.device,
        threads=args.threads,
        batch_size=args.batch_size,
        batches=args.batches,
        max_length=args.max_length,
        rounds=args.rounds,
        seed=args.seed,
        show_progress=sys.stderr.isatty(),
    )
    render(report)
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
