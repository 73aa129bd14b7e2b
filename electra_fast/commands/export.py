"""`electra-fast export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import PROG, Command, command_parser

SUMMARY = "Write the models of a run's checkpoint, or a model as ONNX or torch.export package"
# Which formats an option is for; the others are for all.
_ONLY = {
    "step": ("transformers",),
    "data": ("onnx", "onnx-int8", "torch-export"),
    "seed": ("onnx", "onnx-int8", "torch-export"),
    "per_channel": ("onnx-int8",),
    "weight_bits": ("onnx-int8",),
}


def _parser() -> ArgumentParser:
    from electra_fast.deployment import FORMATS

    parser = command_parser(
        "export",
        SUMMARY,
        "MODEL --output DIR [--format NAME] [OPTIONS]",
        "runs/small --output models/small",
        "runs/small --step 20000 --output models/small_20k",
        "runs/sst2 --format onnx --output deploy/sst2",
        "runs/sst2 --format onnx-int8 --data dev.tsv --output deploy/sst2_int8",
        more="\n\nOf a run, as at its end: generator and discriminator for transformers, with tokenizer and model\n"
        "card; `hf upload NAME DIR/discriminator` publishes one. The run may be unfinished.\n\n"
        "In the other formats, of any ELECTRA or BERT: a package for other programs, which runs beside the\n"
        "model before it is put in place. Not a file is left of one whose outputs differ.",
    )
    parser.add_argument(
        "model", type=str, metavar="MODEL", help="a run's folder, whose corpus is where it was; a checkpoint's folder"
    )
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="new folder of the models")
    parser.add_argument(
        "--format",
        type=str,
        default="transformers",
        choices=["transformers", *FORMATS],
        metavar="NAME",
        help="transformers: a run's models; " + "; ".join(f"{name}: {about}" for name, about in FORMATS.items()),
    )
    parser.add_argument("--step", type=int | None, default=None, help="of the run's checkpoint, if not the newest")
    parser.add_argument(
        "--data",
        type=str,
        metavar="FILE",
        help="compare on this: text, a text a line; labelled examples for a fine-tuned model's task, whose metric is "
        "shown too; default: random tokens",
    )
    parser.add_argument("--seed", type=int | None, default=None, help="of random tokens, if not a fresh one")
    parser.add_argument(
        "--per_channel",
        type=bool | None,
        default=None,
        help="of onnx-int8: a scale for each column of a weight (default: true)",
    )
    parser.add_argument(
        "--weight_bits",
        type=int | None,
        default=None,
        help="of onnx-int8: 8, or 7 for x86 processors without VNNI (default: 8)",
    )
    return parser


def _run(args: Any, _: list[str]) -> int:
    options = {name: value for name in _ONLY if (value := getattr(args, name)) is not None}
    for name in options:
        if args.format not in _ONLY[name]:
            raise UsageError(f"--{name} is for --format {' or '.join(_ONLY[name])}; got --format {args.format}")
    if args.format == "transformers":
        return _export_checkpoint(args)
    from electra_fast.data.remote import check_local
    from electra_fast.deployment import export_model

    check_local(args.output, "--output")
    exported = export_model(args.model, args.output, format=args.format, **options)
    check, accuracy = exported.check, exported.accuracy
    print(
        f"Checked on {check.source}, {check.shortest} to {check.longest} tokens long: outputs differ by at most "
        f"{check.largest_difference:.2g} ({check.relative_difference:.2g} of their spread)"
    )
    if accuracy is not None:
        print(
            f"{accuracy.metric} {accuracy.model:.2f} -> {accuracy.package:.2f} on {accuracy.examples:,} examples of "
            f"{args.data}"
        )
    print(
        f"{exported.folder}: {exported.bytes_after / 2**20:,.1f} MiB, {exported.bytes_before / 2**20:,.1f} in float32"
    )
    print(f'Next, in Python: electra_fast.deployment.load("{exported.folder}")')
    return 0


def _export_checkpoint(args: Any) -> int:
    from electra_fast.pretraining.export import export_checkpoint

    step = export_checkpoint(args.model, args.output, step=args.step)
    output = Path(args.output)
    print(f"Models after step {step:,}: {output / 'discriminator'} and {output / 'generator'}")
    print(f'Next: {PROG} inspect {shlex.quote(args.output)} "The cat sat on the because."')
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
