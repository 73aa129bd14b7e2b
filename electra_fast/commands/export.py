"""`electra-fast export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser
from electra_fast.commands import PROG, Command, command_parser

SUMMARY = "Write the models of a run's checkpoint, with model cards"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "export",
        SUMMARY,
        "RUN --output DIR [--step INT]",
        "runs/small --output models/small",
        "runs/small --step 20000 --output models/small_20k",
        more="\n\nAs at the end of a run: generator and discriminator for transformers, with tokenizer and model\n"
        "card; `hf upload NAME DIR/discriminator` publishes one. The run may be unfinished.",
    )
    parser.add_argument("run", type=str, metavar="RUN", help="a run's folder; its corpus is where it was")
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="new folder of the models")
    parser.add_argument("--step", type=int | None, default=None, help="of the checkpoint, if not the newest")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.pretraining.export import export_checkpoint

    step = export_checkpoint(args.run, args.output, step=args.step)
    output = Path(args.output)
    print(f"Models after step {step:,}: {output / 'discriminator'} and {output / 'generator'}")
    print(f'Next: {PROG} inspect {shlex.quote(args.output)} "The cat sat on the because."')
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
