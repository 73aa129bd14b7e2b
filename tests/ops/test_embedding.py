"""embedding_layer_norm on every backend, against torch.nn.functional in float64 and dropout masks made by NumPy."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from tests.ops import numpy_oracle
from tests.ops.backends import BACKENDS, KERNELS, Backend, assert_as_accurate, needs_cpp, poison_new_tensors

NAMES = ("word", "token_type", "position", "weight", "bias")
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-12


def make_inputs(
    *, tokens: int, width: int, words: int, types: int = 2, positions: int = 11, dtype=torch.float32, device="cpu"
) -> dict[str, Any]:
    """A call with every argument; a quarter of the tokens is one word, as [MASK] is, and the padding occurs."""

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape).to(device, dtype).requires_grad_()

    ids = torch.randint(words, (tokens,))
    ids[torch.rand(tokens) < 0.25] = words - 1
    return {
        "input_ids": ids.to(device),
        "token_type_ids": torch.randint(types, (tokens,), device=device),
        "position_ids": torch.randint(positions, (tokens,), device=device),
        "word": floats(words, width),
        "token_type": floats(types, width),
        "position": floats(positions, width),
        "weight": floats(width),
        "bias": floats(width),
        "p": 0.3,
        "eps": EPS,
        "seed": torch.tensor(np.random.default_rng(torch.randint(2**31, ()).item()).integers(-(2**63), 2**63)).to(
            device
        ),
        "stream": 7,
        "row_ids": torch.randint(-(2**62), 2**62, (tokens,), device=device),
        "padding_idx": 0,
    }


def on(device: str, call: dict[str, Any]) -> dict[str, Any]:
    return {key: value.detach().to(device) if isinstance(value, Tensor) else value for key, value in call.items()}


def factors_of(call: dict[str, Any]) -> Tensor:
    """What dropout multiplies by, in float64 [T, E], from the NumPy Philox."""
    tokens, width = call["input_ids"].shape[0], call["word"].shape[1]
    names = np.arange(tokens) if call["row_ids"] is None else call["row_ids"].cpu().numpy()
    seed = int(call["seed"]) if call["p"] else 0
    words = [numpy_oracle.philox(seed, names, block, call["stream"]) for block in range((width + 3) // 4)]
    numbers = np.stack(words, axis=2).transpose(1, 2, 0).reshape(tokens, len(words) * 4)[:, :width]  # [T, E]
    scale = float(np.float32(1 / (1 - call["p"])))
    return torch.from_numpy(np.where(numbers < round(call["p"] * 2**32), 0.0, scale))


def plain(call: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The chain of PyTorch calls in one dtype, on the CPU, and its leaves in the order of NAMES."""
    call = on("cpu", call)
    leaves = [call[name].to(dtype).requires_grad_() for name in NAMES]
    word, token_type, position, weight, bias = leaves
    types = torch.zeros_like(call["input_ids"]) if call["token_type_ids"] is None else call["token_type_ids"]
    rows = F.embedding(call["input_ids"], word, padding_idx=call["padding_idx"])
    rows = rows + F.embedding(types, token_type) + F.embedding(call["position_ids"], position)
    y = F.layer_norm(rows, weight.shape, weight, bias, call["eps"])
    return y * factors_of(call).to(dtype), leaves


def run(call: dict[str, Any], upstream: Tensor) -> tuple[Tensor, ...]:
    leaves = [call[name] for name in NAMES]
    y = ops.embedding_layer_norm(**call)
    return y, *torch.autograd.grad(y, leaves, upstream.to(y.device))


