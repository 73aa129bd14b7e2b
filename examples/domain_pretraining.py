"""Pretrain on a domain's text and see what it gains: the same classifier on pretrained and on random weights.

    python examples/domain_pretraining.py                                     # a made-up domain, minutes on two cores
    python examples/domain_pretraining.py --text notes.txt --data notes       # yours: a paragraph a line; a folder with
                                                                              # train.csv and dev.csv: text, label
    python examples/domain_pretraining.py --text notes.txt --data notes --start runs/small    # goes on from a run

In the made-up domain every topic has words of its own and all topics share some. The classifier must name the topic of
a sentence, but has seen few sentences with a label: what it can't know of the other words, the unlabelled text tells.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.tasks.classification import Classification
from electra_fast.finetuning.train import finetune
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.train import pretrain

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def write_domain(folder: Path, seed: int, *, sentences: int, labelled: int, topics: int = 6) -> tuple[Path, Path]:
    """Text of so many sentences, and a folder with `labelled` others to train on and 600 to score."""
    generator = random.Random(seed)
    names = [a + b for a in SYLLABLES for b in SYLLABLES]
    generator.shuffle(names)
    words = [[names.pop() for _ in range(60)] for _ in range(topics)]
    shared = [names.pop() for _ in range(60)]

    def sentence(topic: int) -> str:
        return " ".join(generator.choice(words[topic] if generator.random() < 0.5 else shared) for _ in range(10))

    folder.mkdir(parents=True, exist_ok=True)
    # A document has one topic and four sentences.
    documents = (generator.randrange(topics) for _ in range(sentences // 4))
    text = "\n\n".join("\n".join(sentence(topic) for _ in range(4)) for topic in documents)
    (folder / "text.txt").write_text(text + "\n", encoding="utf-8")
    for split, count in (("train", labelled), ("dev", 600)):
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for index in range(count):
                rows.writerow([sentence(index % topics), f"topic {index % topics}"])
    return folder / "text.txt", folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a paragraph a line, an empty line between documents")
    parser.add_argument("--data", type=Path, help="folder with train.csv and dev.csv: text, label")
    parser.add_argument("--start", type=Path, help="a pretraining run to go on from, with its tokenizer")
    parser.add_argument("--output", type=Path, default=Path("runs/domain"), help="default: runs/domain")
    parser.add_argument("--steps", type=int, default=1500, help="of pretraining; default: 1,500")
    parser.add_argument("--sentences", type=int, default=20_000, help="of the made-up text; default: 20,000")
    parser.add_argument("--labelled", type=int, default=48, help="made-up sentences to train on; default: 48")
    parser.add_argument("--epochs", type=float, default=30, help="of fine-tuning; default: 30")
    parser.add_argument("--seeds", type=int, default=3, help="of fine-tuning; default: 3")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()
    if (args.text is None) != (args.data is None):
        parser.error("give --text and --data, or neither")

    text, data = args.text, args.data
    if text is None:
        sizes = {"sentences": args.sentences, "labelled": args.labelled}
        text, data = write_domain(args.output / "domain", args.seed, **sizes)

    settings = {"training.steps": args.steps, "training.seed": args.seed, "training.eval_every": args.steps}
    if args.start is None:
        tokenizer = args.output / "tokenizer"
        train_wordpiece([text], tokenizer, vocab_size=8192)
        config = "tiny"
    else:
        tokenizer = args.start / "discriminator"
        settings["init.run"] = str(args.start)
        config = "continue"
    corpus = args.output / "corpus"
    prepare([text], tokenizer, corpus, overwrite=True)
    settings |= {"data.train": str(corpus), "output": str(args.output / "pretrained")}
    if pretrain(read_config(config, settings), overwrite=True).interrupted_by:
        return

    accuracies = {}
    for name in ("random", "pretrained"):
        finetuning = FinetuneConfig(
            learning_rate=1e-3 if args.start is None else None,
            epochs=args.epochs,
            seeds=args.seeds,
            seed=args.seed,
            from_scratch=name == "random",
        )
        model = str(args.output / "pretrained")
        result = finetune(Classification(), model, data, args.output / name, finetuning, overwrite=True)
        accuracies[name] = result["summary"]["dev"]["accuracy"]["median"]
    gain = accuracies["pretrained"] - accuracies["random"]
    print(f"Accuracy from random weights {accuracies['random']:.1f}, pretrained on the domain ", end="")
    print(f"{accuracies['pretrained']:.1f}: {gain:+.1f} points")


if __name__ == "__main__":
    main()
