"""A tower (`ElectraModel`, `BertModel`) without its padding: packed once, layers on flat tokens, padded once."""

# Annotations are objects in this file: transformers looks into those of `**kwargs` for what a forward can output.

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs

from electra_fast.models.layers import FlatBatch, FlatEmbeddings, FlatLayer, is_observed, needs_plain_operators
from electra_fast.ops.random import draw_seed, sequence_of_tokens
from electra_fast.packing import Packing, packing_of_full, packing_of_lengths, packing_without_padding

# Each dropout of a tower has a stream: the first is the embeddings', then come each layer's attention, its output, and
# the output of its feed-forward network.
STREAMS_PER_TOWER = 2**16

# What attends on flat tokens for each `attn_implementation`; the others (eager, flex_attention, paged, hub kernels) are
# transformers' own, padded. "sdpa" is what transformers sets where nobody asks for anything: the fastest.
_ATTENTION = {"sdpa": None, "flash_attention_2": "flash_attn"}
_PACKED_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# Arguments that don't decide the path.
_IGNORED_ARGUMENTS = {*_PACKED_ARGUMENTS, "num_items_in_batch"}


class HeadReads(NamedTuple):
    """What a head does with the tower's result, beyond reading the real tokens."""

    first_only: bool = False  # it reads the first token of each sequence and nothing else
    padding_if: Tensor | bool | None = None  # (bool, 0-d) it reads padding; None: if a row begins with padding


READS_REAL_TOKENS = HeadReads()


def encode(
    tower: nn.Module,
    flat: FlatBatch,
    *,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    stream: int = 0,
    rows: Tensor | None = None,
    embeddings: nn.Module | None = None,
    states: list[Tensor] | None = None,
) -> Tensor:
    """Hidden states [T, H] of flat `input_ids` [T] or `inputs_embeds` [T, E]; those of the tail mean nothing.

    Where a vendor's kernel attends (see `electra_fast.attention`), its dropout draws from torch's generator.

    Args:
        token_type_ids: int64 [T]; None: zeros.
        position_ids: int64 [T]; None: the token's place in its sequence or, for a padded batch, its column.
        stream: the first of the STREAMS_PER_TOWER streams that the tower's dropout uses.
        rows: int64 [R], the tokens whose hidden states are wanted; the result is [R, H], and the last layer computes no
            others. None: all.
        embeddings: another module's; None: the tower's own.
        states: receives the hidden states [T, H] that each layer reads.
    """
    if position_ids is None:
        position_ids = flat.packing.padded_index % max(flat.packing.max_seqlen, 1)
    embeddings = tower.embeddings if embeddings is None else embeddings
    noise: dict[str, Any] = {}
    if isinstance(embeddings, FlatEmbeddings):
        noise = {"seed": flat.seed, "stream": stream, "row_ids": flat.row_ids}
    hidden_states = embeddings(
        input_ids=None if input_ids is None else input_ids.unsqueeze(0),
        token_type_ids=None if token_type_ids is None else token_type_ids.unsqueeze(0),
        position_ids=position_ids.unsqueeze(0),
        inputs_embeds=None if inputs_embeds is None else inputs_embeds.unsqueeze(0),
        **noise,
    )
    if hasattr(tower, "embeddings_project"):
        hidden_states = tower.embeddings_project(hidden_states)
    last = len(tower.encoder.layer) - 1
    for index, layer in enumerate(tower.encoder.layer):
        wanted = rows if index == last else None
        if states is not None:
            states.append(hidden_states.squeeze(0))
        hidden_states = layer(hidden_states, flat=flat, stream=stream + 1 + 3 * index, rows=wanted)
    return hidden_states.squeeze(0) if rows is None or last >= 0 else hidden_states[0].index_select(0, rows)


