"""Checks an installed electra-fast from the outside: `python check_install.py [--reference]`. No pytest, no checkout.

With --reference: of a wheel that was built without a compiler, which runs its references.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

import electra_fast
from electra_fast import ops
from electra_fast.cli import main

WORDS = ["the", "a", "quick", "lazy", "old", "fox", "dog", "cat", "bird", "jumps", "runs", "over", "under", "river"]
TEXT = "\n\n".join(" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9)) for i in range(1, 80)) + "\n"
SMALL = {
    "model.hidden_size": 16,
    "model.embedding_size": 8,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 32,
    "model.generator.hidden_size": 8,
    "model.generator.num_hidden_layers": 1,
    "model.generator.num_attention_heads": 1,
    "model.generator.intermediate_size": 16,
    "data.batch_size": 4,
    "data.max_length": 16,
    "training.device": "cpu",
    "training.steps": 3,
}


def check_place() -> None:
    place = Path(electra_fast.__file__).resolve()
    assert place.is_relative_to(Path(sysconfig.get_path("platlib")).resolve()), f"{place} is not the installed one"
    command = Path(sysconfig.get_path("scripts")) / "electra-fast"
    shown = subprocess.run([str(command), "--version"], check=True, capture_output=True, text=True, timeout=300).stdout
    assert shown == f"electra-fast {electra_fast.__version__}\n", shown


def check_backends(expected: str) -> None:
    found = {row.operator: row.backend for row in ops.availability() if row.device_type == "cpu" and row.is_default}
    assert found["mask_tokens"] == found["layer_norm"] == expected, found


def check_operators() -> None:
    """The default backend beside the reference: whole numbers exactly, floats to rounding."""
    torch.manual_seed(seed := int(torch.randint(2**31, ())))
    print(f"seed {seed}")
    ids, bounds = torch.randint(200, 1000, (512,)), torch.tensor([0, 100, 101, 300, 512], dtype=torch.int32)
    x, residual, weight, bias = torch.randn(512, 64), torch.randn(512, 64), torch.randn(64), torch.randn(64)

    def results() -> list[torch.Tensor]:
        masked = ops.mask_tokens(
            ids, bounds, mask_token_id=103, never_mask_ids=(101, 102, 103), num_masked=80, seed=torch.tensor(seed)
        )
        normed = ops.dropout_add_layer_norm(x, residual, weight, bias, p=0.1, seed=torch.tensor(seed))
        loss = ops.rtd_bce(x, x > residual, residual > 0)
        return [masked.input_ids, masked.positions, masked.labels, loss.count, normed, loss.loss_sum]

    ours = results()
    with ops.use_backend("reference"):
        for got, expected in zip(ours, results(), strict=True):
            exact = not expected.is_floating_point()
            torch.testing.assert_close(got, expected, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


def check_commands() -> None:
    """Text to tokens to a model of both towers to what people load."""
    from transformers import AutoModelForPreTraining  # stock

    with tempfile.TemporaryDirectory() as name:
        text, tokenizer, corpus, run = (str(Path(name) / part) for part in ("text.txt", "tokenizer", "corpus", "run"))
        Path(text).write_text(TEXT, encoding="utf-8")
        settings = SMALL | {"data.train": corpus, "data.valid": corpus, "output": run}
        for arguments in (
            ["tokenizer", text, "--output", tokenizer, "--vocab_size", "80"],
            ["prepare", text, "--tokenizer", tokenizer, "--output", corpus],
            ["pretrain", "--config", "tiny", *(f"--{key}={value}" for key, value in settings.items())],
            ["verify", run, "--batches", "1", "--max_length", "8", "--seed", "1"],
            ["export", run, "--output", str(Path(name) / "models")],
            ["inspect", run, "the lazy fox"],
        ):
            assert main(arguments) == 0, arguments
        AutoModelForPreTraining.from_pretrained(Path(name) / "models" / "discriminator")


if __name__ == "__main__":
    check_place()
    check_backends("reference" if "--reference" in sys.argv[1:] else "cpp")
    check_operators()
    check_commands()
    print(
        f"electra-fast {electra_fast.__version__} works on Python {sys.version.split()[0]}, torch {torch.__version__}"
    )
