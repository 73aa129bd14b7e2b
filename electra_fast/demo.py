"""`electra-fast demo`: from the installation's own English text to a trained, inspected ELECTRA in a few minutes."""

from __future__ import annotations

import time
from pathlib import Path

from electra_fast.pretraining.config_file import read_config

VOCAB_SIZE = 8192
SENTENCES = (
    "Raises an error if the file does not exist.",
    "Raises an error if the file does model exist.",
)


def run_demo(output: Path, *, seed: int = 0, steps: int | None = None, overwrite: bool = False) -> int:
    """Collect text, train a tokenizer, prepare the corpus, pretrain `recipes/tiny.yaml`, and show what was learned.

    Everything lies under `output`; what an earlier call finished is not done again, and an interrupted run goes on.

    Args:
        output: folder of the demo.
        seed: of the training run; text and tokenizer are the same for all.
        steps: instead of the recipe's.
        overwrite: train anew where `output` holds a run.

    Returns:
        The exit code: 0, or 130 after ctrl-C.
    """
    from electra_fast.data.demo_corpus import write_demo_corpus
    from electra_fast.data.prepare import prepare
    from electra_fast.data.tokenizer import train_wordpiece
    from electra_fast.inspection import inspect_text, render
    from electra_fast.pretraining.train import pretrain

    output = Path(output)
    text, tokenizer, corpus = output / "text", output / "tokenizer", output / "corpus"
    overrides = {"data.train": str(corpus / "train"), "data.valid": str(corpus / "valid"), "output": str(output)}
    overrides["training.seed"] = seed
    if steps is not None:
        overrides["training.steps"] = steps
    config = read_config("tiny", overrides)

    started = time.perf_counter()
    _say("1/4  Collecting English text from the documentation of Python, PyTorch and transformers")
    if not (text / "done").exists():
        written = write_demo_corpus(text)
        (text / "done").write_text("")
        _say(f"     {written.train_bytes / 1e6:.1f} MB in {written.train_documents:,} documents to learn from,")
        _say(f"     {written.valid_bytes / 1e6:.1f} MB in {written.valid_documents:,} documents held out: {text}")
    _say(f"2/4  Training a WordPiece tokenizer of {VOCAB_SIZE:,} entries: {tokenizer}")
    if not tokenizer.exists():
        aside = output / ".tokenizer.partial"
        train_wordpiece([text / "train.txt"], aside, vocab_size=VOCAB_SIZE)
        aside.rename(tokenizer)
    _say(f"3/4  Preparing the corpus: {corpus}")
    for part in ("train", "valid"):
        if not (corpus / part).exists():
            prepare([text / f"{part}.txt"], tokenizer, corpus / part)
    _say(f"     set-up took {time.perf_counter() - started:.0f} s")

    _say(f"4/4  Pretraining generator and discriminator, {config.training.steps:,} steps: {output}")
    started = time.perf_counter()
    result = pretrain(config, resume=not overwrite, overwrite=overwrite)
    if result.interrupted_by:
        _say(f"Interrupted after step {result.step:,}; `electra-fast demo --output {output}` goes on from there.")
        return 130 if result.interrupted_by == "SIGINT" else 0
    _say(f"     training and evaluation took {time.perf_counter() - started:.0f} s")

    metrics = result.metrics
    assert metrics is not None
    _say("\nOn held-out text:")
    _say(
        f"  generator      {metrics['generator_loss']:.3f} nats per masked token (token frequencies: "
        f"{metrics['unigram_loss']:.3f}), {metrics['generator_accuracy']:.1%} right"
    )
    _say(
        f"  discriminator  AUC {metrics['auc']:.3f} on the generator's replacements, "
        f"{metrics['unigram_auc']:.3f} on random words (chance: 0.5;\n"
        f"                 {metrics['maskable_auc']:.3f} without [CLS] and [SEP], which are never replaced)"
    )
    _say("\nHow likely is it that each word was replaced?")
    render(inspect_text(output / "discriminator", SENTENCES))
    _say("\nLook at")
    for path, what in (
        ("curves.png", "both losses, RTD AUC and generator accuracy over the steps"),
        ("metrics.jsonl", "the same as numbers"),
        ("discriminator", "the model people keep, for transformers: ElectraForPreTraining.from_pretrained"),
        ("generator", "its partner: pipeline('fill-mask')"),
        ("checkpoints", "to go on from"),
    ):
        _say(f"  {output / path!s:<28} {what}")
    _say(
        f"\nRTD AUC {metrics['auc']:.4f}  (generator {metrics['unigram_loss'] - metrics['generator_loss']:.3f} nats "
        f"under token frequencies, seed {seed})"
    )
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
