"""The original's classification head, which is simpler than transformers'."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import ElectraConfig
from transformers import initialization as init

from electra_fast.models import ElectraForSequenceClassification


class GlorotLinear(nn.Linear):
    """A layer of a new head, drawn as there: Glorot's uniform distribution, biases 0. See `init_glorot`."""


def init_glorot(module: nn.Module) -> None:
    """For the end of a model's `_init_weights`: transformers calls it with each module that has weights of its own."""
    if isinstance(module, GlorotLinear):
        init.xavier_uniform_(module.weight)
        init.zeros_(module.bias)


class OriginalClassificationHead(nn.Module):
    """[CLS] -> dropout -> linear; hidden_states [B, S, H] -> logits [B, labels].

    transformers has another linear layer, a GELU and a dropout in between. Source: google-research/electra,
    finetune/classification/classification_tasks.py.
    """

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = GlorotLinear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return self.out_proj(self.dropout(hidden_states[:, 0]))


class ElectraForOriginalClassification(ElectraForSequenceClassification):
    """`ElectraForSequenceClassification` with the original's head, drawn as there (Glorot, biases 0).

    Its weights load with this class only: stock transformers finds no `classifier.dense` and draws one.
    """

    config_class = ElectraConfig

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        self.classifier = OriginalClassificationHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_glorot(module)
