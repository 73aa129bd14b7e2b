"""The original's head for question answering: the end given the start, and whether there is an answer at all."""

# Annotations are objects in this file: transformers looks into those of `**kwargs` for what a forward can output.

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ElectraConfig
from transformers.models.electra.modeling_electra import ElectraPreTrainedModel
from transformers.utils import ModelOutput

from electra_fast.finetuning.original import GlorotLinear, init_glorot
from electra_fast.models import ElectraModel
from electra_fast.models.swap import Swapped
from electra_fast.packing import Packing, packing_of_full, packing_of_lengths

BEAM = 20
_HIDDEN = 512  # of both small networks, whatever the encoder's size
_ANSWERABILITY_WEIGHT = 0.5
_OUTSIDE = -1000.0  # is added to the logits of tokens that can't begin or end an answer


@dataclass
class OriginalSpanOutput(ModelOutput):
    """Of B sequences; K is the beam, or the longest sequence if that is shorter.

    Attributes:
        loss: mean over the sequences.
        start_logits: [B, S], -inf at padding.
        end_logits: [B, S], given the right start; where `start_positions` are given.
        start_top_log_probs, start_top_index: [B, K], best first; without `start_positions`, as the next two.
        end_top_log_probs, end_top_index: [B, K, K], for each of these starts.
        impossible_logits: [B], of the question having no answer.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    start_top_log_probs: Tensor | None = None
    start_top_index: Tensor | None = None
    end_top_log_probs: Tensor | None = None
    end_top_index: Tensor | None = None
    impossible_logits: Tensor | None = None


class _Flat(NamedTuple):
    """What the heads read of a batch, packed or padded."""

    hidden_states: Tensor  # [T, H]
    allowed: Tensor  # bool [T]: [CLS] and the second segment, its [SEP] too
    sequences: Tensor  # int64 [T], whose token it is; B for tokens of none
    packing: Packing
    is_token: Tensor  # bool [B, S]

    def masked(self, logits: Tensor) -> Tensor:
        """[T] -> [B, S], lowered where no answer can be, -inf at padding."""
        outside = torch.where(self.allowed, 0.0, _OUTSIDE).to(logits.dtype)
        return self.packing.pad(logits + outside).masked_fill(~self.is_token, -torch.inf)


class OriginalSpanHead(nn.Module):
    """Start: linear. End: linear(gelu(linear([hidden of the start; hidden of the token]))). Answerability:
    linear(gelu(linear([hidden of [CLS]; mean of the hidden states, weighted by the start's probabilities]))).

    Source: google-research/electra, finetune/qa/qa_tasks.py (`get_prediction_module`).
    """

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.start = GlorotLinear(width, 1)
        self.end_hidden = GlorotLinear(2 * width, _HIDDEN)
        self.end = GlorotLinear(_HIDDEN, 1)
        self.answerability_hidden = GlorotLinear(2 * width, _HIDDEN)
        self.answerability = GlorotLinear(_HIDDEN, 1)

    def start_logits(self, flat: _Flat) -> Tensor:
        """[B, S]"""
        return flat.masked(self.start(flat.hidden_states).squeeze(-1))

    def impossible_logits(self, flat: _Flat, start_logits: Tensor) -> Tensor:
        """[B]"""
        hidden_states = flat.packing.pad(flat.hidden_states)  # [B, S, H]
        soft_start = (start_logits.softmax(dim=-1).unsqueeze(1) @ hidden_states).squeeze(1)
        features = torch.cat([hidden_states[:, 0], soft_start], dim=-1)
        return self.answerability(F.gelu(self.answerability_hidden(features))).squeeze(-1)

    def end_logits(self, flat: _Flat, start_positions: Tensor) -> Tensor:
        """[B, S] given the starts [B]."""
        of_start, of_token = self._end_layers()
        starts = flat.hidden_states[flat.packing.cu_seqlens[:-1].long() + start_positions]  # [B, H]
        sequences = flat.sequences.clamp(max=len(starts) - 1)
        hidden = F.gelu(of_start(starts)[sequences] + of_token(flat.hidden_states))
        return flat.masked(self.end(hidden).squeeze(-1))

    def end_beam(self, flat: _Flat, start_positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Log probabilities and positions [B, K, count] of the best ends of each of the starts [B, K]."""
        of_start, of_token = self._end_layers()
        of_tokens = of_token(flat.hidden_states)
        bounds = flat.packing.cu_seqlens.tolist()
        log_probs, positions = [], []
        for begin, stop, starts in zip(bounds[:-1], bounds[1:], start_positions, strict=True):
            of_starts = of_start(flat.hidden_states[begin + starts.clamp(max=stop - begin - 1)])  # [K, 512]
            hidden = F.gelu(of_starts[:, None] + of_tokens[begin:stop])  # [K, n, 512]
            logits = self.end(hidden).squeeze(-1) + torch.where(flat.allowed[begin:stop], 0.0, _OUTSIDE)
            best = _top(logits.log_softmax(dim=-1), count)
            log_probs.append(best[0])
            positions.append(best[1])
        return torch.stack(log_probs), torch.stack(positions)

    def _end_layers(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """The end's first layer in two, whose sum is that of both inputs side by side: so each is computed once."""
        weight_of_start, weight_of_token = self.end_hidden.weight.chunk(2, dim=1)
        return partial(F.linear, weight=weight_of_start), partial(
            F.linear, weight=weight_of_token, bias=self.end_hidden.bias
        )


class ElectraForOriginalQuestionAnswering(Swapped, ElectraPreTrainedModel):
    """ELECTRA with `OriginalSpanHead`, for packed and for padded batches.

    `token_type_ids` say where the context is. Its weights load with this class only.
    """

    config_class = ElectraConfig

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        self.electra = ElectraModel(config)
        self.span_head = OriginalSpanHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_glorot(module)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        is_impossible: Tensor | None = None,
        **kwargs: Any,
    ) -> OriginalSpanOutput | tuple[Tensor, ...]:
        """Losses where `start_positions`, `end_positions` [B] and `is_impossible` [B] are given; else the beam.

        Raises:
            ValueError: some of the three are missing, or `token_type_ids` are.
        """
        labels = (start_positions, end_positions, is_impossible)
        if token_type_ids is None:
            raise ValueError("the original's span head needs token_type_ids, which say where the context is")
        if any(label is None for label in labels) and start_positions is not None:
            raise ValueError("the original's span head needs start_positions, end_positions and is_impossible together")
        return_dict = kwargs.pop("return_dict", None)
        hidden_states = self.electra(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        ).last_hidden_state
        flat = _flatten(hidden_states, token_type_ids, attention_mask, kwargs)
        head = self.span_head
        start_logits = head.start_logits(flat)
        outputs = OriginalSpanOutput(
            start_logits=start_logits, impossible_logits=head.impossible_logits(flat, start_logits)
        )
        if start_positions is None:
            count = min(BEAM, start_logits.shape[1])
            starts = start_logits.log_softmax(dim=-1).topk(count)
            outputs["start_top_log_probs"], outputs["start_top_index"] = starts
            outputs["end_top_log_probs"], outputs["end_top_index"] = head.end_beam(flat, starts.indices, count)
        else:
            outputs["end_logits"] = head.end_logits(flat, start_positions)
            outputs["loss"] = _loss(outputs, *labels)
        use_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if use_dict else outputs.to_tuple()


def _loss(outputs: OriginalSpanOutput, start_positions: Tensor, end_positions: Tensor, is_impossible: Tensor) -> Tensor:
    start = F.cross_entropy(outputs.start_logits, start_positions)
    end = F.cross_entropy(outputs.end_logits, end_positions)
    logits = outputs.impossible_logits
    answerability = F.binary_cross_entropy_with_logits(logits, is_impossible.to(logits.dtype))
    return (start + end) / 2 + _ANSWERABILITY_WEIGHT * answerability


def _flatten(
    hidden_states: Tensor, token_type_ids: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> _Flat:
    cu_seqlens = kwargs.get("cu_seq_lens_q")
    batch_size, width = hidden_states.shape[:2]
    allowed = token_type_ids.expand(batch_size, width).flatten() == 1
    if cu_seqlens is None:
        packing = packing_of_full(batch_size, width, hidden_states.device)
        is_token = allowed.new_ones(batch_size, width) if attention_mask is None else attention_mask != 0
        allowed = allowed & is_token.flatten()
    else:
        packing = packing_of_lengths(cu_seqlens, width, kwargs.get("max_length_q") or int(cu_seqlens.diff().max()))
        is_token = packing.padding_mask
    allowed = allowed.index_fill(0, packing.cu_seqlens[:-1].long(), True)
    sequences = packing.padded_index // packing.max_seqlen
    return _Flat(hidden_states.flatten(0, 1), allowed, sequences, packing, is_token)


def _top(log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best `count` of the last dimension; where there are fewer, the rest are of probability 0, at position 0."""
    found = log_probs.topk(min(count, log_probs.shape[-1]))
    missing = count - found.values.shape[-1]
    return F.pad(found.values, (0, missing), value=-torch.inf), F.pad(found.indices, (0, missing))
