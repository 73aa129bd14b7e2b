"""`electra-fast predict`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import Command, command_parser

SUMMARY = "Write a fine-tuned model's prediction for each text of a file"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "predict",
        SUMMARY,
        "--model DIR --input FILE --output FILE.jsonl [OPTIONS]",
        "--model runs/reviews --input new.csv --output predictions.jsonl",
        "--model runs/reviews --input - --output -",
        more="\n\nA line of JSON for each example, in the order of the input; labels in the input are not needed.",
    )
    parser.add_argument("--model", type=str, required=True, metavar="DIR", help="what `finetune` wrote, or its model/")
    parser.add_argument(
        "--input", type=str, required=True, metavar="FILE", help="as for training; -: JSON lines from standard input"
    )
    parser.add_argument("--output", type=str, required=True, metavar="FILE", help="JSON lines; -: standard output")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, or auto: the GPU where there is one")
    parser.add_argument("--batch_tokens", type=int, default=4096, help="of a batch, at most")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if there is one")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.files import write_whole
    from electra_fast.finetuning.predict import open_finetuned, predict_examples

    output = None if args.output == "-" else Path(args.output)
    if output is not None and output.exists() and not args.overwrite:
        raise UsageError(f"--output {output} exists: name another file, or --overwrite to replace it")
    finetuned = open_finetuned(Path(args.model), args.device)
    if args.input == "-":
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "standard input.jsonl"
            file.write_bytes(sys.stdin.buffer.read())
            examples = finetuned.task.read(file, "predict")
    else:
        examples = finetuned.task.read(Path(args.input), "predict")
    predicted = predict_examples(finetuned, examples, batch_tokens=args.batch_tokens, show_progress=sys.stderr.isatty())
    lines = "".join(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predicted.predictions)
    if output is None:
        sys.stdout.write(lines)
        print(predicted.throughput, file=sys.stderr)
        return 0
    write_whole(output, lines)
    print(f"{output}: {predicted.throughput}")
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
