"""Dynamic batching: one thread runs the model on whatever waits, ragged texts one after another without padding."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from electra_fast.finetuning.task import Example, Feature, Output, num_tokens

if TYPE_CHECKING:
    from electra_fast.serving.services import Service

_log = logging.getLogger(__name__)

BATCH_TOKENS = 2048  # a token costs as much as in larger batches, and the first replies leave earlier


class QueueFull(Exception):
    """So much waits already that a request is not taken."""


class Stopped(Exception):
    """The service ends, and with it what still waited."""


@dataclass(eq=False)
class _Job:
    """A request that waits, and how far it is."""

    service: Service
    examples: list[Example]
    size: int  # bytes
    future: Future[list[Any]] = field(default_factory=Future)
    features: list[Feature] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    read_again: bool = False

    @property
    def is_read(self) -> bool:
        return len(self.outputs) == len(self.features)


class Batcher:
    """Runs the requests of many clients in common batches; each gets its own results.

    A batch takes the waiting texts in turns, one of each request, so that a long request does not hold up short ones.
    It begins as soon as the model is free: while it runs the next one gathers, so that batches grow with the load.

    Args:
        batch_tokens: a batch holds at most so many, or one text.
        max_wait: seconds to wait for company where nothing else is to do.
        max_queue: examples that may wait or be at work; one request is always taken.
        max_queue_bytes: the same of their requests' bodies.
        on_batch: is called with the texts and tokens of each batch.
    """

    def __init__(
        self,
        *,
        batch_tokens: int = BATCH_TOKENS,
        max_wait: float = 0.0,
        max_queue: int = 1024,
        max_queue_bytes: int = 2**24,
        on_batch: Callable[[int, int], object] = lambda texts, tokens: None,
    ) -> None:
        self.batch_tokens = batch_tokens
        self.max_wait = max_wait
        self.max_queue = max_queue
        self.max_queue_bytes = max_queue_bytes
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._arrived: dict[_Job, None] = {}  # in their order; those that hang up leave it at once
        self._unfinished: dict[Future[list[Any]], _Job] = {}
        self._examples = self._bytes = 0
        self._stops = False
        self._ready: deque[_Job] = deque()  # of the thread alone
        self._thread = threading.Thread(target=self._run, name="electra-fast-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Examples that wait or are at work."""
        return self._examples

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._stops

    def submit(self, service: Service, examples: list[Example], size: int = 0) -> Future[list[Any]]:
        """The future reply to examples, in their order; to cancel it takes them out of the queue.

        Args:
            size: bytes of the request, for the limit on them.

        Raises:
            QueueFull: too many wait.
            Stopped: after `stop`.
        """
        job = _Job(service, examples, size)
        with self._changed:
            if not self.is_alive:
                raise Stopped("the service is ending")
            if self._unfinished and (
                self._examples + len(examples) > self.max_queue or self._bytes + size > self.max_queue_bytes
            ):
                raise QueueFull(f"{self._examples:,} examples are waiting already: try again later")
            self._unfinished[job.future] = job
            self._examples += len(examples)
            self._bytes += size
            self._arrived[job] = None
            self._changed.notify()
        job.future.add_done_callback(self._forget)
        return job.future

    def stop(self, timeout: float | None = None) -> bool:
        """End after the batch that runs; what waits fails with `Stopped`. Returns whether it ended within `timeout`."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _forget(self, future: Future[list[Any]]) -> None:
        with self._changed:
            job = self._unfinished.pop(future)
            self._arrived.pop(job, None)
            self._examples -= len(job.examples)
            self._bytes -= job.size

    def _run(self) -> None:
        try:
            while self._gather():
                if batch := self._next_batch():
                    self._infer(batch)
        finally:
            with self._changed:
                self._stops = True
                left = list(self._unfinished)
            for future in left:
                _fail(future, Stopped("the service is ending"))

    def _gather(self) -> bool:
        """Encode what has arrived, after waiting for it where there is nothing to do; False to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._ready or self._stops)
            if self.max_wait and not self._ready:
                self._changed.wait_for(lambda: self._stops, self.max_wait)
            arrived, self._arrived = self._arrived, {}
            if self._stops:
                return False
        by_service: dict[Service, list[_Job]] = {}
        for job in arrived:
            if not job.future.cancelled():
                by_service.setdefault(job.service, []).append(job)
        for jobs in by_service.values():
            _together_or_alone(jobs, _encode)
            self._go_on(jobs)
        return True

    def _next_batch(self) -> list[tuple[_Job, int]]:
        """Features to run together, each as its job and its index in it."""
        self._ready = deque(job for job in self._ready if not job.future.done())  # those that hung up are dropped
        turns = deque((job, len(job.outputs)) for job in self._ready)
        batch: list[tuple[_Job, int]] = []
        kind: Hashable = None
        tokens = 0
        while turns:
            job, index = turns.popleft()
            feature = job.features[index]
            count = num_tokens(feature)
            if not batch:
                kind = _kind(job, feature)
            elif _kind(job, feature) != kind:
                continue
            elif tokens + count > self.batch_tokens:
                break
            batch.append((job, index))
            tokens += count
            if index + 1 < len(job.features):
                turns.append((job, index + 1))
        if batch:
            self._on_batch(len(batch), tokens)
        return batch

    def _infer(self, batch: Sequence[tuple[_Job, int]]) -> None:
        parts: dict[_Job, list[Feature]] = {}
        for job, index in batch:  # of a job in their order
            parts.setdefault(job, []).append(job.features[index])

        def run(jobs: Sequence[_Job]) -> None:
            outputs = jobs[0].service.infer([feature for job in jobs for feature in parts[job]])
            owners = [job for job in jobs for _ in parts[job]]
            for job, output in list(zip(owners, outputs, strict=True)):
                job.outputs.append(output)

        _together_or_alone(list(parts), run)
        self._ready = deque(job for job in self._ready if job not in parts)
        self._go_on(parts)  # those that are not done go to the end of the queue

    def _go_on(self, jobs: Iterable[_Job]) -> None:
        """Answer the jobs that are read, or read them again; the others wait for a batch."""
        for job in jobs:
            if job.future.done():
                continue
            _together_or_alone([job], _finish_read)
            if not job.future.done():
                self._ready.append(job)


