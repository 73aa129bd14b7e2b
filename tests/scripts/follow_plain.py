"""ELECTRA-small trained beside benchmarks/plain.py: the losses of 300 steps of 16 x 128 tokens stay within 0.5%.

    python -m tests.scripts.follow_plain [TEXT ...] [--steps 300] [--batch-size 16] [--exact-steps 5]

Both start from the same weights and get the same masks and samples; each makes its own steps, by its own optimizer. The
text is files of plain text, or else the demo's corpus. Dropout is 0, since the two draw it differently. With
`--exact-steps` the plain model also runs in float64 for so many steps, which shows what rounding alone does.
The warm-up lasts all the 300 steps: without bias correction an update at step t is 1 / sqrt(1 - 0.999^t) times a later
one. With 30 steps of it the loss jumps to 162 at step 13, and what rounding does grows with it, to 7e-5 by step 27.
Prints a line a step; exits with 1 where a loss deviates by more than `--within`.
300 steps take about 15 minutes on two cores, and each exact step 8 seconds more; `make test-all` takes 4 x 128.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import plain
from electra_fast.data.corpus import Corpus
from electra_fast.data.demo_corpus import write_demo_corpus
from electra_fast.data.loader import BatchLoader
from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.config_file import read_config
from tests.follow import Step, follow

VOCABULARY = 30_522  # asked for; a small text has fewer words


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", type=Path, help="files of plain text (default: the demo's corpus)")
    parser.add_argument("--steps", type=int, default=300, help="how many to make (default: %(default)s)")
    parser.add_argument(
        "--of", type=int, default=300, help="steps of the learning-rate schedule (default: %(default)s)"
    )
    parser.add_argument("--warmup", type=int, default=300, help="of them warm-up (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of 128 tokens (default: %(default)s)")
    parser.add_argument("--exact-steps", type=int, default=0, help="also in float64 (default: none)")
    parser.add_argument("--within", type=float, default=0.005, help="largest relative deviation (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        corpus = _corpus(options.text, Path(folder))
        largest = 0.0
        for number, (step, rounding) in enumerate(_steps(corpus, options)):
            largest = max(largest, step.deviation())
            losses = "  ".join(f"{name} {value:.6f}" for name, value in step.ours.items())
            exact = "" if rounding is None else f"  float32 of plain {rounding:.2e}"
            print(f"step {number:3}  {losses}  deviation {step.deviation():.2e}{exact}", flush=True)
    verdict = "within" if largest <= options.within else "beyond"
    print(f"largest deviation in {options.steps} steps: {largest:.2e}, {verdict} {options.within}")
    return int(largest > options.within)


def _corpus(texts: list[Path], folder: Path) -> Corpus:
    texts = texts or [write_demo_corpus(folder / "demo").train]
    train_wordpiece(texts, folder / "tokenizer", vocab_size=VOCABULARY)
    prepare(texts, folder / "tokenizer", folder / "corpus", progress=False)
    return Corpus.open(folder / "corpus")


def _steps(corpus: Corpus, options: argparse.Namespace) -> Iterator[tuple[Step, float | None]]:
    """Each step and, as long as it is asked for, how far plain float32 is from plain float64."""
    config = read_config(
        "small",
        {
            "model.hidden_dropout_prob": 0.0,
            "model.attention_probs_dropout_prob": 0.0,
            "data.batch_size": options.batch_size,
            "data.max_length": 128,
            "training.steps": options.of,
            "optimizer.warmup_steps": options.warmup,
        },
    )
    torch.manual_seed(options.seed)
    model = build_model(config, corpus.meta)
    data = config.data
    loader = BatchLoader(corpus, batch_size=data.batch_size, max_length=data.max_length, seed=options.seed)
    print(f"{corpus.num_tokens:,} tokens, a vocabulary of {corpus.meta.vocab_size:,}", flush=True)
    arguments = (loader, config.optimizer, options.of)
    exact = None
    if options.exact_steps:
        # Same masks and samples: those of a second model of ours, which makes the same steps as the first.
        twin = build_model(config, corpus.meta)
        twin.load_state_dict(model.state_dict())
        exact = follow(twin, *arguments, seed=options.seed, reference=plain.from_joint(twin).double())
    ours = follow(model, *arguments, seed=options.seed)
    for number, step in zip(range(options.steps), ours, strict=False):
        truth = next(exact).plain if number < options.exact_steps else None
        yield step, None if truth is None else Step(step.plain, truth).deviation()


if __name__ == "__main__":
    sys.exit(main())
