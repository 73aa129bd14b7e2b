"""The command `electra-fast`: which commands there are, and how a command line and its mistakes are met."""

from __future__ import annotations

import dis
import errno
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import electra_fast
from electra_fast.arguments import ArgumentParser, UsageError, nearest, underscored
from electra_fast.commands import (
    PROG,
    bench,
    convert,
    data,
    demo,
    estimate,
    evaluate,
    explain,
    export,
    features,
    finetune,
    info,
    inspect,
    predict,
    prepare,
    pretrain,
    runs,
    serve,
    tokenizer,
    verify,
)

COMMANDS = {
    "demo": demo.COMMAND,
    "info": info.COMMAND,
    "tokenizer": tokenizer.COMMAND,
    "prepare": prepare.COMMAND,
    "data": data.COMMAND,
    "estimate": estimate.COMMAND,
    "pretrain": pretrain.COMMAND,
    "runs": runs.COMMAND,
    "export": export.COMMAND,
    "inspect": inspect.COMMAND,
    "finetune": finetune.COMMAND,
    "evaluate": evaluate.COMMAND,
    "predict": predict.COMMAND,
    "features": features.COMMAND,
    "explain": explain.COMMAND,
    "serve": serve.COMMAND,
    "verify": verify.COMMAND,
    "bench": bench.COMMAND,
    "convert": convert.COMMAND,
}


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
    parser, words = command.parser(), underscored(rest)
    try:
        if command.more_options is not None:
            command.more_options(parser, words)
        parsed = parser.parse_args(words, defaults=command.defaults)
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


if __name__ == "__main__":
    sys.exit(main())
