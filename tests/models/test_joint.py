"""The joint model against benchmarks/plain.py and stock transformers, fed the same masks and samples."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from benchmarks import plain
from electra_fast import ElectraConfig, ElectraForJointPreTraining
from electra_fast.models import initialize_weights

CLS, SEP, MASK, PAD = 2, 3, 4, 0
SLOW = pytest.mark.skipif(not os.environ.get("ELECTRA_FAST_TEST_ALL"), reason="compiles; set ELECTRA_FAST_TEST_ALL=1")


def tiny_configs(
    *, dropout: float = 0.0, vocab_size: int = 300, layers: int = 2, **discriminator
) -> tuple[ElectraConfig, ElectraConfig]:
    shared = {
        "vocab_size": vocab_size,
        "embedding_size": 24,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    small = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 40}
    large = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 56}
    return ElectraConfig(**shared, **small), ElectraConfig(**(shared | large | discriminator))


def joint_model(*, dropout: float = 0.0, layers: int = 2, **options) -> ElectraForJointPreTraining:
    options = {"mask_token_id": MASK, "never_mask_ids": (CLS, SEP, MASK)} | options
    model = ElectraForJointPreTraining(*tiny_configs(dropout=dropout, layers=layers), **options)
    # Larger than the recipe's 0.02, so that every part of the network shows in the losses and gradients.
    initialize_weights(model, std=0.3)
    return model


class Ragged(NamedTuple):
    padded: Tensor  # int64 [B, S]
    mask: Tensor  # bool [B, S]
    flat: Tensor  # int64 [T]
    cu_seqlens: Tensor  # int32 [B + 1]


def ragged_batch(seed: int, lengths: tuple[int, ...] = (20, 7, 3, 15, 2)) -> Ragged:
    g = np.random.default_rng(seed)
    padded = torch.full((len(lengths), max(lengths)), PAD)
    for row, n in zip(padded, lengths, strict=True):
        row[:n] = torch.from_numpy(g.integers(5, 300, n))
        row[0], row[n - 1] = CLS, SEP
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Ragged(padded, mask, padded[mask], torch.tensor(np.cumsum((0, *lengths)), dtype=torch.int32))


def plain_inputs(batch: Ragged, out) -> dict[str, Tensor]:
    """The masks and samples of a packed call, laid out for the plain model."""
    used = out.masked.weights > 0
    positions = out.masked.positions[used]

    def padded(flat: Tensor) -> Tensor:
        return torch.zeros_like(batch.padded, dtype=flat.dtype).masked_scatter(batch.mask, flat)

    is_masked = torch.zeros(len(batch.flat), dtype=torch.bool)
    is_masked[positions] = True
    samples = batch.flat.clone()
    samples[positions] = out.sampled_ids[used]
    return {
        "is_masked": padded(is_masked),
        "masked_ids": padded(out.masked.input_ids[: len(batch.flat)]),
        "sampled_ids": padded(samples),
    }


@pytest.mark.parametrize("tie", ["shared", "untied", "gdes"])
@pytest.mark.parametrize("packed", [True, False])
def test_losses_and_gradients_equal_the_plain_reference(tie, packed, rng_seed):
    torch.set_default_dtype(torch.float64)
    try:
        model = joint_model(tie=tie)
        batch = ragged_batch(rng_seed)
        if packed:
            out = model(batch.flat, cu_seqlens=batch.cu_seqlens, seed=rng_seed)
        else:
            out = model(batch.padded, attention_mask=batch.mask, seed=rng_seed)
        reference = plain.from_joint(model)
        expected = reference(batch.padded, batch.mask, **plain_inputs(batch, out))
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip((out.loss, out.generator_loss, out.discriminator_loss), expected[:3], strict=True):
        assert abs(ours.item() - theirs.item()) <= 1e-5 * abs(theirs.item())

    out.loss.backward()
    expected.loss.backward()
    ours = dict(model.named_parameters())
    theirs = {plain.joint_name(name): p for name, p in reference.named_parameters()}
    assert theirs.keys() == ours.keys()
    for name, parameter in theirs.items():
        largest = float(parameter.grad.abs().max())
        assert float((ours[name].grad - parameter.grad).abs().max()) <= 1e-5 * max(largest, 1e-3), name


def test_float32_losses_and_gradients_equal_the_plain_reference(rng_seed):
    model = ElectraForJointPreTraining(*tiny_configs(), mask_token_id=MASK, never_mask_ids=(CLS, SEP, MASK))
    batch = ragged_batch(rng_seed)
    out = model(batch.flat, cu_seqlens=batch.cu_seqlens, seed=rng_seed)
    reference = plain.from_joint(model)
    expected = reference(batch.padded, batch.mask, **plain_inputs(batch, out))
    assert float(out.loss) == pytest.approx(float(expected.loss), rel=1e-5)
    out.loss.backward()
    expected.loss.backward()
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    theirs = {plain.joint_name(name): p.grad for name, p in reference.named_parameters()}
    theirs = torch.cat([theirs[name].flatten() for name, _ in model.named_parameters()])
    assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


@pytest.mark.usefixtures("_float64")
def test_padding_packing_and_order_change_nothing(rng_seed):
    """The same text gets the same masks and samples padded, packed, in another order and in a smaller batch."""
    model = joint_model(max_per_sequence=3)
    batch = ragged_batch(rng_seed)
    ids = torch.tensor([11, 12, 13, 14, 15])
    packed = model(batch.flat, cu_seqlens=batch.cu_seqlens, sequence_ids=ids, seed=7)
    padded = model(batch.padded, attention_mask=batch.mask, sequence_ids=ids, seed=7)
    assert float(packed.loss) == pytest.approx(float(padded.loss), rel=1e-5)
    assert torch.equal(padded.corrupted_ids[batch.mask], packed.corrupted_ids)
    assert torch.equal(padded.corrupted_ids[~batch.mask], batch.padded[~batch.mask])

    order = torch.tensor([3, 0, 2])
    part = model(batch.padded[order], attention_mask=batch.mask[order], sequence_ids=ids[order], seed=7)
    assert torch.equal(part.corrupted_ids, padded.corrupted_ids[order])
    left = torch.flip(batch.padded, [1])[:, :0].new_full(batch.padded.shape, PAD)
    left_mask = torch.flip(batch.mask, [1])
    left[left_mask] = batch.flat
    again = model(left, attention_mask=left_mask, sequence_ids=ids, seed=7)
    assert torch.equal(again.masked.positions, padded.masked.positions)
    assert torch.equal(again.masked.input_ids[: len(batch.flat)], padded.masked.input_ids[: len(batch.flat)])


def test_the_rules_of_the_recipe(rng_seed):
    model = joint_model()
    batch = ragged_batch(rng_seed, (40,) * 64)
    out = model(batch.padded, seed=rng_seed)
    used = out.masked.weights > 0
    positions, labels = out.masked.positions[used], out.masked.labels[used]
    flat = batch.flat
    assert len(positions) == 64 * 6  # round(40 * 0.15) = 6 = int(0.155 * 40)
    assert len(positions.unique()) == len(positions)
    assert torch.equal(flat[positions], labels)
    assert not torch.isin(labels, torch.tensor([CLS, SEP, MASK, PAD])).any()
    hidden = out.masked.input_ids[positions]
    assert torch.isin(hidden, torch.tensor([MASK])).logical_or(hidden == labels).all()
    # 384 draws at 0.85, which is passed once in 10^12 runs.
    assert abs(float((hidden == MASK).float().mean()) - 0.85) < 0.14
    # Replaced means different from the original: a sample that equals it counts as real.
    corrupted = out.corrupted_ids.flatten()
    assert torch.equal(corrupted[positions], out.sampled_ids[used])
    replaced = int((corrupted != flat).sum())
    assert int(out.rtd.true_positives + out.rtd.false_negatives) == replaced
    assert int(out.rtd.count) == flat.numel()
    assert float(out.loss) == pytest.approx(float(out.generator_loss + 50 * out.discriminator_loss), rel=1e-6)


def test_sampling_the_true_token_counts_as_original():
    model = joint_model()
    with torch.no_grad():  # a generator that is sure of token 9, in a text that is all 9s
        model.generator.generator_lm_head.bias[9] = 1000.0
    ids = torch.full((4, 20), 9)
    out = model(ids, seed=3)
    assert int(out.masked.weights.sum()) > 0
    assert int(out.rtd.true_positives + out.rtd.false_negatives) == 0
    assert torch.equal(out.corrupted_ids, ids)


def test_disallow_correct_and_temperature_change_the_sample_only(rng_seed):
    model = joint_model()
    ids = ragged_batch(rng_seed, (30,) * 8).padded
    out = model(ids, seed=1)
    model.temperature = 0.01
    colder = model(ids, seed=1)
    assert float(colder.generator_loss) == float(out.generator_loss)
    assert not torch.equal(colder.sampled_ids, out.sampled_ids)

    model = joint_model()
    with torch.no_grad():  # a generator that is nearly sure of token 9, in a text that is all 9s
        model.generator.generator_lm_head.bias[9] = 20.0
    ids = torch.full((8, 30), 9)
    out = model(ids, seed=1)
    model.disallow_correct = True
    other = model(ids, seed=1)
    assert float(other.generator_loss) == float(out.generator_loss)
    used = out.masked.weights > 0
    assert (out.sampled_ids == 9)[used].any()
    assert not (other.sampled_ids == 9)[used].any()


def test_no_gradient_from_the_discriminator_reaches_the_generator(rng_seed):
    """Except through the embeddings that both use."""
    model = joint_model(generator_weight=0.0)
    batch = ragged_batch(rng_seed)
    model(batch.flat, cu_seqlens=batch.cu_seqlens).loss.backward()
    shared = {id(p) for p in model.discriminator.parameters()}
    own = [p for p in model.generator.parameters() if id(p) not in shared]
    assert len(own) > 30
    assert all(p.grad is None or not p.grad.any() for p in own)
    assert model.discriminator.electra.embeddings.word_embeddings.weight.grad.any()


def test_the_padding_row_gets_no_gradient_from_the_look_up(rng_seed):
    model = joint_model(tie="untied")
    batch = ragged_batch(rng_seed)
    model(batch.padded, attention_mask=batch.mask).loss.backward()
    gradient = model.discriminator.electra.embeddings.word_embeddings.weight.grad
    assert gradient.any()
    assert not gradient[PAD].any()
    assert not model.generator.electra.embeddings.word_embeddings.weight[PAD].any()


def test_with_tied_embeddings_the_padding_row_learns_from_the_projection_alone(rng_seed):
    model = joint_model(discriminator_weight=0.0)
    batch = ragged_batch(rng_seed)
    out = model(batch.padded, attention_mask=batch.mask, seed=3)
    word = model.generator.electra.embeddings.word_embeddings.weight
    (whole,) = torch.autograd.grad(out.loss, word)
    # The same step with the look-up's rows cut off from the graph.
    generator = joint_model(discriminator_weight=0.0, tie="untied")
    generator.load_state_dict(model.state_dict())
    out = generator(batch.padded, attention_mask=batch.mask, seed=3)
    lm_head = generator.generator.generator_lm_head
    assert lm_head.weight is generator.generator.electra.embeddings.word_embeddings.weight
    lm_head.weight = torch.nn.Parameter(lm_head.weight.detach().clone())
    out = generator(batch.padded, attention_mask=batch.mask, seed=3)
    (projection,) = torch.autograd.grad(out.loss, lm_head.weight)
    assert float((whole[PAD] - projection[PAD]).abs().max()) <= 1e-6 * float(whole.abs().max())
    assert float((whole[5:] - projection[5:]).abs().max()) > 1e-3 * float(whole.abs().max())


@pytest.mark.usefixtures("_float64")
def test_counts_of_a_larger_batch_make_accumulation_exact(rng_seed):
    model = joint_model(max_per_sequence=4)
    batch = ragged_batch(rng_seed, (25, 9, 14, 30))
    ids = torch.arange(4)
    whole = model(batch.padded, attention_mask=batch.mask, sequence_ids=ids, seed=5)
    counts = {"masked_count": whole.masked.weights.sum(), "token_count": whole.rtd.count}
    parts = [
        model(batch.padded[rows], attention_mask=batch.mask[rows], sequence_ids=ids[rows], seed=5, **counts).loss
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert float(sum(parts)) == pytest.approx(float(whole.loss), rel=1e-5)


def test_tied_parameters_are_one(rng_seed):
    model = joint_model()
    ours, theirs = model.generator.electra.embeddings, model.discriminator.electra.embeddings
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
        assert getattr(ours, name) is getattr(theirs, name)
    assert model.generator.generator_lm_head.weight is theirs.word_embeddings.weight
    untied = joint_model(tie="untied")
    assert (
        untied.generator.electra.embeddings.word_embeddings
        is not untied.discriminator.electra.embeddings.word_embeddings
    )
    with pytest.raises(ValueError, match="hidden_size"):
        joint_model(tie="all")
    same = tiny_configs()[1]
    everything = ElectraForJointPreTraining(same, same, tie="all", mask_token_id=MASK)
    assert everything.generator.electra is everything.discriminator.electra


def test_checkpoints_load_in_stock_transformers_with_the_same_logits(tmp_path, rng_seed):
    model = joint_model(temperature=1.5).eval()
    model.save_pretrained(tmp_path)
    batch = ragged_batch(rng_seed)
    kwargs = {"input_ids": batch.padded, "attention_mask": batch.mask.long()}
    discriminator = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "discriminator").eval()
    generator = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "generator").eval()
    with torch.no_grad():
        for stock, ours in ((discriminator, model.discriminator), (generator, model.generator)):
            assert type(stock) is not type(ours)
            difference = stock(**kwargs).logits - ours(**kwargs).logits
            assert float(difference[batch.mask].abs().max()) <= 2e-5

        packing = model.packing(batch.flat, None, batch.cu_seqlens)
        flat = model.discriminate(batch.flat, packing)
        assert float((flat - discriminator(**kwargs).logits[batch.mask]).abs().max()) <= 2e-5

    again = ElectraForJointPreTraining.from_pretrained(tmp_path).eval()
    assert again.temperature == 1.5
    assert again.never_mask_ids == (CLS, SEP, MASK)
    assert torch.equal(
        again(batch.flat, cu_seqlens=batch.cu_seqlens, seed=2).loss,
        model(batch.flat, cu_seqlens=batch.cu_seqlens, seed=2).loss,
    )


# The usual run compiles packed input here, and padded input in test_objectives.py: half a minute the three.
@SLOW
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_compiles_to_one_graph_with_the_same_masks(dropout, rng_seed):
    model = joint_model(dropout=dropout, layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths in ((20, 7, 3), (11, 24, 9)):
        batch = ragged_batch(rng_seed, lengths)
        seed = torch.tensor(rng_seed)
        ours = compiled(batch.padded, attention_mask=batch.mask, seed=seed)
        eager = model(batch.padded, attention_mask=batch.mask, seed=seed)
        assert torch.equal(ours.corrupted_ids, eager.corrupted_ids)
        assert float(ours.loss) == pytest.approx(float(eager.loss), rel=1e-5)
        ours.loss.backward()
    assert model.discriminator.electra.embeddings.word_embeddings.weight.grad.isfinite().all()


def test_packed_input_compiles_to_one_graph(rng_seed):
    model = joint_model(dropout=0.1, layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths, max_seqlen in (((20, 7, 3), None), ((11, 24, 9), 24)):
        batch = ragged_batch(rng_seed, lengths)
        kwargs = {"cu_seqlens": batch.cu_seqlens, "seed": torch.tensor(rng_seed), "max_seqlen": max_seqlen}
        ours, eager = compiled(batch.flat, **kwargs), model(batch.flat, **kwargs)
        assert torch.equal(ours.corrupted_ids, eager.corrupted_ids)
        assert float(ours.loss) == pytest.approx(float(eager.loss), rel=1e-5)
        ours.loss.backward()


def known_to(parameter: Tensor, kurtosis: float) -> float:
    """Eight deviations of the relative error of a deviation that is measured on the entries of `parameter`."""
    return 8 * math.sqrt((kurtosis - 1) / (4 * parameter.numel()))


def test_initialization_is_the_originals(rng_seed):
    wide = {"embedding_size": 200, "hidden_size": 256, "vocab_size": 1000}
    configs = [
        ElectraConfig(**wide, num_hidden_layers=1, num_attention_heads=4, intermediate_size=300, pad_token_id=PAD)
        for _ in range(2)
    ]
    model = ElectraForJointPreTraining(*configs, tie="untied", mask_token_id=MASK)
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 2)[-2:]
        if kind[-1] == "bias":
            assert not parameter.any(), name
        elif kind[0] == "LayerNorm":
            assert (parameter == 1).all(), name
        elif kind[0] in ("embeddings_project", "dense_prediction"):
            bound = math.sqrt(6 / sum(parameter.shape))
            assert float(parameter.abs().max()) <= bound, name
            assert float(parameter.std()) == pytest.approx(bound / math.sqrt(3), rel=known_to(parameter, 1.8)), name
        else:
            # Cut at two deviations, a normal keeps 0.8796 of its deviation.
            assert float(parameter.abs().max()) <= 0.04, name
            assert float(parameter.std()) == pytest.approx(0.8796 * 0.02, rel=known_to(parameter, 2.37)), name
    for tower in (model.generator, model.discriminator):
        assert not tower.electra.embeddings.word_embeddings.weight[PAD].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, "cu_seqlens"),
        ({"input_ids": torch.zeros(2, 41, dtype=torch.long)}, "position table of 40"),
        ({"input_ids": torch.zeros(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 5)}, "attention_mask"),
        ({"input_ids": torch.zeros(2, 4, dtype=torch.long), "token_type_ids": torch.zeros(2, 3).long()}, "token_type"),
        ({"input_ids": torch.zeros(2, 4, dtype=torch.long), "sequence_ids": torch.arange(3)}, "sequence_ids"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        joint_model()(**arguments)


def test_sequences_that_are_empty_or_all_special_tokens():
    model = joint_model()
    ids = torch.tensor([[CLS, SEP, PAD, PAD], [PAD, PAD, PAD, PAD], [CLS, 9, SEP, PAD]])
    out = model(ids, attention_mask=ids != PAD, seed=0)
    assert int(out.masked.weights.sum()) == 1
    assert int(out.rtd.count) == 5
    assert out.loss.isfinite()


@pytest.mark.gpu
def test_masks_and_losses_on_a_gpu_equal_those_on_the_cpu(rng_seed):
    model = joint_model()
    batch = ragged_batch(rng_seed)
    ours = model(batch.flat, cu_seqlens=batch.cu_seqlens, seed=rng_seed)
    model.cuda()
    out = model(batch.flat.cuda(), cu_seqlens=batch.cu_seqlens.cuda(), seed=rng_seed)
    for name in ("input_ids", "positions", "labels", "weights"):
        assert torch.equal(getattr(out.masked, name).cpu(), getattr(ours.masked, name)), name
    assert float(out.generator_loss) == pytest.approx(float(ours.generator_loss), rel=1e-3)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
