"""The choice between attention backends, and what the adapters pass to vendors, which stand-ins record."""

from __future__ import annotations

import inspect
import itertools
import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import attention as chooser
from electra_fast import ops
from electra_fast.attention import Use, attention
from electra_fast.ops import _backends
from tests.ops.backends import needs_cpp

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LENGTHS, TAIL = (5, 0, 17, 1), 6


@pytest.fixture(autouse=True)
def _fresh_choices():
    chooser._choice.cache_clear()
    yield
    chooser._choice.cache_clear()


@pytest.fixture
def batch(rng_seed) -> dict:
    """Ragged, with an empty sequence and a tail; views of a fused projection, and int64 bounds."""
    fused = torch.randn(sum(LENGTHS) + TAIL, 3, 2, 8)
    q, k, v = fused.unbind(1)
    return {"q": q, "k": k, "v": v, "cu_seqlens": torch.tensor([0, 5, 5, 22, 23]), "max_seqlen": 17}


def with_gradients(call, batch: dict, **options) -> tuple[Tensor, ...]:
    leaves = [batch[name].detach().requires_grad_() for name in "qkv"]
    out = call(*leaves, batch["cu_seqlens"], batch["max_seqlen"], **options)
    torch.manual_seed(0)
    return out.detach(), *torch.autograd.grad(out, leaves, torch.randn(out.shape))


def expected(batch: dict, **options) -> tuple[Tensor, ...]:
    with ops.use_backend("reference"):
        return with_gradients(ops.varlen_attention, batch, **options)


