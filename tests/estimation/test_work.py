"""FLOPs against what PyTorch counts in the real model; parts of phases and curricula by hand."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from electra_fast.estimation.trial import random_sequences
from electra_fast.estimation.work import _generator_steps, made_up_corpus, work_of
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.config import ConfigError, PretrainConfig
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.phases import Phase

LENGTH, MASKED, SEQUENCES, VOCABULARY = 20, 3, 4, 90  # 0.15 * 20 is a whole number: no slot for a mask stays empty
SIZES = {
    "model.embedding_size": 24,
    "model.hidden_size": 32,
    "model.num_hidden_layers": 3,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 80,
    "model.generator.hidden_size": 16,
    "model.generator.num_hidden_layers": 2,
    "model.generator.num_attention_heads": 2,
    "model.generator.intermediate_size": 40,
    "objective.max_per_sequence": MASKED,
    "data.max_length": LENGTH,
    "data.batch_size": SEQUENCES,
    "training.steps": 10,
}
ONE_SIZE = {f"model.generator.{name.removeprefix('model.')}": SIZES[name] for name in list(SIZES)[1:5]}


def run(**overrides: object) -> PretrainConfig:
    return read_config("tiny", SIZES | overrides)


def attention(q, k, v, *_, out_shape=None, **__) -> int:  # [T, heads, D], of SEQUENCES full sequences
    tokens, heads, head_dim = q
    return 2 * 2 * tokens * LENGTH * heads * head_dim


def attention_backward(d_out, q, k, v, *_, out_shape=None, **__) -> int:
    return 2 * attention(q, k, v)


def head(hidden, weight, *_, out_shape=None, **__) -> int:  # logits, and both gradients in the same call
    return 3 * 2 * hidden[0] * hidden[1] * weight[0]


def head_without_gradients(hidden, weight, *_, out_shape=None, **__) -> int:
    return 2 * hidden[0] * hidden[1] * weight[0]


def counted(config: PretrainConfig, objective: str) -> int:
    """FLOPs of a step of the real model by PyTorch, which must be told of our operators."""
    model = build_model(config, made_up_corpus(VOCABULARY)).train()
    ops = torch.ops.electra_fast
    formulas = {
        ops.varlen_attention: attention,
        ops.varlen_attention_backward: attention_backward,
        ops.linear_cross_entropy_sample: head_without_gradients if objective == "discriminator" else head,
    }
    ids, starts = random_sequences(SEQUENCES, LENGTH, VOCABULARY, torch.device("cpu"))
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        out = model(ids, cu_seqlens=starts, max_seqlen=LENGTH, objective=objective)
        out.loss.backward()
    assert int((out.masked.weights > 0).sum()) == SEQUENCES * MASKED == len(out.masked.weights)
    return counter.get_total_flops()


def not_computed(config: PretrainConfig, objective: str) -> int:
    """The predictor's last layer goes on with the masked tokens alone, which the usual rule does not know."""
    tower = config.model if objective == "mlm" else config.model.generator
    rows = SEQUENCES * (LENGTH - MASKED)
    forward = rows * 2 * (tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size)
    return forward if objective == "discriminator" else 3 * forward


@pytest.mark.parametrize("objective", ["joint", "generator", "discriminator", "mlm"])
@pytest.mark.parametrize("tie", ["shared", "untied", "gdes", "all"])
def test_flops_are_what_pytorch_counts(tie, objective, rng_seed):
    config = run(**{"model.tie": tie}, **(ONE_SIZE if tie == "all" else {}), schedule=f"[{{objective: {objective}}}]")
    part = work_of(config, vocab_size=VOCABULARY).parts[0]
    assert part.flops_per_step == pytest.approx(counted(config, objective) + not_computed(config, objective), rel=1e-9)


def test_parameters_count_once_what_is_shared():
    model = build_model(run(), made_up_corpus(VOCABULARY))
    work = work_of(run(), vocab_size=VOCABULARY)
    state = {p.data_ptr(): p.numel() for p in model.parameters()}
    assert work.parameters == sum(state.values()) < work.generator + work.discriminator
    untied = work_of(run(**{"model.tie": "untied"}), vocab_size=VOCABULARY)
    assert untied.parameters == untied.generator + untied.discriminator
    assert all(p.device.type == "meta" for p in work.model.parameters())


def steps_of(config: PretrainConfig, **options: float) -> list[tuple[str, int, int, int]]:
    work = work_of(config, vocab_size=VOCABULARY, **options)
    assert work.tokens == sum(part.tokens_per_step * part.steps for part in work.parts)
    assert work.flops == pytest.approx(sum(part.flops_per_token * part.tokens for part in work.parts))
    return [(part.objective, part.max_length, part.tokens_per_step, part.steps) for part in work.parts]


def test_phases_and_curriculum_cross():
    config = run(
        **{"data.curriculum": "[{steps: 7, max_length: 8, batch_size: 6}, {batch_tokens: 60}]"},
        schedule="[{objective: generator, steps: 5}, {steps: 4}, {objective: mlm}]",
    )
    assert steps_of(config) == [
        ("generator", 8, 48, 5),
        ("joint", 8, 48, 2),
        ("joint", 20, 60, 2),
        ("mlm", 20, 60, 10),
    ]


def test_turns_and_epochs():
    turns = run(**{"model.tie": "untied"}, schedule="[{objective: alternate, steps: 25, turn_steps: 10}]")
    assert steps_of(turns) == [("generator", 20, 80, 15), ("discriminator", 20, 80, 10)]
    epochs = run(schedule="[{epochs: 1.5}, {objective: generator, epochs: 3, steps: 4}]")
    assert steps_of(epochs, steps_per_epoch=6.0) == [("joint", 20, 80, 9), ("generator", 20, 80, 4)]
    with pytest.raises(ConfigError, match=r"schedule\[0\]\.epochs counts passes over a corpus: give it with"):
        work_of(epochs)
    by_epoch = run(**{"model.tie": "untied"}, schedule="[{objective: alternate, steps: 9}]")
    assert steps_of(by_epoch, steps_per_epoch=2.5) == [("generator", 20, 80, 5), ("discriminator", 20, 80, 4)]
    with pytest.raises(ConfigError, match="turn_steps"):
        work_of(by_epoch)


def test_turns_are_those_of_the_run(rng_seed):
    """Steps counted one by one, by what the training loop asks."""
    g = random.Random(rng_seed)
    for _ in range(50):
        turn, steps = g.randint(1, 30), g.randint(1, 200)
        phase = Phase("alternate", steps, None, SimpleNamespace(), turn, False)
        asked = [phase.objective_at(step) for step in range(steps)]
        assert _generator_steps(turn, steps) == asked.count("generator"), (turn, steps)


def test_recipes_are_the_published_sums():
    """ELECTRA's paper, table 6: tokens; MFLOP a token as in tests/pretraining/test_throughput.py."""
    small = work_of(read_config("small"))
    assert small.tokens == 128 * 128 * 10**6
    assert small.flops == pytest.approx(70.2e6 * small.tokens, rel=2e-3)
    assert small.discriminator == pytest.approx(13.5e6, rel=0.01)


def test_a_vocabulary_that_can_not_be():
    with pytest.raises(ConfigError, match="vocab_size must be at least 5"):
        work_of(run(), vocab_size=3)
