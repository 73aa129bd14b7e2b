"""The batcher: everyone gets their own, in fair turns; errors stay with their request; the queue has an end."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator, Sequence

import pytest

from electra_fast.finetuning.task import Example, Feature
from electra_fast.serving.batcher import Batcher, QueueFull, Stopped
from tests.serving.small import PATIENCE, Echo, wait_until


@pytest.fixture
def echo() -> Iterator[Echo]:
    service = Echo()
    yield service
    service.go.set()


def _hold(echo: Echo, batcher: Batcher):
    """A request that is at work in the model until `echo.go` is set."""
    echo.go.clear()
    first = batcher.submit(echo, [{"text": "first"}])
    assert echo.entered.wait(PATIENCE)
    return first


def _texts(*texts: str) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


def test_everyone_gets_their_own_in_common_batches(echo: Echo, rng_seed: int) -> None:
    rng = random.Random(rng_seed)
    batcher = Batcher(batch_tokens=40, max_queue=10**6)
    first = _hold(echo, batcher)
    requests = [
        ["".join(rng.choices("uvwxyz", k=rng.randint(0, 30))) for _ in range(rng.randint(1, 5))]  # none is "bad"
        for _ in range(60)
    ]
    futures = [batcher.submit(echo, _texts(*texts)) for texts in requests]
    echo.go.set()
    assert first.result(PATIENCE) == [{"read": ["first"]}]
    for texts, future in zip(requests, futures, strict=True):
        assert future.result(PATIENCE) == [{"read": [text] if text else []} for text in texts]
    assert batcher.stop(PATIENCE)
    sizes = [sum(map(len, batch)) for batch in echo.batches]
    assert max(sizes) <= 40
    # A batch ends where the next text had no room.
    fullest = max(len(text) for texts in requests for text in texts)
    assert all(size > 40 - fullest for size in sizes[1:-1])


def test_a_long_request_does_not_hold_up_short_ones(echo: Echo) -> None:
    batcher = Batcher(batch_tokens=12)
    _hold(echo, batcher)
    long = batcher.submit(echo, _texts(*("long" for _ in range(20))))
    short = [batcher.submit(echo, _texts(f"s{number}00")) for number in range(3)]
    echo.go.set()
    for number, future in enumerate(short):
        assert future.result(PATIENCE) == [{"read": [f"s{number}00"]}]
    assert long.result(PATIENCE) == [{"read": ["long"]}] * 20
    assert batcher.stop(PATIENCE)
    assert echo.batches[1:3] == [["long", "s000", "s100"], ["s200", "long", "long"]]


def test_a_request_may_read_twice(echo: Echo) -> None:
    batcher = Batcher()
    found = batcher.submit(echo, _texts("once", "again x", "", "again y")).result(PATIENCE)
    assert found == [
        {"read": ["once"]},
        {"read": ["again x", "AGAIN X"]},
        {"read": []},
        {"read": ["again y", "AGAIN Y"]},
    ]
    assert batcher.stop(PATIENCE)


@pytest.mark.parametrize(("word", "message"), [("bad", "the model broke"), ("unreadable", "unreadable")])
def test_an_error_stays_with_its_request(echo: Echo, word: str, message: str) -> None:
    batcher = Batcher()
    _hold(echo, batcher)
    before, broken, after = (batcher.submit(echo, _texts("fine", text)) for text in ("x", word, "y"))
    echo.go.set()
    assert before.result(PATIENCE) == [{"read": ["fine"]}, {"read": ["x"]}]
    assert after.result(PATIENCE) == [{"read": ["fine"]}, {"read": ["y"]}]
    with pytest.raises(RuntimeError, match=message):
        broken.result(PATIENCE)
    assert batcher.submit(echo, _texts("later")).result(PATIENCE) == [{"read": ["later"]}]
    wait_until(lambda: batcher.waiting == 0)
    assert batcher.stop(PATIENCE)


def test_two_services_never_share_a_batch(echo: Echo) -> None:
    other, batcher = Echo(), Batcher()
    first = _hold(echo, batcher)
    futures = [batcher.submit(service, _texts(f"t{i}")) for i, service in enumerate((echo, other, echo, other))]
    echo.go.set()
    assert [future.result(PATIENCE) for future in (first, *futures)] == [
        [{"read": [text]}] for text in ("first", "t0", "t1", "t2", "t3")
    ]
    assert batcher.stop(PATIENCE)
    assert (echo.batches, other.batches) == ([["first"], ["t0", "t2"]], [["t1", "t3"]])


def test_the_queue_has_an_end(echo: Echo) -> None:
    batcher = Batcher(max_queue=3, max_queue_bytes=100)
    assert batcher.submit(echo, _texts(*"abcdef"), size=1000).result(PATIENCE)  # alone anything is taken
    wait_until(lambda: batcher.waiting == 0)
    _hold(echo, batcher)
    second = batcher.submit(echo, _texts("b", "c"), size=60)
    with pytest.raises(QueueFull, match="3 examples are waiting already"):
        batcher.submit(echo, _texts("d"))
    second.cancel()
    with pytest.raises(QueueFull):
        batcher.submit(echo, _texts("d"), size=101)
    third = batcher.submit(echo, _texts("d"), size=100)
    echo.go.set()
    assert third.result(PATIENCE) == [{"read": ["d"]}]
    assert batcher.stop(PATIENCE)


def test_cancelled_requests_are_not_run(echo: Echo) -> None:
    batcher = Batcher()
    first = _hold(echo, batcher)
    dropped, kept = batcher.submit(echo, _texts("dropped")), batcher.submit(echo, _texts("kept"))
    assert dropped.cancel()
    assert first.cancel()  # it is at work: its result goes nowhere
    echo.go.set()
    assert kept.result(PATIENCE) == [{"read": ["kept"]}]
    assert batcher.stop(PATIENCE)
    assert echo.batches == [["first"], ["kept"]]
    assert batcher.waiting == 0


def test_what_hangs_up_is_forgotten_at_once(echo: Echo) -> None:
    """Not when the batch that runs ends: clients that come and go meanwhile would fill the memory."""

    class Text(dict):
        pass

    batcher = Batcher()
    first = _hold(echo, batcher)
    text = Text(text="dropped")
    kept = weakref.ref(text)
    assert batcher.submit(echo, [text]).cancel()
    del text
    gc.collect()
    assert kept() is None
    echo.go.set()
    assert first.result(PATIENCE) == [{"read": ["first"]}]
    assert batcher.stop(PATIENCE)


def test_features_without_tokens_stop_nobody(echo: Echo) -> None:
    """A tokenizer that adds no special tokens makes such of an empty text."""

    class Bare(Echo):
        def encode(self, examples: Sequence[Example]) -> list[Feature]:
            return [{"input_ids": list(map(ord, each["text"])), "example": n} for n, each in enumerate(examples)]

    batcher, bare = Batcher(), Bare()
    assert batcher.submit(bare, _texts("", "a", "")).result(PATIENCE) == [{"read": [text]} for text in ("", "a", "")]
    assert batcher.is_alive
    assert batcher.stop(PATIENCE)


def test_a_wait_for_company_ends(echo: Echo) -> None:
    short = Batcher(max_wait=0.001)
    assert short.submit(echo, _texts("a")).result(PATIENCE) == [{"read": ["a"]}]
    assert short.stop(PATIENCE)
    long = Batcher(max_wait=PATIENCE)
    waiting = long.submit(echo, _texts("b"))
    assert long.stop(PATIENCE)
    with pytest.raises(Stopped):
        waiting.result(PATIENCE)
    assert echo.batches == [["a"]]


def test_stopping_fails_what_waits(echo: Echo) -> None:
    batcher = Batcher()
    first = _hold(echo, batcher)
    second = batcher.submit(echo, _texts("second"))
    assert not batcher.stop(0)
    assert not batcher.is_alive
    with pytest.raises(Stopped):
        batcher.submit(echo, _texts("third"))
    echo.go.set()
    assert first.result(PATIENCE) == [{"read": ["first"]}]
    with pytest.raises(Stopped):
        second.result(PATIENCE)
    assert batcher.stop(PATIENCE)
