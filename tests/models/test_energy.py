"""The objectives `electric` and `adversarial`: against benchmarks/plain_energy.py, and against their mathematics."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from benchmarks import plain_energy
from electra_fast import ElectraConfig, ElectraForJointPreTraining
from electra_fast.models import initialize_weights, joint, pseudo_log_likelihood
from electra_fast.models.adversarial import reinforce
from electra_fast.models.cloze import log_probabilities
from electra_fast.ops.generator_head import GeneratorSample

PAD, CLS, SEP, MASK = 0, 2, 3, 4
LENGTHS = (20, 7, 3, 15, 2)
CU_SEQLENS = torch.tensor(np.cumsum((0, *LENGTHS)), dtype=torch.int32)
REAL = torch.arange(20) < torch.tensor(LENGTHS)[:, None]  # bool [B, S]


def joint_model(objective: str, *, vocab_size: int = 300, layers: int = 2, std: float = 0.3, **options: Any):
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "embedding_size": 24,
        "max_position_embeddings": 40,
        "num_hidden_layers": layers,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    options = {"mask_token_id": MASK, "never_mask_ids": (CLS, SEP, MASK), "objectives": (objective,)} | options
    model = ElectraForJointPreTraining(
        ElectraConfig(hidden_size=16, num_attention_heads=2, intermediate_size=40, **shared),
        ElectraConfig(hidden_size=32, num_attention_heads=4, intermediate_size=56, **shared),
        **options,
    )
    initialize_weights(model, std=std)  # more than the recipe's 0.02, so that every part shows
    return model


def text(vocab_size: int = 300) -> Tensor:
    """int64 [T], every sequence between [CLS] and [SEP]."""
    ids = torch.randint(5, vocab_size, (sum(LENGTHS),))
    ids[CU_SEQLENS[:-1].long()], ids[CU_SEQLENS[1:].long() - 1] = CLS, SEP
    return ids


def padded(flat: Tensor) -> Tensor:
    return torch.zeros(REAL.shape, dtype=flat.dtype).masked_scatter(REAL, flat)


def plain_losses(plain: nn.Module, flat: Tensor, out: Any) -> Any:
    """The plain model's losses of what was masked and sampled in `out`."""
    used = out.masked.weights > 0
    positions = out.masked.positions[used]
    return plain(
        padded(flat),
        REAL,
        is_masked=padded(torch.zeros(len(flat), dtype=torch.bool).index_fill(0, positions, True)),
        masked_ids=padded(out.masked.input_ids[: len(flat)]),
        sampled_ids=padded(flat.index_put((positions,), out.sampled_ids[used])),
    )


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("tie", "packed"), [("shared", True), ("shared", False), ("untied", True), ("gdes", True)])
@pytest.mark.parametrize("objective", ["electric", "adversarial"])
def test_losses_and_gradients_equal_the_plain_reference(objective, tie, packed, rng_seed):
    model = joint_model(objective, tie=tie)
    flat = text()
    if packed:
        out = model(flat, cu_seqlens=CU_SEQLENS, seed=rng_seed, objective=objective)
    else:
        out = model(padded(flat), attention_mask=REAL, seed=rng_seed, objective=objective)
    plain = plain_energy.from_joint(model)
    expected = plain_losses(plain, flat, out)
    for name in ("loss", "generator_loss", "discriminator_loss"):
        ours, theirs = getattr(out, name).item(), getattr(expected, name).item()
        assert abs(ours - theirs) <= 1e-6 * abs(theirs), name

    out.loss.backward()
    expected.loss.backward()
    ours = dict(model.named_parameters())
    theirs = {plain_energy.energy_name(name): p for name, p in plain.named_parameters()}
    assert theirs.keys() == ours.keys()
    for name, parameter in theirs.items():
        if parameter.grad is None:  # Electric does without the generator's own encoder and head
            assert objective == "electric", name
            assert name.startswith("generator."), name
            assert ours[name].grad is None, name
            continue
        largest = float(parameter.grad.abs().max())
        assert float((ours[name].grad - parameter.grad).abs().max()) <= 1e-5 * max(largest, 1e-3), name


