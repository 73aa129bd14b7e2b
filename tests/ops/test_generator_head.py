"""linear_cross_entropy_sample as an operator: compiled, watched, its memory and its errors; numbers and law apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from electra_fast.ops import _backends
from tests.ops.backends import BACKENDS, KERNELS, needs_cpp
from tests.ops.generator_head import leaves_of, make_inputs

ROOT = Path(__file__).parents[2]


@needs_cpp
def test_without_a_gradient_none_is_made(monkeypatch):
    x, made, extension = make_inputs(30, 100, 8), [], _backends.extension()

    class Watched:
        head_stride = staticmethod(extension.head_stride)

        @staticmethod
        def generator_head(**arguments):
            made.append("d_weight" in arguments)
            extension.generator_head(**arguments)

    monkeypatch.setattr(_backends, "extension", lambda: Watched)
    ops.linear_cross_entropy_sample(**x, seed=1)
    leaves_of(x)
    with torch.no_grad():
        ops.linear_cross_entropy_sample(**x, seed=1)
    ops.linear_cross_entropy_sample(**x, seed=1)
    assert made == [False, False, True]


MEMORY = """
import resource, sys, torch
from electra_fast import ops
rows, vocab_size, width = 2432, 30522, 128
torch.set_num_threads(2)  # each has a workspace of 1 MB
dtype = getattr(torch, sys.argv[1])
hidden, weight = (torch.randn(n, width, dtype=dtype, requires_grad=True) for n in (rows, vocab_size))
bias = torch.zeros(vocab_size, requires_grad=True)
labels, weights = torch.randint(vocab_size, (rows,)), torch.ones(rows)
few = [tensor[:4].detach().requires_grad_() for tensor in (hidden, weight, bias)]
torch.autograd.grad(ops.linear_cross_entropy_sample(*few, labels[:4] % 4, weights[:4], seed=1).loss_sum, few)
results = [torch.ones_like(tensor) for tensor in (hidden, weight, bias)]  # room for the gradients, which anyone makes
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
del results
loss = ops.linear_cross_entropy_sample(hidden, weight, bias, labels, weights, seed=1).loss_sum
gradients = torch.autograd.grad(loss, (hidden, weight, bias))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024)
"""


@needs_cpp
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in KiB")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_extra_memory_is_an_eighth_of_the_logits_in_float32(dtype):
    environment, command = os.environ | {"PYTHONPATH": str(ROOT)}, [sys.executable, "-c", MEMORY, dtype]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 2432 * 30522 * 4 / 8


@pytest.mark.parametrize("backend", [BACKENDS[0], *KERNELS[:1]])
def test_compiled_forward_and_backward_give_the_same_bits(backend, rng_seed):
    torch._dynamo.reset()

    def step(x: dict[str, Tensor], seed: Tensor) -> tuple[Tensor, ...]:
        out = ops.linear_cross_entropy_sample_with_argmax(**x, seed=seed)
        return out.loss_sum * 2, out.sampled_ids, out.argmax_ids

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    with ops.use_backend(backend.name):
        for rows in (5, 9, 12):
            x, seed = make_inputs(rows, 70, 8), torch.tensor(rng_seed)
            leaves = leaves_of(x)
            got, expected = compiled(x, seed), step(x, seed)
            gradients = torch.autograd.grad(got[0], leaves), torch.autograd.grad(expected[0], leaves)
            for a, b in zip((*got, *gradients[0]), (*expected, *gradients[1]), strict=True):
                assert torch.equal(a, b)


@needs_cpp
@torch._inductor.config.patch(force_disable_caches=True)  # they know our operators by name alone
def test_compiled_by_inductor_with_a_gradient_through_nll(rng_seed):
    torch._dynamo.reset()

    def step(x: dict[str, Tensor], seed: Tensor) -> Tensor:
        return ops.linear_cross_entropy_sample(**x, seed=seed).nll

    x, seed, d_nll = make_inputs(7, 70, 8), torch.tensor(rng_seed), torch.randn(7)
    leaves = leaves_of(x)
    got, expected = torch.compile(step, fullgraph=True)(x, seed), step(x, seed)
    torch.testing.assert_close(got, expected)
    gradients = (torch.autograd.grad(nll, leaves, d_nll) for nll in (got, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    x = make_inputs(3, 7, 4, device=backend.device)
    seed, rows = torch.tensor(3, device=backend.device), torch.arange(3, device=backend.device)
    leaves_of(x)
    with ops.use_backend(backend.name):
        on_cpu = backend.device == "cpu"
        forward = torch.ops.electra_fast.linear_cross_entropy_sample.default
        torch.library.opcheck(forward, (*x.values(), seed, rows, 0.8, True, 2, True, on_cpu))
        detached = [x[name].detach() for name in ("hidden", "weight", "bias", "labels", "weights")]
        logits = F.linear(*detached[:3])
        lse = torch.stack([torch.zeros_like(logits[:, 0]), logits.logsumexp(1)])
        torch.library.opcheck(torch.ops.electra_fast.linear_cross_entropy_sample_backward.default, (*detached, lse))


def test_bad_input_is_named():
    x = make_inputs(4, 6, 8)
    for name, value in (
        ("hidden", x["hidden"][:, :5]),
        ("weight", x["weight"][:0]),
        ("bias", x["bias"][:3]),
        ("labels", x["labels"][:2]),
        ("labels", x["labels"] + 6),
        ("labels", x["labels"] - 6),
        ("weights", x["weights"][:1]),
    ):
        with pytest.raises(ValueError, match=name):
            ops.linear_cross_entropy_sample(**(x | {name: value}), seed=0)
    for name, value in (
        ("weight", x["weight"].double()),
        ("labels", x["labels"].int()),
        ("weights", x["weights"].bool()),
        ("bias", x["bias"].long()),
    ):
        with pytest.raises(TypeError, match=name):
            ops.linear_cross_entropy_sample(**(x | {name: value}), seed=0)
    with pytest.raises(ValueError, match="temperature"):
        ops.linear_cross_entropy_sample(**x, seed=0, temperature=0.0)
    with pytest.raises(ValueError, match="row_ids"):
        ops.linear_cross_entropy_sample(**x, seed=0, row_ids=torch.arange(3))
    one = make_inputs(2, 1, 8)
    with pytest.raises(ValueError, match="disallow_correct"):
        ops.linear_cross_entropy_sample(**one, seed=0, disallow_correct=True)
