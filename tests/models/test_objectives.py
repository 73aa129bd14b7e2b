"""Each objective of the joint model: what it computes, what it trains, and what it leaves alone."""

from __future__ import annotations

import copy
import json
import os

import pytest
import torch
import transformers

from electra_fast import ElectraConfig, ElectraForJointPreTraining
from electra_fast.models import initialize_discriminator
from electra_fast.models.gdes import folded
from electra_fast.models.layers import FlatBatch
from electra_fast.models.tower import encode
from electra_fast.pretraining.checkpoint import load_checkpoint, save_checkpoint
from electra_fast.pretraining.config import OptimizerConfig
from electra_fast.pretraining.optimizer import build_optimizer, is_decayed
from tests.models.test_joint import CLS, MASK, PAD, SEP, joint_model, ragged_batch, tiny_configs

SLOW = pytest.mark.skipif(os.environ.get("ELECTRA_FAST_TEST_ALL") != "1", reason="runs with ELECTRA_FAST_TEST_ALL=1")


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
    weight = model.discriminator.discriminator_predictions.dense.weight
    losses = [call(model, batch, "discriminator", seed=rng_seed + i, mask_seed=0).loss for i in (1, 2)]
    assert not torch.equal(*(torch.autograd.grad(loss, weight)[0] for loss in losses))  # the discriminator has it
    model.eval()
    evaluated = call(model, batch, "discriminator", seed=rng_seed)
    assert torch.equal(corrupted.sampled_ids, evaluated.sampled_ids)
    assert not torch.equal(corrupted.sampled_ids, trained.sampled_ids)


@pytest.mark.parametrize(
    ("objective", "tie"),
    [
        ("discriminator", "gdes"),
        pytest.param("generator", "shared", marks=SLOW),
        pytest.param("mlm", "shared", marks=SLOW),
        pytest.param("mlm", "gdes", marks=SLOW),
        pytest.param("joint", "gdes", marks=SLOW),
    ],
)
def test_an_objective_compiles_to_one_graph(objective, tie, rng_seed):
    torch.compiler.reset()  # else what was compiled before counts towards the limit of recompilations
    configs = [ElectraConfig(**{**config.to_dict(), "num_hidden_layers": 1}) for config in tiny_configs(dropout=0.1)]
    model = ElectraForJointPreTraining(*configs, mask_token_id=MASK, tie=tie, objectives=(objective,))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths in ((20, 7, 3), (11, 24, 9)):
        batch = ragged_batch(rng_seed, lengths)
        arguments = {"attention_mask": batch.mask, "seed": torch.tensor(rng_seed), "objective": objective}
        ours, eager = compiled(batch.padded, **arguments), model(batch.padded, **arguments)
        assert torch.equal(ours.sampled_ids, eager.sampled_ids)
        assert float(ours.loss.detach()) == pytest.approx(float(eager.loss.detach()), rel=1e-5)
        ours.loss.backward()
    assert all(module.training for module in model.modules())


def test_an_unknown_objective_is_named():
    with pytest.raises(ValueError, match=r"one of joint, generator, discriminator.*'rtd'"):
        joint_model()(torch.zeros(2, 4, dtype=torch.long), objective="rtd")


def test_objectives_that_need_more_say_so():
    ids = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"needs a module of its own: objectives=\('joint', 'mlm'\) makes it"):
        joint_model()(ids, objective="mlm")
    with pytest.raises(ValueError, match=r"one of joint.*'bert'"):
        joint_model(objectives=("joint", "bert"))


