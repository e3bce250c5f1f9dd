"""How calls get to NeMo's ``/generate`` servers: one in flight at each, tried again elsewhere, none lost.

httpx and not aiohttp carries them: upstream wants PUT, which aiohttp repeats by itself when a connection breaks, and
here every attempt is counted and goes to the server that is chosen for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cai.clients.outcomes import Fate, Observed, outcome_of
from cai.errors import Problem, SpecError, StepFailed

if TYPE_CHECKING:
    import httpx

_CONNECT = 10.0  # seconds
_LONGEST_PAUSE = 30.0  # seconds between two attempts
_REST = 60.0  # seconds for which a lost server is not asked while there are others
_TOO_LATE = 2  # answers that came too late, and the server counts as stuck


@dataclass(frozen=True, slots=True)
class NemoCall:
    """One call: the requests it is for, by number, its body, and the seconds its work may take."""

    rows: tuple[int, ...]
    body: Mapping[str, Any]
    seconds: float

    def halves(self) -> tuple[NemoCall, NemoCall]:
        """The same rows in two calls; each may take as long as the whole."""
        middle = len(self.rows) // 2
        sentences = self.body["sentences"]
        first = NemoCall(self.rows[:middle], {**self.body, "sentences": sentences[:middle]}, self.seconds)
        return first, NemoCall(self.rows[middle:], {**self.body, "sentences": sentences[middle:]}, self.seconds)


@dataclass(frozen=True, slots=True)
class NemoRefusal:
    """What comes instead of a reply where a server refuses a call of one row; ``words`` are the server's own."""

    status: int
    words: str
    server: str


class _Lost(Exception):
    """A server did not answer, however often it was asked."""


class _RefusedCall(Exception):
    """A server refuses a call."""

    def __init__(self, refusal: NemoRefusal) -> None:
        super().__init__(refusal.words)
        self.refusal = refusal


