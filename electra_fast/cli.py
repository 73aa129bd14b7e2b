"""The command `electra-fast`: each command's parser and what it calls.

PyTorch and transformers are imported by the commands that compute, when they run: help and mistakes are quick.
"""

from __future__ import annotations

import dis
import errno
import json
import os
import re
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import electra_fast
from electra_fast.arguments import ArgumentParser, UsageError, nearest, underscored

PROG = "electra-fast"
RUN_OPTIONS = ("config", "resume", "overwrite", "deterministic")


class Command(NamedTuple):
    """One command: its line in the list of commands, its parser, and what runs with (parsed, given) arguments."""

    summary: str
    parser: Callable[[], ArgumentParser]
    run: Callable[[Any, list[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the arguments after the program's name; default: `sys.argv`.

    Returns:
        The exit code: 0; 1 if `verify` finds a model wrong; 2 for a user's mistake, told in one message on standard
        error; 130 after ctrl-C; 1 for a bug, which shows its traceback.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a pipe on Windows can't hold every file's name
    try:
        try:
            with _plain_warnings():
                code = _dispatch(arguments)
        except SystemExit as end:  # --help
            code = int(end.code or 0)
        sys.stdout.flush()  # here, where its errors are still told in plain words
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output, e.g. `head`, has enough
        _drop_output()
        return 128 + 13  # SIGPIPE, which Windows does not name
    except Exception as error:
        if message := users_mistake(error):
            if not _is_told_beside(error):
                print(f"error: {message}", file=sys.stderr)
            _drop_output()
            return 2
        traceback.print_exc()
        print(
            f"This is a bug in electra-fast {electra_fast.__version__}: please report it with the lines above.",
            file=sys.stderr,
        )
        return 1


def _is_told_beside(error: Exception) -> bool:
    """Whether the first of torchrun's processes on this machine tells the same: they share arguments and files."""
    return isinstance(error, UsageError) and os.environ.get("LOCAL_RANK", "0") != "0"


def users_mistake(error: Exception) -> str | None:
    """The message for a user where `error` is about input, files, settings or the machine; None where it is a bug.

    The package raises ValueError, TypeError and RuntimeError on purpose for users' mistakes only, so these count when a
    `raise` of this package made them; the same errors out of a library or an expression are bugs.
    """
    if isinstance(error, OSError):
        return _about_files(error.errno, error.filename, error.strerror or str(error))
    if isinstance(error, (ValueError, TypeError, RuntimeError)) and _raised_here(error.__traceback__):
        return str(error)
    if match := _RUST_OS_ERROR.search(str(error)):  # safetensors and tokenizers wrap the system's errors
        return _about_files(int(match[1]), match[2], os.strerror(int(match[1])))
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return "not enough memory: lower data.batch_size, data.max_length or the model's sizes, or end other programs"
    return None


_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)(?: at path \"(.*)\")?")
_OUT_OF_MEMORY = re.compile(r"(?:CUDA|HIP) out of memory|DefaultCPUAllocator: (?:can't allocate|not enough) memory")
_NO_SPACE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows knows no quota


def _about_files(number: int | None, name: str | bytes | int | None, what: str) -> str:
    advice = ": free some space, or choose a folder on another disk" if number in _NO_SPACE else ""
    what = " ".join(what.split())[:300] + advice
    return f"{os.fsdecode(name)}: {what}" if isinstance(name, (str, bytes)) else what


def _drop_output() -> None:
    """Output that can't be written goes nowhere: Python would fail at it again when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Within the block a warning is one line on standard error, without the place in the source that gave it."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _raised_here(trace: TracebackType | None) -> bool:
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    ours = Path(code.co_filename).is_relative_to(Path(__file__).parent)
    return ours and dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        if _main_parser().parse_args(arguments or ["--help"]).version:
            print(f"{PROG} {electra_fast.__version__}")
            return 0
        raise UsageError(f"name a command: {', '.join(COMMANDS)}")
    name, *rest = arguments
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}{nearest(name, COMMANDS)}\nCommands: {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    parser = command.parser()
    try:
        parsed = parser.parse_args(underscored(rest), defaults=name != "pretrain")
    except UsageError as error:
        raise UsageError(f"{error}\nOptions: {PROG} {name} --help") from error
    return command.run(parsed, rest)


def _main_parser() -> ArgumentParser:
    width = max(map(len, COMMANDS)) + 4
    parser = ArgumentParser(
        prog=PROG,
        usage=f"{PROG} COMMAND [ARGUMENTS]",
        description="Pretrain, inspect and run ELECTRA encoders.\n\ncommands:\n"
        + "\n".join(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()),
        epilog=f"Start with: {PROG} demo\nAbout a command: {PROG} COMMAND --help",
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    return parser


def _parser(name: str, usage: str, *examples: str, more: str = "") -> ArgumentParser:
    summary = COMMANDS[name].summary
    return ArgumentParser(
        prog=f"{PROG} {name}",
        usage=f"{PROG} {name} {usage}",
        description=f"{summary}.{more}",
        examples=[f"{PROG} {name} {example}".rstrip() for example in examples],
    )


# demo


def _demo_parser() -> ArgumentParser:
    parser = _parser(
        "demo",
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


def _demo(args: Any, _: list[str]) -> int:
    from electra_fast.data.remote import check_local
    from electra_fast.demo import run_demo

    check_local(args.output, "--output")
    return run_demo(Path(args.output), seed=args.seed, steps=args.steps, overwrite=args.overwrite)


# info


def _info_parser() -> ArgumentParser:
    parser = _parser("info", "[--json]", "")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _info(args: Any, _: list[str]) -> int:
    from electra_fast.info import collect, render

    render(collect(), as_json=args.json)
    return 0


# tokenizer


def _add_inputs(parser: ArgumentParser) -> None:
    from electra_fast.data.readers import FORMATS

    parser.add_argument(
        "inputs",
        type=str,
        nargs="+",
        metavar="INPUT",
        help="files, compressed (gzip, bzip2, xz, zstd) or not; folders of a dataset; hf://NAME[/CONFIG][:SPLIT]; URLs "
        "(s3://, gs://, https://, ...: what fsspec knows), and patterns of them as 's3://texts/*.jsonl.zst'",
    )
    parser.add_argument(
        "--format",
        type=str,
        default="auto",
        choices=["auto", *FORMATS],
        metavar="NAME",
        help="; ".join(f"{name}: {format.about}" for name, format in FORMATS.items())
        + "; auto: by the file's name, else its first bytes",
    )
    parser.add_argument(
        "--text_field", type=str, default="text", help="the field of JSON, or the column, that holds the text"
    )


def _tokenizer_parser() -> ArgumentParser:
    parser = _parser(
        "tokenizer",
        "INPUT... --output DIR [OPTIONS]",
        "corpus.txt --output tokenizer",
        "part1.jsonl part2.jsonl.gz --output tokenizer --vocab_size 16000 --lowercase false",
        "zh.txt --output tokenizer --type unigram --limit_alphabet 8000",
        more="\n\nThe folder loads with transformers' AutoTokenizer.",
    )
    _add_inputs(parser)
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="new folder of the tokenizer")
    parser.add_argument(
        "--type",
        type=str,
        default="wordpiece",
        choices=["wordpiece", "unigram", "bpe"],
        metavar="{wordpiece,unigram,bpe}",
        help="wordpiece: BERT's and ELECTRA's; unigram: ALBERT's, for any script; bpe: byte-level, RoBERTa's",
    )
    parser.add_argument("--vocab_size", type=int, default=30522, help="most entries, special tokens included")
    parser.add_argument("--lowercase", type=bool, default=True, help="fold case and strip accents, as in BERT uncased")
    parser.add_argument("--min_frequency", type=int, default=2, help="a piece occurs at least this often")
    parser.add_argument(
        "--limit_alphabet", type=int, default=1000, help="most characters kept; 8000 for Chinese. Not for bpe"
    )
    parser.add_argument("--max_length", type=int, default=512, help="model_max_length of the tokenizer")
    parser.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is in the folder")
    return parser


def _tokenizer(args: Any, _: list[str]) -> int:
    from electra_fast.data.remote import check_local
    from electra_fast.data.tokenizer_training import TRAINERS

    check_local(args.output, "--output")
    output = Path(args.output)
    existing = any(output.iterdir()) if output.is_dir() else output.exists()
    if existing and not (args.overwrite and (output / "tokenizer.json").is_file()):
        raise UsageError(f"{output} exists: choose another --output, or --overwrite to replace a tokenizer")
    tokenizer = TRAINERS[args.type](
        args.inputs,
        output,
        vocab_size=args.vocab_size,
        lowercase=args.lowercase,
        min_frequency=args.min_frequency,
        limit_alphabet=args.limit_alphabet,
        max_length=args.max_length,
        format=args.format,
        text_field=args.text_field,
        show_progress=sys.stderr.isatty(),
    )
    print(f"{output}: a tokenizer of {len(tokenizer):,} entries")
    print(f"Next: {PROG} prepare {shlex.join(args.inputs)} --tokenizer {shlex.quote(args.output)} --output corpus")
    return 0


# prepare


def _prepare_parser() -> ArgumentParser:
    parser = _parser(
        "prepare",
        "INPUT... --tokenizer PATH --output DIR [OPTIONS]",
        "corpus.txt --tokenizer tokenizer --output corpus --workers 4",
        "part1.jsonl.zst part2.parquet --deduplicate --tokenizer vocab.txt --output corpus",
        "enwiki-latest-pages-articles.xml.bz2 --tokenizer tokenizer --output wiki --workers 16",
        more="\n\nShows MB/s of the input and the time left. The corpus is the same, byte for byte, for any number of\n"
        "workers and whether the input is compressed or not.",
    )
    _add_inputs(parser)
    parser.add_argument(
        "--tokenizer", type=str, required=True, metavar="PATH", help="a tokenizer's folder, or a BERT vocab.txt"
    )
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="new folder of the corpus, or a URL")
    parser.add_argument("--workers", type=int, default=1, help="processes; as many as there are cores is fastest")
    parser.add_argument(
        "--deduplicate",
        action="store_true",
        help="leave out documents whose text was there before, spacing aside; takes 16 bytes of memory a document",
    )
    parser.add_argument(
        "--units",
        type=str,
        default="none",
        choices=["none", "word", "entity", "word,entity"],
        metavar="{none|word|entity|word,entity}",
        help="store where units for masking begin, a bit a token each: for data.mask_units of pretrain",
    )
    parser.add_argument(
        "--segmenter",
        type=str,
        default="none",
        choices=["none", "jieba"],
        metavar="{none,jieba}",
        help="what tells which Chinese characters make a word: jieba (pip install 'electra-fast[chinese]')",
    )
    parser.add_argument(
        "--entities_field",
        type=str,
        default="entities",
        help="the field of JSON lines that holds entities as [[start, end], ...] in characters",
    )
    parser.add_argument("--lowercase", type=bool, default=True, help="for a vocab.txt: it is of an uncased model")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is in the folder")
    return parser


def _prepare(args: Any, _: list[str]) -> int:
    from electra_fast.data.prepare import prepare

    start = time.perf_counter()
    meta = prepare(
        args.inputs,
        args.tokenizer,
        args.output,
        workers=args.workers,
        format=args.format,
        text_field=args.text_field,
        deduplicate=args.deduplicate,
        units=() if args.units == "none" else args.units.split(","),
        segmenter=args.segmenter,
        entities_field=args.entities_field,
        lowercase=args.lowercase,
        overwrite=args.overwrite,
    )
    megabytes, seconds = meta.text_bytes / 1e6, time.perf_counter() - start
    print(
        f"{args.output}: {meta.documents:,} documents, {meta.tokens:,} tokens; "
        f"{megabytes:,.1f} MB of text in {seconds:,.1f} s, {megabytes / seconds:.2f} MB/s"
    )
    if meta.duplicate_documents is not None:
        share = meta.duplicate_documents / (meta.documents + meta.duplicate_documents)
        print(
            f"Duplicates left out: {meta.duplicate_documents:,} documents ({share:.1%}), "
            f"{meta.duplicate_tokens:,} tokens"
        )
    print(f"Look at it: {PROG} data stats {shlex.quote(args.output)}")
    print(f"Next: {PROG} pretrain --config small --data.train {shlex.quote(args.output)} --output runs/small")
    return 0


# data


def _data_parser() -> ArgumentParser:
    parser = _parser(
        "data",
        "stats FOLDER [--png FILE] [--overwrite] [--json]",
        "stats corpus",
        "stats corpus --png lengths.png",
        more="\n\nDocuments, tokens, unused entries of the vocabulary, the share of [UNK], lengths, and examples.",
    )
    parser.add_argument("action", type=str, choices=["stats"], metavar="stats", help="what to show: figures")
    parser.add_argument("folder", type=str, metavar="FOLDER", help="a prepared corpus, or its URL")
    parser.add_argument("--png", type=str, metavar="FILE", help="draw the documents' lengths")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture if there is one")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _data(args: Any, _: list[str]) -> int:
    from electra_fast.data.stats import corpus_stats, plot_lengths, render

    picture = None if args.png is None else Path(args.png)
    if picture is not None and (picture.suffix.lower() != ".png" or not picture.absolute().parent.is_dir()):
        raise UsageError(f"--png {picture}: name a file that ends in .png, in a folder that exists")
    if picture is not None and picture.exists() and not args.overwrite:
        raise UsageError(f"--png {picture} exists: name another file, or --overwrite to replace it")
    stats = corpus_stats(args.folder)
    if picture is not None:
        plot_lengths(args.folder, picture)
    if args.json:
        print(json.dumps(asdict(stats), indent=2, ensure_ascii=False))
        return 0
    render(stats)
    if picture is not None:
        print(f"\n{picture}: a picture of the lengths")
    return 0


# pretrain


def _pretrain_parser() -> ArgumentParser:
    from electra_fast.pretraining.config import PretrainConfig, recipe_names

    recipes = ", ".join(recipe_names())
    parser = _parser(
        "pretrain",
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


def _pretrain(args: Any, given: list[str]) -> int:
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


# runs


def _runs_parser() -> ArgumentParser:
    parser = _parser(
        "runs",
        "compare RUN RUN ... [--png FILE] [--overwrite] | list FOLDER",
        "compare runs/small runs/small_lr1e-3 --png curves.png",
        "list runs",
        more="\n\ncompare prints the last held-out metrics and the settings that differ, and draws the curves on one\n"
        "picture; list prints a line for each run in a folder. Runs may be unfinished.",
    )
    parser.add_argument("action", type=str, choices=["compare", "list"], metavar="{compare,list}", help="what to do")
    parser.add_argument("folders", type=str, nargs="+", metavar="FOLDER", help="of runs; for list, one that holds runs")
    parser.add_argument("--png", type=str, default="compare.png", metavar="FILE", help="the picture of compare")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture if there is one")
    return parser


def _runs(args: Any, _: list[str]) -> int:
    from electra_fast.pretraining.comparison import compare_runs, list_runs

    folders = [Path(folder) for folder in args.folders]
    if args.action == "list":
        if len(folders) != 1:
            raise UsageError(
                "runs list takes one folder that holds runs; to see several beside each other: runs compare"
            )
        list_runs(folders[0])
        return 0
    if len(folders) < 2:
        raise UsageError("runs compare takes two runs or more; for one: its curves.png, or runs list")
    compare_runs(folders, Path(args.png), overwrite=args.overwrite)
    print(f"Curves: {args.png}")
    return 0


# export


def _export_parser() -> ArgumentParser:
    parser = _parser(
        "export",
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


def _export(args: Any, _: list[str]) -> int:
    from electra_fast.pretraining.export import export_checkpoint

    step = export_checkpoint(args.run, args.output, step=args.step)
    output = Path(args.output)
    print(f"Models after step {step:,}: {output / 'discriminator'} and {output / 'generator'}")
    print(f'Next: {PROG} inspect {shlex.quote(args.output)} "The cat sat on the because."')
    return 0


# inspect


def _inspect_parser() -> ArgumentParser:
    parser = _parser(
        "inspect",
        'MODEL ["SENTENCE" ... | --file FILE] [--html FILE] [--overwrite]',
        'runs/demo "This function returns a list of because."',
        "runs/demo --file letter.txt --html letter.html",
        more="\n\nTexts longer than the model takes are read in parts, cut between sentences or words.",
    )
    parser.add_argument("model", type=str, metavar="MODEL", help="a discriminator's folder, or a run that holds one")
    parser.add_argument("texts", type=str, nargs="*", metavar="SENTENCE", help="text to look at, in quotes")
    parser.add_argument("--file", type=str, metavar="FILE", help="UTF-8 text to look at, a paragraph a line")
    parser.add_argument("--html", type=str, metavar="FILE", help="write a page for the browser instead of printing")
    parser.add_argument("--overwrite", action="store_true", help="replace the page if there is one")
    return parser


def _inspect(args: Any, _: list[str]) -> int:
    from electra_fast.inspection import inspect_text, read_paragraphs, render
    from electra_fast.inspection_html import check_target, write_html

    if bool(args.texts) == (args.file is not None):
        raise UsageError("give what to look at: sentences in quotes after MODEL, or --file with a text file")
    page = None if args.html is None else Path(args.html)
    if page is not None:
        check_target(page, overwrite=args.overwrite)
        if args.file is not None and page.resolve() == Path(args.file).resolve():
            raise UsageError(f"--html would replace the text in {args.file}: name another file for the page")
    texts = args.texts if args.file is None else read_paragraphs(args.file)
    inspected = inspect_text(Path(args.model), texts, show_progress=len(texts) > 1 and sys.stderr.isatty())
    if page is None:
        render(inspected)
        return 0
    write_html(inspected, page, model=Path(args.model).resolve().name, overwrite=args.overwrite)
    print(f"{page}: a page of {len(inspected):,} {'text' if len(inspected) == 1 else 'texts'}; open it in a browser")
    return 0


# verify and bench


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=str,
        metavar="MODEL",
        help="folder of an ELECTRA or BERT checkpoint or of a run, or a name in the Hugging Face cache",
    )
    parser.add_argument("--data", type=str, metavar="FILE", help="UTF-8 text, a text a line; default: random tokens")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, or auto: the GPU where there is one")
    parser.add_argument(
        "--max_length", type=int | None, default=None, help="the longest text in tokens, if not 128 or all it takes"
    )
    parser.add_argument("--seed", type=int | None, default=None, help="of random tokens and labels, if not a fresh one")


def _verify_parser() -> ArgumentParser:
    parser = _parser(
        "verify",
        "MODEL [--data FILE] [OPTIONS]",
        "runs/demo",
        "runs/demo --data text.txt --dtype bfloat16",
        more="\n\nLogits and gradients of both without dropout, and the error of each to float64. The exit code is 1\n"
        "if the fast model is further off than it may be.",
    )
    _add_model(parser)
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


def _verify(args: Any, _: list[str]) -> int:
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


def _bench_parser() -> ArgumentParser:
    parser = _parser(
        "bench",
        "MODEL [--data FILE] [OPTIONS]",
        "runs/demo",
        "runs/demo --data text.txt --threads 2 --rounds 9",
        more="\n\nBoth in float32, in turn in one run. Minutes for a model of 13 million parameters on two cores.",
    )
    _add_model(parser)
    parser.add_argument("--threads", type=int | None, default=None, help="of the CPU, if not as many as PyTorch takes")
    parser.add_argument("--batch_size", type=int, default=32, help="texts a batch, in the file's order")
    parser.add_argument("--batches", type=int, default=4, help="how many, spread evenly over the file")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed; the medians are shown")
    return parser


def _bench(args: Any, _: list[str]) -> int:
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


# convert


def _convert_parser() -> ArgumentParser:
    parser = _parser(
        "convert",
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


def _convert(args: Any, _: list[str]) -> int:
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


COMMANDS = {
    "demo": Command("Train a small ELECTRA on text that is already here and look at it", _demo_parser, _demo),
    "info": Command("Show versions, devices, and which backend each operator and attention use", _info_parser, _info),
    "tokenizer": Command(
        "Train a tokenizer on text: WordPiece, Unigram or byte-level BPE", _tokenizer_parser, _tokenizer
    ),
    "prepare": Command("Turn text into a tokenised corpus", _prepare_parser, _prepare),
    "data": Command("Show what is in a prepared corpus", _data_parser, _data),
    "pretrain": Command("Pretrain an ELECTRA on a prepared corpus", _pretrain_parser, _pretrain),
    "runs": Command("Compare runs on one picture and in a table, or list them", _runs_parser, _runs),
    "export": Command("Write the models of a run's checkpoint, with model cards", _export_parser, _export),
    "inspect": Command("Colour each token by the probability that it was replaced", _inspect_parser, _inspect),
    "verify": Command("Check the fast model of a checkpoint against stock transformers", _verify_parser, _verify),
    "bench": Command("Time the fast model of a checkpoint beside stock transformers", _bench_parser, _bench),
    "convert": Command(
        "Turn a TensorFlow 1 checkpoint of Google's ELECTRA into transformers' format", _convert_parser, _convert
    ),
}

if __name__ == "__main__":
    sys.exit(main())
