"""The drop-in classes on a GPU: stock's numbers, no wait for the device but one, and a step in a CUDA graph."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers

from electra_fast import ElectraConfig, optimize

pytestmark = pytest.mark.gpu
SIZES = {
    "vocab_size": 500,
    "embedding_size": 64,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 160,
    "num_labels": 3,
}


@pytest.fixture(autouse=True)
def _no_tf32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def stock_and_fast(name: str, *, dropout: float = 0.0) -> tuple[torch.nn.Module, torch.nn.Module]:
    config = ElectraConfig(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **SIZES)
    stock = getattr(transformers, name)(config)
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return stock.cuda(), optimize(copy.deepcopy(stock)).cuda()


def ragged(lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 500, mask.shape) * mask
    return {"input_ids": ids.cuda(), "attention_mask": mask.long().cuda()}


def packed(lengths: tuple[int, ...]) -> dict[str, torch.Tensor | int]:
    bounds = torch.tensor((0, *lengths)).cumsum(0).int().cuda()
    ids = torch.randint(1, 500, (1, sum(lengths))).cuda()
    return {"input_ids": ids, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": max(lengths)}


def waits(call) -> int:
    """How often `call` waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("name", ["ElectraForPreTraining", "ElectraForMaskedLM", "ElectraForTokenClassification"])
def test_logits_and_gradients_equal_stock(name, rng_seed):
    stock, fast = stock_and_fast(name)
    batch = ragged((70, 1, 128, 33))
    real = batch["attention_mask"] == 1
    labels = torch.where(real, torch.randint(0, 2, real.shape, device="cuda"), -100 if "PreT" not in name else 0)
    expected, outputs = stock(**batch, labels=labels), fast(**batch, labels=labels)
    assert float((outputs.logits - expected.logits)[real].abs().max()) <= 2e-5
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(expected.loss, list(stock.parameters()))])
    ours = torch.cat([g.flatten() for g in torch.autograd.grad(outputs.loss, list(fast.parameters()))])
    assert float((ours - whole).norm()) <= 1e-4 * float(whole.norm())


def test_bfloat16_is_as_close_to_the_truth_as_stock(rng_seed):
    stock, fast = stock_and_fast("ElectraForPreTraining")
    batch = ragged((70, 1, 128, 33))
    real = batch["attention_mask"] == 1
    truth = copy.deepcopy(stock).double()(**batch).logits[real]
    stock, fast = stock.bfloat16(), fast.bfloat16()
    theirs = (stock(**batch).logits[real] - truth).norm()
    ours = (fast(**batch).logits[real] - truth).norm()
    assert float(ours) <= 2 * float(theirs)


def test_one_wait_for_a_padding_mask_and_none_without(rng_seed):
    _, fast = stock_and_fast("ElectraForTokenClassification", dropout=0.1)
    padded, flat = ragged((70, 1, 128, 33)), packed((70, 1, 128, 33))
    labels = torch.randint(0, 3, flat["input_ids"].shape, device="cuda")
    fast(**padded), fast(**flat, labels=labels)  # compiles the kernels
    assert waits(lambda: fast(**padded)) == 1
    assert waits(lambda: fast(**flat, labels=labels).loss.backward()) == 0
    assert waits(lambda: fast(input_ids=padded["input_ids"]).logits.sum().backward()) == 0


def test_a_training_step_on_packed_input_is_a_cuda_graph(rng_seed):
    _, fast = stock_and_fast("ElectraForPreTraining")
    first, second = packed((70, 1, 128, 33)), packed((100, 60, 2, 70))
    static = {name: value.clone() if isinstance(value, torch.Tensor) else 128 for name, value in first.items()}
    labels = torch.randint(0, 2, static["input_ids"].shape, device="cuda")

    def step() -> torch.Tensor:
        for parameter in fast.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        loss = fast(**static, labels=labels).loss
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    for name in ("input_ids", "cu_seq_lens_q", "cu_seq_lens_k"):
        static[name].copy_(second[name])
    graph.replay()
    replayed = loss.item(), [parameter.grad.clone() for parameter in fast.parameters()]
    eager = step()
    assert replayed[0] == pytest.approx(eager.item(), rel=1e-5)
    for ours, parameter in zip(replayed[1], fast.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)
