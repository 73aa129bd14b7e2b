"""sample_tokens: the inverse CDF of the softmax on every backend, against float64."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch

from electra_fast import ops
from electra_fast.ops import _backends
from tests.ops import numpy_oracle
from tests.ops.backends import BACKENDS, KERNELS, needs_cpp, poison_new_tensors

ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"

# The first 60 row ids whose uniform number, of seed 7 and stream 0, lies within 2e-7 of a half.
# fmt: off
NEAR_HALF = np.array([
    10881649, 13058302, 23083132, 24714241, 30103116, 31699366, 31785469, 33463869, 34102246, 38548135, 39484495,
    50132556, 55997431, 59747026, 64587173, 64809982, 69923248, 72268897, 77650712, 79075607, 79137725, 79990343,
    83785225, 89343872, 98371058, 100621439, 101361513, 102852881, 106355941, 106985742, 110004771, 112865150,
    113094997, 114489478, 122618510, 123651705, 125749015, 127205696, 129655882, 132719160, 134412042, 135188217,
    135761340, 135900962, 141277187, 146346114, 146393968, 150922671, 150934002, 162237453, 169159058, 169897880,
    174220696, 175242920, 186039060, 187226685, 189547586, 191289370, 196155143, 196535576,
])
# fmt: on


def uniform53(seed: int, stream: int, rows: np.ndarray) -> np.ndarray:
    words = numpy_oracle.philox(seed, rows, 0, stream).astype(np.uint64)
    return ((words[0] >> np.uint64(5)) * 2**26 + (words[1] >> np.uint64(6))).astype(np.float64) * 2.0**-53


def inverse_cdf(logits: np.ndarray, temperature: float, disallow, uniform: np.ndarray):
    """The tokens, and how far each row's uniform number lies from the nearest step of its CDF."""
    scores = logits.astype(np.float64) / temperature
    if disallow is not None:
        scores[np.arange(len(scores)), disallow] = -np.inf
    masses = np.exp(scores - scores.max(1, keepdims=True))
    cdf = masses.cumsum(1) / masses.sum(1, keepdims=True)
    return (cdf <= uniform[:, None]).sum(1), np.abs(cdf - uniform[:, None]).min(1)


def chi_square_is_usual(counts: np.ndarray, expected: np.ndarray) -> bool:
    """Within 5 standard deviations; bins that expect under 5 are one bin."""
    usual = expected >= 5
    counts = np.append(counts[usual], counts[~usual].sum())
    expected = np.append(expected[usual], expected[~usual].sum())
    if expected[-1] < 5:
        counts, expected = counts[:-1], expected[:-1]
    return ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * math.sqrt(2 * len(counts))