@pytest.mark.parametrize("tie", ["shared", "untied", "gdes"])
def test_masked_language_modelling_is_that_of_stock_transformers(tie, tmp_path, rng_seed):
    """The loss, its gradients, and the checkpoint: stock ElectraForMaskedLM, from the saved folder, has them too."""
    model = joint_model(tie=tie, objectives=("mlm",))
    shift_deltas(model)
    batch = ragged_batch(rng_seed)
    out = model(batch.padded, attention_mask=batch.mask, objective="mlm", seed=rng_seed)
    assert torch.equal(out.loss, out.mlm_loss)
    assert out.generator_loss is out.discriminator_loss is out.rtd is None
    out.loss.backward()

    folders = model.save_pretrained(tmp_path)
    assert folders == [tmp_path / name for name in ("generator", "discriminator", "mlm")]
    stock = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "mlm").eval()
    used = out.masked.weights > 0
    labels = torch.full((len(batch.flat),), -100).index_put((out.masked.positions[used],), out.masked.labels[used])
    padded = torch.full_like(batch.padded, -100).masked_scatter(batch.mask, labels)
    masked_ids = torch.zeros_like(batch.padded).masked_scatter(batch.mask, out.masked.input_ids[: len(batch.flat)])
    loss = stock(input_ids=masked_ids, attention_mask=batch.mask.long(), labels=padded).loss
    assert float(out.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    loss.backward()
    names = {
        "electra.encoder.layer.0.intermediate.dense.weight": model.discriminator.electra.encoder.layer[0].intermediate,
        "generator_predictions.dense.weight": model.mlm_head,
    }
    for name, module in names.items():
        ours, theirs = module.dense.weight.grad, stock.get_parameter(name).grad
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm()), name
    assert float((model.mlm_head.bias.grad - stock.generator_lm_head.bias.grad).abs().max()) <= 1e-6
    words = model.discriminator.electra.embeddings.word_embeddings
    gradient = words.delta.grad if tie == "gdes" else words.weight.grad
    theirs = stock.electra.embeddings.word_embeddings.weight.grad
    assert float((gradient - theirs).norm()) <= 1e-5 * float(theirs.norm())
    # Neither the generator's layers nor the head that detects.
    assert all(p.grad is None for p in model.generator.electra.encoder.parameters())
    assert all(p.grad is None for p in model.discriminator.discriminator_predictions.parameters())


