"""Embeddings and layer of transformers' ELECTRA and BERT on flat tokens: its modules and weights, our operators.

Without `flat` a layer does what transformers does. T tokens, H hidden, E embedding, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import GELUActivation

from electra_fast.attention import attention, choose
from electra_fast.models import blocks
from electra_fast.models.gdes import DeltaEmbedding
from electra_fast.ops._backends import missing, requested_backend
from electra_fast.ops._register import is_watched
from electra_fast.ops.embedding import embedding_layer_norm
from electra_fast.ops.layer_norm import MAX_WIDTH, dropout_add_layer_norm, layer_norm
from electra_fast.packing import Packing

# Hooks of these packages neither look at the shapes of hidden states nor change them.
_INDIFFERENT_HOOKS = ("transformers.", "torch.distributed.")
_PLAIN_WEIGHTS = {nn.Parameter, Tensor}


class FlatBatch(NamedTuple):
    """What a layer needs to know of its flat tokens."""

    packing: Packing
    seed: Tensor | None  # of the dropout, int64 0-d
    row_ids: Tensor | None  # int64 [T], names of the tokens for the dropout; None: 0..T-1
    backend: str | None = None  # of attention; None: the fastest
    is_causal: bool = False  # a token attends to itself and those before it


class FlatEmbeddings:
    """Mixed into `ElectraEmbeddings` and `BertEmbeddings`: three look-ups, LayerNorm and dropout in one operator."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values_length: int = 0,
        *,
        seed: Tensor | None = None,
        stream: int = 0,
        row_ids: Tensor | None = None,
    ) -> Tensor:
        word, types, positions = self.word_embeddings, self.token_type_embeddings, self.position_embeddings
        fused = inputs_embeds is None and not needs_plain_operators() and is_plain(self.LayerNorm, nn.LayerNorm)
        if not (fused and is_plain(self.dropout, nn.Dropout) and all(map(_is_plain_table, (word, types, positions)))):
            return super().forward(input_ids, token_type_ids, position_ids, inputs_embeds, past_key_values_length)
        if position_ids is None:
            position_ids = self.position_ids[:, past_key_values_length : past_key_values_length + input_ids.shape[1]]
        table, word_ids, padding_idx = _table(word, input_ids.reshape(-1))
        rows = embedding_layer_norm(
            word_ids,
            None if token_type_ids is None else token_type_ids.expand_as(input_ids).reshape(-1),
            position_ids.expand_as(input_ids).reshape(-1),
            table,
            types.weight,
            positions.weight,
            self.LayerNorm.weight,
            self.LayerNorm.bias,
            p=rate(self.dropout),
            eps=self.LayerNorm.eps,
            seed=seed,
            stream=stream,
            row_ids=row_ids,
            padding_idx=padding_idx,
        )
        return rows.view(*input_ids.shape, -1)


