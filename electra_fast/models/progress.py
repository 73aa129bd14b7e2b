"""transformers shows a progress bar for each checkpoint; around ours, which has its own, they are noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def hidden_progress_bars() -> Iterator[None]:
    """Within the block transformers shows none; afterwards it is as it was."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
