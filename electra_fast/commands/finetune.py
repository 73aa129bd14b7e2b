"""`electra-fast finetune`."""

from __future__ import annotations

import shlex
import signal
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError, given_value
from electra_fast.commands import PROG, Command, command_parser

SUMMARY = "Fine-tune an encoder on a task, and evaluate it"


def _parser() -> ArgumentParser:
    from electra_fast.finetuning.config import FinetuneConfig
    from electra_fast.finetuning.task import TASKS

    parser = command_parser(
        "finetune",
        SUMMARY,
        "--task NAME --model PATH --data PATH --output DIR [OPTIONS]",
        "--task classification --model runs/small --data reviews --output runs/reviews",
        "--task classification --model runs/small --data reviews.csv --output runs/r5 --seeds 5 --epochs 2",
        "--task classification --model runs/small --data reviews --output runs/reviews --resume",
        "--task classification --model runs/small --data reviews --output runs/searched --search 20",
        more="\n\n"
        + textwrap.fill(f"Tasks: {', '.join(TASKS)}.", 98)
        + f"\nOptions of a task: {PROG} finetune --task NAME --help\n"
        "Ctrl-C and SIGTERM save a checkpoint and stop.",
    )
    parser.add_argument("--task", type=str, required=True, metavar="NAME", help="one of the above, or FILE.py:Class")
    parser.add_argument(
        "--model",
        type=str,
        required=True,
        metavar="PATH",
        help="folder of a checkpoint or of a pretraining run, or a name in the Hugging Face cache",
    )
    parser.add_argument(
        "--data",
        type=str,
        required=True,
        metavar="PATH",
        help="folder with train, dev and test files; or one file, of which a part is held out",
    )
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run that is in the output folder")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that is in the output folder")
    parser.add_argument("--search", type=int, default=0, metavar="N", help="try N settings first, and take the best")
    parser.add_config(FinetuneConfig)
    return parser


def _task_options(parser: ArgumentParser, words: list[str]) -> None:
    from electra_fast.finetuning.task import task_class

    name = given_value(words, "--task")
    if name is None:
        return
    try:
        cls = task_class(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    parser.add_class_arguments(cls)
    parser.groups[cls.__name__].title = f"the task {name}: {cls.title}"


def _run(args: Any, given: list[str]) -> int:
    from electra_fast.allocator import keep_freed_memory
    from electra_fast.finetuning.config import FinetuneConfig
    from electra_fast.finetuning.task import task_class
    from electra_fast.finetuning.train import Interrupted, finetune

    if args.search < 0:
        raise UsageError(f"--search must be 0 or more; got {args.search}")
    config = FinetuneConfig(**{field.name: args[field.name] for field in fields(FinetuneConfig)})
    cls = task_class(args.task)
    task = cls(**{field.name: args[field.name] for field in fields(cls)})
    keep_freed_memory()
    output = Path(args.output)
    try:
        result = finetune(
            task,
            args.model,
            Path(args.data),
            output,
            config,
            trials=args.search,
            resume=args.resume,
            overwrite=args.overwrite,
        )
    except Interrupted as stop:
        words = [word for word in given if word not in ("--resume", "--overwrite")]
        print(f"{stop}\nGo on with: {shlex.join([PROG, 'finetune', *words, '--resume'])}")
        return 128 + signal.SIGINT if "SIGINT" in str(stop) else 0
    for split, metrics in result["summary"].items():
        for name, spread in metrics.items():
            range_ = f"  ({spread['min']:.2f} to {spread['max']:.2f})" if config.seeds > 1 else ""
            print(f"{split} {name:<20} {spread['median']:.2f}{range_}")
    print(f"Results: {output / 'results.md'}; model of seed {result['best_seed']}: {output / 'model'}")
    print(f"Next: {PROG} predict --model {shlex.quote(args.output)} --input FILE --output predictions.jsonl")
    return 0


COMMAND = Command(SUMMARY, _parser, _run, more_options=_task_options)