class FlatLayer:
    """Mixed into `ElectraLayer` and `BertLayer`: attention, then a feed-forward network, on flat tokens."""

    # The classes of the parts whose work `forward` does itself on flat tokens.
    stock_parts: tuple[type[nn.Module], ...]

    def is_intact(self) -> bool:
        """Whether the layer's parts are transformers' own, and nobody has put another forward into one."""
        parts = (self.attention, self.attention.self, self.attention.output, self.intermediate, self.output)
        if tuple(type(part) for part in parts) != self.stock_parts:
            return False
        return not any("forward" in module.__dict__ for module in (self, *parts))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        flat: FlatBatch | None = None,
        stream: int = 0,
        rows: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """[1, T, H] -> [1, T, H], or [1, R, H] where `rows` [R] names the tokens that are wanted."""
        if flat is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        row_ids, normed = flat.row_ids, None
        if rows is None and self._attention_is_block(hidden_states, flat):
            normed = self._attention_block(hidden_states, flat, stream)
            hidden_states = normed.y.unsqueeze(0)
        else:
            context = _attend(self.attention.self, hidden_states, flat, stream)
            if rows is not None:
                context, hidden_states = context.index_select(1, rows), hidden_states.index_select(1, rows)
                row_ids = rows if row_ids is None else row_ids.index_select(0, rows)
            hidden_states = _add_and_norm(self.attention.output, context, hidden_states, flat.seed, stream + 1, row_ids)
        chunk = self.chunk_size_feed_forward * flat.packing.batch_size  # as many tokens at once as in transformers
        if chunk == 0:
            return self._feed_forward(hidden_states, flat.seed, stream + 2, row_ids, normed)
        if row_ids is None:
            row_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        chunks = zip(hidden_states.split(chunk, dim=1), row_ids.split(chunk), strict=True)
        return torch.cat([self._feed_forward(x, flat.seed, stream + 2, names) for x, names in chunks], dim=1)

    def _feed_forward(
        self,
        x: Tensor,
        seed: Tensor | None,
        stream: int,
        row_ids: Tensor | None,
        normed: blocks.Normed | None = None,
    ) -> Tensor:
        up, output = self.intermediate.dense, self.output
        if (
            _is_for_cpp(x)
            and _is_gelu(self.intermediate.intermediate_act_fn)
            and _are_plain((up, output.dense), output.LayerNorm, output.dropout)
        ):
            noise = _noise(output.dropout, seed, stream, row_ids)
            normed = normed or blocks.Normed(x.squeeze(0))
            return blocks.feed_forward_block(normed, up, output.dense, output.LayerNorm, noise).unsqueeze(0)
        return _add_and_norm(output, self.intermediate(x), x, seed, stream, row_ids)

    def _attention_is_block(self, hidden_states: Tensor, flat: FlatBatch) -> bool:
        """Whether our own kernel attends, and nothing is wrapped around the linear layers."""
        module, output = self.attention.self, self.attention.output
        return (
            _is_for_cpp(hidden_states)
            and flat.backend is None
            and not flat.is_causal
            and _are_plain((module.query, module.key, module.value, output.dense), output.LayerNorm, output.dropout)
            and is_plain(module.dropout, nn.Dropout)
            and choose(hidden_states.device, hidden_states.dtype, module.attention_head_size, rate(module.dropout) > 0)
            == blocks.BACKEND
        )

    def _attention_block(self, hidden_states: Tensor, flat: FlatBatch, stream: int) -> blocks.Normed:
        module, output, packing = self.attention.self, self.attention.output, flat.packing
        attention = blocks.Attention(
            module.num_attention_heads,
            packing.cu_seqlens.contiguous(),
            packing.max_seqlen,
            module.scaling,
            _noise(module.dropout, flat.seed, stream, flat.row_ids),
        )
        layers = module.query, module.key, module.value, output.dense
        noise = _noise(output.dropout, flat.seed, stream + 1, flat.row_ids)
        return blocks.attention_block(hidden_states.squeeze(0), layers, output.LayerNorm, attention, noise)


def _is_for_cpp(hidden_states: Tensor) -> bool:
    """Whether `electra_fast.models.blocks` may take them: C++ then reads and writes memory, unseen by anyone."""
    return (
        hidden_states.device.type == "cpu"
        and hidden_states.dtype == torch.float32
        and type(hidden_states) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and requested_backend() in (None, blocks.BACKEND)
        and missing("bias_gelu", blocks.BACKEND, hidden_states.device, hidden_states.dtype) is None
        and not is_watched()
    )


def _are_plain(layers: Iterable[nn.Module], norm: nn.Module, dropout: nn.Module) -> bool:
    """Whether a block can read the weights of these: linear layers, LayerNorm and dropout without anything special."""
    if not (is_plain(norm, nn.LayerNorm) and is_plain(dropout, nn.Dropout) and norm.weight.shape[0] <= MAX_WIDTH):
        return False
    if not (_is_row(norm.weight) and _is_row(norm.bias)):
        return False
    return all(is_plain(layer, nn.Linear) and _is_row(layer.bias) for layer in layers)


def _is_row(parameter: Tensor | None) -> bool:
    """Whether C++ can read a bias, or LayerNorm's weight, where it lies."""
    return parameter is not None and parameter.dtype == torch.float32 and parameter.is_contiguous()


def _noise(dropout: nn.Dropout, seed: Tensor | None, stream: int, row_ids: Tensor | None) -> blocks.Noise:
    p = rate(dropout)
    return blocks.Noise(p, seed, stream, row_ids) if p > 0 else blocks.Noise(0.0, None, stream, None)


def _is_gelu(activation: nn.Module) -> bool:
    return type(activation) is GELUActivation and activation.act is F.gelu and not _has_hooks(activation)


def _attend(module: nn.Module, hidden_states: Tensor, flat: FlatBatch, stream: int) -> Tensor:
    """[1, T, H] -> [1, T, H]: each token attends to those of its sequence."""
    rows = hidden_states.squeeze(0)
    q, k, v = (x.unflatten(-1, (-1, module.attention_head_size)) for x in _projections(module, rows))
    context = attention(
        q,  # [T, heads, D]
        k,
        v,
        flat.packing.cu_seqlens,
        flat.packing.max_seqlen,
        p=module.dropout.p if module.training else 0.0,
        seed=flat.seed,
        stream=stream,
        row_ids=flat.row_ids,
        scale=module.scaling,
        backend=flat.backend,
        is_causal=flat.is_causal,
    )
    return context.flatten(1).unsqueeze(0)