def shift_deltas(model) -> None:
    """Differences that show, in place of the zeros that GDES starts with."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".delta"):
                parameter.normal_(std=0.3)


@pytest.mark.parametrize("objectives", [("joint",), ("generator", "mlm")])
@pytest.mark.parametrize("tie", ["shared", "untied", "all", "gdes"])
def test_a_saved_folder_gives_everything_back(tie, objectives, tmp_path, rng_seed):
    configs = [tiny_configs()[1]] * 2 if tie == "all" else tiny_configs()
    model = ElectraForJointPreTraining(
        *configs, mask_token_id=MASK, never_mask_ids=(CLS, SEP, MASK), tie=tie, objectives=objectives
    ).eval()
    shift_deltas(model)
    before = torch.get_rng_state()
    model.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # a run that saves goes on with the same bits
    again = ElectraForJointPreTraining.from_pretrained(tmp_path).eval()
    assert again.objectives == objectives
    assert again.tie == tie
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())

    batch = ragged_batch(rng_seed)
    kwargs = {"input_ids": batch.padded, "attention_mask": batch.mask.long()}
    discriminator = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "discriminator").eval()
    with torch.no_grad():
        logits = model.discriminate(batch.flat, model.packing(batch.flat, None, batch.cu_seqlens))
        assert float((logits - discriminator(**kwargs).logits[batch.mask]).abs().max()) <= 2e-5
    # Saved over another kind of model, nothing of that one is left.
    if tie == "gdes":
        joint_model().save_pretrained(tmp_path)
        assert ElectraForJointPreTraining.from_pretrained(tmp_path).tie == "shared"
        assert not (tmp_path / "electra_fast.safetensors").exists()


def test_a_folder_of_the_first_format_loads(tmp_path):
    model = joint_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "electra_fast.json"
    options = json.loads(file.read_text()) | {"format_version": 1}
    del options["objectives"]
    file.write_text(json.dumps(options))
    assert ElectraForJointPreTraining.from_pretrained(tmp_path).objectives == ("joint",)


def test_gdes_gives_the_generator_no_gradient_of_the_discriminator(rng_seed):
    """The discriminator reads sg(E_G) + delta: its gradient with respect to that sum is delta's, and delta's alone."""
    model = joint_model(tie="gdes")
    shift_deltas(model)
    batch = ragged_batch(rng_seed)
    call(model, batch, "discriminator", seed=rng_seed).loss.backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())

    # An untied model whose tables are the sums.
    untied = joint_model(tie="untied")
    untied.generator.load_state_dict(model.generator.state_dict())
    untied.discriminator.load_state_dict(folded(model.discriminator))
    call(untied, batch, "discriminator", seed=rng_seed).loss.backward()
    ours, theirs = model.discriminator.electra.embeddings, untied.discriminator.electra.embeddings
    for name in ("word_embeddings", "position_embeddings"):
        gradient, expected = getattr(ours, name).delta.grad, getattr(theirs, name).weight.grad
        assert float((gradient - expected).norm()) <= 1e-6 * float(expected.norm())
    assert not ours.word_embeddings.delta.grad[PAD].any()
    for name in ("token_type_embeddings", "LayerNorm"):
        assert torch.equal(getattr(ours, name).weight.grad, getattr(theirs, name).weight.grad)
        assert getattr(ours, name) is not getattr(model.generator.electra.embeddings, name)

    model.zero_grad()
    call(model, batch, "generator", seed=rng_seed).loss.backward()
    assert ours.word_embeddings.delta.grad is None
    assert model.generator.electra.embeddings.word_embeddings.weight.grad.any()


def test_gdes_starts_as_the_generators_embeddings_and_has_names_of_its_own(rng_seed):
    model = joint_model(tie="gdes")
    generator, discriminator = model.generator.electra.embeddings, model.discriminator.electra.embeddings
    assert torch.equal(discriminator.word_embeddings.weight, generator.word_embeddings.weight)
    names = [name for name, _ in model.named_parameters() if "word_embeddings" in name or "position_emb" in name]
    assert sorted(names) == [
        "discriminator.electra.embeddings.position_embeddings.delta",
        "discriminator.electra.embeddings.word_embeddings.delta",
        "generator.electra.embeddings.position_embeddings.weight",
        "generator.electra.embeddings.word_embeddings.weight",
    ]
    assert all(is_decayed(name) for name in names)
    # Copies and other dtypes keep the two together.
    for other in (copy.deepcopy(model), joint_model(tie="gdes").to(torch.bfloat16)):
        table = other.generator.electra.embeddings.word_embeddings.weight
        with torch.no_grad():
            table += 1.0
        assert torch.equal(other.discriminator.electra.embeddings.word_embeddings.weight, table)
    assert not torch.equal(discriminator.word_embeddings.weight, table)


@pytest.mark.parametrize("tie", ["shared", "untied", "all", "gdes"])
def test_a_checkpoint_holds_every_part(tie, tmp_path, rng_seed):
    """Two steps, a checkpoint, two more; and again from the checkpoint: the same bits."""
    configs = [tiny_configs(dropout=0.1)[1]] * 2 if tie == "all" else tiny_configs(dropout=0.1)

    def run():
        model = ElectraForJointPreTraining(*configs, mask_token_id=MASK, tie=tie, objectives=("joint", "mlm"))
        return model, build_optimizer(model, OptimizerConfig(lr=1e-2))

    def train(model, optimizer, steps) -> None:
        for step in steps:
            objective = ("joint", "mlm", "generator", "discriminator")[step % 4]
            optimizer.zero_grad()
            call(model, batch, objective, seed=step).loss.backward()
            optimizer.step()

    batch = ragged_batch(rng_seed)
    model, optimizer = run()
    train(model, optimizer, range(3))
    path = save_checkpoint(tmp_path, 3, model, optimizer, {}, keep=1)
    train(model, optimizer, range(3, 6))
    again, its_optimizer = run()
    load_checkpoint(path, again, its_optimizer)
    train(again, its_optimizer, range(3, 6))
    for (name, ours), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("tie", ["shared", "untied", "gdes"])
def test_the_discriminator_starts_from_the_generator(tie, rng_seed):
    config = tiny_configs()[1]
    model = ElectraForJointPreTraining(config, config, tie=tie, mask_token_id=MASK)
    shift_deltas(model)
    parameters = list(model.parameters())
    sources = initialize_discriminator(model)
    assert (None in sources.values()) == (tie == "gdes")
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))  # an optimizer still has them
    batch = ragged_batch(rng_seed)
    packing = model.packing(batch.flat, None, batch.cu_seqlens)
    flat = FlatBatch(packing, None, None)
    ours, theirs = (
        encode(tower.electra, flat, input_ids=batch.flat) for tower in (model.generator, model.discriminator)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tie", ["untied", "gdes"])
def test_a_discriminator_of_another_size_starts_from_the_embeddings_alone(tie):
    model = joint_model(tie=tie)
    shift_deltas(model)
    layers = copy.deepcopy(model.discriminator.electra.encoder.state_dict())
    with pytest.warns(RuntimeWarning, match="embeddings alone"):
        initialize_discriminator(model)
    for name, table in folded(model.discriminator).items():
        if name.startswith("electra.embeddings."):
            assert torch.equal(table, model.generator.state_dict()[name]), name
    assert all(torch.equal(model.discriminator.electra.encoder.state_dict()[name], w) for name, w in layers.items())

    generator, discriminator = tiny_configs(embedding_size=40)
    model = ElectraForJointPreTraining(generator, discriminator, tie="untied", mask_token_id=MASK)
    with pytest.raises(
        ValueError, match=r"generator.*word_embeddings.weight is \(300, 24\), disc.*word_embeddings.weight \(300, 40\)"
    ):
        initialize_discriminator(model)