# --- REINFORCE --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_float64")
def test_reinforce_is_the_gradient_of_the_expected_reward(rng_seed, monkeypatch):
    """One masked token, every sample there can be, each weighted by its probability: no luck in it."""
    vocab_size = 9
    model = joint_model("adversarial", vocab_size=vocab_size, tie="untied", max_per_sequence=1)
    ids = torch.tensor([[CLS, 5, 6, 7, 8, 6, SEP]])
    parameters = list(model.generator.parameters())
    head = joint.linear_cross_entropy_sample
    rewards, estimates = [], []
    for token in range(vocab_size):

        def draw(*tensors: Tensor, token: int = token, **options: Any) -> GeneratorSample:
            return head(*tensors, **options)._replace(sampled_ids=torch.tensor([token]))

        monkeypatch.setattr(joint, "linear_cross_entropy_sample", draw)
        out = model(ids, seed=1, objective="adversarial")
        assert float(out.masked.weights.sum()) == 1.0
        estimates.append(torch.autograd.grad(out.loss, parameters, allow_unused=True))
        rewards.append(out.reward)
        # The reward is the discriminator's loss where the token stands.
        is_replaced = token != int(out.masked.labels)
        logits = model.discriminator(out.corrupted_ids).logits[0, out.masked.positions]
        right = torch.sigmoid(logits if is_replaced else -logits)
        assert float(out.reward) == pytest.approx(-float(torch.log(right)), rel=1e-9)

    monkeypatch.setattr(joint, "linear_cross_entropy_sample", head)
    packing = model.packing(ids)
    corruption = model.corrupt(ids[0], packing, seed=1)
    probabilities = model.generator.generator_lm_head(corruption.hidden).softmax(-1)[0]  # [V]
    expected_reward = (probabilities * torch.stack(rewards)).sum()
    truth = torch.autograd.grad(-expected_reward, parameters)
    largest = max(float(gradient.abs().max()) for gradient in truth)
    assert largest > 1e-6
    for index, gradient in enumerate(truth):
        terms = [p.detach() * estimate[index] for p, estimate in zip(probabilities, estimates, strict=True)]
        assert float((sum(terms) - gradient).abs().max()) <= 1e-9 * largest


