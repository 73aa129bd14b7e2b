"""Batches made ahead of time in a thread."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

import torch

from electra_fast.data.loader import Batch


class Loader(Protocol):
    """What gives the batches: `BatchLoader` or `CurriculumLoader`."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch: ...


class Prefetcher(Iterator[tuple[int, Batch]]):
    """Iterates over `(step, loader.batch(step, rank, world_size))`, in order, while a thread makes the next ones.

    The thread ends with the last step, with `close`, or when nobody holds the iterator any more. An exception in it is
    raised by the `next` that would have given its batch, and ends the iteration. Use as a context manager:

        with Prefetcher(loader, start=step) as batches:
            for step, batch in batches: ...

    Args:
        loader: nobody else should use it meanwhile, for its caches hold what one reader needs.
        start: first step.
        stop: the step after the last; None: there is none.
        rank, world_size: of the process.
        depth: how many batches are made ahead at most.
        pin_memory: give batches in pinned memory, from which `Batch.to` copies while the GPU works; None: where
            there is a GPU.

    Raises:
        ValueError: `depth` below 1.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        depth: int = 4,
        pin_memory: bool | None = None,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._line = _Line(depth)
        # The thread holds no reference to the iterator, so that losing it ends the thread.
        arguments = (self._line, loader, start, stop, rank, world_size, pin_memory)
        self._thread = threading.Thread(target=_make_batches, args=arguments, name="prefetch", daemon=True)
        self._finalizer = weakref.finalize(self, self._line.end)
        self._thread.start()

    def __next__(self) -> tuple[int, Batch]:
        if self._line.ended:
            raise StopIteration
        made = self._line.take()
        if isinstance(made, tuple):
            return made
        self.close()
        raise StopIteration if made is None else made

    def close(self) -> None:
        """End the thread, and wait until it has."""
        self._finalizer()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


class _Line:
    """Batches between two threads, at most `depth`: the maker waits for a free slot, the taker for a batch."""

    def __init__(self, depth: int) -> None:
        self.ended = False
        self._slots = threading.Semaphore(depth)
        self._made: queue.SimpleQueue[tuple[int, Batch] | BaseException | None] = queue.SimpleQueue()

    def wait_for_slot(self) -> bool:
        """False where nobody wants a batch any more."""
        self._slots.acquire()
        return not self.ended

    def put(self, made: tuple[int, Batch] | BaseException | None) -> None:
        self._made.put(made)

    def take(self) -> tuple[int, Batch] | BaseException | None:
        made = self._made.get()
        self._slots.release()
        return made

    def end(self) -> None:
        self.ended = True
        self._slots.release()


def _make_batches(
    line: _Line, loader: Loader, step: int, stop: int | None, rank: int, world_size: int, pin_memory: bool
) -> None:
    try:
        while (stop is None or step < stop) and line.wait_for_slot():
            batch = loader.batch(step, rank, world_size)
            line.put((step, batch.pin_memory() if pin_memory else batch))
            step += 1
        line.put(None)
    except BaseException as error:  # whatever it is, the one who asks for the batch should see it
        line.put(error)
