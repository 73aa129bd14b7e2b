"""The page that comes with a package: what it is, how to run it, how it was checked."""

from __future__ import annotations

from pathlib import Path

from electra_fast.deployment import FORMATS
from electra_fast.deployment.manifest import Manifest, Port
from electra_fast.files import write_whole


def write(manifest: Manifest, folder: Path) -> None:
    """Write `README.md`."""
    write_whole(folder / "README.md", page(manifest))


def page(manifest: Manifest) -> str:
    """The page as Markdown."""
    check, accuracy = manifest.check, manifest.accuracy
    versions = ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
    lines = [
        f"# {manifest.architecture}: {FORMATS[manifest.kind]}",
        "",
        f"`{manifest.file}` takes padded batches of any number of sequences of 1 to {manifest.max_length} tokens.",
        "",
        "| | name | type | shape |",
        "|---|---|---|---|",
        *(_row("input", port) for port in manifest.inputs),
        *(_row("output", port) for port in manifest.outputs),
        "",
        f"`attention_mask` is 1 at tokens and 0 at padding, where `input_ids` is {manifest.pad_token_id}; values of "
        "outputs at padding mean nothing.",
        "",
        "```python",
        "from electra_fast.deployment import load",
        "",
        'model = load("THIS FOLDER")',
        f'model([[2, 7, 3]])["{manifest.outputs[0].name}"]',
        "```",
        "",
        f"Checked beside the model on {check['source']}, {check['shortest']} to {check['longest']} tokens long: "
        f"outputs differ by at most {check['largest_difference']:.2g}, "
        f"{check['relative_difference']:.2g} of their spread.",
    ]
    if accuracy is not None:
        lines += [
            "",
            f"{accuracy['metric']} on {accuracy['examples']:,} labelled examples: {accuracy['package']:.2f}; the "
            f"model's is {accuracy['model']:.2f}.",
        ]
    return "\n".join([*lines, "", f"Made with {versions}.", ""])


def _row(kind: str, port: Port) -> str:
    return f"| {kind} | `{port.name}` | {port.dtype} | [{', '.join(map(str, port.shape))}] |"
