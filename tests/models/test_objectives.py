"""Each objective of the joint model: what it computes, what it trains, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from tests.models.test_joint import joint_model, ragged_batch


def call(model, batch, objective: str, **arguments):
    return model(batch.flat, cu_seqlens=batch.cu_seqlens, objective=objective, **arguments)


@pytest.mark.parametrize("tie", ["shared", "untied"])
def test_without_dropout_the_parts_are_those_of_the_joint_step(tie, rng_seed):
    model = joint_model(tie=tie)
    batch = ragged_batch(rng_seed)
    joint = call(model, batch, "joint", seed=rng_seed)
    generator = call(model, batch, "generator", seed=rng_seed)
    discriminator = call(model, batch, "discriminator", seed=rng_seed)

    assert torch.equal(generator.loss, joint.generator_loss)
    assert torch.equal(generator.sampled_ids, joint.sampled_ids)
    assert generator.discriminator_loss is None
    assert generator.corrupted_ids is None
    assert generator.rtd is None
    assert torch.equal(discriminator.corrupted_ids, joint.corrupted_ids)
    assert torch.equal(discriminator.discriminator_loss, joint.discriminator_loss)
    assert torch.equal(discriminator.loss, 50 * joint.discriminator_loss)
    assert discriminator.generator_loss is None
    assert torch.equal(discriminator.rtd.score_histogram, joint.rtd.score_histogram)

    names, parameters = zip(*model.named_parameters(), strict=True)
    whole = torch.autograd.grad(joint.loss, parameters)
    parts = [
        torch.autograd.grad(part.loss, parameters, allow_unused=True, materialize_grads=True)
        for part in (generator, discriminator)
    ]
    for name, gradient, a, b in zip(names, whole, *parts, strict=True):
        assert float((a + b - gradient).abs().max()) <= 1e-5 * max(float(gradient.abs().max()), 1e-3), name


def test_each_objective_trains_its_tower_alone(rng_seed):
    model = joint_model(tie="untied")
    batch = ragged_batch(rng_seed)
    for objective, trained, untouched in (
        ("generator", model.generator, model.discriminator),
        ("discriminator", model.discriminator, model.generator),
    ):
        model.zero_grad()
        call(model, batch, objective).loss.backward()
        assert all(parameter.grad is not None for parameter in trained.parameters())
        assert all(parameter.grad is None for parameter in untouched.parameters())


def test_a_generator_that_only_corrupts_has_no_dropout(rng_seed):
    """Its samples are those in eval mode, and each of its parts is in its own mode afterwards."""
    model = joint_model(dropout=0.3, tie="untied")
    batch = ragged_batch(rng_seed, (30,) * 8)
    model.generator.electra.encoder.layer[0].eval()  # someone froze a layer
    modes = {name: module.training for name, module in model.named_modules()}
    trained = call(model, batch, "joint", seed=rng_seed)
    corrupted = call(model, batch, "discriminator", seed=rng_seed)
    assert {name: module.training for name, module in model.named_modules()} == modes
    again = call(model, batch, "discriminator", seed=rng_seed + 1, mask_seed=0)
    other = call(model, batch, "discriminator", seed=rng_seed + 2, mask_seed=0)
    assert not torch.equal(again.discriminator_loss, other.discriminator_loss)  # the discriminator has it
    model.eval()
    evaluated = call(model, batch, "discriminator", seed=rng_seed)
    assert torch.equal(corrupted.sampled_ids, evaluated.sampled_ids)
    assert not torch.equal(corrupted.sampled_ids, trained.sampled_ids)


@pytest.mark.parametrize("objective", ["generator", "discriminator"])
def test_an_objective_compiles_to_one_graph(objective, rng_seed):
    model = joint_model(dropout=0.1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths in ((20, 7, 3), (11, 24, 9)):
        batch = ragged_batch(rng_seed, lengths)
        arguments = {"attention_mask": batch.mask, "seed": torch.tensor(rng_seed), "objective": objective}
        ours, eager = compiled(batch.padded, **arguments), model(batch.padded, **arguments)
        assert torch.equal(ours.sampled_ids, eager.sampled_ids)
        assert float(ours.loss) == pytest.approx(float(eager.loss), rel=1e-5)
        ours.loss.backward()
    assert model.generator.training
    assert all(module.training for module in model.modules())


def test_an_unknown_objective_is_named():
    with pytest.raises(ValueError, match="one of joint, generator, discriminator.*'rtd'"):
        joint_model()(torch.zeros(2, 4, dtype=torch.long), objective="rtd")
