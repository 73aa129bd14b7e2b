"""`electra-fast estimate`."""

from __future__ import annotations

from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import Command, command_parser

SUMMARY = "Say beforehand how long a pretraining run takes, what memory it needs and what it costs"
OWN_OPTIONS = ("config", "hardware", "gpus", "mfu", "price", "vocab_size", "json")


def _parser() -> ArgumentParser:
    from electra_fast.pretraining.config import PretrainConfig
    from electra_fast.pretraining.hardware import GPUS

    names = ", ".join(gpu.name for gpu in GPUS)
    parser = command_parser(
        "estimate",
        SUMMARY,
        "--config FILE|RECIPE [--SECTION.KEY VALUE ...] [--hardware NAME ...] [OPTIONS]",
        "--config base --training.precision bfloat16 --hardware H100 --gpus 8 --price 2.5",
        "--config small --hardware here",
        more="\n\nEach row says whether its speed was measured, and where, or is assumed.\n"
        "Hardware: here (some steps are measured on this machine), cpu (this one, as measured before),\n"
        f"{names}.\n"
        "The config and its keys are those of `electra-fast pretrain`.",
    )
    parser.add_argument("--config", type=str, metavar="FILE", help="a config file, or the name of a recipe")
    parser.add_argument(
        "--hardware", type=str, nargs="+", metavar="NAME", help="GPUs, cpu, here; default: some well-known GPUs"
    )
    parser.add_argument("--gpus", type=int, help="GPUs that share each batch; default: 1")
    parser.add_argument("--mfu", type=float, help="share of a GPU's peak in use, e.g. 0.3; default: 0.25")
    parser.add_argument("--price", type=float, help="of a device an hour, in any currency")
    parser.add_argument(
        "--vocab_size", type=int, help="entries of the vocabulary; default: that of data.train, else BERT's"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON, with more figures")
    parser.add_config(PretrainConfig)
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.pretraining.config import ConfigError, recipe_names
    from electra_fast.pretraining.config_file import read_config

    if "config" not in args:
        raise UsageError(f"--config is missing: give a YAML file or a recipe ({', '.join(recipe_names())})")
    try:
        config = read_config(args.config, {key: value for key, value in args.items() if key not in OWN_OPTIONS})
    except ConfigError as error:
        raise UsageError(str(error)) from error

    from electra_fast.estimation.report import estimate, print_json, render

    given = {key: args[key] for key in ("hardware", "gpus", "mfu", "price", "vocab_size") if key in args}
    result = estimate(config, **given)
    if "json" in args:
        print_json(result)
    else:
        render(result)
    return 0


COMMAND = Command(SUMMARY, _parser, _run, defaults=False)