def assert_close(got, want):
    for ours, truth in zip(got, want, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


# --- The choice -------------------------------------------------------------------------------------------------------


@needs_cpp
@pytest.mark.parametrize("dropout", [False, True])
def test_on_cpu(dropout):
    assert chooser.choose(CPU, torch.float32, 64, dropout) == "cpp"
    assert chooser.choose(CPU, torch.bfloat16, 64, dropout) == "cpp"
    assert chooser.choose(CPU, torch.float16, 64, dropout) == "sdpa"
    missing = chooser._choice(Use(CPU, torch.float16, 64, dropout)).missing
    assert list(missing) == ["flash_attn", "torch", "triton", "cpp"]
    assert missing["cpp"] == "it does not take torch.float16"
    with ops.use_backend("reference"):
        assert chooser.choose(CPU, torch.float32, 64, dropout) == "reference"


@pytest.mark.parametrize(
    ("flash_attn", "torch_plain", "torch_dropout", "triton", "plain", "dropout"),
    [
        (None, None, None, None, "flash_attn", "flash_attn"),
        ("not there", None, None, None, "torch", "torch"),
        ("not there", None, "no dropout", None, "torch", "triton"),
        ("not there", "changed", "changed", None, "triton", "triton"),
        ("not there", "changed", None, "old GPU", "sdpa", "torch"),
        ("not there", "changed", "changed", "old GPU", "sdpa", "sdpa"),
    ],
)
def test_order_on_cuda(flash_attn, torch_plain, torch_dropout, triton, plain, dropout, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(chooser, "_flash_attn_problem", lambda: flash_attn)
    monkeypatch.setattr(chooser, "_torch_problem", lambda has_dropout: torch_dropout if has_dropout else torch_plain)
    monkeypatch.setattr(
        _backends, "missing", lambda operator, name, *_: triton if name == "triton" else "runs on CPU tensors only"
    )
    assert chooser.choose(CUDA, torch.bfloat16, 64, False) == plain
    assert chooser.choose(CUDA, torch.bfloat16, 64, True) == dropout
    for dtype, dim in ((torch.float32, 64), (torch.bfloat16, 20)):  # what the vendors do not take
        assert chooser.choose(CUDA, dtype, dim, True) == ("sdpa" if triton else "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    chooser._choice.cache_clear()
    assert chooser.choose(CUDA, torch.float16, 64, True) == ("sdpa" if triton else "triton")


def test_a_signature_that_changed_is_said(monkeypatch):
    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = lambda q, k, v, cu_seqlens_q, cu_seqlens_k: None
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    assert chooser._flash_attn_problem() == (
        "the installed flash_attn_varlen_func has no argument max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, "
        "causal, deterministic"
    )
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert "pip install flash-attn" in chooser._flash_attn_problem()


def test_the_installed_pytorch_has_the_signatures_relied_on(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert chooser._torch_problem(False) is None
    assert chooser._torch_problem(True) is None


def test_the_installed_flash_attn_has_the_signature_relied_on():
    pytest.importorskip("flash_attn")
    assert chooser._flash_attn_problem() is None


def test_what_is_asked_for_and_can_not_be_had(batch):
    with pytest.raises(ValueError, match="unknown backend 'eager'"):
        attention(**batch, backend="eager")
    with pytest.raises(RuntimeError, match="the torch backend can't run here: it runs on CUDA devices only"):
        attention(**batch, backend="torch")


def test_report_names_every_device_with_and_without_dropout():
    lines = chooser.report(torch.float32)
    assert [(line.use.device.type, line.use.has_dropout) for line in lines][:2] == [("cpu", False), ("cpu", True)]
    assert all(line.backend in chooser.BACKENDS for line in lines)


# --- Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sdpa", pytest.param("cpp", marks=needs_cpp), None])
def test_backends_agree(backend, batch):
    assert_close(with_gradients(attention, batch, scale=0.3, backend=backend), expected(batch, scale=0.3))


def test_sdpa_keeps_documents_apart_and_drops(batch):
    q, k, v = (batch[name].clone() for name in "qkv")
    for x in (q, k, v):
        x[5:22] = math.nan
    out = attention(q, k, v, batch["cu_seqlens"], 17, backend="sdpa")
    assert torch.equal(out[:5], attention(**batch, backend="sdpa")[:5])
    assert out[5:22].isnan().all()
    ones = torch.ones_like(v)
    dropped = attention(batch["q"], batch["k"], ones, batch["cu_seqlens"], 17, p=0.5, backend="sdpa")
    assert not torch.allclose(dropped[:23], ones[:23])


@needs_cpp
def test_compiled(batch):
    def call(q, k, v, cu_seqlens):
        return attention(q * 1.0, k, v, cu_seqlens, 17, p=0.2, seed=3)

    arguments = [batch[name] for name in ("q", "k", "v", "cu_seqlens")]
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), call(*arguments))


# --- Adapters ---------------------------------------------------------------------------------------------------------


class VendorKernel(torch.autograd.Function):
    """What the vendors' kernels compute, rubbish in the rows of no sequence included."""

    @staticmethod
    def forward(ctx, q, k, v, bounds, scale):
        for x in (q, k, v):
            assert x.stride(2) == 1
        ctx.save_for_backward(q, k, v, bounds)
        ctx.scale = scale
        out = torch.full(q.shape, math.nan)
        with torch.enable_grad():
            for begin, end in itertools.pairwise(bounds):
                query, key, value = (x[begin:end].transpose(0, 1) for x in (q, k, v))
                out[begin:end] = F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(0, 1)
        return out.detach()

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, bounds = ctx.saved_tensors
        batch = {"q": q, "k": k, "v": v}
        leaves = [x.detach().requires_grad_() for x in batch.values()]
        with torch.enable_grad(), ops.use_backend("reference"):
            out = ops.varlen_attention(*leaves, bounds, 17, scale=ctx.scale)
        gradients = torch.autograd.grad(out, leaves, d_out)
        for gradient in gradients:
            gradient[bounds[-1] :] = math.nan
        return *gradients, None, None


@pytest.mark.parametrize("strides", ["views", "transposed"])
def test_flash_attn_gets_what_it_takes(strides, batch, monkeypatch):
    calls = []

    # The signature of flash-attn 2.8.
    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ):
        calls.append(inspect.getargvalues(inspect.currentframe()).locals.copy())
        return VendorKernel.apply(q, k, v, cu_seqlens_q, softmax_scale)

    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(chooser, "_missing", lambda *_: None)
    if strides == "transposed":
        batch |= {name: batch[name].transpose(0, 2).contiguous().transpose(0, 2) for name in "qkv"}

    got = with_gradients(attention, batch, p=0.1, scale=0.3, backend="flash_attn")
    assert_close(got, expected(batch, scale=0.3))
    assert not any(x[23:].any() for x in got)
    (call,) = calls
    assert call["cu_seqlens_q"].dtype == call["cu_seqlens_k"].dtype == torch.int32
    assert call["cu_seqlens_q"].tolist() == call["cu_seqlens_k"].tolist() == [0, 5, 5, 22, 23]
    assert (call["max_seqlen_q"], call["max_seqlen_k"]) == (17, 17)
    assert (call["dropout_p"], call["softmax_scale"], call["causal"]) == (0.1, 0.3, False)
    if strides == "views":
        assert call["q"].data_ptr() == batch["q"].data_ptr()  # not copied


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_pytorchs_flash_attention_gets_what_it_takes(p, batch, monkeypatch):
    import torch.nn.attention.varlen as varlen

    calls = []
    aten, varlen_attn = torch.ops.aten._flash_attention_forward.default, varlen.varlen_attn

    def stand_in_for_varlen(*args, **kwargs):
        calls.append(inspect.signature(varlen_attn).bind(*args, **kwargs).arguments)
        return VendorKernel.apply(*args[:4], kwargs["scale"])

    def stand_in_for_aten(*args, **kwargs):
        names = [argument.name for argument in aten._schema.arguments]
        calls.append(dict(zip(names, args, strict=False)) | kwargs)
        return VendorKernel.apply(*args[:4], kwargs["scale"]), None

    monkeypatch.setattr(varlen, "varlen_attn", stand_in_for_varlen)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", stand_in_for_aten)
    monkeypatch.setattr(chooser, "_missing", lambda *_: None)
    got = with_gradients(attention, batch, p=p, backend="torch")
    assert_close(got, expected(batch))
    assert not any(x[23:].any() for x in got)
    (call,) = calls
    bounds = ("cum_seq_q", "cum_seq_k") if p else ("cu_seq_q", "cu_seq_k")
    assert all(call[name].dtype == torch.int32 and call[name].tolist() == [0, 5, 5, 22, 23] for name in bounds)
    assert (call["max_q"], call["max_k"]) == (17, 17)
    if p:
        assert (call["dropout_p"], call["is_causal"], call["return_debug_mask"]) == (0.1, False, False)
    else:
        assert call["window_size"] == (-1, -1)  # every key


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash_attn", "torch", "triton", "sdpa"])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_on_a_gpu(backend, p, batch):
    if backend == "flash_attn":
        pytest.importorskip("flash_attn")
    exact = expected(batch)
    on_gpu = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in batch.items()}
    on_gpu |= {name: on_gpu[name].bfloat16() for name in "qkv"}
    leaves = [on_gpu[name].detach().requires_grad_() for name in "qkv"]
    out = attention(*leaves, on_gpu["cu_seqlens"], 17, p=p, seed=1, backend=backend)
    torch.manual_seed(0)
    gradients = torch.autograd.grad(out, leaves, torch.randn(out.shape).cuda().bfloat16())
    assert not any(x[23:].any() for x in (out, *gradients))
    if p == 0:
        for ours, truth in zip((out, *gradients), exact, strict=True):
            torch.testing.assert_close(ours.float().cpu(), truth, rtol=0.05, atol=0.05)
    else:
        assert not torch.allclose(out.float().cpu(), exact[0], atol=0.05)