class FlatTower:
    """Mixed into `ElectraModel` and `BertModel`.

    Results are transformers' own, but for zeros where there is padding. What can't be had from flat tokens (see
    `_is_flat`), and a batch whose padding matters, takes transformers' padded path.

    Packed input is what transformers' padding-free collators give: `input_ids` [1, T] with `cu_seq_lens_q` and
    `max_length_q`. Packed sequences never see each other; where there are no `position_ids`, each begins at 0.
    """

    stock_encoder: type[nn.Module]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        *,
        head_reads: HeadReads = READS_REAL_TOKENS,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ModelOutput | tuple[Tensor, ...]:
        return_dict = pop_return_dict(self.config, kwargs)
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        packing = None
        if kwargs.get("cu_seq_lens_q") is not None:
            packing = _packing_of_arguments(tokens, attention_mask, kwargs)
            _check_position_table(self.config, packing, position_ids)
        is_flat = encoder_hidden_states is None and past_key_values is None and self._is_flat(attention_mask, kwargs)
        if is_flat and packing is None and (input_ids is None) != (inputs_embeds is None):
            packing = _packing_of_batch(tokens, attention_mask, position_ids, head_reads, self.config)
        # Where the sequences begin in a packed result [1, T, H].
        starts = (
            first_tokens(packing) if packing is not None and packing.is_packed and not head_reads.first_only else None
        )
        if is_flat and packing is not None:
            flat = _flatten(packing, input_ids, token_type_ids, position_ids, inputs_embeds)
            hidden_states = self._flat_hidden_states(packing, flat, head_reads)
            outputs = self._result(hidden_states, starts)
            return outputs if return_dict else outputs.to_tuple()

        if packing is not None:
            attention_mask, position_ids, kwargs = self._padded_arguments(packing, position_ids, kwargs)
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        if packing is not None:
            hidden_states = outputs.last_hidden_state
            if head_reads.first_only:
                hidden_states = hidden_states[0, first_tokens(packing)].unsqueeze(1)
            for name, value in self._result(hidden_states, starts).items():
                outputs[name] = value
        return outputs if return_dict else outputs.to_tuple()

    def _result(self, hidden_states: Tensor, starts: Tensor | None) -> ModelOutput:
        """As transformers returns `hidden_states`; `starts` [B] is where sequences begin in a packed [1, T, H]."""
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)

    def _is_flat(self, attention_mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
        """Whether flat tokens can give what is asked for; if not, transformers' own forward does."""
        config = self.config
        if config._attn_implementation not in _ATTENTION or needs_plain_operators() or config.is_decoder:
            return False
        if getattr(config, "is_causal", None):
            return False
        for name, value in kwargs.items():
            if name not in _IGNORED_ARGUMENTS and value is not None and value is not False:
                return False
        if config.output_attentions or config.output_hidden_states:
            return False
        # Which tokens are real decides shapes, which a compiled graph can't wait for.
        if attention_mask is not None and (attention_mask.dim() != 2 or torch.compiler.is_compiling()):
            return False
        return self._is_intact() and not is_observed(self)

    def _is_intact(self) -> bool:
        """Whether the tower's parts are ours or transformers' own, and nobody has put another forward into one."""
        if not isinstance(self.embeddings, FlatEmbeddings) or type(self.encoder) is not self.stock_encoder:
            return False
        if "forward" in self.embeddings.__dict__ or "forward" in self.encoder.__dict__:
            return False
        return all(isinstance(layer, FlatLayer) and layer.is_intact() for layer in self.encoder.layer)

    def _flat_hidden_states(self, packing: Packing, flat: dict[str, Tensor | None], head_reads: HeadReads) -> Tensor:
        """[B, S, H] of a padded batch, with zeros for padding; [1, T, H] of a packed one; or first tokens [B, 1, H]."""
        seed = draw_seed(packing.cu_seqlens.device) if self.training else None
        batch = FlatBatch(packing, seed, None, _ATTENTION[self.config._attn_implementation])
        rows = first_tokens(packing) if head_reads.first_only else None
        hidden_states = encode(self, batch, **flat, rows=rows)
        if head_reads.first_only:
            return hidden_states.unsqueeze(1)
        return hidden_states.unsqueeze(0) if packing.is_packed else packing.pad(hidden_states)

    def _padded_arguments(
        self, packing: Packing, position_ids: Tensor | None, kwargs: dict[str, Any]
    ) -> tuple[Tensor | None, Tensor, dict[str, Any]]:
        """What makes transformers' forward keep packed sequences apart: a mask, positions, and the other arguments."""
        if position_ids is None:
            position_ids = (packing.padded_index % packing.max_seqlen).unsqueeze(0)
        if self.config._attn_implementation == "flash_attention_2":
            return None, position_ids, kwargs  # which reads cu_seq_lens_q itself
        tokens = torch.arange(packing.is_real.shape[0], device=packing.cu_seqlens.device)
        sequences = sequence_of_tokens(packing.cu_seqlens, tokens)
        create_mask = create_causal_mask if self.config.is_decoder else create_bidirectional_mask
        mask = create_mask(
            config=self.config,
            inputs_embeds=torch.empty(1, tokens.shape[0], 1, dtype=self.dtype, device=tokens.device),
            attention_mask=None,
            past_key_values=None,
            and_mask_function=lambda batch, head, query, key: sequences[query] == sequences[key],
        )
        return mask, position_ids, {name: kwargs[name] for name in kwargs if name not in _PACKED_ARGUMENTS}


def _packing_of_arguments(tokens: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]) -> Packing:
    cu_seqlens, keys = kwargs["cu_seq_lens_q"], kwargs.get("cu_seq_lens_k")
    if tokens.shape[0] != 1:
        raise ValueError(f"with cu_seq_lens_q, input_ids must be packed [1, T]; got shape {tuple(tokens.shape[:2])}")
    if attention_mask is not None:
        raise ValueError("packed input has no padding: give cu_seq_lens_q or attention_mask, not both")
    if keys is not None and keys.shape != cu_seqlens.shape:
        raise ValueError(f"cu_seq_lens_q has shape {tuple(cu_seqlens.shape)}, cu_seq_lens_k {tuple(keys.shape)}")
    max_seqlen = kwargs.get("max_length_q")
    if max_seqlen is None:
        max_seqlen = int(cu_seqlens.diff().max())
    return packing_of_lengths(cu_seqlens, tokens.shape[1], max_seqlen)