def _projections(module: nn.Module, hidden_states: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values [T, H], on a GPU in one matrix product if nothing is wrapped around their layers.

    On a CPU three products are as fast as one, and no copy of the weights has to be made for them.
    """
    layers = (module.query, module.key, module.value)
    if hidden_states.device.type == "cpu" or not all(
        is_plain(layer, nn.Linear) and layer.bias is not None for layer in layers
    ):
        return tuple(layer(hidden_states) for layer in layers)
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return F.linear(hidden_states, weight, bias).chunk(3, dim=-1)


def _add_and_norm(
    output: nn.Module, x: Tensor, residual: Tensor, seed: Tensor | None, stream: int, row_ids: Tensor | None
) -> Tensor:
    """LayerNorm(dropout(dense(x)) + residual): transformers' SelfOutput and Output."""
    x, norm, dropout = output.dense(x), output.LayerNorm, output.dropout
    if not (is_plain(norm, nn.LayerNorm) and is_plain(dropout, nn.Dropout)):
        return norm(dropout(x) + residual)
    if row_ids is not None:
        row_ids = row_ids.unsqueeze(0)
    return dropout_add_layer_norm(
        x,
        residual,
        norm.weight,
        norm.bias,
        p=rate(dropout),
        eps=norm.eps,
        seed=seed,
        stream=stream,
        row_ids=row_ids,
    )


def generator_hidden(predictions: nn.Module, hidden_states: Tensor) -> Tensor:
    """`ElectraGeneratorPredictions`: [..., H] -> [..., E], all that comes before the projection onto the vocabulary."""
    return norm_of_head(predictions.LayerNorm, predictions.activation(predictions.dense(hidden_states)))


def norm_of_head(norm: nn.Module, x: Tensor) -> Tensor:
    """LayerNorm with statistics in float32.

    Padding comes back from the tower as zeros. While the bias after it is zero too, one over the deviation is 1e6,
    which is inf in float16, and nn.LayerNorm on CPU keeps it so for its backward: NaN in every gradient.
    """
    if needs_plain_operators() or not is_plain(norm, nn.LayerNorm):
        return norm(x)
    return layer_norm(x, norm.weight, norm.bias, eps=norm.eps)


def rate(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0


def needs_plain_operators() -> bool:
    """Whether a graph for another program is made, or a functorch transform or forward mode runs: ours don't do."""
    # Not is_exporting(): to torch.compile of PyTorch 2.11 that is always true.
    if torch.compiler._is_exporting_flag or torch.jit.is_tracing():
        return True
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of `module` does what `kind` does with its own weights, and nothing else.

    False for subclasses (adapters, quantised layers, parametrisations), for modules with hooks or a forward of their
    own (offloading), for weights that are tensor subclasses, and for dropout of everything.
    """
    if type(module) is not kind or "forward" in module.__dict__ or _has_hooks(module) or _has_any_global_hook():
        return False
    if kind is nn.Dropout:
        return module.p < 1.0
    return _PLAIN_WEIGHTS.issuperset(map(type, module._parameters.values()))


def _table(word: nn.Module, input_ids: Tensor) -> tuple[Tensor, Tensor, int | None]:
    """Table [V, E], ids [T] of its rows, and the row that gets no gradient, of the look-up `word(input_ids)`."""
    if isinstance(word, DeltaEmbedding):
        return word(input_ids), torch.arange(input_ids.shape[0], device=input_ids.device), None
    return word.weight, input_ids, word.padding_idx


def _is_plain_table(module: nn.Module) -> bool:
    if is_plain(module, DeltaEmbedding):
        return True
    # These options of nn.Embedding change weights or their gradients.
    return is_plain(module, nn.Embedding) and not (module.max_norm or module.sparse or module.scale_grad_by_freq)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_observed(module: nn.Module) -> bool:
    """Whether a hook on `module` or below, or one on all modules, wants to see what transformers computes there."""
    if _has_any_global_hook():
        return True
    pending = [module]
    while pending:
        module = pending.pop()
        if _has_hooks(module) and any(map(_observes, _hooks(module))):
            return True
        pending.extend(child for child in module._modules.values() if child is not None)
    return False


def _hooks(module: nn.Module) -> Iterator[Any]:
    yield from module._forward_hooks.values()
    yield from module._forward_pre_hooks.values()
    yield from module._backward_hooks.values()
    yield from module._backward_pre_hooks.values()


def _observes(hook: Any) -> bool:
    return not (getattr(hook, "__module__", None) or "").startswith(_INDIFFERENT_HOOKS)
