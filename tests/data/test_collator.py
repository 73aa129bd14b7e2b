"""Packed batches of `PackedCollator` against transformers' own classes, one example at a time."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import DataCollatorWithFlattening

from electra_fast import optimize
from electra_fast.data.collator import PackedCollator
from electra_fast.models import initialize_weights

Example = dict[str, Any]
LENGTHS = (11, 1, 24, 3, 17)
SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Head(NamedTuple):
    model: str  # its name in transformers
    labels: Callable[[np.random.Generator, int], Example]  # of an example of so many tokens
    config: dict[str, Any] = {}  # noqa: RUF012  (never changed)


def token_labels(classes: int) -> Callable[[np.random.Generator, int], Example]:
    """Position 0 always counts; half of the others don't."""

    def labels(g: np.random.Generator, length: int) -> Example:
        values = np.where(g.random(length) < 0.5, -100, g.integers(0, classes, length))
        values[0] = g.integers(0, classes)
        return {"labels": values.tolist()}

    return labels


HEADS = {
    "classification": Head(
        "ElectraForSequenceClassification", lambda g, n: {"label": int(g.integers(3))}, {"num_labels": 3}
    ),
    "regression": Head(
        "ElectraForSequenceClassification", lambda g, n: {"label": float(g.normal())}, {"num_labels": 1}
    ),
    "multi_label": Head(
        "ElectraForSequenceClassification",
        lambda g, n: {"labels": g.integers(0, 2, 3).astype(float).tolist()},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "tagging": Head("ElectraForTokenClassification", token_labels(5), {"num_labels": 5}),
    "mlm": Head("ElectraForMaskedLM", token_labels(120)),
    "rtd": Head("ElectraForPreTraining", lambda g, n: {"labels": g.integers(0, 2, n).tolist()}),
    # One position past the end of some examples: no answer, as in transformers.
    "answers": Head(
        "ElectraForQuestionAnswering",
        lambda g, n: {"start_positions": int(g.integers(n)), "end_positions": n if n == 3 else int(g.integers(n))},
    ),
    "bert_classification": Head(
        "BertForSequenceClassification", lambda g, n: {"label": int(g.integers(3))}, {"num_labels": 3}
    ),
    "bert_mlm": Head("BertForMaskedLM", token_labels(120)),
    "bert_pretraining": Head(
        "BertForPreTraining", lambda g, n: token_labels(120)(g, n) | {"next_sentence_label": int(g.integers(2))}
    ),
}


def stock_model(head: Head, **config: Any) -> nn.Module:
    model_class = getattr(transformers, head.model)
    model = model_class(model_class.config_class(**(SIZES | head.config | config)))
    initialize_weights(model, std=0.2)
    return model.eval()


def examples(head: Head, seed: int, lengths: tuple[int, ...] = LENGTHS) -> list[Example]:
    """As a tokenizer gives them."""
    g = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        row = {"input_ids": g.integers(1, 120, length).tolist(), "token_type_ids": g.integers(0, 2, length).tolist()}
        rows.append(row | {"attention_mask": [1] * length} | head.labels(g, length))
    return rows


def padded(example: Example, left: int, right: int) -> Example:
    """The same example with padding."""
    length = len(example["input_ids"])

    def pad(name: str, value: Any) -> Any:
        if name.endswith("_positions"):
            return value + left
        if not isinstance(value, list) or isinstance(value[0], float):
            return value
        fill = -100 if name == "labels" else 7
        return [*[fill] * left, *value, *[fill] * right]

    row = {name: pad(name, value) for name, value in example.items()}
    return row | {"attention_mask": [*[0] * left, *[1] * length, *[0] * right]}


def one_by_one(model: nn.Module, rows: list[Example]) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Each row's results, and the mean loss over all that count in the batch: rows, or labelled tokens."""
    outputs, sums, counts = [], [], []
    for row in rows:
        inputs = {"labels" if name == "label" else name: torch.tensor([value]) for name, value in row.items()}
        targets = {name: inputs.pop(name) for name in list(inputs) if "label" in name or "positions" in name}
        outputs.append(dict(model(**inputs)))
        terms = [_loss_and_count(model, inputs, outputs[-1], name, target) for name, target in targets.items()]
        sums.append(torch.stack([loss * count for loss, count in terms]))
        counts.append(torch.tensor([count for _, count in terms]))
    return outputs, (torch.stack(sums).sum(0) / torch.stack(counts).sum(0)).sum()


def _loss_and_count(
    model: nn.Module, inputs: dict[str, Tensor], outputs: dict[str, Tensor], name: str, target: Tensor
) -> tuple[Tensor, int]:
    if "positions" in name:
        logits = outputs[name.replace("positions", "logits")]
        has_answer = int(target) < logits.shape[1]
        return (nn.functional.cross_entropy(logits, target) if has_answer else torch.zeros(())) / 2, int(has_answer)
    if isinstance(model, transformers.BertForPreTraining):  # which takes no label without the other
        logits = outputs["prediction_logits" if name == "labels" else "seq_relationship_logits"]
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), target.flatten())
    else:
        loss = model(**inputs, labels=target).loss
    is_per_token = target.dim() == 2 and not target.is_floating_point()
    return loss, int((target != -100).sum()) if is_per_token else 1


