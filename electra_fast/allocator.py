"""What the C library's malloc does with the memory that a training step frees."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt (malloc.h), and the most it takes for each.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST_TO_KEEP, _LARGEST_ON_THE_HEAP, _SMALLEST_TO_RETURN = 2**31 - 1, 32 * 2**20, 2**16


def keep_freed_memory() -> bool:
    """Make malloc keep what is freed, up to 2 GiB, for the rest of this process; `electra-fast pretrain` calls it.

    A training step on a CPU frees its activations and gradients at its end, and allocates the same again in the next.
    glibc gives such memory back to the system, which then has to map and clear every page again: 10,000 to 30,000 page
    faults a step of ELECTRA-small, 16 x 128, where afterwards there are 4 (docs/log.md). The process holds no more
    memory at its peak, but it holds that between steps too.

    Returns:
        Whether malloc took it: False where the C library is not glibc.
    """
    # The first alone would end glibc's own choice of the second, and each larger tensor would be mapped anew.
    return _mallopt(_MMAP_THRESHOLD, _LARGEST_ON_THE_HEAP) and _mallopt(_TRIM_THRESHOLD, _MOST_TO_KEEP)


def return_freed_memory() -> bool:
    """Make malloc give large tensors back to the system as they are freed, for the rest of this process.

    For runs that save memory by computing activations again: freed pieces of the heap hold memory that no tensor needs,
    1,592 MiB of a step of ELECTRA-small, 64 x 128, where with this it is 330 (docs/log.md).

    Returns:
        Whether malloc took it: False where the C library is not glibc.
    """
    return _mallopt(_MMAP_THRESHOLD, _SMALLEST_TO_RETURN)


def _mallopt(parameter: int, value: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).mallopt(parameter, value))
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
