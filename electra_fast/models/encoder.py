"""A tower on flat tokens: transformers' modules and weights, our operators between their matrix products.

T tokens, H hidden, E embedding, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.electra.modeling_electra import (
    ElectraEmbeddings,
    ElectraGeneratorPredictions,
    ElectraLayer,
    ElectraSelfAttention,
)

from electra_fast.attention import attention
from electra_fast.models.electra import ElectraModel
from electra_fast.ops.embedding import embedding_layer_norm
from electra_fast.ops.layer_norm import dropout_add_layer_norm, layer_norm
from electra_fast.packing import Packing

# Each dropout of a tower has a stream: the first is the embeddings', then come each layer's attention, its output, and
# the output of its feed-forward network.
STREAMS_PER_TOWER = 2**16


def encode(
    tower: ElectraModel,
    input_ids: Tensor,
    packing: Packing,
    *,
    token_type_ids: Tensor | None = None,
    seed: Tensor | None = None,
    stream: int = 0,
    row_ids: Tensor | None = None,
) -> Tensor:
    """Hidden states [T, H] of flat `input_ids` [T]; those of the tail, which belongs to no sequence, mean nothing.

    Args:
        token_type_ids: int64 [T]; None: zeros.
        seed, row_ids: of the dropout, see `electra_fast.ops.random`; unused in evaluation mode. Where a vendor's kernel
            attends (see `electra_fast.attention`), its dropout draws from torch's generator.
        stream: the first of the STREAMS_PER_TOWER streams that the tower's dropout uses.
    """
    hidden_states = _embed(tower.embeddings, input_ids, packing, token_type_ids, seed, stream, row_ids)
    if hasattr(tower, "embeddings_project"):
        hidden_states = tower.embeddings_project(hidden_states)
    for index, layer in enumerate(tower.encoder.layer):
        hidden_states = _layer(layer, hidden_states, packing, seed, stream + 1 + 3 * index, row_ids)
    return hidden_states


def generator_hidden(predictions: ElectraGeneratorPredictions, hidden_states: Tensor) -> Tensor:
    """The generator head's transform [M, H] -> [M, E], before the projection onto the vocabulary."""
    hidden_states = predictions.activation(predictions.dense(hidden_states))
    norm = predictions.LayerNorm
    return layer_norm(hidden_states, norm.weight, norm.bias, eps=norm.eps)


def _embed(
    embeddings: ElectraEmbeddings,
    input_ids: Tensor,
    packing: Packing,
    token_type_ids: Tensor | None,
    seed: Tensor | None,
    stream: int,
    row_ids: Tensor | None,
) -> Tensor:
    """[T, E]; the position of a token is its column in the padded batch, as in transformers."""
    return embedding_layer_norm(
        input_ids,
        torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        packing.padded_index % max(packing.max_seqlen, 1),
        embeddings.word_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        embeddings.position_embeddings.weight,
        embeddings.LayerNorm.weight,
        embeddings.LayerNorm.bias,
        p=_probability(embeddings.dropout),
        eps=embeddings.LayerNorm.eps,
        seed=seed,
        stream=stream,
        row_ids=row_ids,
        padding_idx=embeddings.word_embeddings.padding_idx,
    )


def _layer(
    layer: ElectraLayer,
    hidden_states: Tensor,
    packing: Packing,
    seed: Tensor | None,
    stream: int,
    row_ids: Tensor | None,
) -> Tensor:
    """A post-norm layer: attention and a feed-forward network, each with dropout, residual and LayerNorm."""
    context = _attention(layer.attention.self, hidden_states, packing, seed, stream, row_ids)
    hidden_states = _add_and_norm(layer.attention.output, context, hidden_states, seed, stream + 1, row_ids)
    intermediate = layer.intermediate(hidden_states)
    return _add_and_norm(layer.output, intermediate, hidden_states, seed, stream + 2, row_ids)


def _attention(
    module: ElectraSelfAttention,
    hidden_states: Tensor,
    packing: Packing,
    seed: Tensor | None,
    stream: int,
    row_ids: Tensor | None,
) -> Tensor:
    """[T, H] -> [T, H]: each token attends to those of its sequence."""
    heads = (module.num_attention_heads, module.attention_head_size)
    context = attention(
        module.query(hidden_states).unflatten(-1, heads),  # [T, heads, D]
        module.key(hidden_states).unflatten(-1, heads),
        module.value(hidden_states).unflatten(-1, heads),
        packing.cu_seqlens,
        packing.max_seqlen,
        p=_probability(module.dropout),
        seed=seed,
        stream=stream,
        row_ids=row_ids,
        scale=module.scaling,
    )
    return context.flatten(1)


def _add_and_norm(
    output: nn.Module, x: Tensor, residual: Tensor, seed: Tensor | None, stream: int, row_ids: Tensor | None
) -> Tensor:
    """LayerNorm(dropout(dense(x)) + residual): transformers' ElectraSelfOutput and ElectraOutput."""
    return dropout_add_layer_norm(
        output.dense(x),
        residual,
        output.LayerNorm.weight,
        output.LayerNorm.bias,
        p=_probability(output.dropout),
        eps=output.LayerNorm.eps,
        seed=seed,
        stream=stream,
        row_ids=row_ids,
    )


def _probability(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0
