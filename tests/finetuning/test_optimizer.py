"""The learning rate of every layer, written out beside the formula, and the update itself in float64."""

from __future__ import annotations

import random
import re

import pytest
import torch
import transformers
from torch import nn

from electra_fast.finetuning.optimizer import BETAS, EPS, build_optimizer, layer_rates

SHAPE = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}


def _electra(layers: int) -> nn.Module:
    config = transformers.ElectraConfig(embedding_size=4, num_hidden_layers=layers, **SHAPE)
    return transformers.ElectraForSequenceClassification(config)


def _bert(layers: int) -> nn.Module:
    return transformers.BertForTokenClassification(transformers.BertConfig(num_hidden_layers=layers, **SHAPE))


def _expected(name: str, layers: int, decay: float) -> float:
    """google-research/electra's depths, by the names of transformers, with the last layer decayed once."""
    if name.startswith("classifier"):
        depth = layers + 1
    elif "embeddings" in name:
        depth = 0
    else:
        depth = int(re.fullmatch(r"\w+\.encoder\.layer\.(\d+)\..*", name)[1]) + 1
    return decay ** (layers + 1 - depth)


@pytest.mark.parametrize("build", [_electra, _bert])
def test_rates_are_those_of_the_formula(build: object, rng_seed: int) -> None:
    rng = random.Random(rng_seed)
    layers, decay = rng.randint(1, 12), rng.uniform(0.5, 1.0)
    model = build(layers)
    rates = layer_rates(model, decay)
    doubled = layer_rates(model, decay, doubled=True)
    names = [name for name, _ in model.named_parameters()]
    assert list(rates) == list(doubled) == names
    for name in names:
        expected = _expected(name, layers, decay)
        assert rates[name] == pytest.approx(expected, rel=1e-12)
        # The original's layers + 2 in the exponent, but for the head.
        assert doubled[name] == pytest.approx(
            expected if name.startswith("classifier") else expected * decay, rel=1e-12
        )
    assert rates[names[0]] == pytest.approx(decay ** (layers + 1), rel=1e-12)  # word embeddings
    last = f"{model.base_model_prefix}.encoder.layer.{layers - 1}.output.dense.weight"
    assert (rates[last], doubled[last]) == pytest.approx((decay, decay**2), rel=1e-12)


def test_a_decoder_has_the_full_rate(rng_seed: int) -> None:
    decay = random.Random(rng_seed).uniform(0.5, 0.95)
    encoder = transformers.ElectraModel(transformers.ElectraConfig(embedding_size=4, num_hidden_layers=3, **SHAPE))
    decoder = transformers.ElectraForCausalLM(
        transformers.ElectraConfig(
            embedding_size=4, num_hidden_layers=2, is_decoder=True, add_cross_attention=True, **SHAPE
        )
    )
    rates = layer_rates(transformers.EncoderDecoderModel(encoder=encoder, decoder=decoder), decay)
    assert {rate for name, rate in rates.items() if name.startswith("decoder.")} == {1.0}
    assert rates["encoder.encoder.layer.2.output.dense.bias"] == pytest.approx(decay)
    assert rates["encoder.embeddings.word_embeddings.weight"] == pytest.approx(decay**4)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_updates_in_float64(bias_correction: bool, rng_seed: int) -> None:
    """Against Adam's equations with decoupled decay, parameter by parameter."""
    rng = random.Random(rng_seed)
    lr, weight_decay, decay = rng.uniform(1e-4, 1e-2), rng.uniform(0.01, 0.1), rng.uniform(0.5, 0.9)
    model = _electra(2).double()
    optimizer = build_optimizer(
        model, learning_rate=lr, weight_decay=weight_decay, layer_decay=decay, bias_correction=bias_correction
    )
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    m = {name: torch.zeros_like(value) for name, value in values.items()}
    v = {name: torch.zeros_like(value) for name, value in values.items()}
    for step in range(1, 4):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            rate = lr * _expected(name, 2, decay)
            m[name] = BETAS[0] * m[name] + (1 - BETAS[0]) * parameter.grad
            v[name] = BETAS[1] * v[name] + (1 - BETAS[1]) * parameter.grad**2
            first, second = (1 - BETAS[0] ** step, 1 - BETAS[1] ** step) if bias_correction else (1, 1)
            if not ("LayerNorm" in name or name.endswith("bias")):
                values[name] *= 1 - rate * weight_decay
            values[name] -= rate * (m[name] / first) / ((v[name] / second).sqrt() + EPS)
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), values[name], rtol=1e-9, atol=1e-12, msg=name)


def test_frozen_parameters_are_left_out() -> None:
    model = _electra(2)
    model.electra.embeddings.requires_grad_(False)
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.0, layer_decay=0.8, bias_correction=False)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
