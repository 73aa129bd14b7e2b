from __future__ import annotations

import gc
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from electra_fast.data.loader import Batch, BatchLoader
from electra_fast.data.prefetch import Prefetcher
from tests.data.test_loader import assert_equal
from tests.data.texts import random_documents


@dataclass
class Recorder:
    """A loader that remembers what it was asked for, and fails at a step."""

    fails_at: int = -1
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        if step == self.fails_at:
            raise OSError(f"no disk at step {step}")
        self.asked.append((step, rank, world_size))
        ids = torch.full((3,), step)
        return Batch(ids, torch.tensor([0, 3], dtype=torch.int32), torch.tensor([step]), epoch=0, max_seqlen=3)


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_batches_are_the_loaders_in_order(make_corpus) -> None:
    corpus = make_corpus(random_documents(np.random.default_rng(0), 30))
    options = {"batch_size": 5, "max_length": 16, "seed": 3}
    plain = BatchLoader(corpus, **options)
    with Prefetcher(BatchLoader(corpus, **options), start=2, stop=12, rank=1, world_size=2) as batches:
        made = list(batches)
    assert [step for step, _ in made] == list(range(2, 12))
    for step, batch in made:
        assert_equal(batch, plain.batch(step, 1, 2))
    assert threads() == 0


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_than_depth_batches_are_made_ahead(depth: int) -> None:
    loader = Recorder()
    batches = Prefetcher(loader, depth=depth)
    for step in range(4):
        assert next(batches)[0] == step
        assert len(loader.asked) <= step + 1 + depth
    batches.close()
    assert threads() == 0
    assert loader.asked == [(step, 0, 1) for step in range(len(loader.asked))]
    with pytest.raises(StopIteration):
        next(batches)
    batches.close()  # again, and nothing happens


def test_an_error_reaches_whoever_asks_for_that_batch() -> None:
    loader = Recorder(fails_at=6)
    with Prefetcher(loader, start=4, depth=8) as batches:
        assert [next(batches)[0], next(batches)[0]] == [4, 5]
        with pytest.raises(OSError, match="no disk at step 6"):
            next(batches)
        assert threads() == 0
        with pytest.raises(StopIteration):
            next(batches)


def test_the_thread_ends_with_an_error_of_the_reader_and_with_a_lost_iterator() -> None:
    def read() -> None:
        with Prefetcher(Recorder()) as batches:
            next(batches)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    assert threads() == 0
    thread = Prefetcher(Recorder())._thread  # nobody holds the iterator
    gc.collect()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_an_empty_range_and_bad_arguments() -> None:
    with Prefetcher(Recorder(), start=3, stop=3) as batches:
        assert list(batches) == []
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        Prefetcher(Recorder(), depth=0)


@pytest.mark.gpu
def test_batches_are_pinned_where_there_is_a_gpu() -> None:
    with Prefetcher(Recorder(), stop=1) as batches:
        _, batch = next(batches)
    assert batch.input_ids.is_pinned()
    assert batch.to("cuda").input_ids.tolist() == [0, 0, 0]
