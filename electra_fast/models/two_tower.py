"""Electric's generator: every token of a text predicted from all the others, in one pass and without [MASK].

T tokens, H hidden of one tower, E embedding.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers.models.electra import modeling_electra as stock

from electra_fast.models.electra import ElectraConfig, ElectraModel
from electra_fast.models.layers import FlatBatch, generator_hidden
from electra_fast.models.tower import STREAMS_PER_TOWER, encode
from electra_fast.ops.random import sequence_of_tokens


class TwoTowerGenerator(nn.Module):
    """A left-to-right and a right-to-left transformer, whose states on both sides of a token predict it.

    Source: Clark et al. 2020, "Pre-Training Transformers as Energy-Based Cloze Models", on the noise distribution;
    google-research/electra, run_pretraining.py (`TwoTowerClozeTransformer`). There the states beyond a sequence's ends
    are those of its other end, by which its first and last token see themselves; here they are zeros.

    `config` is the size of each tower. Embeddings and the projection onto the vocabulary are the caller's.
    """

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.left_to_right = ElectraModel(copy.deepcopy(config))
        self.right_to_left = ElectraModel(copy.deepcopy(config))
        del self.left_to_right.embeddings, self.right_to_left.embeddings
        both = copy.deepcopy(config)
        both.hidden_size = 2 * config.hidden_size
        self.predictions = stock.ElectraGeneratorPredictions(both)

    def forward(
        self,
        embeddings: nn.Module,
        input_ids: Tensor,
        flat: FlatBatch,
        token_type_ids: Tensor | None = None,
        *,
        stream: int = 0,
    ) -> Tensor:
        """What the projection onto the vocabulary needs to predict each of flat `input_ids` [T]: [T, E].

        Row t depends on the tokens of its sequence other than t. `stream` is the first of 2 * STREAMS_PER_TOWER for the
        dropout; that of attention draws from torch's generator, since `sdpa` attends. The tail's rows mean nothing.
        """
        packing = flat.packing
        flat = flat._replace(is_causal=True, backend="sdpa")
        before = encode(
            self.left_to_right,
            flat,
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            stream=stream,
            embeddings=embeddings,
        )  # [T, H]

        mirror, is_first, is_last = _mirror(packing.cu_seqlens, input_ids.shape[0])
        positions = packing.padded_index % max(packing.max_seqlen, 1)
        after = encode(
            self.right_to_left,
            flat._replace(row_ids=None if flat.row_ids is None else flat.row_ids[mirror]),
            input_ids=input_ids[mirror],
            token_type_ids=None if token_type_ids is None else token_type_ids[mirror],
            position_ids=positions[mirror],
            stream=stream + STREAMS_PER_TOWER,
            embeddings=embeddings,
        )[mirror]
        before = before.roll(1, dims=0).masked_fill(is_first.unsqueeze(1), 0.0)
        after = after.roll(-1, dims=0).masked_fill(is_last.unsqueeze(1), 0.0)
        return generator_hidden(self.predictions, torch.cat([before, after], dim=1))


def _mirror(cu_seqlens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each token goes when every sequence is turned round, int64 [T], and which begin and which end one, bool."""
    tokens = torch.arange(num_tokens, device=cu_seqlens.device)
    # The tail counts as one more sequence.
    bounds = torch.cat([cu_seqlens.long(), cu_seqlens.new_full((1,), num_tokens, dtype=torch.long)])
    sequences = sequence_of_tokens(cu_seqlens, tokens)
    first, last = bounds[sequences], bounds[sequences + 1] - 1
    return first + last - tokens, tokens == first, tokens == last
