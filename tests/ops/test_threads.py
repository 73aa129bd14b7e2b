"""Every C++ operator under Python threads, in forked workers and with changing thread counts; one OpenMP runtime."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from electra_fast import ops
from tests.ops.backends import needs_cpp

ROOT = Path(__file__).parents[2]
pytestmark = needs_cpp


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Inputs:
    """Random inputs from a generator of its own: the same in every thread and process."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def floats(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self._generator)

    def ids(self, high: int, *size: int) -> Tensor:
        return torch.randint(0, high, size, generator=self._generator)

    def flags(self, share: float, *size: int) -> Tensor:
        return torch.rand(size, generator=self._generator) < share


def with_gradients(call: Callable[..., Tensor], *arguments: Tensor) -> tuple[Tensor, ...]:
    arguments = tuple(tensor.requires_grad_() for tensor in arguments)
    result = call(*arguments)
    return result.detach(), *torch.autograd.grad(result.sum(), arguments)


# Large enough that each runs on several threads.


def mask_tokens(inputs: Inputs) -> tuple[Tensor, ...]:
    ids, cu_seqlens = inputs.ids(30, 40_000), torch.arange(0, 40_001, 100)
    return ops.mask_tokens(ids, cu_seqlens, mask_token_id=4, never_mask_ids=(9,), num_masked=6000, seed=1)


def sample_tokens(inputs: Inputs) -> tuple[Tensor, ...]:
    return (ops.sample_tokens(inputs.floats(100, 5000), seed=2),)


def corrupt_tokens(inputs: Inputs) -> tuple[Tensor, ...]:
    ids, weights = inputs.ids(30, 100_000), inputs.flags(0.9, 50_000).float()
    return ops.corrupt_tokens(ids, torch.arange(0, 100_000, 2), inputs.ids(30, 50_000), weights)


def linear_cross_entropy_sample(inputs: Inputs) -> tuple[Tensor, ...]:
    labels, weights = inputs.ids(3000, 200), torch.ones(200)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.linear_cross_entropy_sample(hidden, weight, bias, labels, weights, seed=3)[0]

    return with_gradients(loss, inputs.floats(200, 32), inputs.floats(3000, 32), inputs.floats(3000))


def rtd_bce(inputs: Inputs) -> tuple[Tensor, ...]:
    is_replaced, mask = inputs.flags(0.1, 150_000), inputs.flags(0.9, 150_000)
    return with_gradients(lambda logits: ops.rtd_bce(logits, is_replaced, mask).loss_sum, inputs.floats(150_000))


def dropout_add_layer_norm(inputs: Inputs) -> tuple[Tensor, ...]:
    def norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.dropout_add_layer_norm(x, residual, weight, bias, p=0.1, seed=4)

    sizes = (900, 256), (900, 256), (256,), (256,)
    return with_gradients(norm, *(inputs.floats(*size) for size in sizes))


def embedding_layer_norm(inputs: Inputs) -> tuple[Tensor, ...]:
    ids = inputs.ids(900, 1500), inputs.ids(2, 1500), torch.arange(1500) % 64

    def embed(*tables: Tensor) -> Tensor:
        return ops.embedding_layer_norm(*ids, *tables, p=0.1, seed=5)

    sizes = (900, 128), (2, 128), (64, 128), (128,), (128,)
    return with_gradients(embed, *(inputs.floats(*size) for size in sizes))


def bias_gelu(inputs: Inputs) -> tuple[Tensor, ...]:
    return with_gradients(ops.bias_gelu, inputs.floats(900, 300), inputs.floats(300))


def varlen_attention(inputs: Inputs) -> tuple[Tensor, ...]:
    cu_seqlens = torch.tensor([0, 130, 131, 300], dtype=torch.int32)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.varlen_attention(q, k, v, cu_seqlens, 169, p=0.1, seed=6)

    return with_gradients(attend, *(inputs.floats(301, 4, 64) for _ in range(3)))


OPERATORS = [mask_tokens, sample_tokens, corrupt_tokens, rtd_bce, dropout_add_layer_norm, embedding_layer_norm]
OPERATORS += [bias_gelu, varlen_attention]
# Its matrix products are PyTorch's, whose bits may depend on the number of threads.
WITH_PRODUCTS = [linear_cross_entropy_sample]


def run(operator: Callable[[Inputs], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    with ops.use_backend("cpp"):
        return tuple(operator(Inputs()))


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for got, expected in zip(ours, theirs, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_number_of_threads_may_change_in_between(operator):
    results = []
    for threads in (1, 2, 5, 1):
        torch.set_num_threads(threads)
        results.append(run(operator))
    for result in results[1:]:
        assert_same(result, results[0])


def test_two_python_threads_at_once():
    torch.set_num_threads(2)
    expected = {operator: run(operator) for operator in OPERATORS}
    failures: list[BaseException] = []

    def work(order: list[Callable[[Inputs], tuple[Tensor, ...]]]) -> None:
        torch.set_num_threads(2)  # a new thread starts with as many as there are cores
        try:
            for operator in order * 3:
                assert_same(run(operator), expected[operator])
            for operator in WITH_PRODUCTS:
                run(operator)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(order,)) for order in (OPERATORS, OPERATORS[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class Results(torch.utils.data.Dataset):
    """A dataset whose workers call the operators, with gradients."""

    def __len__(self) -> int:
        return len(OPERATORS)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return run(OPERATORS[index])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_workers_after_the_parent_used_its_threads():
    torch.set_num_threads(2)
    here = [Results()[index] for index in range(len(OPERATORS))]
    loader = torch.utils.data.DataLoader(
        Results(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=200
    )
    for ours, theirs in zip(here, loader, strict=True):
        assert_same(tuple(theirs), ours)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_openmp_runtime_is_loaded_after_all_have_run():
    script = """
import os, re, torch
from tests.ops import test_threads
torch.set_num_threads(2)
for operator in test_threads.OPERATORS + test_threads.WITH_PRODUCTS:
    test_threads.run(operator)
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if re.search(r"lib(g|i|)omp[-.\\d]", line)}
print(len(runtimes), len(os.listdir("/proc/self/task")))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    runtimes, threads = map(int, result.stdout.split())
    assert runtimes == 1
    assert threads >= 2
