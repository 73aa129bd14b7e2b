"""What the C library's malloc does with the memory that a training step frees."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt (malloc.h), and the most it takes for each.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST_TO_KEEP, _LARGEST_ON_THE_HEAP = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Make malloc keep what is freed, up to 2 GiB, for the rest of this process; `electra-fast pretrain` calls it.

    A training step on a CPU frees its activations and gradients at its end, and allocates the same again in the next.
    glibc gives such memory back to the system, which then has to map and clear every page again: 10,000 to 30,000 page
    faults a step of ELECTRA-small, 16 x 128, where afterwards there are 4 (docs/log.md). The process holds no more
    memory at its peak, but it holds that between steps too.

    Returns:
        Whether malloc took it: False where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    # The first alone would end glibc's own choice of the second, and each larger tensor would be mapped anew.
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_ON_THE_HEAP) and mallopt(_TRIM_THRESHOLD, _MOST_TO_KEEP))