class NemoCallers:
    """Spreads calls over the servers, one in flight at each; whatever a lost server had is done by another.

    Each ``run`` has a thread of its own, in which asyncio waits for all servers at once; the thread ends with the run.
    """

    def __init__(self, name: str, urls: Sequence[str], *, timeout: float, retries: int, backoff: float) -> None:
        self.urls = tuple(dict.fromkeys(_endpoint(url) for url in urls))
        if not self.urls:
            raise SpecError(Problem("servers", "none is given", "give the address of at least one, http://HOST:PORT"))
        self._name = name
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff
        self._lost_at: dict[str, float] = {}
        self._running: set[_CallThread] = set()
        self._closed = False

    def run(self, calls: Sequence[NemoCall]) -> Iterator[tuple[NemoCall, Any]]:
        """Make every call and yield it with the server's reply, in the order in which replies come.

        A call that is refused is asked again in halves, so that the row that is refused costs no other.

        Raises:
            StepFailed: when no server is left.
        """
        if self._closed:
            raise StepFailed(f"{self._name}: the client is closed")
        if not calls:
            return
        replies: SimpleQueue[Any] = SimpleQueue()
        run = _CallThread(self._serve_all(calls, replies), replies, calls)
        self._running.add(run)
        try:
            run.start()
            while True:
                match replies.get():
                    case (NemoCall() as call, reply):
                        yield call, reply
                    case None:
                        return
                    case asyncio.CancelledError():
                        raise StepFailed(f"{self._name}: the client was closed before every request was answered")
                    case BaseException() as error:
                        raise error
        finally:
            # Also when the consumer leaves early or is interrupted.
            run.stop()
            self._running.discard(run)

    def close(self) -> None:
        """Stop every run; its consumer gets a StepFailed."""
        self._closed = True
        for run in list(self._running):
            run.stop()

    async def _serve_all(self, calls: Sequence[NemoCall], replies: SimpleQueue[Any]) -> None:
        import httpx

        waiting: asyncio.Queue[NemoCall | None] = asyncio.Queue()
        for call in calls:
            waiting.put_nowait(call)
        # A cluster's own addresses never go through a proxy of the environment.
        async with httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(None, connect=_CONNECT)) as http:
            open_calls = len(calls)
            now = time.monotonic()
            resting = [url for url in self.urls if now - self._lost_at.get(url, -math.inf) < _REST]
            why: dict[str, str] = {}

            async def serve(url: str) -> None:
                nonlocal open_calls
                while (call := await waiting.get()) is not None:
                    try:
                        reply = await self._ask(http, url, call)
                    except _RefusedCall as refused:
                        if len(call.rows) > 1:
                            open_calls += 1
                            for half in call.halves():
                                waiting.put_nowait(half)
                            continue
                        reply = refused.refusal
                    except _Lost as error:
                        why[url], self._lost_at[url] = str(error), time.monotonic()
                        waiting.put_nowait(call)
                        return
                    self._lost_at.pop(url, None)
                    replies.put((call, reply))
                    open_calls -= 1
                    if not open_calls:
                        for _ in self.urls:
                            waiting.put_nowait(None)

            for urls in ([url for url in self.urls if url not in resting], resting):
                if open_calls:
                    await _all([serve(url) for url in urls])
        if open_calls:
            reasons = "\n".join(f"  {url}: {words}" for url, words in why.items())
            raise StepFailed(
                f"{self._name}: no server is left, {open_calls} of {len(calls)} calls were not answered\n{reasons}"
            )

    async def _ask(self, http: httpx.AsyncClient, url: str, call: NemoCall) -> Any:
        """The reply to a call; asks again after what may pass, and raises StepFailed for what is our fault."""
        import anyio
        import httpx

        why, late = "", 0
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(self._backoff * 2 ** (attempt - 1), _LONGEST_PAUSE))
            # A call that was given up keeps the server busy, so the next one waits for both; so does another list's.
            others = max((run.longest for run in list(self._running) if id(call) not in run.calls), default=0.0)
            seconds = (self._timeout + call.seconds + others) * (late + 1)
            try:
                with anyio.fail_after(seconds):
                    response = await http.put(url, json=call.body)
            except TimeoutError:
                why, late = f"did not answer within {seconds:.0f} s", late + 1
                if late == _TOO_LATE:
                    break
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                why = f"status {response.status_code}: {_words(response)}"
                if outcome_of(Observed(response.status_code)).fate is not Fate.RETRY or response.status_code < 300:
                    reply = _json(response)
                    if response.status_code == 200 and isinstance(reply, dict):
                        return reply
                    if response.status_code == 200 and reply is not None:
                        raise StepFailed(f"{self._name}: {url} refused a call, {why}")
                    if response.status_code != 200:
                        raise _RefusedCall(NemoRefusal(response.status_code, _words(response), url))
        raise _Lost(f"{why} (asked {attempt + 1} times)")


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; when one fails, or the wait is cancelled, the others are cancelled and waited for."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _CallThread(threading.Thread):
    """A coroutine in a thread. Its result goes into no place but ``replies``: an exception, or CancelledError."""

    def __init__(self, work: Coroutine[Any, Any, None], replies: SimpleQueue[Any], calls: Sequence[NemoCall]) -> None:
        super().__init__(name="nemo-generate", daemon=True)
        self.calls = {id(call) for call in calls}
        self.longest = max(call.seconds for call in calls)
        self._work = work
        self._replies = replies
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(work)

    def run(self) -> None:
        """Run to the end; called by ``start``."""
        try:
            self._loop.run_until_complete(self._task)
            self._replies.put(None)
        except (asyncio.CancelledError, Exception) as error:
            self._replies.put(error)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def stop(self) -> None:
        """Cancel what is under way and wait for the end; can be called again."""
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._task.cancel)
        if self.is_alive():
            self.join()


def _endpoint(url: str) -> str:
    """``http://HOST:PORT`` with the path of the service."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise SpecError(Problem("servers", f"{url!r} is not the address of a server", "give http://HOST:PORT"))
    base = url.rstrip("/")
    return base if base.endswith("/generate") else f"{base}/generate"


def _json(response: httpx.Response) -> Any:
    """What a server sent; None where it is no JSON, as when it was torn off."""
    try:
        return response.json()
    except ValueError:
        return None


def _words(response: httpx.Response) -> str:
    """What a server says, without JSON around it, on one line and not too long."""
    message = _json(response)
    if isinstance(message, dict) and isinstance(message.get("message"), str):
        message = message["message"]
    text = message if isinstance(message, str) else response.text
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:500] or "(nothing)"