# One token; two; one tile and a bit; a vocabulary of several tiles, a prime; ELECTRA's; more tiles than fit one pass of
# the C++ kernel (above 524,288).
SHAPES = [(1, 1), (40, 2), (33, 513), (5, 4099), (9, 30522), (3, 600_000)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_equal_the_inverse_cdf(backend, rows, vocab, dtype, rng_seed, monkeypatch):
    if backend.name == "cpp" and dtype == torch.float16:
        pytest.skip("float16 on CPU runs the reference")
    if backend.interpreted and vocab > 100_000:
        pytest.skip("1,000 tiles take the interpreter too long")
    if backend.interpreted and vocab > 10_000 and dtype != torch.float32 and not ALL:
        pytest.skip("many tiles; runs under ELECTRA_FAST_TEST_ALL=1")
    poison_new_tensors(monkeypatch)
    g = np.random.default_rng(rng_seed)
    logits = torch.from_numpy(g.normal(0, 3, (rows, vocab))).to(dtype)
    for disallow, temperature in ((None, 1.0), (g.integers(0, vocab, rows), 0.7)):
        if disallow is not None and vocab == 1:
            continue
        names = g.integers(-(2**63), 2**63, rows, dtype=np.int64)
        seed, stream = int(g.integers(-(2**63), 2**63)), int(g.integers(2**31))
        with ops.use_backend(backend.name):
            got = ops.sample_tokens(
                logits.to(backend.device),
                temperature=temperature,
                disallow=None if disallow is None else torch.from_numpy(disallow).to(backend.device),
                seed=seed,
                stream=stream,
                row_ids=torch.from_numpy(names).to(backend.device),
            )
        got = got.cpu().numpy()
        uniform = uniform53(seed, stream, names)
        expected, distance = inverse_cdf(logits.double().numpy(), temperature, disallow, uniform)
        # Masses are in float32, and so are exponents, whose rounding grows with the range of the logits.
        clear = distance > 1e-6
        assert np.array_equal(got[clear], expected[clear])
        # A lone token's only step is 1, which a number may be near; 600,000 tokens leave no number far from all steps.
        assert clear.any() or vocab in (1, 600_000)
        assert ((got >= 0) & (got < vocab)).all()
        assert disallow is None or (got != disallow).all()


@pytest.mark.parametrize("backend", KERNELS)
def test_rows_of_a_larger_tensor_and_transposed_ones(backend, rng_seed):
    wide = torch.randn(20, 700, device=backend.device)
    with ops.use_backend(backend.name):
        expected = ops.sample_tokens(wide[::2, 3:600].contiguous(), seed=rng_seed)
        assert torch.equal(ops.sample_tokens(wide[::2, 3:600], seed=rng_seed), expected)
        assert torch.equal(ops.sample_tokens(wide[::2, 3:600].t().contiguous().t(), seed=rng_seed), expected)
        one = wide[:1, :50]
        assert ops.sample_tokens(one.expand(9, 50), seed=rng_seed).shape == (9,)
        assert ops.sample_tokens(wide[:0], seed=rng_seed).shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_a_law_still_index_the_vocabulary(backend):
    logits = torch.zeros(5, 600)
    logits[0] = math.nan
    logits[1] = -math.inf
    logits[2, 70] = math.inf
    logits[3, 599] = math.nan
    logits[4] = -math.inf
    logits[4, 77] = -3e38  # the only token with a mass
    with ops.use_backend(backend.name):
        got = ops.sample_tokens(logits.to(backend.device), seed=1)
        assert ((got >= 0) & (got < 600)).all()
        assert got[4] == 77
        huge = torch.tensor([[3e38, -3e38, 3e38], [0.0, 3e38, -math.inf]], device=backend.device)
        tokens = ops.sample_tokens(huge.repeat(30, 1), seed=1, temperature=1e-30).view(30, 2)
        assert set(tokens[:, 0].tolist()) == {0, 2}
        assert set(tokens[:, 1].tolist()) == {1}


@needs_cpp
def test_the_same_ids_for_any_number_of_threads_order_and_cut(rng_seed):
    logits, names = torch.randn(200, 3001), torch.randint(2**62, (200,))
    order = torch.randperm(200)
    before = torch.get_num_threads()
    try:
        with ops.use_backend("cpp"):
            expected = ops.sample_tokens(logits, seed=3, row_ids=names)
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                assert torch.equal(ops.sample_tokens(logits, seed=3, row_ids=names), expected)
            assert torch.equal(ops.sample_tokens(logits[order], seed=3, row_ids=names[order]), expected[order])
            cut = [ops.sample_tokens(logits[i : i + 77], seed=3, row_ids=names[i : i + 77]) for i in range(0, 200, 77)]
            assert torch.equal(torch.cat(cut), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"])
def test_more_than_65535_rows_on_the_device(device):
    logits = torch.randn(70_000, 40, device=device)
    with ops.use_backend("reference"):
        expected = ops.sample_tokens(logits, seed=2)
    assert (ops.sample_tokens(logits, seed=2) == expected).float().mean() > 0.9999


@needs_cpp
def test_more_than_65535_rows():
    logits = torch.randn(70_000, 40)
    with ops.use_backend("reference"):
        expected = ops.sample_tokens(logits, seed=2)
    with ops.use_backend("cpp"):
        assert (ops.sample_tokens(logits, seed=2) == expected).float().mean() > 0.9999


# Fixed seeds: the bound is statistical. Draws: what the law of the issue asks for, a tenth in the usual suite.
@needs_cpp
@pytest.mark.parametrize(("vocab", "draws"), [(100, 10**7 if ALL else 10**6), (30522, 3 * 10**5 if ALL else 3 * 10**4)])
def test_samples_have_the_law_of_the_softmax(vocab, draws):
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 2, vocab)).float()
    with ops.use_backend("cpp"):
        counts = torch.bincount(ops.sample_tokens(logits.expand(draws, vocab), seed=12), minlength=vocab)
    expected = torch.softmax(logits.double(), 0) * draws
    assert chi_square_is_usual(counts.numpy(), expected.numpy())


