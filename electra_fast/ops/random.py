"""All facts about randomness: the generator, its counter, thresholds, and how seeds derive from a run.

**The generator** is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). Its key is the
64-bit seed, low word first. Its counter is `(column // 4, row id low word, row id high word, stream)`, and the number
of a column is word `column % 4` of the result. A draw therefore depends on (seed, stream, row id, column) alone: it is
the same on every backend and device, for any block size, thread count, padding, packing or rank.

**Streams** separate the uses of one seed. `mask_tokens` uses stream 0 of a seed of its own; models number the rest.

**Row ids** name tokens: `sequence_id * 2^16 + position in the sequence` (`row_ids_for`), where the sequence id comes
from the data order. Where a caller gives none, an operator uses 0..T-1.

**Masking** reads one call per token, at column block 0: word 0 is the token's key (the smallest keys are masked), word
1 decides between [MASK] and keeping the token.

**Decisions** with probability p compare integers: `word < threshold(p)`, in 64 bits, so that p = 1 is certain.

**Dropout** drops an element where its number, by row id and column, is below threshold(p); the others are multiplied by
1 / (1 - p) in float32.

**Sampling** reads one call per row, at column block 0: words 0 and 1 make a uniform number of 53 bits (`uniform53`).

**Seeds** are int64 0-d tensors on the device of the data, so that a new seed needs no new graph. A run derives them on
the host: masks from (run seed, epoch), dropout and sampling from (run seed, step).
"""

from __future__ import annotations

import operator
from typing import SupportsIndex, TypeVar

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)

_MASKING_DOMAIN = 1
_STEP_DOMAIN = 2

ROW_BITS = 16  # positions in a sequence stay below 2^16

Int64 = TypeVar("Int64", int, Tensor)


def philox(seed: Tensor | int, row_ids: Tensor, column_blocks: Tensor | int, stream: int) -> tuple[Tensor, ...]:
    """The four words of Philox-4x32-10, each an int64 tensor of values in [0, 2^32).

    Args:
        seed: int or int64 tensor, all 64 bits count (negative ones as two's complement).
        row_ids: int64 tensor, likewise.
        column_blocks: column // 4, int or int64 tensor; broadcasts against `row_ids`.
        stream: int in [0, 2^31).
    """
    keys = [seed & _WORD, (seed >> 32) & _WORD]
    c0 = torch.as_tensor(column_blocks, dtype=torch.int64, device=row_ids.device) & _WORD
    c1, c2 = row_ids & _WORD, (row_ids >> 32) & _WORD
    c3 = torch.full((), check_stream(stream), dtype=torch.int64, device=row_ids.device)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ keys[0], low1, high0 ^ c3 ^ keys[1], low0
        keys = [(key + weyl) & _WORD for key, weyl in zip(keys, _WEYL, strict=True)]
    return tuple(torch.broadcast_tensors(c0, c1, c2, c3))


