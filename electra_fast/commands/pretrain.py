"""`electra-fast pretrain`."""

from __future__ import annotations

import shlex
import signal
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import PROG, Command, command_parser

SUMMARY = "Pretrain an ELECTRA on a prepared corpus"
RUN_OPTIONS = ("config", "resume", "overwrite", "deterministic")


def _parser() -> ArgumentParser:
    from electra_fast.pretraining.config import PretrainConfig, recipe_names

    recipes = ", ".join(recipe_names())
    parser = command_parser(
        "pretrain",
        SUMMARY,
        "--config FILE|RECIPE [--SECTION.KEY VALUE ...] [--output DIR] [--resume | --overwrite]",
        "--config small --data.train corpus --output runs/small",
        "--config my.yaml --optimizer.lr 3e-4 --training.steps 20000",
        "--config small --data.train corpus --output runs/small --resume",
        more=f"\n\nRecipes: {recipes}.\n"
        "A config file is YAML with the keys below; options given here come before it, and it before the defaults.\n"
        "Ctrl-C and SIGTERM save a checkpoint and stop.\n\n"
        "Several processes: torchrun --nproc-per-node 8 --no-python electra-fast pretrain ...",
    )
    parser.add_argument("--config", type=str, metavar="FILE", help="a config file, or the name of a recipe")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that is in the output folder")
    parser.add_argument("--deterministic", action="store_true", help="as --training.deterministic true")
    parser.add_config(PretrainConfig)
    return parser


def _run(args: Any, given: list[str]) -> int:
    from electra_fast.pretraining.config import ConfigError, recipe_names
    from electra_fast.pretraining.config_file import read_config

    settings = {key: value for key, value in args.items() if key not in RUN_OPTIONS}
    if "config" not in args:
        raise UsageError(f"--config is missing: give a YAML file or a recipe ({', '.join(recipe_names())})")
    if "deterministic" in args:
        settings["training.deterministic"] = True
    resume, overwrite = "resume" in args, "overwrite" in args
    if resume and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite deletes it: give one of them")
    try:
        config = read_config(args.config, settings)
    except ConfigError as error:
        raise UsageError(str(error)) from error

    from electra_fast.allocator import keep_freed_memory, return_freed_memory
    from electra_fast.pretraining.distributed import RankStopped
    from electra_fast.pretraining.train import pretrain

    if config.training.activation_checkpointing:
        return_freed_memory()
    else:
        keep_freed_memory()
    try:
        result = pretrain(config, resume=resume, overwrite=overwrite)
    except RankStopped:  # another rank tells what went wrong
        return 2
    if result.rank > 0:
        return 0
    if result.interrupted_by:
        again = shlex.join(
            [PROG, "pretrain", *(word for word in given if word not in ("--resume", "--overwrite")), "--resume"]
        )
        print(
            f"Stopped by {result.interrupted_by} after step {result.step:,}; saved in {result.output / 'checkpoints'}"
        )
        print(f"Go on with: {'torchrun ... --no-python ' if result.world_size > 1 else ''}{again}")
        # Of several ranks, any code but 0 would tell torchrun to start them again.
        return 128 + signal.SIGINT if result.interrupted_by == "SIGINT" and result.world_size == 1 else 0
    for name, value in (result.metrics or {}).items():
        print(f"{name:<24} {value:.4f}")
    print(f"Models: {result.output / 'discriminator'} and {result.output / 'generator'}")
    print(f'Next: {PROG} inspect {shlex.quote(str(result.output))} "The cat sat on the because."')
    return 0


COMMAND = Command(SUMMARY, _parser, _run, defaults=False)