def _encode(jobs: Sequence[_Job]) -> None:
    """Features of all jobs by one call of the tokenizer, which costs as much for one text as for ten."""
    owners = [(job, number) for job in jobs for number in range(len(job.examples))]
    features = jobs[0].service.encode([example for job in jobs for example in job.examples])
    split: dict[_Job, list[Feature]] = {job: [] for job in jobs}
    for feature in features:
        job, number = owners[feature["example"]]
        split[job].append(feature | {"example": number})
    for job in jobs:
        job.features = split[job]


def _finish_read(jobs: Sequence[_Job]) -> None:
    """Of a job whose features all have outputs: answer it, unless it wants to read again."""
    (job,) = jobs
    if not job.is_read:
        return
    service = job.service
    if not job.read_again:
        job.read_again = True
        if again := service.encode_again(job.examples, job.features, job.outputs):
            job.features = [*job.features, *again]
            return
    _answer(job.future, service.decode(job.examples, job.features, job.outputs))


def _together_or_alone(jobs: Sequence[_Job], run: Callable[[Sequence[_Job]], None]) -> None:
    """`run` on all jobs; where that fails on each alone, so that one job's error is not its neighbours'."""
    try:
        run(jobs)
    except Exception as error:
        if len(jobs) == 1:
            _fail(jobs[0].future, error)
            return
        _log.warning("a batch of %d requests failed (%s): each is tried alone", len(jobs), error)
        for job in jobs:
            _together_or_alone([job], run)


def _kind(job: _Job, feature: Feature) -> Hashable:
    """Features of one kind go into one batch: of one service, with as many choices."""
    ids = feature["input_ids"]
    return job.service, len(ids) if ids and isinstance(ids[0], list) else None


def _answer(future: Future[list[Any]], results: list[Any]) -> None:
    try:
        future.set_result(results)
    except InvalidStateError:  # the client has hung up meanwhile
        _log.debug("a reply that nobody waits for")


def _fail(future: Future[list[Any]], error: BaseException) -> None:
    try:
        future.set_exception(error)
    except InvalidStateError:
        _log.debug("an error that nobody waits for: %s", error)
