"""Answers shown while they are made: what may be seen of growing token ids, and a thread that makes them meanwhile.

Held back are the bytes of an unfinished character, what is thought, and the beginning of what may become a stop string
or a thought, so that the pieces joined are always the text that the finished completion has.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence

from cai.chat.thinking import said_so_far
from cai.clients.base import Completion

OnIds = Callable[[Sequence[int]], bool]
"""Called with all ids made so far; true says that nobody wants more."""


class Growing:
    """The part of a growing answer that can no longer change."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], opened: bool = False) -> None:
        """``decode`` gives the visible text of all ids so far; ``stops`` are the stop strings of the request;
        ``opened`` says that the prompt has begun a thought."""
        self._decode = decode
        self._opened = opened
        self._stops = tuple(stop for stop in stops if stop)
        self.emitted = ""

    def more(self, ids: Sequence[int]) -> str:
        """What has become certain since the last call."""
        # An unfinished character decodes to a replacement character; what it will be is not known yet.
        text = said_so_far(self._decode(ids).rstrip("\ufffd"), self._opened)
        certain = min([len(text), *(_before(text, stop) for stop in self._stops)])
        new = text[len(self.emitted) : certain] if text.startswith(self.emitted) else ""
        self.emitted += new
        return new


def _before(text: str, stop: str) -> int:
    """Where the stop string begins in the text, or may be beginning at its end."""
    start = text.find(stop)
    if start >= 0:
        return start
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return len(text) - length
    return len(text)


def streamed(work: Callable[[OnIds], Completion], growing: Growing) -> Generator[str, None, Completion]:
    """Run ``work`` in a thread and yield its text as it grows; the return value is the completion.

    ``work`` calls what it is given after every token and ends soon when that returns true. Closing the generator does
    this and waits.
    """
    events: queue.SimpleQueue[str | Completion | BaseException] = queue.SimpleQueue()
    unwanted = threading.Event()

    def on_ids(ids: Sequence[int]) -> bool:
        if not unwanted.is_set() and (piece := growing.more(ids)):
            events.put(piece)
        return unwanted.is_set()

    def run() -> None:
        try:
            events.put(work(on_ids))
        except BaseException as error:  # Raised again where the answer is read.
            events.put(error)

    thread = threading.Thread(target=run, name="generation", daemon=True)
    thread.start()
    try:
        while True:
            item = events.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Completion):
                if item.text.startswith(growing.emitted) and len(item.text) > len(growing.emitted):
                    yield item.text[len(growing.emitted) :]
                return item
            yield item
    finally:
        unwanted.set()
        thread.join()
