"""The ELECTRA classes: those of transformers with another computation inside.

Same config, weights, state-dict keys, arguments and outputs; see `electra_fast.models.tower` for what differs.
"""

# Annotations are objects in this file: transformers looks into those of `**kwargs` for what a forward can output.

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.electra import modeling_electra as stock
from transformers.models.electra.configuration_electra import ElectraConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from electra_fast.models.heads import (
    IGNORED_LABEL,
    SpanHead,
    all_tokens_if_labelled,
    first_token,
    labelled_tokens,
    reads,
    real_tokens,
    sequence_summary,
)
from electra_fast.models.layers import FlatEmbeddings, FlatLayer, generator_hidden, is_plain, needs_plain_operators
from electra_fast.models.swap import Swapped, replaces
from electra_fast.models.tower import FlatTower, pop_return_dict
from electra_fast.ops.generator_head import linear_cross_entropy_sample
from electra_fast.ops.rtd_bce import rtd_bce

__all__ = [
    "ElectraConfig",
    "ElectraForCausalLM",
    "ElectraForMaskedLM",
    "ElectraForMultipleChoice",
    "ElectraForPreTraining",
    "ElectraForQuestionAnswering",
    "ElectraForSequenceClassification",
    "ElectraForTokenClassification",
    "ElectraModel",
]


@replaces(stock.ElectraEmbeddings)
class ElectraEmbeddings(FlatEmbeddings, stock.ElectraEmbeddings):
    pass


@replaces(stock.ElectraLayer)
class ElectraLayer(FlatLayer, stock.ElectraLayer):
    stock_parts = (
        stock.ElectraAttention,
        stock.ElectraSelfAttention,
        stock.ElectraSelfOutput,
        stock.ElectraIntermediate,
        stock.ElectraOutput,
    )


@replaces(stock.ElectraGeneratorPredictions)
class ElectraGeneratorPredictions(stock.ElectraGeneratorPredictions):
    def forward(self, generator_hidden_states: Tensor) -> Tensor:
        return generator_hidden(self, generator_hidden_states)


@replaces(stock.ElectraModel)
class ElectraModel(Swapped, FlatTower, stock.ElectraModel):
    stock_encoder = stock.ElectraEncoder


@replaces(stock.ElectraForSequenceClassification)
@reads(first_token)
class ElectraForSequenceClassification(Swapped, stock.ElectraForSequenceClassification):
    """Packed input gives logits [B, labels], one row for each sequence, and takes as many labels."""


@replaces(stock.ElectraForTokenClassification)
@reads(labelled_tokens)
class ElectraForTokenClassification(Swapped, stock.ElectraForTokenClassification):
    pass


@replaces(stock.ElectraForMultipleChoice)
@reads(sequence_summary, takes_packed=False)
class ElectraForMultipleChoice(Swapped, stock.ElectraForMultipleChoice):
    pass


@replaces(stock.ElectraForCausalLM)
@reads(all_tokens_if_labelled)
class ElectraForCausalLM(Swapped, stock.ElectraForCausalLM, GenerationMixin):  # transformers looks for it in the bases
    accepts_loss_kwargs = True  # its loss divides by num_items_in_batch


@replaces(stock.ElectraForQuestionAnswering)
@reads(all_tokens_if_labelled)
class ElectraForQuestionAnswering(Swapped, SpanHead, stock.ElectraForQuestionAnswering):
    pass


@replaces(stock.ElectraForPreTraining)
@reads(real_tokens)
class ElectraForPreTraining(Swapped, stock.ElectraForPreTraining):
    """Labels of -100 count for nothing, as in the other heads; transformers' own class has no such label here."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> stock.ElectraForPreTrainingOutput | tuple[Tensor, ...]:
        arguments = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        if labels is None or labels.is_floating_point() or needs_plain_operators():
            return super().forward(*arguments, labels, **kwargs)
        return_dict = pop_return_dict(self.config, kwargs)
        outputs = super().forward(*arguments, return_dict=True, **kwargs)
        logits = outputs.logits
        counted = labels != IGNORED_LABEL
        if attention_mask is not None:
            counted = counted & (attention_mask == 1)
        rtd = rtd_bce(logits.flatten(), (labels != 0).flatten(), counted.flatten())
        outputs = stock.ElectraForPreTrainingOutput(loss=(rtd.loss_sum / rtd.count).to(logits.dtype), **outputs)
        return outputs if return_dict else outputs.to_tuple()


@replaces(stock.ElectraForMaskedLM)
@reads(labelled_tokens)
class ElectraForMaskedLM(Swapped, stock.ElectraForMaskedLM):
    """`forward(..., labels=labels, return_logits=False)` projects labelled positions only: same loss, logits None."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_logits: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        arguments = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        if return_logits:
            return super().forward(*arguments, labels, **kwargs)
        if labels is None:
            raise ValueError("return_logits=False without labels leaves nothing to return: give labels")
        return_dict = pop_return_dict(self.config, kwargs)
        outputs = self.electra(*arguments, return_dict=True, **kwargs)
        loss = self._loss_of_labelled(outputs.last_hidden_state.flatten(0, 1), labels.flatten())
        outputs = MaskedLMOutput(loss=loss, hidden_states=outputs.hidden_states, attentions=outputs.attentions)
        return outputs if return_dict else outputs.to_tuple()

    def _loss_of_labelled(self, hidden_states: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the `labels` [N] that are not -100; hidden_states [N, H]."""
        is_labelled = labels != IGNORED_LABEL
        head = self.generator_lm_head
        if needs_plain_operators():
            return F.cross_entropy(head(self.generator_predictions(hidden_states)), labels)
        if not torch.compiler.is_compiling():  # a graph has one shape, so it projects all positions
            positions = is_labelled.nonzero().squeeze(1)
            hidden_states, labels, is_labelled = hidden_states[positions], labels[positions], is_labelled[positions]
        hidden = generator_hidden(self.generator_predictions, hidden_states)
        if not is_plain(head, nn.Linear):
            return F.cross_entropy(head(hidden), labels)
        weights = is_labelled.float()
        labels = torch.where(is_labelled, labels, 0)
        result = linear_cross_entropy_sample(hidden, head.weight, head.bias, labels, weights, seed=0)
        return (result.loss_sum / weights.sum()).to(hidden.dtype)
