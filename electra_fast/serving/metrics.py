"""What the service tells of itself at /metrics, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """Counts of one service; two in one process don't mix."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files; on Linux
        self._requests = Counter("electra_fast_requests", "Requests answered", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "electra_fast_request_seconds",
            "From a request's head to its whole reply",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._dropped = Counter(
            "electra_fast_hangups", "Clients that hung up before their reply", ["route"], registry=registry
        )
        self._texts = Counter("electra_fast_texts", "Features that the model read", registry=registry)
        self._tokens = Counter("electra_fast_tokens", "Tokens that the model read", registry=registry)
        self._batch_texts = Histogram(
            "electra_fast_batch_texts", "Features of a batch", buckets=_TEXTS, registry=registry
        )
        self._batch_tokens = Histogram(
            "electra_fast_batch_tokens", "Tokens of a batch", buckets=_TOKENS, registry=registry
        )
        self._queue = Gauge("electra_fast_queue_examples", "Examples that wait or are at work", registry=registry)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Take the queue's length from `waiting`, when it is asked for."""
        self._queue.set_function(waiting)

    def batch(self, texts: int, tokens: int) -> None:
        """Count a batch."""
        self._texts.inc(texts)
        self._tokens.inc(tokens)
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(tokens)

    def request(self, route: str, status: int | None, seconds: float) -> None:
        """Count a request; `status` None: its client hung up."""
        if status is None:
            self._dropped.labels(route).inc()
            return
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
