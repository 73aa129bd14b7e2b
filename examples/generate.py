"""Fine-tune an encoder and a decoder, both from one ELECTRA checkpoint, on pairs of texts, and let them write.

    python examples/generate.py                                   # made-up pairs, a tiny model from random weights
    python examples/generate.py --model runs/small --data news    # news/train.jsonl, news/dev.jsonl: source, target

The made-up task is to turn a sentence round: "ba go li" -> "li go ba".
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch

from electra_fast import ElectraConfig, ElectraModel
from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.model import load_finetuned
from electra_fast.finetuning.predict import predict_examples
from electra_fast.finetuning.tasks.seq2seq import Seq2Seq
from electra_fast.finetuning.train import finetune

WORDS = [consonant + vowel for consonant in "bdgklm" for vowel in "aeio"]


def write_pairs(folder: Path, pairs: int, seed: int) -> Path:
    """`train.jsonl` with so many sentences of two to five words, and `dev.jsonl` with 100 others."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    for split, count in (("train", pairs), ("dev", 100)):
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for _ in range(count):
                words = generator.choices(WORDS, k=generator.randint(2, 5))
                print(json.dumps({"source": " ".join(words), "target": " ".join(reversed(words))}), file=file)
    return folder


def write_tiny_encoder(folder: Path, seed: int) -> Path:
    """Random weights, and a tokenizer whose every piece is one of the made-up words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("\n".join(" ".join(WORDS) for _ in range(8)) + "\n", encoding="utf-8")
    tokenizer = train_wordpiece([folder / "words.txt"], folder, vocab_size=80)
    torch.manual_seed(seed)
    config = ElectraConfig(
        vocab_size=len(tokenizer),
        embedding_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=16,
    )
    ElectraModel(config).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint or of a pretraining run; default: random weights")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl and dev.jsonl; default: made-up pairs")
    parser.add_argument("--output", type=Path, default=Path("runs/generate"), help="default: runs/generate")
    parser.add_argument("--pairs", type=int, default=500, help="made-up ones; default: 500")
    parser.add_argument("--epochs", type=float, default=20, help="default: 20")
    parser.add_argument("--learning_rate", type=float, help="default: 3e-3 for the tiny model, else by its size")
    parser.add_argument(
        "--max_length", type=int, help="tokens of a source and of a target; default: 16, 128 with --data"
    )
    parser.add_argument("--num_beams", type=int, default=1, help="of beam search; default: 1, the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()

    data = args.data or write_pairs(args.output / "data", args.pairs, args.seed)
    model = args.model or str(write_tiny_encoder(args.output / "encoder", args.seed))
    length = args.max_length or (16 if args.data is None else 128)
    task = Seq2Seq(max_length=length, max_target_length=length, num_beams=args.num_beams, tie_embeddings=True)
    config = FinetuneConfig(
        learning_rate=args.learning_rate or (3e-3 if args.model is None else None),
        layer_decay=1.0 if args.model is None else None,  # random layers all have as much to learn
        dropout=0.0 if args.model is None else 0.1,
        epochs=args.epochs,
        seed=args.seed,
    )
    result = finetune(task, model, data, args.output / "run", config, overwrite=True)

    finetuned = load_finetuned(args.output / "run")
    some = task.read(task.files(data)["dev"], "dev")[:5]
    for example, prediction in zip(some, predict_examples(finetuned, some).predictions, strict=True):
        print(f"{example['source']}  ->  {prediction['text']}")
    scores = result["summary"]["dev"]
    print(f"ROUGE-L {scores['rouge_l']['median']:.1f}, BLEU {scores['bleu']['median']:.1f}, ", end="")
    print(f"exact match {scores['exact_match']['median']:.1f}")


if __name__ == "__main__":
    main()
