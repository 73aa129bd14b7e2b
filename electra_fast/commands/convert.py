"""`electra-fast convert`."""

from __future__ import annotations

import shlex
from typing import Any

from electra_fast.arguments import ArgumentParser
from electra_fast.commands import PROG, Command, command_parser

SUMMARY = "Turn a TensorFlow 1 checkpoint of Google's ELECTRA into transformers' format"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "convert",
        SUMMARY,
        "CHECKPOINT --output DIR [OPTIONS]",
        "electra_small --output models/electra_small",
        "models/mine/model.ckpt-1000000 --vocab vocab.txt --lowercase false --output models/converted",
        "finetuning_models/mnli_model_1 --encoder_only --output models/mnli_encoder",
        more="\n\nOf checkpoints that google-research/electra released or wrote, with TensorFlow to read them:\n"
        "pip install 'electra-fast[tensorflow]'. No bit of a weight changes; the optimizer's variables are left out.",
    )
    parser.add_argument(
        "checkpoint", type=str, metavar="CHECKPOINT", help="a folder, or a name without ending: model.ckpt-1000000"
    )
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="new folder of the models")
    parser.add_argument("--vocab", type=str, metavar="FILE", help="vocab.txt; default: the one beside the checkpoint")
    parser.add_argument(
        "--lowercase", type=bool | None, default=None, help="the model is uncased; if not as hparams say, or true"
    )
    parser.add_argument(
        "--hparams",
        type=str,
        default="{}",
        metavar="JSON",
        help="what Google's programs were given as --hparams, JSON or a file of it: number of heads, mask_prob, ...",
    )
    parser.add_argument(
        "--encoder_only",
        action="store_true",
        help="only the discriminator's encoder, as for a fine-tuned checkpoint, whose heads can't be converted",
    )
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.conversion import convert, render

    converted = convert(
        args.checkpoint,
        args.output,
        vocab=args.vocab,
        lowercase=args.lowercase,
        hparams=args.hparams,
        encoder_only=args.encoder_only,
    )
    render(converted)
    if converted.is_joint:
        tie = "" if converted.tie == "shared" else f" --model.tie {converted.tie}"
        run = f"--init.run {shlex.quote(args.output)}{tie} --data.train corpus --output runs/continued"
        print(f"Next: {PROG} pretrain --config continue {run}")
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