def stock_rows_and_batch(name: str, seed: int, **options: Any) -> tuple[nn.Module, list[Example], dict[str, Any]]:
    model, rows = stock_model(HEADS[name], **options), examples(HEADS[name], seed)
    return model, rows, PackedCollator()(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", HEADS)
def test_packed_equals_one_by_one(name, attention, rng_seed):
    model, rows, _ = stock_rows_and_batch(name, rng_seed, attn_implementation=attention)
    expected, expected_loss = one_by_one(model, rows)
    optimize(model)
    batch = PackedCollator()([padded(row, left=2 * (i % 2), right=i % 3) for i, row in enumerate(rows)])
    outputs = dict(model(**batch))
    assert float((outputs.pop("loss") - expected_loss).detach().abs()) <= 1e-5 * max(1.0, float(expected_loss.detach()))
    assert outputs.keys() == expected[0].keys()
    for key, ours in outputs.items():
        theirs = torch.cat([row[key] for row in expected], dim=1 if ours.shape[0] == 1 else 0)
        assert float((ours - theirs).detach().abs().max()) <= 2e-5, key


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("regression", "multi_label")])
def test_what_fixed_shapes_add_counts_for_nothing(name, attention, rng_seed):
    model, rows, batch = stock_rows_and_batch(name, rng_seed, attn_implementation=attention)
    optimize(model)
    fixed = PackedCollator(num_tokens=80, num_sequences=8, max_length=40, pad_token_id=3)(rows)
    assert fixed["input_ids"].shape == fixed["position_ids"].shape == (1, 80)
    assert fixed["cu_seq_lens_q"].tolist() == [*batch["cu_seq_lens_q"].tolist(), 56, 56, 56]
    losses = [model(**inputs).loss for inputs in (fixed, batch)]
    assert float((losses[0] - losses[1]).detach().abs()) <= 1e-5 * max(1.0, float(losses[1].detach()))
    ours, theirs = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]) for loss in losses
    )
    assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


def test_layout():
    """Each field, by hand; arrays, tensors and lists, `label` and `labels`, padding on either side."""
    rows = [
        {"input_ids": [5, 6, 7, 0], "attention_mask": [1, 1, 1, 0], "token_type_ids": [0, 1, 1, 0], "label": 1},
        {
            "input_ids": np.array([0, 8]),
            "attention_mask": np.array([0, 1]),
            "token_type_ids": [1, 0],
            "label": np.int64(0),
        },
        {
            "input_ids": torch.tensor([9, 4]),
            "attention_mask": [1, 1],
            "token_type_ids": [0, 0],
            "label": torch.tensor(2),
        },
    ]
    batch = PackedCollator(pad_to_multiple_of=4, num_sequences=4, pad_token_id=1)(rows)
    assert {name: value.tolist() if isinstance(value, Tensor) else value for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 4, 1, 1]],
        "token_type_ids": [[0, 1, 1, 0, 0, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 0, 0, 1, 0, 0]],
        "labels": [1, 0, 2, -100],
        "cu_seq_lens_q": [0, 3, 4, 6, 6],
        "cu_seq_lens_k": [0, 3, 4, 6, 6],
        "max_length_q": 3,
        "max_length_k": 3,
    }
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert all(batch[name].dtype == torch.int64 for name in ("input_ids", "token_type_ids", "position_ids", "labels"))
    assert PackedCollator(pad_to_multiple_of=8, num_tokens=10)(rows)["input_ids"].shape == (1, 16)


