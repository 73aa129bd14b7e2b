"""Options that several commands share."""

from __future__ import annotations

from electra_fast.arguments import ArgumentParser


def add_inputs(parser: ArgumentParser) -> None:
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


def add_model(parser: ArgumentParser) -> None:
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