def _multiply(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32-bit product, by 16-bit halves so that nothing overflows int64."""
    low = multiplier * (word & 0xFFFF)
    middle = multiplier * (word >> 16) + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def uniform53(word0: Tensor, word1: Tensor) -> Tensor:
    """A float64 in [0, 1) with 53 random bits: 27 from the first word, 26 from the second."""
    return ((word0 >> 5) * 2**26 + (word1 >> 6)).double() * 2.0**-53


def threshold(p: float) -> int:
    """The integer t for which `word < t` holds with probability p to within 2^-33: round(p * 2^32)."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"a probability must lie in [0, 1]; got {p}")
    return round(p * 2**32)


def dropout_factors(seed: Tensor, row_ids: Tensor, width: int, p: float, stream: int) -> Tensor:
    """What dropout multiplies rows by, float64 [rows, width]: 0 with probability p, else 1 / (1 - p) in float32."""
    blocks = torch.arange((width + 3) // 4, device=row_ids.device)
    words = torch.stack(philox(seed, row_ids.unsqueeze(1), blocks, stream), dim=2).flatten(1)[:, :width]
    scale = torch.full((), 1 / (1 - p), dtype=torch.float32, device=row_ids.device).double()
    return torch.where(words < threshold(p), 0.0, scale)


def check_stream(stream: int) -> int:
    if not 0 <= stream < 2**31:
        raise ValueError(f"stream must be an int in [0, 2^31); got {stream}")
    return stream


def splitmix64(x: Int64) -> Int64:
    """SplitMix64's output for state `x` (Steele et al., 2014): a bijection of the 64-bit numbers that mixes all bits.

    Takes an int, an int64 tensor or an int64 array and gives the same kind back, as a signed 64-bit number.
    """
    x = _signed(x + _GOLDEN)
    x = _signed((x ^ _shift(x, 30)) * _MIX1)
    x = _signed((x ^ _shift(x, 27)) * _MIX2)
    return x ^ _shift(x, 31)


def _signed(x: Int64) -> Int64:
    """Python's ints grow where int64 tensors wrap around: wrap them too."""
    return (x + 2**63) % 2**64 - 2**63 if isinstance(x, int) else x


def _shift(x: Int64, bits: int) -> Int64:
    """A logical right shift: the sign does not spread."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def masking_seed(run_seed: int, epoch: int) -> int:
    """The seed of `mask_tokens` in one epoch: the same text gets new masks in the next epoch."""
    return _derive(_MASKING_DOMAIN, run_seed, epoch)


def step_seed(run_seed: int, step: int) -> int:
    """The seed of dropout and sampling in one optimizer step."""
    return _derive(_STEP_DOMAIN, run_seed, step)


def _derive(domain: int, run_seed: int, count: int) -> int:
    return splitmix64(splitmix64(splitmix64(domain) ^ _signed(run_seed)) ^ _signed(count))


def draw_seed(device: torch.device | str) -> Tensor:
    """One int64 (0-d) from torch's default generator on `device`, so that `torch.manual_seed` decides it."""
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)


def as_seed(seed: Tensor | int | None, device: torch.device | str) -> Tensor:
    """`seed` as an int64 0-d tensor on `device`; None draws one.

    Raises:
        TypeError, ValueError: a tensor that is not int64, 0-d and on `device`; anything but a tensor, an int or None.
    """
    if seed is None:
        return draw_seed(device)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise TypeError(f"seed must be an int64 tensor of no dimensions; got {seed.dtype} {tuple(seed.shape)}")
        if seed.device != torch.device(device):
            raise ValueError(f"seed lies on {seed.device}, the data on {device}; move it with seed.to({str(device)!r})")
        return seed
    if not isinstance(seed, SupportsIndex):  # NumPy's integers too
        raise TypeError(f"seed must be an int, an int64 tensor or None; got {type(seed).__name__}")
    # A fill kernel, where torch.tensor would copy from the host.
    return torch.full((), _signed(operator.index(seed)), dtype=torch.int64, device=device)


def row_ids_for(sequence_ids: Tensor, cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """`sequence_id * 2^16 + position in the sequence` for each of T flat tokens: int64 [T], without a sync.

    Tokens after `cu_seqlens[-1]` count as one more sequence, of id -1. Sequences must be shorter than 2^16 tokens.
    `sequence_ids` is int64 [B], `cu_seqlens` [B + 1].
    """
    tokens = torch.arange(num_tokens, device=cu_seqlens.device)
    sequences = sequence_of_tokens(cu_seqlens, tokens)
    names = torch.cat([sequence_ids, sequence_ids.new_full((1,), -1)])
    return names[sequences] * 2**ROW_BITS + tokens - cu_seqlens.long()[sequences]


def sequence_of_tokens(cu_seqlens: Tensor, tokens: Tensor) -> Tensor:
    """Which sequence each flat position belongs to: int64 in [0, B], B for the tokens after the last sequence."""
    return torch.searchsorted(cu_seqlens[1:].to(tokens.dtype), tokens, right=True)
