"""Fine-tune on SST-2 in plain transformers style: its Trainer, and one import that is not transformers' own.

    python examples/finetune_sst2.py --model runs/small --data glue/SST-2 --train_examples 1000

The data is GLUE's: `train.tsv` and `dev.tsv` with the columns sentence and label (0 or 1). Any such files will do.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, DataCollatorWithPadding, EvalPrediction, Trainer, TrainingArguments, set_seed

from electra_fast import ElectraForSequenceClassification  # the changed line: it was `from transformers import ...`


def read(file: Path, tokenizer: AutoTokenizer, examples: int | None = None) -> list[dict[str, list[int] | int]]:
    """Token ids and label of the first `examples` sentences, or of all."""
    with open(file, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[:examples]
    encoded = tokenizer([row["sentence"] for row in rows], truncation=True, max_length=128)
    return [
        {"input_ids": ids, "labels": int(row["label"])} for ids, row in zip(encoded["input_ids"], rows, strict=True)
    ]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": 100 * float(np.mean(prediction.predictions.argmax(axis=-1) == prediction.label_ids))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a checkpoint, such as RUN/discriminator")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv and dev.tsv")
    parser.add_argument("--output", default="runs/sst2", help="folder of the fine-tuned model; default: runs/sst2")
    parser.add_argument("--train_examples", type=int, help="the first so many; default: all")
    parser.add_argument("--epochs", type=float, default=3, help="default: 3")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="default: 3e-4, the paper's for small models")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()

    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = ElectraForSequenceClassification.from_pretrained(args.model, num_labels=2)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=args.output,
            per_device_train_batch_size=32,
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            warmup_steps=0.1,  # below 1: a share of all steps
            eval_strategy="epoch",
            save_strategy="no",
            seed=args.seed,
            report_to=[],
        ),
        # Padded batches, as everywhere: the model drops the padding. `PackedCollator` spares making it.
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=read(args.data / "train.tsv", tokenizer, args.train_examples),
        eval_dataset=read(args.data / "dev.tsv", tokenizer),
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()  # transformers' own class loads it too
    tokenizer.save_pretrained(args.output)
    print(f"dev accuracy {trainer.evaluate()['eval_accuracy']:.2f}: {args.output}")


if __name__ == "__main__":
    main()
