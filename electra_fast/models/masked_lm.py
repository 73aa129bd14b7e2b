"""Masked language modelling of the discriminator's encoder, as BERT is trained."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from electra_fast.models.electra import ElectraConfig, ElectraForMaskedLM, ElectraGeneratorPredictions
from electra_fast.models.objectives import FlatInputs, JointPreTrainingOutput, corrupt, mean_nll

if TYPE_CHECKING:
    from electra_fast.models.joint import ElectraForJointPreTraining


class MaskedLMHead(ElectraGeneratorPredictions):
    """The head of ElectraForMaskedLM on another model's encoder, onto whose word embeddings it projects."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))


def mlm(model: ElectraForJointPreTraining, inputs: FlatInputs) -> JointPreTrainingOutput:
    """Its loss at the masked tokens; no generator runs.

    Source: google-research/electra, run_pretraining.py, `electra_objective=False`; the weight is the generator's there
    too. Chosen tokens become [MASK] or stay, none becomes a random one.
    """
    corruption = corrupt(model, inputs, predictor="mlm")
    loss = mean_nll(corruption, inputs)
    return JointPreTrainingOutput(
        loss=model.generator_weight * loss,
        mlm_loss=loss.detach(),
        masked=corruption.masked,
        sampled_ids=corruption.sampled_ids,
    )


def masked_lm(config: ElectraConfig, weights: dict[str, Tensor], head: MaskedLMHead) -> ElectraForMaskedLM:
    """The encoder `electra.*` of `weights` under `head`, sharing their memory; to be saved."""
    weights = {name: tensor for name, tensor in weights.items() if name.startswith("electra.")}
    weights |= {f"generator_predictions.{name}": tensor for name, tensor in head.state_dict().items()}
    weights["generator_lm_head.bias"] = weights.pop("generator_predictions.bias")
    weights["generator_lm_head.weight"] = weights["electra.embeddings.word_embeddings.weight"]
    with torch.device("meta"):  # neither memory nor random numbers for weights that are replaced at once
        model = ElectraForMaskedLM(copy.deepcopy(config))
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model
