"""The floor of a job: its matrix products alone, of real tokens only, into memory that is there already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import ElectraConfig, PreTrainedModel


class Floor:
    """Products that were added, run one after the other by a call.

    Args:
        device: "cpu" or "cuda".
        dtype: of the products.
        training: whether each comes with the two of its backward pass.
    """

    def __init__(self, device: str, dtype: torch.dtype = torch.float32, *, training: bool) -> None:
        self._like = {"device": device, "dtype": dtype}
        self._training = training
        self._products: list[Callable[[], Any]] = []
        self.flops = 0

    def linear(self, rows: int, width: int, outputs: int) -> None:
        """[rows, width] by the transpose of a weight [outputs, width]."""
        x, weight = self._tensor(rows, width), self._tensor(outputs, width)
        y, dy = self._tensor(2, rows, outputs).unbind()
        self._add(torch.mm, x, weight.T, out=y)
        if self._training:
            self._add(torch.mm, dy, weight, out=torch.empty_like(x))
            self._add(torch.mm, dy.T, x, out=torch.empty_like(weight))

    def attention(self, lengths: Sequence[int], heads: int, head_dim: int) -> None:
        """Scores and their product with the values, sequences of one length at once."""
        for length, sequences in Counter(lengths).items():
            q, out = self._tensor(2, sequences * heads, length, head_dim).unbind()
            scores, d_scores = self._tensor(2, sequences * heads, length, length).unbind()
            self._add(torch.bmm, q, q.mT, out=scores)
            self._add(torch.bmm, scores, q, out=out)
            if self._training:
                self._add(torch.bmm, q, q.mT, out=d_scores)
                self._add(torch.bmm, scores.mT, q, out=out)  # dv
                self._add(torch.bmm, d_scores, q, out=out)  # dq
                self._add(torch.bmm, d_scores.mT, q, out=out)  # dk

    def encoder(self, config: ElectraConfig, lengths: Sequence[int], wanted: int | None = None) -> None:
        """Embeddings' projection, where there is one, and the layers; the last one gives `wanted` tokens, or all."""
        tokens, hidden = sum(lengths), config.hidden_size
        if config.embedding_size != hidden:
            self.linear(tokens, config.embedding_size, hidden)
        for left in reversed(range(config.num_hidden_layers)):
            self.linear(tokens, hidden, 3 * hidden)
            self.attention(lengths, config.num_attention_heads, hidden // config.num_attention_heads)
            rows = tokens if left or wanted is None else wanted
            self.linear(rows, hidden, hidden)
            self.linear(rows, hidden, config.intermediate_size)
            self.linear(rows, config.intermediate_size, hidden)

    def _tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, **self._like)

    def _add(self, product: Callable[..., Tensor], a: Tensor, b: Tensor, *, out: Tensor) -> None:
        self._products.append(partial(product, a, b, out=out))
        self.flops += 2 * out.numel() * a.shape[-1]

    def __call__(self, *_: Any) -> None:
        with torch.inference_mode():
            for product in self._products:
                product()


def pretraining_floor(
    configs: Sequence[ElectraConfig], sequences: int, length: int, masked: int, device: str, dtype: torch.dtype
) -> Floor:
    """Of a step of generator and discriminator; `masked` tokens a sequence go through the generator's head."""
    generator, discriminator = configs
    floor = Floor(device, dtype, training=True)
    for config in configs:
        floor.encoder(config, [length] * sequences)
    floor.linear(sequences * masked, generator.hidden_size, generator.embedding_size)
    floor.linear(sequences * masked, generator.embedding_size, generator.vocab_size)
    floor.linear(sequences * length, discriminator.hidden_size, discriminator.hidden_size)
    return floor


def model_floor(
    model: PreTrainedModel, lengths: Sequence[Sequence[int]], device: str, dtype: torch.dtype, *, training: bool
) -> Floor:
    """Of transformers' model on batches of these lengths; a sequence classifier's head sees the first tokens only."""
    config, is_classifier = model.config, "SequenceClassification" in type(model).__name__
    floor = Floor(device, dtype, training=training)
    for batch in lengths:
        wanted = len(batch) if is_classifier else sum(batch)
        floor.encoder(config, batch, wanted)
        floor.linear(wanted, config.hidden_size, config.hidden_size)
    return floor
