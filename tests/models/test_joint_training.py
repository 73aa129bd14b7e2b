"""The joint model in transformers' Trainer and in a loop of one's own: the same steps, and the loss falls."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from electra_fast import ElectraConfig, ElectraForJointPreTraining
from electra_fast.models import initialize_weights

CLS, SEP, MASK = 2, 3, 4
VOCABULARY, USED = 300, 20  # ids that exist, and those that the text has: all that a few steps can learn


def joint_model() -> ElectraForJointPreTraining:
    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "embedding_size": 24,
        "max_position_embeddings": 40,
        "num_hidden_layers": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    generator = ElectraConfig(hidden_size=16, num_attention_heads=2, intermediate_size=40, **shared)
    discriminator = ElectraConfig(hidden_size=32, num_attention_heads=4, intermediate_size=56, **shared)
    model = ElectraForJointPreTraining(generator, discriminator, mask_token_id=MASK, never_mask_ids=(CLS, SEP, MASK))
    initialize_weights(model, std=0.1)
    return model


def examples(seed: int, count: int) -> list[dict[str, Any]]:
    g = np.random.default_rng(seed)
    texts = [g.integers(5, 5 + USED, g.integers(1, 36)).tolist() for _ in range(count)]
    return [{"input_ids": [CLS, *text, SEP], "sequence_ids": i} for i, text in enumerate(texts)]


def packed(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The collator of docs/models.md, with names for the sequences."""
    ids = [torch.tensor(feature["input_ids"]) for feature in features]
    ends = torch.tensor([0, *map(len, ids)]).cumsum(0)
    names = torch.tensor([feature["sequence_ids"] for feature in features])
    return {"input_ids": torch.cat(ids), "cu_seqlens": ends.int(), "sequence_ids": names}


def padded(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([torch.tensor(feature["input_ids"]) for feature in features], batch_first=True)
    names = torch.tensor([feature["sequence_ids"] for feature in features])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "sequence_ids": names}


def trainer_of(
    model: nn.Module, rows: list[dict[str, Any]], collate: Any, folder: Path, **arguments: Any
) -> transformers.Trainer:
    pytest.importorskip("accelerate", reason="accelerate is not installed; install it with: pip install accelerate")
    settings = {
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "label_names": ["input_ids"],
    }
    optimizers = arguments.pop("optimizers", (None, None))
    arguments = transformers.TrainingArguments(output_dir=str(folder), **(settings | arguments))
    return transformers.Trainer(
        model, arguments, data_collator=collate, train_dataset=rows, eval_dataset=rows, optimizers=optimizers
    )


@pytest.mark.parametrize("collate", [packed, padded])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_two_steps_of_the_trainer_are_those_of_a_loop(accumulation, collate, tmp_path, rng_seed):
    """On the mean of the micro-batches' losses: each is a mean over its own tokens."""
    ours = joint_model()
    theirs = copy.deepcopy(ours)
    start = copy.deepcopy(ours.state_dict())
    seen: list[dict[str, Any]] = []

    def collate_with_seed(features: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append(collate(features) | {"seed": len(seen)})
        return seen[-1]

    # Not Adam, whose steps rounding can turn round: see test_training.py.
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.01, momentum=0.9)
    trainer_of(
        ours,
        examples(rng_seed, 24),
        collate_with_seed,
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        max_steps=2,
        max_grad_norm=0.0,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
    ).train()

    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9)
    for step in range(2):
        for batch in seen[step * accumulation : (step + 1) * accumulation]:
            (theirs(**batch).loss / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()
    differences = [
        float((p - q).detach().abs().max()) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)
    ]
    moved = max(float((parameter - start[name]).detach().abs().max()) for name, parameter in ours.named_parameters())
    assert max(differences) <= min(1e-5, 1e-3 * moved)


@pytest.mark.parametrize("collate", [packed, padded])
def test_the_trainer_trains_evaluates_and_saves(collate, tmp_path, rng_seed):
    model = joint_model()
    rows = examples(rng_seed, 64)

    class Save(transformers.TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["model"].save_pretrained(tmp_path / "model")

    trainer = trainer_of(
        model,
        rows,
        collate,
        tmp_path,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
        num_train_epochs=3,
        learning_rate=3e-3,
        logging_steps=1,
        eval_strategy="epoch",
    )
    trainer.add_callback(Save())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    # A generator that knows which ids occur is log(300 / 20) = 2.7 nats better, and the discriminator falls from log 2.
    assert losses[-1] < before - 2.0
    again = ElectraForJointPreTraining.from_pretrained(tmp_path / "model").eval()
    batch = collate(rows[:8])
    assert torch.equal(again(**batch, seed=1).loss, model.eval()(**batch, seed=1).loss)


def test_the_loss_falls_in_a_loop():
    torch.manual_seed(3)  # of 12 others, the generator's fell by 1.8 nats or more, the discriminator's by 0.32
    model = joint_model()
    rows = examples(3, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        output = model(**packed(rows), seed=step)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((float(output.generator_loss), float(output.discriminator_loss)))
    (generator, discriminator), (last_generator, last_discriminator) = losses[0], losses[-1]
    assert last_generator < generator - 1.5
    assert last_discriminator < discriminator


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("collate", [packed, padded])
def test_accumulated_gradients_are_those_of_one_large_batch(collate, rng_seed):
    """With the counts of the large batch, which follow from the lengths."""
    model = joint_model()
    # A padded batch's cap follows its width, which the parts have to share.
    model.max_per_sequence = 5
    rows = examples(rng_seed, 10)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    masked = (lengths * model.mask_prob).round().clamp(1, model.max_per_sequence).sum()

    whole = model(**collate(rows), seed=rng_seed)
    assert int(whole.masked.weights.sum()) == int(masked)
    assert int(whole.rtd.count) == int(lengths.sum())
    expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(whole.loss, list(model.parameters()))])

    for part in (rows[:1], rows[1:4], rows[4:]):
        output = model(**collate(part), seed=rng_seed, masked_count=masked, token_count=lengths.sum())
        output.loss.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert float((gradients - expected).norm()) <= 1e-5 * float(expected.norm())
