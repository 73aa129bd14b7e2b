"""How far reading has come: a bar where someone watches, else a line now and then."""

from __future__ import annotations

import time

from tqdm import tqdm

SECONDS = 10.0  # between lines


class ReadingProgress:
    """Bytes read of `total`, with MB/s and the time left: a bar on a terminal, lines on standard output otherwise.

    With `show` false, nothing. A context manager.
    """

    def __init__(self, what: str, total: int, *, show: bool = True) -> None:
        self.bar = tqdm(
            desc=what,
            total=total,
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
            disable=None if show else True,  # None: only on a terminal
        )
        self._what = what
        self._total = total
        self._lines = show and self.bar.disable
        self._read = 0
        self._start = self._told = time.perf_counter()

    def __enter__(self) -> ReadingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, read: int) -> None:
        """`read` more bytes were read."""
        self._read += read
        self.bar.update(read)

    def tell(self, **counts: int) -> None:
        """Show counts beside the progress; a line if the last is SECONDS ago."""
        self.bar.set_postfix(counts, refresh=False)
        now = time.perf_counter()
        if self._lines and now - self._told >= SECONDS:
            self._told = now
            rate = self._read / (now - self._start)
            left = tqdm.format_interval((self._total - self._read) / rate) if rate else "?"
            shown = "  ".join(f"{name} {count:,}" for name, count in counts.items())
            print(
                f"{self._what} {self._read / 1e6:,.1f}/{self._total / 1e6:,.1f} MB  {rate / 1e6:.2f} MB/s  "
                f"{shown}  ETA {left}",
                flush=True,
            )