@pytest.mark.parametrize("backend", KERNELS[1:])
def test_samples_of_the_triton_kernel_have_the_law_of_the_softmax(backend, monkeypatch):
    from electra_fast.kernels import sampling

    monkeypatch.setattr(sampling, "_MAX_ROWS", 1024)  # the interpreter takes its time by program
    monkeypatch.setattr(sampling, "_TILE_ELEMENTS", 2**17)
    draws, calls = 10**5 if ALL else 10**4, 4
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 2, 100)).float()
    with ops.use_backend(backend.name):
        drawn = [
            ops.sample_tokens(logits.to(backend.device).expand(draws // calls, 100), seed=seed) for seed in range(calls)
        ]
    counts = torch.bincount(torch.cat(drawn).cpu(), minlength=100)
    expected = torch.softmax(logits.double(), 0) * draws
    assert chi_square_is_usual(counts.numpy(), expected.numpy())


@pytest.mark.parametrize("place", [300, 511])  # within a tile, and as the last of one
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_probability_1e_7_comes_out_at_its_rate(backend, place, monkeypatch):
    """The uniform number goes through its interval around a half: what finds the token is 1e-7 long."""
    if backend.name == "triton":
        from electra_fast.kernels import sampling

        monkeypatch.setattr(sampling, "_TILE_ELEMENTS", 512)
    logits = torch.full((600,), -math.inf)
    logits[place] = math.log(1e-7)
    logits[5] = logits[590] = math.log(0.5 - 0.5e-7)
    with ops.use_backend(backend.name):
        got = ops.sample_tokens(
            logits.to(backend.device).expand(len(NEAR_HALF), -1),
            seed=7,
            row_ids=torch.from_numpy(NEAR_HALF).to(backend.device),
        )
    uniform = uniform53(7, 0, NEAR_HALF)
    order = np.argsort(uniform)
    uniform, tokens = uniform[order], got.cpu().numpy()[order]
    below, found, above = (uniform[tokens == token] for token in (5, place, 590))
    assert len(below) + len(found) + len(above) == len(uniform)
    assert (np.diff(np.searchsorted([5, place, 590], tokens)) >= 0).all()
    # Float32 moves the steps of the CDF by up to 1e-7, both alike; that the distance between them is right shows to
    # within that of neighbouring numbers.
    assert found[-1] - found[0] <= 1.01e-7
    assert above[0] - below[-1] >= 0.99e-7


def test_a_token_outside_the_vocabulary_is_refused():
    for bad in (-1, 5):
        with pytest.raises(ValueError, match="disallow"):
            ops.sample_tokens(torch.randn(2, 5), disallow=torch.tensor([0, bad]), seed=1)


@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck(backend):
    with ops.use_backend(backend.name):
        for row_ids, disallow in ((None, None), (torch.tensor([5, 2, 9]), torch.tensor([1, 0, 6]))):
            torch.library.opcheck(
                torch.ops.electra_fast.sample_tokens.default,
                (
                    torch.randn(3, 7, device=backend.device),
                    torch.tensor(3, device=backend.device),
                    None if row_ids is None else row_ids.to(backend.device),
                    None if disallow is None else disallow.to(backend.device),
                    0.8,
                    2,
                ),
            )


def test_default_backend_on_cpu_is_cpp_where_it_is_built():
    expected = "reference" if _backends._extension_error() else "cpp"
    assert _backends.select("sample_tokens", torch.zeros(1, 2)) == expected
