"""transformers shows a bar and a table of weights for each checkpoint; around our own words they are noise."""

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


@contextmanager
def no_loading_report() -> Iterator[None]:
    """Within the block transformers' table of weights that are new or unused is not shown, nor its warnings."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
