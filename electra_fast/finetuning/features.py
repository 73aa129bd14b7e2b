"""`FeatureExtractor`: an encoder as a module that turns texts into vectors, frozen or trained with what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, BatchEncoding

from electra_fast.checkpoints import load_model
from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.finetuning.model import check_tokenizer, find_pretrained, read_config
from electra_fast.models import patch_transformers
from electra_fast.models.layers import FlatBatch
from electra_fast.models.progress import no_loading_report
from electra_fast.models.tower import FlatTower, encode
from electra_fast.ops.random import draw_seed
from electra_fast.packing import Packing, packing_of_lengths, packing_without_padding

POOLINGS = ("mean", "cls", "max", "tokens")


class FeatureExtractor(nn.Module):
    """Vectors of texts from the hidden states of an ELECTRA or BERT encoder.

    >>> extractor = FeatureExtractor("runs/small", layers=[-1, -2], pooling="mean")
    >>> extractor(["A text.", "Another one."]).shape  # [B, extractor.dim]

    Layers above the highest that is asked for are dropped. Padding is never computed.

    Args:
        path: a checkpoint's folder, with or without a head, a run's, or a model's name in the Hugging Face cache.
        layers: whose output: 1 is the first, -1 the last, 0 the embeddings as the first layer reads them (projected to
            its width). Of several the vectors stand one after another.
        pooling: one vector a text: "mean" or "max" over its tokens, [CLS] and [SEP] among them, or that of [CLS]
            ("cls"); or a vector for each token ("tokens").
        trainable: train the encoder with what reads its vectors. Otherwise it takes no gradient and stays in evaluation
            mode, without dropout, also after `.train()`.
        max_length: tokens of a text; what is longer is cut. None: as many as the model takes.

    Attributes:
        dim: size of a vector.
        tokenizer: transformers' tokenizer.

    Raises:
        ValueError: there is no such model, it is neither ELECTRA nor BERT, or an argument is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layers: int | Sequence[int] = -1,
        pooling: str = "mean",
        trainable: bool = False,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}")
        folder = find_pretrained(str(path))
        # Not every checkpoint has BERT's pooler, and nothing here reads it.
        options = {"add_pooling_layer": False} if read_config(folder).model_type == "bert" else {}
        with patch_transformers(), no_loading_report():
            encoder = load_model(AutoModel, folder, dtype=torch.float32, **options)
        if not isinstance(encoder, FlatTower):
            raise ValueError(f"{folder} holds a model of type {encoder.config.model_type}: expected ELECTRA or BERT")
        self.tokenizer = load_tokenizer(folder)
        check_tokenizer(self.tokenizer, encoder.config, folder)
        self.layers = _from_front([layers] if isinstance(layers, int) else layers, len(encoder.encoder.layer))
        encoder.encoder.layer = encoder.encoder.layer[: max(self.layers)]
        self.encoder = encoder
        self.pooling = pooling
        self.trainable = trainable
        self.dim = len(self.layers) * encoder.config.hidden_size
        self.max_length = encoder.config.max_position_embeddings if max_length is None else max_length
        if not 2 <= self.max_length <= encoder.config.max_position_embeddings:
            raise ValueError(
                f"max_length must be between 2 and the position table's size ({encoder.config.max_position_embeddings})"
                f"; got {max_length}"
            )
        self.requires_grad_(trainable)
        self.train(trainable)

    def train(self, mode: bool = True) -> FeatureExtractor:
        return super().train(mode and self.trainable)

    def tokenize(self, texts: Sequence[str], **options: bool) -> BatchEncoding:
        """The arguments of `forward` for texts: `input_ids`, `token_type_ids` and `attention_mask`, int64 [B, S]."""
        return self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            padding=True,
            padding_side="right",
            return_tensors="pt",
            **options,
        )

    def forward(
        self,
        texts: Sequence[str] | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Vectors of `texts`, or of what `tokenize` made of them, on the encoder's device and in its dtype.

        Returns:
            [B, dim]; with pooling "tokens" [B, S, dim], zeros at padding.

        Raises:
            ValueError: a row of the mask is all padding or begins with padding.
        """
        if (texts is None) == (input_ids is None):
            raise ValueError("give texts, or input_ids with attention_mask")
        if texts is not None:
            if isinstance(texts, str):
                raise ValueError("texts must be a list of texts; got one text")
            if len(texts) == 0:
                return self._empty()
            return self(**self.tokenize(texts))
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be [B, S]; got shape {tuple(input_ids.shape)}")
        device = self.encoder.device
        ids = input_ids.to(device)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(device)
        packing = packing_without_padding(mask, (mask[:, 0] == 0).any())
        if packing is None:
            raise ValueError("attention_mask: each row must begin with a token; pad on the right")
        types = None if token_type_ids is None else packing.unpad(token_type_ids.to(device))
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            vectors = self._token_vectors(packing, packing.unpad(ids), types)
            return packing.pad(vectors) if self.pooling == "tokens" else pool(vectors, packing.cu_seqlens, self.pooling)

    def packed(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Vectors of tokenised texts without making them one width: [B, dim], or [T, dim] with pooling "tokens"."""
        lengths = [len(row) for row in ids]
        if 0 in lengths:
            raise ValueError("a text without any token: the tokenizer gives at least [CLS] and [SEP]")
        device = self.encoder.device
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        packing = packing_of_lengths(bounds, sum(lengths), max(lengths))
        flat = torch.tensor([token for row in ids for token in row], device=device)
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            vectors = self._token_vectors(packing, flat, None)
            return vectors if self.pooling == "tokens" else pool(vectors, packing.cu_seqlens, self.pooling)

    def _token_vectors(self, packing: Packing, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """[T, dim] of flat tokens [T]."""
        seed = draw_seed(input_ids.device) if self.training else None
        states: list[Tensor] = []
        last = encode(
            self.encoder,
            FlatBatch(packing, seed, None, None),
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            states=states,
        )
        states.append(last)
        return torch.cat([states[layer] for layer in self.layers], dim=-1)

    def _empty(self) -> Tensor:
        shape = (0, 0, self.dim) if self.pooling == "tokens" else (0, self.dim)
        return torch.empty(shape, dtype=self.encoder.dtype, device=self.encoder.device)


def pool(vectors: Tensor, cu_seqlens: Tensor, how: str) -> Tensor:
    """One vector for each sequence of packed vectors [T, D]: [B, D].

    Args:
        cu_seqlens: int [B + 1], no sequence empty.
        how: "mean", "max" or "cls".
    """
    if how == "cls":
        return vectors[cu_seqlens[:-1].long()]
    return torch.segment_reduce(vectors, how, offsets=cu_seqlens.long(), axis=0)


def _from_front(layers: Sequence[int], count: int) -> list[int]:
    """Layers counted from 0, the embeddings."""
    if not layers:
        raise ValueError("layers is empty: give at least one, e.g. -1, the last")
    if wrong := [layer for layer in layers if not -count - 1 <= layer <= count]:
        raise ValueError(f"layers: the model has {count} (0 is the embeddings, -1 the last); got {wrong[0]}")
    return [layer % (count + 1) for layer in layers]