def assert_right(call: dict[str, Any], results: tuple[Tensor, ...], upstream: Tensor) -> None:
    """Result and gradients within twice the error of PyTorch in the same dtype.

    atol: four rounding steps of the dtype at the size of the result, since PyTorch is now and then exact. For a row of
    a table the size is that of 1 / (standard deviation) times the upstream gradient, summed over its tokens, which
    LayerNorm's gradient takes the difference of. To it comes what float32 leaves of a token's row, an eps of its
    largest term, which LayerNorm multiplies by 1 / (standard deviation) once more: narrow rows may be nearly constant.
    """
    dtype = call["word"].dtype
    (exact_y, exact_leaves), (plain_y, plain_leaves) = plain(call, torch.float64), plain(call, dtype)
    exact = exact_y, *torch.autograd.grad(exact_y, exact_leaves, upstream.double())
    same = plain_y, *torch.autograd.grad(plain_y, plain_leaves, upstream.to(dtype))
    tokens, width = upstream.shape
    ids = {
        name: torch.zeros(tokens, dtype=torch.int64) if call[f"{ids}_ids"] is None else call[f"{ids}_ids"].cpu()
        for name, ids in zip(NAMES[:3], ("input", "token_type", "position"), strict=True)
    }
    with torch.no_grad():
        terms = torch.stack([table[ids[name]] for name, table in zip(NAMES[:3], exact_leaves[:3], strict=True)])
        rows = terms.sum(0)
        rstd = ((rows - rows.mean(1, keepdim=True)).square().mean(1, keepdim=True) + EPS).rsqrt()
        factors, weight = factors_of(call), exact_leaves[3].abs()
        dy = upstream.double().abs() * factors
        gradient = rstd * (dy * weight).amax(1, keepdim=True) if tokens else rstd
        x_hat = 1 + rstd * terms.abs().sum(0).amax(1, keepdim=True) if tokens and width > 1 else torch.ones_like(rstd)
    single = torch.finfo(torch.float32).eps
    for name, ours, theirs, truth in zip(("y", *NAMES), results, same, exact, strict=True):
        size = truth.detach().abs().max() if truth.numel() else torch.tensor(0.0)
        if name == "y":
            of_rows = x_hat * weight * factors
        elif name in ids:
            of_tokens = torch.cat([gradient, (x_hat * gradient).square()], dim=1)
            sums = torch.zeros(len(truth), 2, dtype=torch.float64).index_add_(0, ids[name], of_tokens)
            size, of_rows = torch.maximum(size, sums[:, :1]), sums[:, 1:].sqrt()
        else:
            of_rows = ((x_hat if name == "weight" else 1) * dy).square().sum(0).sqrt()
        assert_as_accurate(ours, theirs, truth, atol=4 * (torch.finfo(dtype).eps * size + single * of_rows), name=name)


# tokens, width, words, types: why each. One token, row and column; nothing; rows narrower than a Philox call; ELECTRA's
# generator of 64 columns; odd and prime everything, with more types than are summed by blocks; several segments of 64
# sorted tokens, one word over three of them; a width of more than one tile of columns; the widest.
SHAPES = [
    (1, 1, 1, 1),
    (0, 8, 5, 2),
    (5, 3, 4, 1),
    (33, 64, 200, 2),
    (61, 37, 7, 5),
    (150, 128, 3, 2),
    (3, 513, 9, 2),
    (2, 8192, 3, 2),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("tokens", "width", "words", "types"), SHAPES)
def test_against_float64(backend, dtype, tokens, width, words, types, rng_seed, monkeypatch):
    if backend.name == "cpp" and dtype == torch.float16:
        pytest.skip("the C++ kernels leave float16 to the reference")
    if backend.interpreted and (dtype == torch.float16 or (dtype == torch.bfloat16 and tokens * width > 4096)):
        pytest.skip("the interpreter is slow: bfloat16 stands for both, at small sizes")
    if backend.interpreted and width > 4000 and os.environ.get("ELECTRA_FAST_TEST_ALL") != "1":
        pytest.skip("takes seconds in the interpreter: set ELECTRA_FAST_TEST_ALL=1")
    call = make_inputs(tokens=tokens, width=width, words=words, types=types, dtype=dtype, device=backend.device)
    upstream = torch.randn(tokens, width).to(dtype)
    poison_new_tensors(monkeypatch)  # from here on, what no kernel wrote is NaN
    with ops.use_backend(backend.name):
        results = run(call, upstream)
    monkeypatch.undo()
    assert results[0].dtype == dtype
    assert_right(call, results, upstream)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_dropout_types_row_ids_and_padding(backend, rng_seed):
    call = make_inputs(tokens=70, width=20, words=9, device=backend.device)
    call |= {"p": 0.0, "token_type_ids": None, "row_ids": None, "padding_idx": None, "seed": None}
    call["input_ids"][0] = 0  # the word of the padding occurs
    upstream = torch.randn(70, 20)
    with ops.use_backend(backend.name):
        results = run(call, upstream)
        with_zeros = run(call | {"token_type_ids": torch.zeros_like(call["input_ids"])}, upstream)
    assert_right(call, results, upstream)
    assert results[1][0].any()
    for ours, same in zip(results, with_zeros, strict=True):
        assert torch.equal(ours, same)


