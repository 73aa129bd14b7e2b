"""The BERT classes of transformers with ELECTRA's computation: their layers are the same code under another name."""

from __future__ import annotations

from torch import Tensor
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert as stock
from transformers.utils import ModelOutput

from electra_fast.models.heads import (
    SpanHead,
    all_tokens_if_labelled,
    first_token,
    labelled_and_first_tokens,
    labelled_tokens,
    reads,
)
from electra_fast.models.layers import FlatEmbeddings, FlatLayer, norm_of_head
from electra_fast.models.swap import Swapped, replaces
from electra_fast.models.tower import FlatTower


@replaces(stock.BertEmbeddings)
class BertEmbeddings(FlatEmbeddings, stock.BertEmbeddings):
    pass


@replaces(stock.BertLayer)
class BertLayer(FlatLayer, stock.BertLayer):
    stock_parts = (
        stock.BertAttention,
        stock.BertSelfAttention,
        stock.BertSelfOutput,
        stock.BertIntermediate,
        stock.BertOutput,
    )


@replaces(stock.BertPredictionHeadTransform)
class BertPredictionHeadTransform(stock.BertPredictionHeadTransform):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return norm_of_head(self.LayerNorm, self.transform_act_fn(self.dense(hidden_states)))


@replaces(stock.BertModel)
class BertModel(Swapped, FlatTower, stock.BertModel):
    stock_encoder = stock.BertEncoder

    def _result(self, hidden_states: Tensor, starts: Tensor | None) -> ModelOutput:
        pooled = None
        if self.pooler is not None:
            pooled = self.pooler(hidden_states if starts is None else hidden_states[0, starts].unsqueeze(1))
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden_states, pooler_output=pooled)


@replaces(stock.BertForPreTraining)
@reads(labelled_and_first_tokens)
class BertForPreTraining(Swapped, stock.BertForPreTraining):
    pass


@replaces(stock.BertLMHeadModel)
@reads(all_tokens_if_labelled)
class BertLMHeadModel(Swapped, stock.BertLMHeadModel, GenerationMixin):  # transformers looks for it in the bases
    accepts_loss_kwargs = True  # its loss divides by num_items_in_batch


@replaces(stock.BertForMaskedLM)
@reads(labelled_tokens)
class BertForMaskedLM(Swapped, stock.BertForMaskedLM):
    pass


@replaces(stock.BertForNextSentencePrediction)
@reads(first_token)
class BertForNextSentencePrediction(Swapped, stock.BertForNextSentencePrediction):
    pass


@replaces(stock.BertForSequenceClassification)
@reads(first_token)
class BertForSequenceClassification(Swapped, stock.BertForSequenceClassification):
    pass


@replaces(stock.BertForMultipleChoice)
@reads(first_token, takes_packed=False)
class BertForMultipleChoice(Swapped, stock.BertForMultipleChoice):
    pass


@replaces(stock.BertForTokenClassification)
@reads(labelled_tokens)
class BertForTokenClassification(Swapped, stock.BertForTokenClassification):
    pass


@replaces(stock.BertForQuestionAnswering)
@reads(all_tokens_if_labelled)
class BertForQuestionAnswering(Swapped, SpanHead, stock.BertForQuestionAnswering):
    pass
