"""Losses and gradients that are no numbers: noticed on the device before they reach a weight, and explained."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient is not finite. No update followed, and the checkpoints are from before."""


class FiniteWatch:
    """Decides on the device whether an update may happen; the host reads the answer a step late and waits for nothing.

    A loss that is not finite is fatal, and so is such a gradient at a loss scale of 1: from that step on no update
    happens. At a larger scale the gradient has overflowed: that one update is left out.
    """

    def __init__(self, device: torch.device) -> None:
        self._failed = torch.zeros((), dtype=torch.bool, device=device)
        self._unread: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def judge(self, step: int, losses: Iterable[Tensor], norm: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Whether update number `step` must be left out, and whether its gradient overflowed: two bools, 0-d."""
        is_finite = torch.isfinite(torch.stack([loss.float() for loss in losses])).all()
        overflowed = ~torch.isfinite(norm)
        self._failed = self._failed | ~is_finite | (overflowed & (scale <= 1))
        answer, event = self._failed, None
        if answer.is_cuda:
            answer = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(answer, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._unread.append((step, answer, event))
        return self._failed | overflowed, overflowed

    def failed_step(self, *, before: int) -> int | None:
        """The first step below `before` that failed, of those not asked for yet."""
        while self._unread and self._unread[0][0] < before:
            step, answer, event = self._unread.popleft()
            if event is not None:
                event.synchronize()
            if answer:
                return step
        return None


def not_finite(named: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """`NAME (nan)` or `NAME (inf)` for each tensor that holds such a value."""
    found = []
    for name, tensor in named:
        if tensor is not None and not torch.isfinite(tensor).all():
            found.append(f"{name} ({'nan' if tensor.isnan().any() else 'inf'})")
    return found


def cause(
    weights: Iterable[tuple[str, Tensor]],
    losses: Iterable[tuple[str, Tensor]],
    gradients: Iterable[tuple[str, Tensor | None]],
) -> str:
    """What is not finite, the first cause first; in words for a message."""
    parts = []
    for words, named in (("weight", weights), ("", losses), ("gradient of", gradients)):
        names = not_finite(named)
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 and words else ""
            parts.append(f"{words} {names[0] if words else ', '.join(names)}{more}".strip())
        if names and words == "weight":
            continue  # the losses it spoils are worth telling, all the gradients are not
        if names:
            break
    return "; ".join(parts) or "the gradient's norm overflows"
