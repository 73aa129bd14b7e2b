"""What each head of transformers' ELECTRA and BERT reads of its tower's result, and losses of packed batches."""

# Annotations are objects in this file: transformers looks into those of `**kwargs` for what a forward can output.

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from electra_fast.models.tower import READS_REAL_TOKENS, FlatTower, HeadReads, pop_return_dict
from electra_fast.packing import packing_of_lengths

IGNORED_LABEL = -100


def reads(what: Callable[..., HeadReads], *, takes_packed: bool = True) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: the head's own forward, which then passes `what(model, attention_mask, labels)` to its tower.

    Either may be None; for question answering, `labels` are the `start_positions`.
    """

    def decorate(cls: type[nn.Module]) -> type[nn.Module]:
        stock_forward = cls.forward
        names = tuple(inspect.signature(stock_forward).parameters)[1:]

        @functools.wraps(stock_forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not takes_packed and kwargs.get("cu_seq_lens_q") is not None:
                raise ValueError(f"{type(self).__name__} takes no packed input; give input_ids [B, choices, S]")
            if isinstance(self.base_model, FlatTower):
                given = dict(zip(names, args, strict=False)) | kwargs
                labels = given.get("labels", given.get("start_positions"))
                kwargs["head_reads"] = what(self, given.get("attention_mask"), labels)
            return stock_forward(self, *args, **kwargs)

        cls.forward = forward
        return cls

    return decorate


def first_token(model: nn.Module, attention_mask: Tensor | None, labels: Tensor | None) -> HeadReads:
    """Heads over [CLS]."""
    return HeadReads(first_only=True)


def sequence_summary(model: nn.Module, attention_mask: Tensor | None, labels: Tensor | None) -> HeadReads:
    """ELECTRA's multiple choice, whose config says how a sequence is summed up; most ways read the padding too."""
    if model.sequence_summary.summary_type == "first":
        return HeadReads(first_only=True)
    return HeadReads(padding_if=_has_padding(attention_mask))


def real_tokens(model: nn.Module, attention_mask: Tensor | None, labels: Tensor | None) -> HeadReads:
    """ELECTRA's discriminator, whose loss leaves padding out."""
    return HeadReads(padding_if=False)


def labelled_tokens(model: nn.Module, attention_mask: Tensor | None, labels: Tensor | None) -> HeadReads:
    """Heads over each token, whose loss counts all labels but -100."""
    if attention_mask is None or labels is None or labels.numel() != attention_mask.numel():
        return HeadReads(padding_if=False)
    is_padding = attention_mask.flatten() == 0  # flat, since transformers takes labels [B * S] too
    return HeadReads(padding_if=((labels.flatten() != IGNORED_LABEL) & is_padding).any())


def labelled_and_first_tokens(model: nn.Module, attention_mask: Tensor | None, labels: Tensor | None) -> HeadReads:
    """BERT's two pretraining heads."""
    if attention_mask is None or attention_mask.dim() != 2:
        return READS_REAL_TOKENS
    is_first_padding = (attention_mask[:, 0] == 0).any()
    is_labelled = labelled_tokens(model, attention_mask, labels).padding_if
    # torch.jit.trace has no operator for a tensor and a bool.
    return HeadReads(padding_if=is_first_padding if is_labelled is False else is_labelled | is_first_padding)


def all_tokens_if_labelled(model: nn.Module, attention_mask: Tensor | None, labels: Tensor | None) -> HeadReads:
    """Question answering, whose softmax runs over the padding too, and language models, whose labels are shifted."""
    return HeadReads(padding_if=False if labels is None else _has_padding(attention_mask))


def _has_padding(attention_mask: Tensor | None) -> Tensor | bool:
    return False if attention_mask is None else (attention_mask == 0).any()


class SpanHead:
    """Mixed into the heads for question answering: packed input takes positions [B] within each sequence."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput | tuple[Tensor, ...]:
        arguments = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        cu_seqlens = kwargs.get("cu_seq_lens_q")
        if cu_seqlens is None or start_positions is None or end_positions is None:
            return super().forward(*arguments, start_positions, end_positions, **kwargs)
        return_dict = pop_return_dict(self.config, kwargs)
        outputs = super().forward(*arguments, return_dict=True, **kwargs)
        loss = _packed_span_loss(
            outputs.start_logits,
            outputs.end_logits,
            start_positions,
            end_positions,
            cu_seqlens,
            kwargs.get("max_length_q"),
        )
        outputs = QuestionAnsweringModelOutput(loss=loss, **outputs)
        return outputs if return_dict else outputs.to_tuple()


def _packed_span_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int | None,
) -> Tensor:
    """The question-answering loss of each packed sequence by itself.

    Args:
        start_logits, end_logits: [1, T].
        start_positions, end_positions: int64 [B], within the sequence; one beyond its end is ignored, as in
            transformers, where that means beyond the padded width.
    """
    if max_seqlen is None:
        max_seqlen = int(cu_seqlens.diff().max())
    packing = packing_of_lengths(cu_seqlens, start_logits.shape[1], max_seqlen)
    lengths = cu_seqlens.diff()

    def loss(logits: Tensor, positions: Tensor) -> Tensor:
        positions = positions.reshape(-1).clamp(min=0)
        padded = packing.pad(logits.squeeze(0)).masked_fill(~packing.padding_mask, -torch.inf)  # [B, S]
        targets = torch.where(positions < lengths, positions, IGNORED_LABEL)
        return F.cross_entropy(padded, targets, ignore_index=IGNORED_LABEL)

    return (loss(start_logits, start_positions) + loss(end_logits, end_positions)) / 2