@pytest.mark.usefixtures("_float64")
def test_the_baseline_learns_alone(rng_seed):
    """Its gradient is (sigmoid(w . h) - exp(-R)) h, summed; that of nobody else has a part in it."""
    model = joint_model("adversarial", tie="untied", generator_weight=0.0, discriminator_weight=0.0)
    ids = text()
    out = model(ids, cu_seqlens=CU_SEQLENS, seed=rng_seed, objective="adversarial")
    out.loss.backward()
    assert all(p.grad is None or not p.grad.any() for name, p in model.named_parameters() if name != "baseline.weight")

    packing = model.packing(ids, cu_seqlens=CU_SEQLENS)
    corruption = model.corrupt(ids, packing, seed=rng_seed)
    used = corruption.masked.weights > 0
    positions, states = corruption.masked.positions[used], corruption.states[used].detach()
    logits = model.discriminate(corruption.corrupted_ids, packing)[positions].detach()
    right = torch.sigmoid(torch.where(corruption.is_replaced[positions], logits, -logits))
    wrong = torch.sigmoid(states @ model.baseline.weight[0].detach()) - right
    expected = (wrong[:, None] * states).sum(0) / used.sum()
    torch.testing.assert_close(model.baseline.weight.grad[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_float64")
def test_log_probabilities_of_other_tokens(rng_seed):
    projection = nn.Linear(12, 30)
    nn.init.normal_(projection.bias)
    hidden = torch.randn(7, 12, requires_grad=True)
    labels, ids = torch.randint(30, (2, 7))
    log_p = projection(hidden).log_softmax(-1)
    nll = -log_p.gather(1, labels[:, None]).squeeze(1)
    expected = log_p.gather(1, ids[:, None]).squeeze(1)
    ours = log_probabilities(projection, hidden, labels, nll, ids)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    leaves, upstream = (hidden, *projection.parameters()), torch.randn(7)
    for a, b in zip(
        *(torch.autograd.grad(x, leaves, upstream, retain_graph=True) for x in (ours, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_unused_slots_may_hold_anything():
    nothing = torch.tensor([0.0, float("nan")])
    sums = reinforce(nothing, nothing, torch.tensor([True, False]), nothing, torch.tensor([1.0, 0.0]))
    assert all(total.isfinite() for total in sums)


# --- Noise-contrastive estimation -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("mask_prob", [0.15, 0.4])
def test_the_noise_contrastive_loss_written_out(mask_prob, rng_seed):
    """-log of the probability that a token is data, or noise, of densities (1 - p) exp(-E) and p q."""
    model = joint_model("electric", mask_prob=mask_prob)
    flat = text()
    out = model(flat, cu_seqlens=CU_SEQLENS, seed=rng_seed, objective="electric")
    plain = plain_energy.from_joint(model)
    types = torch.zeros_like(padded(flat))
    noisy = out.corrupted_ids
    with torch.no_grad():
        q = plain.cloze_logits(padded(flat), REAL, types).softmax(-1)[REAL].numpy()  # [T, V], of the text as it was
        energy = plain.discriminator_logits(padded(noisy), REAL, types)[REAL].numpy()
    noise, data = mask_prob * q[np.arange(len(flat)), noisy.numpy()], (1 - mask_prob) * np.exp(-energy)
    is_noise = np.zeros(len(flat), dtype=bool)
    is_noise[out.masked.positions[out.masked.weights > 0].numpy()] = True
    losses = -np.log(np.where(is_noise, noise, data) / (noise + data))
    assert float(out.discriminator_loss) == pytest.approx(losses.mean(), rel=1e-9)
    # A token that noise left as it was is noise all the same.
    assert int(out.rtd.true_positives + out.rtd.false_negatives) == is_noise.sum()
    assert is_noise.sum() >= 5


def test_noise_is_drawn_from_q(rng_seed):
    """A generator that is sure of one token puts nothing else, and that counts as noise in a text of that token too."""
    model = joint_model("electric")
    with torch.no_grad():
        model.generator.generator_lm_head.bias[9] = 1000.0
    ids = torch.full((4, 20), 9)
    out = model(ids, seed=3, objective="electric")
    assert torch.equal(out.corrupted_ids, ids)
    assert int(out.rtd.true_positives + out.rtd.false_negatives) == int(out.masked.weights.sum()) == 4 * 3
    out = model(torch.full((4, 20), 8), seed=3, objective="electric")
    assert int((out.corrupted_ids == 9).sum()) == 4 * 3


@pytest.mark.usefixtures("_float64")
def test_padding_packing_and_order_change_nothing(rng_seed):
    model = joint_model("electric", max_per_sequence=3)
    flat, names = text(), torch.tensor([11, 12, 13, 14, 15])
    packed = model(flat, cu_seqlens=CU_SEQLENS, sequence_ids=names, seed=7, objective="electric")
    out = model(padded(flat), attention_mask=REAL, sequence_ids=names, seed=7, objective="electric")
    assert float(packed.loss) == pytest.approx(float(out.loss), rel=1e-5)
    assert torch.equal(out.corrupted_ids[REAL], packed.corrupted_ids)
    order = torch.tensor([3, 0, 2])
    part = model(
        padded(flat)[order], attention_mask=REAL[order], sequence_ids=names[order], seed=7, objective="electric"
    )
    assert torch.equal(part.corrupted_ids, out.corrupted_ids[order])


def test_energies_become_log_probabilities(tmp_path):
    """Of tokens drawn independently, each has the energy -log p; the saved discriminator scores in transformers."""
    torch.manual_seed(3)  # 18 other seeds: a correlation of 0.964 to 0.997, at most 0.19 nats a token off
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    model = joint_model("electric", vocab_size=12, layers=1, std=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def draw(count: int) -> Tensor:
        ids = 5 + torch.multinomial(probabilities, count * 16, replacement=True).view(count, 16)
        ids[:, 0], ids[:, -1] = CLS, SEP
        return ids

    for step in range(150):
        out = model(draw(32), seed=step, objective="electric")
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    discriminator = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "discriminator")
    ids = draw(64)
    scores = pseudo_log_likelihood(discriminator, ids, special_token_ids=(CLS, SEP, MASK))
    truth = probabilities.log()[ids[:, 1:-1] - 5].sum(1)
    print("difference per token", (scores - truth).abs().max() / 14, "correlation", np.corrcoef(scores, truth)[0, 1])
    assert np.corrcoef(scores, truth)[0, 1] > 0.9
    assert float((scores - truth).abs().max()) / 14 < 0.5
    mine = pseudo_log_likelihood(model.discriminator, ids, special_token_ids=(CLS, SEP, MASK))
    torch.testing.assert_close(mine, scores, rtol=1e-4, atol=1e-4)
    wider = torch.nn.functional.pad(ids, (0, 3))
    mine = pseudo_log_likelihood(model.discriminator, wider, wider != PAD, special_token_ids=(CLS, SEP, MASK))
    torch.testing.assert_close(mine, scores, rtol=1e-4, atol=1e-4)


# --- Modules and options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", ["shared", "untied"])
@pytest.mark.parametrize("objective", ["electric", "adversarial"])
def test_saved_and_loaded_is_the_same(objective, tie, tmp_path, rng_seed):
    model = joint_model(objective, tie=tie)
    model.save_pretrained(tmp_path)
    again = ElectraForJointPreTraining.from_pretrained(tmp_path)
    assert again.objectives == (objective,)
    flat = text()
    kwargs = {"cu_seqlens": CU_SEQLENS, "seed": rng_seed, "objective": objective}
    assert torch.equal(again(flat, **kwargs).loss, model(flat, **kwargs).loss)
    joint_loss = again(flat, cu_seqlens=CU_SEQLENS, seed=rng_seed).loss  # which such a model can do too
    assert torch.equal(joint_loss, model(flat, cu_seqlens=CU_SEQLENS, seed=rng_seed).loss)


def test_modules_exist_where_asked_for_only(tmp_path):
    names = {
        objective: {name.split(".")[0] for name, _ in joint_model(objective).named_parameters()}
        for objective in ("joint", "electric", "adversarial")
    }
    towers = {"discriminator", "generator"}
    assert names == {"joint": towers, "electric": towers | {"two_tower"}, "adversarial": towers | {"baseline"}}
    joint_model("joint").save_pretrained(tmp_path)
    assert not (tmp_path / "electra_fast.safetensors").exists()


def test_what_can_not_be_had_is_said():
    with pytest.raises(ValueError, match="objectives"):
        joint_model("joint")(torch.full((1, 8), 9), objective="electric")
    with pytest.raises(ValueError, match="one of joint, generator"):
        joint_model("rtd")
    for option in ({"temperature": 2.0}, {"disallow_correct": True}):
        with pytest.raises(ValueError, match="temperature 1 and disallow_correct False"):
            joint_model("adversarial", **option)


@pytest.mark.skipif(os.environ.get("ELECTRA_FAST_TEST_ALL") != "1", reason="a minute: set ELECTRA_FAST_TEST_ALL=1")
@pytest.mark.parametrize("objective", ["electric", "adversarial"])
def test_compiles_to_one_graph(objective, rng_seed):
    model = joint_model(objective)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for width in (20, 13):
        ids = torch.randint(5, 300, (3, width))
        kwargs = {"seed": torch.tensor(rng_seed), "objective": objective}
        ours, eager = compiled(ids, **kwargs), model(ids, **kwargs)
        assert torch.equal(ours.corrupted_ids, eager.corrupted_ids)
        assert float(ours.loss) == pytest.approx(float(eager.loss), rel=1e-4)
        ours.loss.backward()
