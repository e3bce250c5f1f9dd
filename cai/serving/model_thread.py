"""The one thread that owns the model, and the queue before it.

It takes what waits and answers it as one batch, because a batch costs little more than its longest row. A client that
can stream (``StreamingClient``) answers a streamed request token by token, one at a time; with any other client the
answer is made whole, in a batch, and then handed over word by word.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from cai.clients.base import Client, Completion, Request
from cai.serving.bodies import ApiError
from cai.terminal.chat import StreamingClient, pieces

log = logging.getLogger("cai.serving")

Event = str | Completion | Exception


@dataclass(eq=False, slots=True)
class ModelJob:
    """A request that waits for the model; ``emit`` gets its events and may be called from the model's thread."""

    request: Request
    emit: Callable[[Event], None]
    streamed: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)


class ModelThread:
    """The one thread that talks to the model, and the queue before it."""

    def __init__(self, client: Client, max_batch: int = 16, max_waiting: int = 256) -> None:
        self._client = client
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: deque[ModelJob] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """How many wait and are still wanted."""
        with self._wake:
            return sum(not job.cancelled.is_set() for job in self._waiting)

    def submit(self, jobs: Sequence[ModelJob]) -> None:
        """Queue jobs, all or none; the thread starts with the first.

        Raises:
            ApiError: 503 when too many wait or the server is stopping.
        """
        with self._wake:
            if self._closing or len(self) + len(jobs) > self._max_waiting:
                raise ApiError(503, "the server is busy; try again", kind="server_error", code="server_busy")
            self._waiting.extend(jobs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="model", daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self, timeout: float = 10.0) -> None:
        """Stop after the batch in hand; jobs that wait get an error."""
        with self._wake:
            self._closing = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._wake.notify()
        for job in waiting:
            job.emit(ApiError(503, "the server is stopping", kind="server_error", code="server_stopping"))
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                batch = self._take()
            if batch:
                self._answer(batch)

    def _take(self) -> list[ModelJob]:
        """The oldest job and, if it can be answered in a batch, what else waits and can."""
        live = [job for job in self._waiting if not job.cancelled.is_set()]
        alone = [job.streamed and isinstance(self._client, StreamingClient) for job in live]
        if live and alone[0]:
            batch = live[:1]
        else:
            batch = [job for job, solo in zip(live, alone, strict=True) if not solo][: self._max_batch]
        self._waiting = deque(job for job in live if job not in batch)
        return batch

    def _answer(self, batch: list[ModelJob]) -> None:
        open_jobs = {job.request.id: job for job in batch}
        try:
            if batch[0].streamed and isinstance(self._client, StreamingClient):
                self._stream(self._client, batch[0])
                open_jobs.clear()
                return
            for completion in self._client.generate([job.request for job in batch]):
                job = open_jobs.pop(completion.id)
                for piece in pieces(completion.text) if job.streamed else ():
                    job.emit(piece)
                job.emit(completion)
                if all(job.cancelled.is_set() for job in open_jobs.values()):
                    break
            if any(not job.cancelled.is_set() for job in open_jobs.values()):
                raise RuntimeError(f"the model gave no answer to {len(open_jobs)} of {len(batch)} requests")
        except Exception as error:  # The boundary: whatever the model raises is the callers' to hear, and the log's.
            log.exception("the model failed on a batch of %d", len(batch))
            for job in open_jobs.values():
                job.emit(error)

    def _stream(self, client: StreamingClient, job: ModelJob) -> None:
        with closing(client.stream(job.request)) as answer:
            while not job.cancelled.is_set() and not self._closing:
                try:
                    job.emit(next(answer))
                except StopIteration as end:
                    job.emit(end.value)
                    return
