"""The embeddings of a token summed, normalised and dropped out: `dropout(LayerNorm(word + token type + position))`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from electra_fast.ops import _backends
from electra_fast.ops._checks import check_tensor
from electra_fast.ops._register import float32_under_autocast, register
from electra_fast.ops.random import as_seed, check_stream, dropout_factors, threshold

MAX_WIDTH = 8192
_OPERATOR = "embedding_layer_norm"
_NO_PADDING = -1


# --- forward ----------------------------------------------------------------------------------------------------------


def embedding_layer_norm_reference(
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    padding_idx: int,
    p: float,
    eps: float,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch on any device: the result [T, E], and each row's mean and 1 / standard deviation [2, T]."""
    rows = _summed(word, token_type, position, input_ids, token_type_ids, position_ids)
    y, mean, rstd = torch.native_layer_norm(rows, weight.shape, weight, bias, eps)
    if p > 0:
        y = y * _dropout_factors(y, seed, row_ids, p, stream)
    return y.to(word.dtype), torch.stack([mean[:, 0], rstd[:, 0]])


def _summed(
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
) -> Tensor:
    """The sum of the three embeddings, in float32 at least; ids out of range are clamped."""
    words = _rows(word, input_ids)
    types = _rows(token_type, torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
    return words + types + _rows(position, position_ids)


def _rows(table: Tensor, ids: Tensor) -> Tensor:
    rows = table[ids.clamp(0, table.shape[0] - 1)]
    return rows if rows.dtype == torch.float64 else rows.float()


def _dropout_factors(rows: Tensor, seed: Tensor, row_ids: Tensor | None, p: float, stream: int) -> Tensor:
    """What dropout multiplies `rows` [T, E] by."""
    names = torch.arange(rows.shape[0], device=rows.device) if row_ids is None else row_ids
    return dropout_factors(seed, names, rows.shape[1], p, stream).to(rows.dtype)


def _embedding_cpp(
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    padding_idx: int,
    p: float,
    eps: float,
    stream: int,
) -> tuple[Tensor, Tensor]:
    num_tokens, width = input_ids.shape[0], word.shape[1]
    y = word.new_empty(num_tokens, width)
    stats = weight.new_empty(2, num_tokens)
    _backends.extension().embedding_layer_norm(
        _cpp_rows(
            word, token_type, position, weight, input_ids, token_type_ids, position_ids, seed, row_ids, p, stream
        ),
        bias.data_ptr(),
        eps,
        y.data_ptr(),
        stats.data_ptr(),
        torch.get_num_threads(),
    )
    return y, stats


def _cpp_rows(
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    p: float,
    stream: int,
) -> Any:
    """What the extension's forward and backward both take."""
    return _backends.extension().EmbeddingRows(
        word.data_ptr(),
        token_type.data_ptr(),
        position.data_ptr(),
        word.dtype == torch.bfloat16,
        weight.data_ptr(),
        input_ids.data_ptr(),
        _address(token_type_ids),
        position_ids.data_ptr(),
        _address(row_ids),
        input_ids.shape[0],
        word.shape[1],
        0 if seed is None else seed.item(),
        stream,
        threshold(p),
        1 / (1 - p),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _embedding_triton(*args: Any) -> tuple[Tensor, Tensor]:
    from electra_fast.kernels.embedding import embedding_layer_norm_triton

    return embedding_layer_norm_triton(*args)


def _embedding_shapes(
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_ids: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    num_tokens = input_ids.shape[0]
    return word.new_empty(num_tokens, word.shape[1]), word.new_empty(2, num_tokens, dtype=_stats_dtype(word))


def _stats_dtype(word: Tensor) -> torch.dtype:
    return torch.float64 if word.dtype == torch.float64 else torch.float32


def _check_ids(
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    *_: Any,
) -> None:
    if input_ids.numel() == 0:
        return
    for argument, ids, table_name, table in (
        ("input_ids", input_ids, "word", word),
        ("token_type_ids", token_type_ids, "token_type", token_type),
        ("position_ids", position_ids, "position", position),
    ):
        if ids is None:
            continue
        wrong = _outside(ids, table.shape[0])
        if wrong is not None:
            raise ValueError(
                f"{_OPERATOR}: {argument} must lie in [0, {table.shape[0]}), the rows of `{table_name}`; got {wrong}"
            )


def _outside(ids: Tensor, size: int) -> int | None:
    """An id outside [0, size), if there is one."""
    if not ids.is_cuda and _backends._extension_error() is None:
        index = _backends.extension().find_outside(ids.data_ptr(), ids.shape[0], size)  # a tenth of aminmax's time
        return None if index < 0 else ids[index].item()
    low, high = (bound.item() for bound in ids.aminmax())
    return low if low < 0 else high if high >= size else None


# --- backward ---------------------------------------------------------------------------------------------------------


def embedding_layer_norm_backward_reference(
    dy: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    stats: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    padding_idx: int,
    p: float,
    stream: int,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of word, token_type, position, weight and bias; one that is not `needed` comes empty."""
    mean, rstd = stats[:, :, None]
    x_hat = (_summed(word, token_type, position, input_ids, token_type_ids, position_ids) - mean) * rstd
    dy = dy.to(x_hat.dtype)
    if p > 0:
        dy = dy * _dropout_factors(dy, seed, row_ids, p, stream)
    g = dy * weight
    dx = (g - g.mean(1, keepdim=True) - x_hat * (g * x_hat).mean(1, keepdim=True)) * rstd

    def of_table(table: Tensor, ids: Tensor, padding: int = _NO_PADDING) -> Tensor:
        gradient = dx.new_zeros(table.shape).index_add_(0, ids.clamp(0, table.shape[0] - 1), dx)
        if padding >= 0:
            gradient[padding] = 0
        return gradient.to(table.dtype)

    types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    return (
        of_table(word, input_ids, padding_idx) if needed[0] else word.new_empty(0),
        of_table(token_type, types) if needed[1] else word.new_empty(0),
        of_table(position, position_ids) if needed[2] else word.new_empty(0),
        (dy * x_hat).sum(0) if needed[3] else weight.new_empty(0),
        dy.sum(0) if needed[4] else weight.new_empty(0),
    )


def _embedding_backward_cpp(
    dy: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    stats: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    padding_idx: int,
    p: float,
    stream: int,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy = dy.contiguous()  # named, so that the copy outlives the call
    gradients = _embedding_backward_shapes(dy, word, token_type, position, weight, stats, needed=needed)
    _backends.extension().embedding_layer_norm_backward(
        _cpp_rows(
            word, token_type, position, weight, input_ids, token_type_ids, position_ids, seed, row_ids, p, stream
        ),
        dy.data_ptr(),
        stats.data_ptr(),
        word.shape[0],
        token_type.shape[0],
        position.shape[0],
        padding_idx,
        *(gradient.data_ptr() if is_needed else 0 for gradient, is_needed in zip(gradients, needed, strict=True)),
        torch.get_num_threads(),
    )
    return gradients


def _embedding_backward_triton(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from electra_fast.kernels.embedding import embedding_layer_norm_backward_triton

    return embedding_layer_norm_backward_triton(*args)


def _embedding_backward_shapes(
    dy: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    stats: Tensor,
    *_: Any,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = (word, token_type, position, weight, weight)
    return tuple(
        torch.empty_like(argument) if is_needed else argument.new_empty(0)
        for argument, is_needed in zip(arguments, needed, strict=True)
    )


# --- registration -----------------------------------------------------------------------------------------------------


_embedding_backward = register(
    "embedding_layer_norm_backward",
    {
        "reference": embedding_layer_norm_backward_reference,
        "cpp": _embedding_backward_cpp,
        "triton": _embedding_backward_triton,
    },
    operator=_OPERATOR,
    shapes=lambda *args: _embedding_backward_shapes(*args[:-1], needed=args[-1]),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    word, token_type, position, weight, _, *ids_and_seed, padding_idx, p, _, stream = inputs
    _, stats = output
    ctx.save_for_backward(word, token_type, position, weight, stats, *ids_and_seed)
    ctx.padding_idx, ctx.p, ctx.stream = padding_idx, p, stream
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:5])
    if dy is None:
        return (None,) * 14
    options = ctx.padding_idx, ctx.p, ctx.stream, needed
    gradients = _embedding_backward(dy, *ctx.saved_tensors, *options, backend=ctx.backend)
    wanted = (gradient if is_needed else None for gradient, is_needed in zip(gradients, needed, strict=True))
    return *wanted, *(None,) * 9


_embedding = register(
    _OPERATOR,
    {"reference": embedding_layer_norm_reference, "cpp": _embedding_cpp, "triton": _embedding_triton},
    operator=_OPERATOR,
    shapes=_embedding_shapes,
    check_values=_check_ids,
    setup_context=_setup_context,
    backward=_backward,
)


def embedding_layer_norm(
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    p: float = 0.0,
    eps: float = 1e-12,
    seed: Tensor | int | None = None,
    stream: int = 0,
    row_ids: Tensor | None = None,
    padding_idx: int | None = None,
) -> Tensor:
    """`dropout(LayerNorm(word[input_ids] + token_type[token_type_ids] + position[position_ids]))`.

    Sums, statistics and the sums of gradients are float32 (float64 for float64 tables). The gradients of the tables are
    dense, and the same from run to run and for any number of threads.

    Args:
        input_ids: int64 [T], in [0, V).
        token_type_ids: int64 [T]; None is type 0 for every token.
        position_ids: int64 [T], in any order.
        word, token_type, position: [V, E], [types, E] and [positions, E], of one dtype; E at most 8,192.
        weight, bias: [E] of LayerNorm, of any floating dtype.
        p: probability of dropping an element, in [0, 1); the others are multiplied by 1 / (1 - p).
        eps: added to the variance.
        seed: int64 0-d tensor on the device of the data, or an int; None draws one from torch's default generator. Not
            looked at for p = 0.
        stream: int in [0, 2^31), separates uses of one seed.
        row_ids: int64 [T], names of the tokens for the random numbers; None is 0..T-1 (see `electra_fast.ops.random`).
        padding_idx: this row of `word` gets no gradient, as in `torch.nn.Embedding`; None gives every row its own.

    Returns:
        [T, E] in the dtype of the tables; float32 under autocast, as LayerNorm gives there.

    Raises:
        TypeError, ValueError: a dtype, shape, device or range other than the above. Ids are checked on the CPU; on
            other devices that would wait for the device, so they are checked only with ELECTRA_FAST_DEBUG=1, and those
            out of range are clamped: a wrong embedding, never a wild access.

    Source: transformers, models/electra/modeling_electra.py (`ElectraEmbeddings`), whose order of additions this is.
    """
    _check_arguments(input_ids, token_type_ids, position_ids, word, token_type, position, weight, bias, row_ids)
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{_OPERATOR}: p must lie in [0, 1); got {p}")
    num_words = word.shape[0]
    if padding_idx is None:
        padding_idx = _NO_PADDING
    elif not -num_words <= padding_idx < num_words:
        raise ValueError(f"{_OPERATOR}: padding_idx must be a row of word {tuple(word.shape)}; got {padding_idx}")
    elif padding_idx < 0:
        padding_idx += num_words
    word, token_type, position = float32_under_autocast(word, token_type, position)
    if not weight.dtype == bias.dtype == _stats_dtype(word):  # `to` takes a microsecond to do nothing
        weight, bias = weight.to(_stats_dtype(word)), bias.to(_stats_dtype(word))
    y, _ = _embedding(
        word.contiguous(),
        token_type.contiguous(),
        position.contiguous(),
        weight.contiguous(),
        bias.contiguous(),
        input_ids.contiguous(),
        None if token_type_ids is None else token_type_ids.contiguous(),
        position_ids.contiguous(),
        as_seed(seed, word.device) if p > 0 else None,
        None if row_ids is None else row_ids.contiguous(),
        padding_idx,
        p,
        eps,
        check_stream(stream),
    )
    return y


def _check_arguments(
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_ids: Tensor | None,
) -> None:
    if not word.is_floating_point():
        raise TypeError(f"{_OPERATOR}: word must be floating point; got {word.dtype}")
    device = word.device
    for argument, table in (("word", word), ("token_type", token_type), ("position", position)):
        check_tensor(_OPERATOR, argument, table, 2, (word.dtype,), device)
        if table.shape[0] == 0 or table.shape[1] != word.shape[1]:
            raise ValueError(
                f"{_OPERATOR}: {argument} must have at least one row, and the width of word {tuple(word.shape)}; "
                f"got shape {tuple(table.shape)}"
            )
    width = word.shape[1]
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"{_OPERATOR}: the width of word must lie in [1, {MAX_WIDTH}]; got shape {tuple(word.shape)}")
    for argument, vector in (("weight", weight), ("bias", bias)):
        if not vector.is_floating_point():
            raise TypeError(f"{_OPERATOR}: {argument} must be floating point; got {vector.dtype}")
        if vector.shape != (width,) or vector.device != device:
            raise ValueError(
                f"{_OPERATOR}: {argument} must have shape ({width},), on {device}; "
                f"got {tuple(vector.shape)} on {vector.device}"
            )
    for argument, ids in (
        ("input_ids", input_ids),
        ("token_type_ids", token_type_ids),
        ("position_ids", position_ids),
        ("row_ids", row_ids),
    ):
        if ids is None:
            continue
        check_tensor(_OPERATOR, argument, ids, 1, (torch.int64,), device)
        if ids.shape != input_ids.shape:
            raise ValueError(
                f"{_OPERATOR}: {argument} has shape {tuple(ids.shape)}, input_ids {tuple(input_ids.shape)}"
            )