# Sizes where the C++ kernel cuts work for threads; a word with thousands of tokens and rows above 65,535; a word table
# so large that its gradient goes past the caches.
@pytest.mark.parametrize("backend", [param for param in BACKENDS if not param.values[0].interpreted])
@pytest.mark.parametrize(("tokens", "width", "words"), [(2048, 128, 3000), (70_001, 5, 300), (900, 64, 20_000)])
def test_many_tokens(backend, tokens, width, words, rng_seed):
    call = make_inputs(tokens=tokens, width=width, words=words, positions=512, device=backend.device)
    upstream = torch.randn(tokens, width)
    with ops.use_backend(backend.name):
        results = run(call, upstream)
        again = run(call, upstream)
    assert_right(call, results, upstream)
    for one, other in zip(results, again, strict=True):
        assert torch.equal(one, other)


@needs_cpp
def test_the_number_of_threads_changes_no_bit(rng_seed):
    call = make_inputs(tokens=3001, width=65, words=997)
    upstream = torch.randn(3001, 65)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            with ops.use_backend("cpp"):
                results.append(run(call, upstream))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for ours, same in zip(results[0], other, strict=True):
            assert torch.equal(ours, same)


@pytest.mark.parametrize("backend", KERNELS)
def test_masks_equal_numpy_bit_by_bit(backend, rng_seed):
    call = make_inputs(tokens=40, width=70, words=9, device=backend.device)
    with torch.no_grad(), ops.use_backend(backend.name):
        for p in (0.1, 0.5, 0.999):
            # A bias far from 0 makes 0 mean dropped and nothing else.
            y = ops.embedding_layer_norm(**(call | {"p": p, "bias": torch.full_like(call["bias"], 1e4)}))
            assert torch.equal(y.cpu() == 0, factors_of(call | {"p": p}) == 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_follow_their_row_ids(backend, rng_seed):
    call = make_inputs(tokens=48, width=24, words=9, device=backend.device)
    order = torch.randperm(48)[:31].to(backend.device)
    part = {name: call[name][order] for name in ("input_ids", "token_type_ids", "position_ids", "row_ids")}
    with torch.no_grad(), ops.use_backend(backend.name):
        assert torch.equal(ops.embedding_layer_norm(**(call | part)), ops.embedding_layer_norm(**call)[order])
        counted = ops.embedding_layer_norm(**(call | {"row_ids": None}))
        named = ops.embedding_layer_norm(**(call | {"row_ids": torch.arange(48, device=backend.device)}))
        assert torch.equal(counted, named)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_gradients_that_are_needed(backend, rng_seed):
    call = make_inputs(tokens=30, width=16, words=9, types=3, device=backend.device)
    upstream = torch.randn(30, 16, device=backend.device)
    with ops.use_backend(backend.name):
        _, *whole = run(call, upstream)
        for needed in (0, 1, 2, 3, 4):
            alone = {name: call[name].detach().requires_grad_(i == needed) for i, name in enumerate(NAMES)}
            y = ops.embedding_layer_norm(**(call | alone))
            (gradient,) = torch.autograd.grad(y, [alone[NAMES[needed]]], upstream)
            assert torch.equal(gradient, whole[needed])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_result_used_twice_strided_tensors_and_expanded_gradients(backend, rng_seed):
    call = make_inputs(tokens=26, width=12, words=9, device=backend.device)
    strided = {
        name: value.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_(name in NAMES)
        if isinstance(value, Tensor) and value.dim()
        else value
        for name, value in call.items()
    }
    assert not strided["word"].is_contiguous()
    leaves, strided_leaves = [call[name] for name in NAMES], [strided[name] for name in NAMES]
    with ops.use_backend(backend.name):
        y = ops.embedding_layer_norm(**call)
        # 1 from the sum (an expanded gradient) and 2 from the product.
        both = torch.autograd.grad(y.sum() + 2 * y[:26].sum(), leaves)
        three = torch.autograd.grad(ops.embedding_layer_norm(**strided), strided_leaves, torch.full_like(y, 3.0))
    for ours, same in zip(both, three, strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("token_types", [2, 6])
def test_gradcheck_of_the_reference(token_types, rng_seed):
    call = make_inputs(tokens=7, width=5, words=4, types=token_types, positions=3, dtype=torch.float64)
    call |= {"padding_idx": None, "eps": 1e-5}

    def function(*leaves: Tensor) -> Tensor:
        return ops.embedding_layer_norm(**(call | dict(zip(NAMES, leaves, strict=True))))

    with ops.use_backend("reference"):
        assert torch.autograd.gradcheck(function, [call[name] for name in NAMES])


def test_padding_idx_is_that_of_nn_embedding(rng_seed):
    call = make_inputs(tokens=40, width=8, words=6)
    upstream = torch.randn(40, 8)
    for padding_idx, row in ((3, 3), (-1, 5)):
        results = run(call | {"padding_idx": padding_idx}, upstream)
        assert not results[1][row].any()
        assert_right(call | {"padding_idx": padding_idx}, results, upstream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_float32_as_layer_norm_does(dtype, rng_seed):
    call = make_inputs(tokens=40, width=8, words=6, dtype=dtype)
    upstream = torch.randn(40, 8)
    outside = run(call | {name: call[name].detach().float().requires_grad_() for name in NAMES}, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.embedding_layer_norm(**call)
    gradients = torch.autograd.grad(y, [call[name] for name in NAMES], upstream)
    assert torch.equal(y, outside[0])
    for ours, same in zip(gradients, outside[1:], strict=True):
        assert torch.equal(ours, same.to(dtype))


def test_parameters_of_another_dtype(rng_seed):
    call = make_inputs(tokens=20, width=8, words=6, dtype=torch.bfloat16)
    call |= {name: call[name].detach().float().requires_grad_() for name in ("weight", "bias")}
    y, *gradients = run(call, torch.randn(20, 8).bfloat16())
    assert y.dtype == torch.bfloat16
    assert [gradient.dtype for gradient in gradients] == [call[name].dtype for name in NAMES]


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_gives_the_same_bits(compiler, rng_seed):
    torch._dynamo.reset()

    def function(call: dict[str, Any]) -> Tensor:
        return ops.embedding_layer_norm(**call)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)
    for tokens in (40, 57):
        call = make_inputs(tokens=tokens, width=24, words=50)
        upstream = torch.randn(tokens, 24)
        expected = run(call, upstream)
        y = compiled(call)
        results = (y, *torch.autograd.grad(y, [call[name] for name in NAMES], upstream))
        for ours, same in zip(results, expected, strict=True):
            assert torch.equal(ours, same)


def test_opcheck(rng_seed):
    call = make_inputs(tokens=20, width=12, words=6)
    for types, seed, p in ((None, None, 0.0), (call["token_type_ids"], call["seed"], 0.2)):
        arguments = (
            *(call[name] for name in NAMES),
            call["input_ids"],
            types,
            call["position_ids"],
            seed,
            None,
            0,
            p,
            EPS,
            3,
        )
        torch.library.opcheck(torch.ops.electra_fast.embedding_layer_norm.default, arguments)


def test_statistics_carry_no_gradient_and_no_grad_is_obeyed(rng_seed):
    call = make_inputs(tokens=20, width=12, words=6)
    y, stats = torch.ops.electra_fast.embedding_layer_norm(
        *(call[name] for name in NAMES), call["input_ids"], None, call["position_ids"], None, None, -1, 0.0, EPS, 0
    )
    assert y.requires_grad
    assert not stats.requires_grad
    with torch.no_grad():
        assert not ops.embedding_layer_norm(**call).requires_grad


def test_seed_none_follows_torch(rng_seed):
    call = make_inputs(tokens=20, width=12, words=6) | {"seed": None}
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append([ops.embedding_layer_norm(**call) for _ in range(2)])
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], results[0][1])


@needs_cpp
def test_two_python_threads_at_once(rng_seed):
    calls = [make_inputs(tokens=900, width=33, words=100) for _ in range(2)]
    upstream = torch.randn(900, 33)
    expected = [run(call, upstream) for call in calls]
    failures = []

    def work(index: int) -> None:
        try:
            for _ in range(10):
                for ours, same in zip(run(calls[index], upstream), expected[index], strict=True):
                    assert torch.equal(ours, same)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


IDS = torch.zeros(4, dtype=torch.int64)
BAD_CALLS = [
    ({"input_ids": torch.tensor([0, 9, 1, 2])}, ValueError, r"input_ids must lie in \[0, 9\).*got 9"),
    ({"input_ids": torch.tensor([0, -1, 1, 2])}, ValueError, r"input_ids .*got -1"),
    ({"token_type_ids": IDS + 2}, ValueError, r"token_type_ids must lie in \[0, 2\).*got 2"),
    ({"position_ids": IDS + 11}, ValueError, r"position_ids must lie in \[0, 11\).*got 11"),
    ({"input_ids": IDS.int()}, TypeError, "input_ids"),
    ({"input_ids": IDS.view(2, 2)}, ValueError, "input_ids"),
    ({"position_ids": IDS[:3]}, ValueError, r"position_ids has shape \(3,\), input_ids \(4,\)"),
    ({"row_ids": IDS[:3]}, ValueError, "row_ids"),
    ({"position_ids": IDS.to("meta")}, ValueError, "position_ids lies on meta"),
    ({"word": torch.zeros(9, 8, dtype=torch.int64)}, TypeError, "word"),
    ({"word": torch.zeros(9, 4, 2)}, ValueError, "word"),
    ({"word": torch.zeros(0, 8)}, ValueError, "word must have at least one row"),
    ({"token_type": torch.zeros(2, 7)}, ValueError, r"token_type .* width of word \(9, 8\).*\(2, 7\)"),
    ({"position": torch.zeros(11, 8).bfloat16()}, TypeError, "position"),
    ({"weight": torch.zeros(7)}, ValueError, r"weight must have shape \(8,\)"),
    ({"bias": torch.zeros(8, dtype=torch.int64)}, TypeError, "bias"),
    ({"p": 1.0}, ValueError, r"p must lie in \[0, 1\); got 1.0"),
    ({"p": float("nan")}, ValueError, "p must lie"),
    ({"seed": torch.zeros(1, dtype=torch.int64)}, TypeError, "seed"),
    ({"stream": -1}, ValueError, "stream"),
    ({"padding_idx": 9}, ValueError, r"padding_idx .*\(9, 8\).*got 9"),
]


@pytest.mark.parametrize("backend", BACKENDS[:3])
@pytest.mark.parametrize(("change", "error", "message"), BAD_CALLS)
def test_bad_input_is_refused(backend, change, error, message):
    call = make_inputs(tokens=4, width=8, words=9)
    with ops.use_backend(backend.name), pytest.raises(error, match=f"embedding_layer_norm: .*{message}|{message}"):
        ops.embedding_layer_norm(**(call | change))


def test_too_wide_rows_are_refused():
    call = make_inputs(tokens=2, width=8193, words=2)
    with pytest.raises(ValueError, match="8192"):
        ops.embedding_layer_norm(**call)


@pytest.mark.parametrize("backend", [param for param in BACKENDS if param.values[0] == Backend("triton", "cpu")])
def test_kernels_clamp_ids_that_nobody_checked(backend, rng_seed):
    """What CUDA does without ELECTRA_FAST_DEBUG=1."""
    call = make_inputs(tokens=9, width=8, words=5)
    wild = call["input_ids"].clone()
    wild[2:5] = torch.tensor([-1, 5, 2**40])
    clamped = wild.clamp(0, 4)
    from electra_fast.kernels.embedding import embedding_layer_norm_backward_triton, embedding_layer_norm_triton

    def both(ids: Tensor) -> tuple[Tensor, ...]:
        tables = [call[name].detach() for name in NAMES]
        y, stats = embedding_layer_norm_triton(*tables, ids, None, call["position_ids"], None, None, -1, 0.0, EPS, 0)
        return y, *embedding_layer_norm_backward_triton(
            y, *tables[:4], stats, ids, None, call["position_ids"], None, None, -1, 0.0, 0, [True] * 5
        )

    for ours, same in zip(both(wild), both(clamped), strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_column_is_constant_and_has_no_gradient(backend, rng_seed):
    call = make_inputs(tokens=40, width=1, words=7, device=backend.device)
    with ops.use_backend(backend.name):
        results = run(call, torch.randn(40, 1))
    for name, gradient in zip(NAMES[:3], results[1:4], strict=True):
        assert not gradient.any(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_tables_compiled(backend, rng_seed):
    call = make_inputs(tokens=9, width=16, words=7, device=backend.device)
    call |= {name: call[name].detach() for name in NAMES[:3]}
    compiled = torch.compile(ops.embedding_layer_norm, fullgraph=True, backend="aot_eager")
    wrt, upstream = [call[name] for name in NAMES[3:]], torch.randn(9, 16, device=backend.device)
    with ops.use_backend(backend.name):
        ours = torch.autograd.grad(compiled(**call), wrt, upstream)
        eager = torch.autograd.grad(ops.embedding_layer_norm(**call), wrt, upstream)
    for got, expected in zip(ours, eager, strict=True):
        assert torch.equal(got, expected)