def test_labels_of_tokens_and_answers_follow_their_tokens():
    rows = [
        {"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1], "labels": [-100, -100, 3, 4]},
        {"input_ids": [7, 0], "attention_mask": [1, 0], "labels": [2, -100]},
    ]
    batch = PackedCollator(num_tokens=5)(rows)
    assert batch["labels"].tolist() == [[3, 4, 2, -100, -100]]
    for row, start, end in zip(rows, (3, -1), (1, 2), strict=True):
        row |= {"start_positions": start, "end_positions": end}  # in the padding, and past the end: no answer
    batch = PackedCollator()(rows)
    assert batch["start_positions"].tolist() == [1, 0]
    assert all(end >= length for end, length in zip(batch["end_positions"].tolist(), (2, 1), strict=True))
    rows = [{"input_ids": [1, 2], "label": 0.5}, {"input_ids": [1], "label": 2}]
    assert PackedCollator()(rows)["labels"].tolist() == [0.5, 2.0]
    assert PackedCollator()(rows)["labels"].dtype == torch.float32


def test_the_contract_is_that_of_transformers_collator_without_its_labels(rng_seed):
    """Which blanks the first label of each sequence, fails on one label an example, and makes labels of the tokens."""
    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in examples(HEADS["tagging"], rng_seed)]
    batch, expected = PackedCollator()(rows), dict(theirs(rows))
    assert expected.pop("labels").shape == batch["labels"].shape
    assert batch.pop("labels")[0].tolist() == [label for row in rows for label in row["labels"]]
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(batch[name], value), name
            assert batch[name].dtype == value.dtype, name
        else:
            assert batch[name] == value, name
            assert type(batch[name]) is type(value), name
    rows = [{"input_ids": row["input_ids"]} for row in rows]
    assert "labels" not in PackedCollator()(rows)


def test_language_models_take_transformers_collator(rng_seed):
    """Their labels are shifted, so the first label of a sequence belongs to the one before."""
    config = transformers.ElectraConfig(**SIZES, is_decoder=True)
    model = transformers.ElectraForCausalLM(config)
    initialize_weights(model, std=0.2)
    rows = [{"input_ids": row["input_ids"]} for row in examples(HEADS["mlm"], rng_seed, (11, 2, 24))]
    losses = [
        model(ids, labels=ids).loss * (ids.shape[1] - 1) for ids in (torch.tensor([r["input_ids"]]) for r in rows)
    ]
    expected = float(sum(losses)) / (10 + 1 + 23)
    optimize(model)
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(rows)
    assert float(model(**batch).loss) == pytest.approx(expected, rel=1e-5)


def test_one_shape_compiles_once(rng_seed):
    """Batches of other lengths and numbers of sequences."""
    head = HEADS["classification"]
    # Where it isn't given, transformers sets it in the first forward, which a compiled function then sees as a change.
    model = optimize(stock_model(head, problem_type="single_label_classification"))
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    collator = PackedCollator(num_tokens=64, num_sequences=6, max_length=40)
    for lengths in (LENGTHS, (5, 9), (40, 24), (1,) * 6):
        batch = collator(examples(head, rng_seed, lengths))
        ours, eager = compiled(**batch), model(**batch)
        assert float((ours.loss - eager.loss).detach().abs()) <= 1e-6
        assert float((ours.logits - eager.logits)[: len(lengths)].detach().abs().max()) <= 1e-6
    assert counter.frame_count == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_in_a_data_loader(workers, rng_seed):
    rows = examples(HEADS["rtd"], rng_seed)
    collator = PackedCollator(pad_to_multiple_of=8)
    loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collator, num_workers=workers)
    batches = list(loader)
    assert [batch["cu_seq_lens_q"].shape[0] for batch in batches] == [3, 3, 2]
    assert torch.equal(batches[1]["input_ids"], collator(rows[2:4])["input_ids"])
    assert pickle.loads(pickle.dumps(collator)) == collator


def trainer_arguments(folder: Path, **options: Any) -> transformers.TrainingArguments:
    pytest.importorskip("accelerate", reason="accelerate is not installed; install it with: pip install accelerate")
    return transformers.TrainingArguments(
        output_dir=str(folder),
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )


