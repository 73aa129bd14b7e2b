"""varlen_attention against float64 softmax, sequence by sequence, with dropout from NumPy's Philox."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from electra_fast.ops import attention as room
from electra_fast.ops import random
from tests.ops import numpy_oracle
from tests.ops.backends import BACKENDS, KERNELS, Backend, assert_as_accurate, needs_cpp, poison_new_tensors

ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"
SEED, STREAM = -(2**62) - 12345, 2**31 - 5


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Batch(NamedTuple):
    lengths: tuple[int, ...]
    tail: int
    heads: int
    dim: int

    @property
    def cu_seqlens(self) -> Tensor:
        return torch.tensor([0, *np.cumsum(self.lengths)], dtype=torch.int32)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths) + self.tail


# Why each: no sequence; only empty ones; one token, one dimension; empty, single, odd and prime lengths over one block
# of queries, an odd head size; both sides of a block of 64 and of 16 lanes; heads of no power of two, and
# the largest; then, not interpreted, several blocks of 64 and ELECTRA-small.
BATCHES = [
    Batch((), 3, 2, 8),
    Batch((0, 0), 0, 1, 4),
    Batch((1,), 0, 1, 1),
    Batch((0, 5, 1, 71, 0, 33), 7, 1, 20),
    Batch((64, 65, 16, 17), 1, 1, 16),
    Batch((33, 2), 0, 2, 100),
    Batch((40,), 3, 1, 128),
]
LONG = [Batch((139, 0, 61), 7, 3, 20), Batch((128, 128), 0, 4, 64), Batch((700, 3), 0, 2, 32)]
LONG += [Batch((1,) * 70_000, 0, 1, 3)]  # over 65,535 rows and sequences


def dropout_masks(batch: Batch, p: float, row_ids: np.ndarray | None = None) -> list[Tensor]:
    """What each sequence's probabilities are multiplied by, float64 [heads, n, n]."""
    rows = np.arange(batch.num_tokens) if row_ids is None else row_ids
    masks, begin = [], 0
    for n in batch.lengths:
        mask = torch.zeros(batch.heads, n, n, dtype=torch.float64)
        for head in range(batch.heads):
            for key in range(0, n, 4):
                words = numpy_oracle.philox(SEED, rows[begin : begin + n], head * 2**14 + key // 4, STREAM)
                kept = words[: min(4, n - key)].astype(np.int64) >= round(p * 2**32)
                mask[head, :, key : key + 4] = torch.from_numpy(kept.T)
        masks.append(mask / (1 - p) if p < 1 else mask)
        begin += n
    return masks


def plain_attention(q, k, v, batch: Batch, scale: float, masks: list[Tensor] | None = None) -> Tensor:
    """Each sequence by itself, in the inputs' dtype; zeros for the tail."""
    results, begin = [], 0
    for i, n in enumerate(batch.lengths):
        query, key, value = (x[begin : begin + n].transpose(0, 1) for x in (q, k, v))
        probabilities = torch.softmax(query @ key.mT * scale, dim=-1)
        if masks is not None:
            probabilities = probabilities * masks[i].to(q)
        results.append((probabilities @ value).transpose(0, 1))
        begin += n
    return torch.cat([*results, 0 * (q + k + v)[begin:]])


def largest_scores(q: Tensor, k: Tensor, batch: Batch, scale: float) -> tuple[float, float]:
    """The largest log-sum-exp, and the most that a score adds up: its products without their signs."""
    lse, added = [0.0], [0.0]
    for query, key in zip(*(x[: sum(batch.lengths)].double().split(batch.lengths) for x in (q, k)), strict=True):
        query, key = query.transpose(0, 1) * scale, key.permute(1, 2, 0)
        lse += (query @ key).logsumexp(-1).abs().flatten().tolist()
        added += (query.abs() @ key.abs()).amax(-1).flatten().tolist() if len(key[0, 0]) else []
    return max(size for size in lse if size < math.inf), max(added)


def make_inputs(batch: Batch, dtype=torch.float32, device="cpu") -> tuple[Tensor, ...]:
    """q, k, v and the gradient of the output."""
    shape = (batch.num_tokens, batch.heads, batch.dim)
    return tuple(torch.randn(shape).to(device, dtype) for _ in range(4))


def with_gradients(call, *tensors: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = call(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


def run(batch: Batch, q, k, v, upstream, **options) -> tuple[Tensor, ...]:
    def call(q, k, v):
        most = max(batch.lengths, default=0)
        return ops.varlen_attention(q, k, v, batch.cu_seqlens.to(q.device), most, seed=SEED, stream=STREAM, **options)

    return with_gradients(call, q, k, v, upstream=upstream)


def skip_what_is_slow(backend: Backend, batch: Batch) -> None:
    if backend.interpreted and batch in LONG:
        pytest.skip("the interpreter takes minutes")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", BATCHES + LONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_numbers(backend, batch, dtype, p, rng_seed, monkeypatch):
    skip_what_is_slow(backend, batch)
    if backend.name == "cpp" and dtype == torch.float16:
        pytest.skip("not a type of the C++ kernel")
    if backend.interpreted and dtype == torch.bfloat16:
        pytest.skip("the interpreter of Triton 3.7 multiplies the bit patterns of bfloat16 (tl.dot)")
    if backend.interpreted and dtype == torch.float16 and p == 0.0:
        pytest.skip("float16 once, and without dropout once, for the interpreter's sake")
    if batch is LONG[-1] and (p > 0 or backend.name == "reference" or dtype != torch.float32):
        pytest.skip("70,000 sequences once, for the row numbers")
    inputs = make_inputs(batch, dtype, backend.device)
    scale = 0.3 if batch.tail == 3 else 1 / math.sqrt(batch.dim)
    poison_new_tensors(monkeypatch)
    with ops.use_backend(backend.name):
        got = run(batch, *inputs, p=p, scale=scale)
    monkeypatch.undo()

    if batch is LONG[-1]:  # a token that sees itself alone
        q, _, v, upstream = inputs
        expected = v, torch.zeros_like(q), torch.zeros_like(q), upstream
        for ours, exact in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-6)
        return
    masks = dropout_masks(batch, p) if p > 0 else None
    inputs = [x.cpu() for x in inputs]

    def truth(q, k, v):
        return plain_attention(q, k, v, batch, scale, masks)

    plain = with_gradients(truth, *inputs[:3], upstream=inputs[3])
    exact = with_gradients(truth, *(x.double() for x in inputs[:3]), upstream=inputs[3].double())
    lse, added = largest_scores(*inputs[:2], batch, scale)
    for name, ours, same, true in zip(("out", "dq", "dk", "dv"), got, plain, exact, strict=True):
        # A result rounded once differs by half a unit of its last place; two units of the largest cover chance where
        # PyTorch is exact, as for a sequence of one token. The rounding of a score is a relative error of its
        # probability: a part of a unit of float32 for each 1 that it adds up. Gradients make the probabilities again
        # from the float32 log-sum-exp, whose rounding is one too: half a unit for each 1 of its size.
        of_scores = 2 * added + (lse if name != "out" else 0)
        units = torch.finfo(dtype).eps * 2 + torch.finfo(torch.float32).eps * of_scores
        atol = units * max(1.0, true.abs().max().item()) if true.numel() else 0.0
        assert_as_accurate(ours.cpu(), same, true, atol=atol, name=name)
    assert not got[0][sum(batch.lengths) :].any()
    assert not any(gradient[sum(batch.lengths) :].any() for gradient in got[1:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("with_row_ids", [False, True])
def test_dropout_equals_numpy_bit_for_bit(backend, p, with_row_ids, rng_seed):
    # Values that are unit vectors make the result the dropped probabilities themselves. 65 keys are more than one call
    # of 64 columns; head 1 starts at column 2^16.
    if backend.interpreted and with_row_ids and p != 0.5:
        pytest.skip("row ids once, for the interpreter's sake")
    batch = Batch((65, 3), 2, 2, 65)
    g = np.random.default_rng(rng_seed)
    rows = g.integers(-(2**63), 2**63, batch.num_tokens, dtype=np.int64) if with_row_ids else None
    q, k, _, _ = make_inputs(batch, device=backend.device)
    v = torch.zeros_like(q)
    for begin, n in ((0, 65), (65, 3)):
        v[begin : begin + n, :, :n] = torch.eye(n, device=v.device).unsqueeze(1)
    row_ids = None if rows is None else torch.from_numpy(rows).to(q.device)
    with ops.use_backend(backend.name):
        out = ops.varlen_attention(
            q, k, v, batch.cu_seqlens.to(q.device), 65, p=p, seed=SEED, stream=STREAM, row_ids=row_ids
        )
    for mask, begin, n in zip(dropout_masks(batch, p, rows), (0, 65), (65, 3), strict=True):
        assert torch.equal(out[begin : begin + n, :, :n].transpose(0, 1).cpu() > 0, mask > 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_has_the_same_bits_in_any_batch(backend, rng_seed):
    batch = Batch((37, 66, 5), 0, 1, 24)
    inputs = make_inputs(batch, device=backend.device)
    rows = random.row_ids_for(torch.tensor([7, 2**40, 9]), batch.cu_seqlens, batch.num_tokens).to(backend.device)
    bounds = batch.cu_seqlens.tolist()

    def pieces(order: list[int], tail: int = 0) -> dict[int, list[Tensor]]:
        index = torch.cat([torch.arange(bounds[i], bounds[i + 1]) for i in order]).to(backend.device)
        chosen = [F.pad(x[index], (0, 0, 0, 0, 0, tail), value=math.nan) for x in inputs]
        smaller = Batch(tuple(batch.lengths[i] for i in order), tail, 1, 24)
        results = run(smaller, *chosen, p=0.2, row_ids=F.pad(rows[index], (0, tail)))
        cuts = smaller.cu_seqlens.tolist()
        return {i: [r[b:e] for r in results] for i, b, e in zip(order, cuts, cuts[1:], strict=False)}

    with ops.use_backend(backend.name):
        whole = pieces([0, 1, 2])
        for other in (pieces([2, 0, 1], tail=3), pieces([1])):
            for i, results in other.items():
                for ours, expected in zip(results, whole[i], strict=True):
                    if backend.name == "reference":  # its sums are padded to the longest sequence
                        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
                    else:
                        assert torch.equal(ours, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sequences_do_not_see_each_other_or_the_tail(backend, rng_seed):
    batch = Batch((20, 33, 6), 4, 2, 16)
    inputs = make_inputs(batch, device=backend.device)
    spoiled = [x.clone() for x in inputs]
    for x in spoiled:
        x[20:53] = math.nan
        x[59:] = math.inf
    with ops.use_backend(backend.name):
        for ours, expected in zip(run(batch, *spoiled), run(batch, *inputs), strict=True):
            for part in (slice(0, 20), slice(53, 63)):
                assert torch.equal(ours[part], expected[part])
            assert ours[20:53].isnan().all()


@needs_cpp
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_thread_counts_give_the_same_bits(p, dtype, rng_seed):
    batch = Batch((150, 3, 0, 301, 64, 90), 5, 3, 32)  # enough work for three threads
    inputs = make_inputs(batch, dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with ops.use_backend("cpp"):
            results.append(run(batch, *inputs, p=p))
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_a_fused_projection(backend, rng_seed):
    batch = Batch((21,), 2, 2, 24)
    fused = torch.randn(batch.num_tokens, 3, 2, 24, device=backend.device)
    upstream = torch.randn(batch.num_tokens, 2, 24, device=backend.device)
    views = fused.unbind(1)
    with ops.use_backend(backend.name):
        expected = run(batch, *(view.contiguous() for view in views), upstream, p=0.1)
        assert all(map(torch.equal, run(batch, *views, upstream, p=0.1), expected))
        # Strides that the kernels do not take, in the inputs and in the gradient: copied.
        strided = [x.transpose(0, 2).contiguous().transpose(0, 2) for x in (*views, upstream)]
        assert all(map(torch.equal, run(batch, *strided, p=0.1), expected))
        expanded = run(batch, *views, upstream[:, :1, :1].expand(upstream.shape))
        dense = run(batch, *views, upstream[:, :1, :1].expand(upstream.shape).contiguous())
        assert all(map(torch.equal, expanded, dense))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_asked_for_in_part_and_results_used_twice(backend, rng_seed):
    batch = Batch((9, 4), 1, 2, 8)
    q, k, v, upstream = make_inputs(batch, device=backend.device)
    with ops.use_backend(backend.name):
        _, _, dk, _ = run(batch, q, k, v, upstream)
        k.requires_grad_()
        out = ops.varlen_attention(q, k, v, batch.cu_seqlens.to(q.device), 9)
        twice = (out * upstream).sum() + (out * upstream).sum()
        assert torch.equal(torch.autograd.grad(twice, k)[0], 2 * dk)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradcheck(p, rng_seed):
    batch = Batch((3, 0, 6), 2, 2, 5)
    q, k, v = (x.double().requires_grad_() for x in make_inputs(batch)[:3])
    assert torch.autograd.gradcheck(
        lambda q, k, v: ops.varlen_attention(q, k, v, batch.cu_seqlens, 8, p=p, seed=3), (q, k, v)
    )


@pytest.mark.parametrize("backend", KERNELS)
def test_large_scores_overflow_nothing(backend, rng_seed):
    batch = Batch((50,), 0, 1, 16)
    q, k, v, upstream = make_inputs(batch, device=backend.device)
    q *= 1000
    with ops.use_backend(backend.name):
        got = run(batch, q, k, v, upstream)
    exact = with_gradients(
        lambda q, k, v: plain_attention(q, k, v, batch, 0.25),
        *(x.double().cpu() for x in (q, k, v)),
        upstream=upstream.double().cpu(),
    )
    # Scores of some thousands have a float32 rounding of some 1e-4, and so do their exponentials.
    torch.testing.assert_close(got[0].double().cpu(), exact[0], rtol=1e-2, atol=1e-2)
    assert all(x.isfinite().all() for x in got)


@pytest.mark.parametrize("backend", BACKENDS)
def test_seeds(backend, rng_seed):
    batch = Batch((30,), 0, 2, 8)
    q, k, v, _ = make_inputs(batch, device=backend.device)

    def call(**options):
        with ops.use_backend(backend.name):
            return ops.varlen_attention(q, k, v, batch.cu_seqlens.to(q.device), 30, p=0.5, **options)

    assert torch.equal(call(seed=5), call(seed=torch.tensor(5, device=q.device)))
    assert not torch.equal(call(seed=5), call(seed=6))
    assert not torch.equal(call(seed=5), call(seed=5, stream=1))
    torch.manual_seed(1)
    first = call()
    assert not torch.equal(first, call())
    torch.manual_seed(1)
    assert torch.equal(first, call())


def test_backward_draws_the_dropout_of_its_forward(rng_seed):
    # With a drawn seed too: the gradient of v is the transpose of the very probabilities that were kept.
    q, k, _ = (torch.randn(12, 1, 12) for _ in range(3))
    v = torch.eye(12).unsqueeze(1).requires_grad_()
    out = ops.varlen_attention(q, k, v, torch.tensor([0, 12]), 12, p=0.4)
    (dv,) = torch.autograd.grad(out, v, torch.eye(12).unsqueeze(1))
    torch.testing.assert_close(dv[:, 0], out[:, 0].T)


def test_autocast_casts_as_sdpa_does(rng_seed):
    batch = Batch((12, 7), 0, 2, 8)
    q, k, v, _ = make_inputs(batch)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.varlen_attention(q, k, v, batch.cu_seqlens, 12)
        sdpa = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)))
    assert out.dtype == sdpa.dtype == torch.bfloat16
    assert torch.equal(out, ops.varlen_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), batch.cu_seqlens, 12))


# --- torch.compile and torch.library ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_equals_eager(backend, compiler, rng_seed):
    if (compiler == "inductor" or not ALL) and backend.name != "cpp" and backend.device == "cpu":
        pytest.skip("the operator is opaque to the compiler: the others' aot_eager runs under ELECTRA_FAST_TEST_ALL=1")
    p = 0.0 if compiler == "inductor" else 0.2

    def call(qkv, cu_seqlens, seed, row_ids, max_seqlen):
        q, k, v = (qkv * 1.0).unbind(1)
        return ops.varlen_attention(q, k, v, cu_seqlens, max_seqlen, p=p, seed=seed, row_ids=row_ids) * 1.0

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=compiler)
    seed = torch.tensor(4, device=backend.device)
    for lengths in ((5,), (31, 2)):
        batch = Batch(lengths, 1, 2, 16)
        qkv = torch.randn(batch.num_tokens, 3, 2, 16, device=backend.device)
        upstream = torch.randn(batch.num_tokens, 2, 16, device=backend.device)
        rows = torch.arange(batch.num_tokens, device=backend.device) * 3
        arguments = batch.cu_seqlens.to(backend.device), seed, rows, max(lengths)
        with ops.use_backend(backend.name):
            eager = with_gradients(lambda x, a=arguments: call(x, *a), qkv, upstream=upstream)
            got = with_gradients(lambda x, a=arguments: compiled(x, *a), qkv, upstream=upstream)
        assert all(map(torch.equal, got, eager))


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_opcheck(backend, rng_seed):
    batch = Batch((6, 0, 3), 2, 2, 8)
    q, k, v, upstream = make_inputs(batch)
    tensors = tuple(x.requires_grad_() for x in (q, k, v))
    rest = batch.cu_seqlens, torch.tensor(3), torch.arange(11), 6, 0.1, 1, 0.5
    with ops.use_backend(backend.name):
        torch.library.opcheck(torch.ops.electra_fast.varlen_attention.default, (*tensors, *rest))
        out, lse = torch.ops.electra_fast.varlen_attention(*tensors, *rest)
        saved = (x.detach() for x in (upstream, *tensors, out, lse))
        torch.library.opcheck(torch.ops.electra_fast.varlen_attention_backward.default, (*saved, *rest))


# --- Errors -----------------------------------------------------------------------------------------------------------


def good_arguments() -> dict:
    q, k, v = (torch.randn(6, 2, 4) for _ in range(3))
    return {"q": q, "k": k, "v": v, "cu_seqlens": torch.tensor([0, 2, 6]), "max_seqlen": 4}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.zeros(6, 8)}, ValueError, r"q must have 3 dimension.*\(6, 8\)"),
        ({"q": torch.zeros(6, 2, 4, dtype=torch.int32)}, TypeError, "q must be torch.float32 or"),
        ({"k": torch.zeros(6, 2, 5)}, ValueError, r"k has shape \(6, 2, 5\), q \(6, 2, 4\)"),
        ({"v": torch.zeros(6, 2, 4, dtype=torch.bfloat16)}, TypeError, "v must be torch.float32, not torch.bfloat16"),
        ({"cu_seqlens": torch.tensor([0.0, 6.0])}, TypeError, "cu_seqlens must be torch.int32 or torch.int64"),
        ({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, ValueError, r"cu_seqlens must have B \+ 1 entries"),
        ({"cu_seqlens": torch.tensor([1, 6])}, ValueError, r"begin with 0.*\[1, 6\]"),
        ({"cu_seqlens": torch.tensor([0, 4, 2])}, ValueError, r"never decrease.*\[0, 4, 2\]"),
        ({"cu_seqlens": torch.tensor([0, 7])}, ValueError, r"T = 6; got \[0, 7\]"),
        ({"max_seqlen": 3}, ValueError, "has 4 tokens, max_seqlen is 3"),
        ({"max_seqlen": 2**16 + 1}, ValueError, "max_seqlen must lie in"),
        ({"p": 1.5}, ValueError, "p must lie in"),
        ({"p": 0.5, "stream": -1}, ValueError, "stream"),
        ({"p": 0.5, "seed": 0.5}, TypeError, "seed"),
        ({"row_ids": torch.arange(5)}, ValueError, "row_ids has 5 entries, q 6 rows"),
        ({"row_ids": torch.arange(6.0)}, TypeError, "row_ids must be torch.int64"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        ops.varlen_attention(**good_arguments() | change)


def test_the_reference_is_what_runs_on_float64():
    arguments = good_arguments()
    doubles = {name: arguments[name].double() for name in "qkv"}
    out = ops.varlen_attention(**arguments | doubles)
    expected, _ = room.varlen_attention_reference(
        *doubles.values(), arguments["cu_seqlens"], None, None, 4, 0.0, 0, 0.5
    )
    assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_boundaries(backend, rng_seed):
    q = torch.randn(9, 2, 8, device=backend.device)
    spread = torch.tensor([0, 9, 5, 9, 9, 0], device=backend.device)[::2][:3]
    with ops.use_backend(backend.name):
        ours = ops.varlen_attention(q, q, q, spread, 5)
        expected = ops.varlen_attention(q, q, q, spread.contiguous(), 5)
    assert torch.equal(ours, expected)
