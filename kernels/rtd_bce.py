"""The discriminator's loss in one pass; electra_fast/ops/rtd_bce.py says what is computed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Launch parameters: (block, warps). Reasoned, not measured: no GPU has run them yet.
_RTD_BCE = (2048, 4)  # 16 tokens a thread: loads of 128 bits from every dtype, also where a warp has 64 lanes

# Programs add to this many histograms in turn, so that additions to a bin where many logits fall don't queue up.
# One addition a token: `tl.histogram` takes some 200 instructions a token for 2,048 bins.
_HISTOGRAMS = 32

_BINS = tl.constexpr(1024)
_BINS_PER_LOGIT = tl.constexpr(32.0)
_HIGHEST = tl.constexpr(16.0)  # from here on, and down from its negative, all logits fall in one bin
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def log1p(b_e):
    """log(1 + e) for e in [0, 1], to 1e-7 of its value: 2 atanh(e / (2 + e)), a polynomial in the square."""
    b_s = b_e / (2.0 + b_e)
    b_t = b_s * b_s
    b_p = 0.140891671 * b_t + 0.139803007
    b_p = b_p * b_t + 0.200124547
    b_p = b_p * b_t + 0.333331585
    return 2.0 * (b_s + b_s * b_t * b_p)


@triton.jit
def bce(b_logits, b_replaced):
    """Each token's loss, and its gradient; both tend to the right limits where the logit is infinite."""
    b_wrong = tl.where(b_replaced, -b_logits, b_logits)  # how far the logit lies on the wrong side
    b_e = tl.exp2(-tl.abs(b_wrong) * _LOG2_E)
    # A NaN is in b_e too, so that it does not matter what becomes of it on the left.
    b_loss = tl.where(b_wrong > 0, b_wrong, 0.0) + log1p(b_e)
    b_probability = tl.where(b_wrong > 0, 1.0, b_e) / (1.0 + b_e)
    return b_loss, tl.where(b_replaced, -b_probability, b_probability)


@triton.jit
def bin_of(b_logits):
    """clamp(floor(32 * logit) + 512, 0, 1023), exactly; NaN counts as 0."""
    b_inside = tl.where(b_logits == b_logits, b_logits, 0.0)
    b_inside = tl.where(b_inside < -_HIGHEST, -_HIGHEST, b_inside)
    b_inside = tl.where(b_inside > _HIGHEST, _HIGHEST, b_inside)
    return tl.minimum(tl.floor(b_inside * _BINS_PER_LOGIT).to(tl.int32) + _BINS // 2, _BINS - 1)


# num_tokens may be specialised, to three kernels at most: without knowing that 16 divides it, loads are of one token.
@triton.jit
def rtd_bce_kernel(
    p_logits,
    p_replaced,
    p_mask,
    p_loss_sums,
    p_counts,
    p_histograms,
    p_gradient,
    num_tokens,
    NEEDS_GRADIENT: tl.constexpr,
    NUM_HISTOGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of tokens: its own loss sum; its counts are added to the others', whole numbers in whatever order."""
    i_block = tl.program_id(0)
    o_token = i_block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_token = o_token < num_tokens
    b_logits = tl.load(p_logits + o_token, mask=m_token, other=0.0).to(tl.float32)
    b_replaced = tl.load(p_replaced + o_token, mask=m_token, other=0) != 0
    b_mask = tl.load(p_mask + o_token, mask=m_token, other=0) != 0

    b_loss, b_gradient = bce(b_logits, b_replaced)
    tl.store(p_loss_sums + i_block, tl.sum(tl.where(b_mask, b_loss, 0.0)))
    if NEEDS_GRADIENT:
        tl.store(p_gradient + o_token, tl.where(b_mask, b_gradient, 0.0), mask=m_token)

    b_predicted = b_logits > 0
    p_counts += i_block % NUM_HISTOGRAMS * 5
    tl.atomic_add(p_counts, tl.sum(b_mask.to(tl.int64)))
    tl.atomic_add(p_counts + 1, tl.sum((b_mask & b_predicted & b_replaced).to(tl.int64)))
    tl.atomic_add(p_counts + 2, tl.sum((b_mask & b_predicted & (b_replaced == 0)).to(tl.int64)))
    tl.atomic_add(p_counts + 3, tl.sum((b_mask & (b_predicted == 0) & (b_replaced == 0)).to(tl.int64)))
    tl.atomic_add(p_counts + 4, tl.sum((b_mask & (b_predicted == 0) & b_replaced).to(tl.int64)))
    p_histograms += i_block % NUM_HISTOGRAMS * (2 * _BINS)
    b_bins = bin_of(b_logits) + b_replaced.to(tl.int32) * _BINS
    tl.atomic_add(p_histograms + b_bins, tl.full([BLOCK], 1, tl.int64), mask=b_mask)


def rtd_bce_triton(
    logits: Tensor, is_replaced: Tensor, mask: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches the kernel; arguments as `rtd_bce_reference` takes them, contiguous."""
    num_tokens = logits.numel()
    block, warps = _RTD_BCE
    programs = triton.cdiv(num_tokens, block)
    loss_sums = logits.new_empty(programs, dtype=torch.float32)
    counts = logits.new_zeros((_HISTOGRAMS, 5), dtype=torch.int64)
    histograms = logits.new_zeros((_HISTOGRAMS, 2, _BINS.value), dtype=torch.int64)
    gradient = torch.empty_like(logits) if needs_gradient else logits.new_empty(0)
    if programs > 0:
        with torch.cuda.device_of(logits):
            rtd_bce_kernel[(programs,)](
                logits,
                is_replaced,
                mask,
                loss_sums,
                counts,
                histograms,
                gradient,
                num_tokens,
                NUM_HISTOGRAMS=_HISTOGRAMS,
                NEEDS_GRADIENT=needs_gradient,
                BLOCK=block,
                num_warps=warps,
            )
    return loss_sums.sum(), counts.sum(0), histograms.sum(0), gradient