@pytest.mark.parametrize("name", ["classification", "rtd", "answers", "regression"])
def test_two_steps_of_the_trainer_equal_one_by_one(name, tmp_path, rng_seed):
    """The Trainer drops the columns that forward doesn't take, keeps the collator's, and evaluates."""
    head = HEADS[name]
    model = stock_model(head).train()
    start = copy.deepcopy(model.state_dict())
    rows = examples(head, rng_seed, (9, 20, 4, 13, 30, 2))
    ours = optimize(copy.deepcopy(model))
    seen: list[list[Example]] = []

    def collate(features: list[Example]) -> dict[str, Any]:
        seen.append(features)
        return PackedCollator()(features)

    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    trainer = transformers.Trainer(
        ours,
        trainer_arguments(tmp_path, per_device_train_batch_size=3, per_device_eval_batch_size=4, max_steps=2),
        data_collator=collate,
        train_dataset=[row | {"text": "...", "index": i} for i, row in enumerate(rows)],
        eval_dataset=rows,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
    )
    before = trainer.evaluate()
    assert [len(features) for features in seen] == [4, 2]
    expected_losses = [float(one_by_one(model, part)[1]) for part in (rows[:4], rows[4:])]
    # The Trainer weighs batches by their rows, whatever a row counts for.
    assert before["eval_loss"] == pytest.approx((4 * expected_losses[0] + 2 * expected_losses[1]) / 6, rel=1e-4)

    seen.clear()
    trainer.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for features in seen[:2]:
        optimizer.zero_grad()
        kept = [{name: row[name] for name in row if name not in ("text", "index")} for row in features]
        one_by_one(model, kept)[1].backward()
        optimizer.step()
    moved = max(float((p - start[n]).detach().abs().max()) for n, p in model.named_parameters())
    assert moved > 1e-3
    for (key, theirs), mine in zip(model.named_parameters(), ours.parameters(), strict=True):
        assert float((mine - theirs).detach().abs().max()) <= 1e-5, key


def test_the_trainer_predicts_each_row_in_order(tmp_path, rng_seed):
    """Also where every batch has rows that were added: the Trainer cuts off those of the last, others are ignored."""
    head = HEADS["classification"]
    model, rows = stock_model(head), examples(head, rng_seed, (9, 20, 4, 13, 30, 2))
    expected = torch.cat([output["logits"] for output in one_by_one(model, rows)[0]]).detach()
    arguments = trainer_arguments(tmp_path, per_device_eval_batch_size=4)
    for collator in (PackedCollator(), PackedCollator(num_tokens=64, num_sequences=6)):
        trainer = transformers.Trainer(optimize(model), arguments, data_collator=collator)
        predicted = trainer.predict(rows)
        is_row = predicted.label_ids != -100
        assert predicted.label_ids[is_row].tolist() == [row["label"] for row in rows]
        assert float((torch.from_numpy(predicted.predictions[is_row]) - expected).abs().max()) <= 2e-5


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows: list[Example]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Example]:
        yield from self.rows


def test_the_trainer_takes_a_stream_if_batches_stay_whole(tmp_path, rng_seed):
    """By default accelerate cuts the batches of an iterable dataset into rows, to spread them over processes."""
    head = HEADS["classification"]
    model, rows = stock_model(head).train(), examples(head, rng_seed, LENGTHS * 2)
    ours = optimize(copy.deepcopy(model))
    arguments = trainer_arguments(
        tmp_path,
        per_device_train_batch_size=5,
        max_steps=1,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        accelerator_config={"dispatch_batches": False},
    )
    transformers.Trainer(ours, arguments, data_collator=PackedCollator(), train_dataset=Stream(rows)).train()
    loss = one_by_one(model, rows[:5])[1]
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for parameter, gradient, mine in zip(model.parameters(), gradients, ours.parameters(), strict=True):
        assert float((parameter - 0.1 * gradient - mine).detach().abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({}, [], "at least one example"),
        ({}, [{"label": 1}], "no input_ids, only labels"),
        ({}, [{"input_ids": [[1, 2], [3, 4]]}], "multiple choice"),
        ({}, [{"input_ids": [1], "labels": [1]}, {"input_ids": [1]}], "some examples have labels"),
        ({}, [{"input_ids": [1, 2], "labels": [1]}], r"labels of an example has shape \(1,\), its input_ids \(2,\)"),
        ({}, [{"input_ids": [1, 2], "attention_mask": [1]}], "attention_mask of an example"),
        ({"max_length": 1}, [{"input_ids": [1, 2]}], "longer than max_length=1"),
        ({"num_tokens": 3}, [{"input_ids": [1, 2]}] * 2, "2 examples of 4 tokens don't fit into num_tokens=3"),
        ({"num_sequences": 1}, [{"input_ids": [1, 2]}] * 2, "more than num_sequences=1"),
        ({"num_sequences": 2}, [{"input_ids": [1, 2], "label": 0.5}], "labels are floats"),
    ],
)
def test_bad_examples_are_named(options, rows, message):
    with pytest.raises(ValueError, match=message):
        PackedCollator(**options)(rows)