def _check_position_table(config: PretrainedConfig, packing: Packing, position_ids: Tensor | None) -> None:
    if position_ids is None and packing.max_seqlen > config.max_position_embeddings:
        raise ValueError(
            f"a packed sequence of {packing.max_seqlen} tokens is longer than the position table of "
            f"{config.max_position_embeddings}: cut the text, or lengthen the table by "
            "electra_fast.models.resize_position_embeddings"
        )


def _packing_of_batch(
    tokens: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    head_reads: HeadReads,
    config: PretrainedConfig,
) -> Packing | None:
    """The packing of a padded batch [B, S]; None if it must stay padded, or is an error for transformers to report."""
    batch_size, max_seqlen = tokens.shape[:2]
    if batch_size == 0 or max_seqlen == 0 or tokens.is_meta:
        return None
    if position_ids is None and max_seqlen > config.max_position_embeddings:
        return None
    if attention_mask is None:
        return packing_of_full(batch_size, max_seqlen, tokens.device)
    if attention_mask.shape != (batch_size, max_seqlen) or type(attention_mask) is not Tensor:
        return None
    refuse = (attention_mask[:, 0] == 0).any() if head_reads.padding_if is None else head_reads.padding_if
    return packing_without_padding(attention_mask.to(tokens.device), refuse)


def _flatten(
    packing: Packing,
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
) -> dict[str, Tensor | None]:
    """[B, S, ...] -> [T, ...] for each argument; one row stands for all."""

    def flatten(argument: Tensor | None) -> Tensor | None:
        if argument is None:
            return None
        if packing.is_packed:
            return argument.squeeze(0)
        return packing.unpad(argument.expand(packing.batch_size, packing.max_seqlen, *argument.shape[2:]))

    return {
        "input_ids": flatten(input_ids),
        "token_type_ids": flatten(token_type_ids),
        "position_ids": flatten(position_ids),
        "inputs_embeds": flatten(inputs_embeds),
    }


def pop_return_dict(config: PretrainedConfig, kwargs: dict[str, Any]) -> bool:
    """Takes the argument of that name out of `kwargs`; None, which wrappers such as PEFT pass on, asks the config."""
    return_dict = kwargs.pop("return_dict", None)
    return config.return_dict if return_dict is None else return_dict


def first_tokens(packing: Packing) -> Tensor:
    """int64 [B]; some token for a sequence without any."""
    return packing.cu_seqlens[:-1].long().clamp(max=packing.is_real.shape[0] - 1)
