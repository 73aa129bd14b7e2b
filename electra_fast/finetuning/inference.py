"""A model's outputs for features, in their order: what evaluation, prediction and serving run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from electra_fast.finetuning.heads import HEADS
from electra_fast.finetuning.task import BATCH_TOKENS, Example, Feature, Output, Prediction, Task, num_tokens


def infer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    head: str,
    features: Sequence[Feature],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], object] | None = None,
) -> list[Output]:
    """The output of each feature, as `Head.outputs` says, without dropout and gradients, on the model's device.

    Args:
        head: key of `heads.HEADS`.
        batch_tokens: a batch holds at most so many, or one feature.
        progress: is called with the number of features of each batch that is done.
    """
    kind = HEADS[head]
    order = list(range(len(features)))
    if kind.run is not None:
        order.sort(key=lambda index: num_tokens(features[index]))  # it pads: those of about one length together
    was_training = model.training
    model.eval()
    outputs: list[Output] = []
    try:
        with torch.inference_mode():
            ordered = [features[index] for index in order]
            for part in batches_of([num_tokens(feature) for feature in ordered], batch_tokens):
                batch = ordered[part]
                unlabelled = [{k: v for k, v in feature.items() if k not in _LABELS} for feature in batch]
                if kind.run is not None:
                    outputs += kind.run(model, tokenizer, unlabelled)
                else:
                    arguments = kind.collate(unlabelled, tokenizer)
                    on_device = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in arguments.items()}
                    outputs += kind.outputs(model(**on_device), batch)
                if progress is not None:
                    progress(len(batch))
    finally:
        model.train(was_training)
    in_place = dict(zip(order, outputs, strict=True))
    return [in_place[index] for index in range(len(features))]


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    features: Sequence[Feature],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], object] | None = None,
) -> list[Prediction]:
    """A prediction for each example, whose `features` are as `task.encode` gives them; the rest as in `infer`."""

    def run(features: Sequence[Feature]) -> list[Output]:
        return infer(model, tokenizer, task.head, features, batch_tokens=batch_tokens, progress=progress)

    return predict_by(run, tokenizer, task, examples, features)


def predict_by(
    run: Callable[[Sequence[Feature]], list[Output]],
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    features: Sequence[Feature],
) -> list[Prediction]:
    """`predict` with the outputs that `run` gives for features; it is called twice for a task that reads twice."""
    outputs = run(features)
    if again := task.encode_again(examples, features, outputs, tokenizer):
        features, outputs = [*features, *again], [*outputs, *run(again)]
    return task.decode(examples, features, outputs)


_LABELS = ("labels", "start_positions", "end_positions")


def batches_of(lengths: Sequence[int], batch_tokens: int) -> Iterator[slice]:
    """Consecutive texts, or features, of at most `batch_tokens` tokens together, or one text."""
    start = used = 0
    for index, length in enumerate(lengths):
        if index > start and used + length > batch_tokens:
            yield slice(start, index)
            start, used = index, 0
        used += length
    if start < len(lengths):
        yield slice(start, len(lengths))
