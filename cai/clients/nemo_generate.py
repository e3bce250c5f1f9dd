"""Completions and likelihoods from NeMo's ``/generate`` servers (``megatron_gpt_eval.py server=True``).

A server works on one call at a time and gives every prompt of a call as many tokens as the longest one gets. So calls
are few and large, prompts of like length go together, each server has one call in flight, and every completion is cut
at its own budget here. What goes into a call follows from the list of requests, ``batch`` and the number of servers
alone; which server answers it changes nothing.

httpx and not aiohttp carries them: upstream wants PUT, which aiohttp repeats by itself when a connection breaks, and
here every attempt is counted and goes to the server that is chosen for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cai.clients.base import Completion, Request, Sampling, Score, ScoreRequest
from cai.clients.echo import BEGINS, EchoNotFound, ServerRow, span, strip_prompt
from cai.clients.outcomes import FinishReason, ModelAnswer, completed
from cai.data.nemo_tokens import Pieces
from cai.errors import Problem, SpecError, StepFailed
from cai.identity import counted

if TYPE_CHECKING:
    import httpx

END_OF_TEXT = "<|endoftext|>"
"""NeMo's name for the end token of any tokenizer. It is matched by id; any other string costs a look at every text."""
LARGEST = 128
_SMALLEST = 8  # rows; a call of fewer takes as long, so that fewer are not spread over several servers
_SEEDS = 2**24  # upstream hands the seed to the other GPUs as a float32, which holds no larger integer exactly
_LOGPROBS = 2**31  # rows x tokens x vocabulary of a call that asks for log-probabilities: 4 GiB in bfloat16
_VOCAB = 2**16  # where it is not known
_CONNECT = 10.0  # seconds
_LONGEST_PAUSE = 30.0  # seconds between two attempts
_REST = 60.0  # seconds for which a lost server is not asked while there are others
_TOO_LATE = 2  # answers that came too late, and the server counts as stuck
_PASSING = (408, 425, 429)  # besides 5xx


class NemoGenerateClient:
    """Answers from the servers at ``urls``, which all serve the same model.

    ``tokenizer`` is that model's own; without it lengths are rough and echoes are found letter by letter. ``batch``
    is the number of prompts in a call. ``timeout`` is the least number of seconds that a call may take; what its
    prompts and budget ask for is added. ``retries`` is how often a call is tried again on the same server, after
    ``backoff`` seconds and twice as many each time; then the server counts as lost and another one takes the call.

    ``lanes`` lists may be asked at once, from several threads: while one waits for its slowest call, the servers that
    are done with it work on the other. A server then has at most so many calls, of which it works on one.
    """

    lanes = 2

    def __init__(
        self,
        urls: Sequence[str],
        tokenizer: Pieces | None = None,
        *,
        batch: int = LARGEST,
        timeout: float = 300.0,
        retries: int = 4,
        backoff: float = 1.0,
        add_bos: bool = False,
        name: str = "nemo",
    ) -> None:
        if not 1 <= batch <= LARGEST:
            raise SpecError(Problem("batch", f"is {batch}; a NeMo server takes 1 to {LARGEST} prompts in a call"))
        self.name = name
        self._pieces = tokenizer
        self._batch = batch
        self._add_bos = add_bos
        self._callers = _Callers(name, urls, timeout=timeout, retries=retries, backoff=backoff)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete every request, the longest prompts first.

        Raises:
            ValueError: for an empty prompt.
            StepFailed: when a server refuses a call, when no server is left, or when an answer lacks its prompt.
        """
        opened = [self._opened(request.prompt) for request in requests]
        requests = [replace(request, prompt=bare) for request, (bare, _) in zip(requests, opened, strict=True)]
        prompts = [request.prompt for request in requests]
        lengths = self._lengths(prompts)
        groups: dict[tuple[Sampling, bool], list[int]] = {}
        # Sorted by content, so that the order in which requests arrive changes nothing.
        for n in sorted(
            range(len(requests)), key=lambda n: (-lengths[n], prompts[n], requests[n].seed, requests[n].id)
        ):
            groups.setdefault((requests[n].sampling, opened[n][1]), []).append(n)
        calls = [
            self._drawing(sampling, rows, requests=requests, lengths=lengths, bos=bos)
            for (sampling, bos), group in sorted(groups.items(), key=lambda i: (json.dumps(asdict(i[0][0])), i[0][1]))
            for rows in self._batches(group, lengths, len(requests), _penalised(sampling))
        ]
        calls.sort(key=lambda call: -call.seconds)  # the longest first, so that servers finish together
        for call, reply in self._callers.run(calls):
            yield from self._completions([requests[n] for n in call.rows], reply)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """log p(continuation | prompt): the sum over the tokens that the joint text has after those of the prompt.

        Assumes that the server's tokenizer cuts the joint text at the border; a token that spans it counts as the
        continuation's. Temperature and penalties have no part in it. Upstream writes one token more, which is ignored.

        Raises:
            ValueError: for an empty prompt.
            StepFailed: as in ``generate``, and when a server sends no log-probabilities.
        """
        if not all(request.prompt for request in requests):
            raise ValueError("a prompt is empty; the first token of a text has no log-probability")
        opened = [self._opened(request.prompt) for request in requests]
        requests = [replace(request, prompt=bare) for request, (bare, _) in zip(requests, opened, strict=True)]
        texts = [request.prompt + request.continuation for request in requests]
        lengths = self._lengths(texts)
        order = sorted(range(len(requests)), key=lambda n: (-lengths[n], texts[n], requests[n].id))
        body = {
            "tokens_to_generate": 1,
            "greedy": True,
            "temperature": 1.0,
            "compute_logprob": True,
            "end_strings": [END_OF_TEXT],
        }
        calls = [
            self._call(rows, [texts[n] for n in rows], lengths=lengths, body=body, bos=bos)
            for bos in (False, True)
            for rows in self._batches([n for n in order if opened[n][1] is bos], lengths, len(requests), True)
        ]
        for call, reply in self._callers.run(calls):
            yield from self._scores([requests[n] for n in call.rows], reply)

    def close(self) -> None:
        """Stop what is under way and close the connections; whoever waits for an answer gets a StepFailed."""
        self._callers.close()

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; without a tokenizer, a rough number."""
        if not all(texts):
            raise ValueError("a prompt has no tokens; render it with the chat template first")
        return [len(text) // 3 + 1 for text in texts] if self._pieces is None else self._pieces.counts(texts)

    def _batches(self, order: list[int], lengths: list[int], total: int, logprobs: bool) -> Iterator[list[int]]:
        """Rows of like length; so many that every server has work, and no more than a call's memory can hold."""
        size = min(self._batch, max(_SMALLEST, math.ceil(total / len(self._callers.urls))))
        start = 0
        while start < len(order):
            take = size
            if logprobs:
                vocab = self._pieces.vocab if self._pieces else _VOCAB
                take = max(1, min(size, _LOGPROBS // (vocab * max(1, lengths[order[start]]))))
            yield order[start : start + take]
            start += take

    def _opened(self, prompt: str) -> tuple[str, bool]:
        """A prompt without the token that opens a text, and whether it had one: written out it is mere letters."""
        for word in BEGINS:
            if prompt.startswith(word) and (self._pieces is None or self._pieces.token(word) == self._pieces.begin):
                return prompt.removeprefix(word), True
        return prompt, self._add_bos

    def _drawing(
        self, sampling: Sampling, rows: list[int], *, requests: Sequence[Request], lengths: list[int], bos: bool
    ) -> _Call:
        greedy = sampling.temperature == 0
        penalty = _penalised(sampling)
        body: dict[str, Any] = {
            "tokens_to_generate": sampling.max_tokens,
            "min_tokens_to_generate": sampling.min_tokens,
            "greedy": greedy and not penalty,
            "temperature": 1.0 if greedy else sampling.temperature,
            "top_k": 1 if greedy and penalty else sampling.top_k,
            "top_p": sampling.top_p,
            "repetition_penalty": sampling.repetition_penalty,
            "compute_logprob": penalty,
            "end_strings": [END_OF_TEXT, *(stop for stop in sampling.stop if stop and not self._is_end(stop))],
            "random_seed": counted(0, json.dumps([requests[n].seed for n in rows]), "nemo/call") % _SEEDS,
        }
        return self._call(rows, [requests[n].prompt for n in rows], lengths=lengths, body=body, bos=bos)

    def _is_end(self, text: str) -> bool:
        if text == END_OF_TEXT:
            return True
        return (
            self._pieces is not None and self._pieces.end is not None and self._pieces.token(text) == self._pieces.end
        )

    def _call(
        self, rows: list[int], sentences: list[str], *, lengths: list[int], body: dict[str, Any], bos: bool
    ) -> _Call:
        row_lengths = [lengths[n] for n in rows]
        # Far more than any GPU needs: half a second for each step, 500 tokens of the prompts in a second.
        steps = body["tokens_to_generate"] + max(row_lengths) - min(row_lengths)
        seconds = 0.5 * steps + sum(row_lengths) / 500
        return _Call(tuple(rows), {"sentences": sentences, "add_BOS": bos, **body}, seconds)

    def _completions(self, requests: list[Request], reply: Any) -> list[Completion]:
        completions, lost = [], []
        for request, answer in zip(requests, self._answers(len(requests), reply), strict=True):
            stops = request.sampling.stop
            try:
                budget = request.sampling.max_tokens
                new = strip_prompt(answer, request.prompt, budget=budget, pieces=self._pieces, stops=stops)
            except EchoNotFound as error:
                lost.append((request.id, error))
                continue
            cut = min((new.text.find(stop) for stop in stops if stop and stop in new.text), default=None)
            reason = FinishReason.LENGTH if cut is None and not new.ended else FinishReason.STOP
            written = ModelAnswer(new.text[:cut], reason, new.prompt_tokens, new.tokens)
            completions.append(completed(request, written)[1])
        self._refuse(lost, len(requests))
        return completions

    def _scores(self, requests: list[ScoreRequest], reply: Any) -> list[Score]:
        scores, lost = [], []
        answers = self._answers(len(requests), reply)
        logprobs = reply.get("logprob")
        if not isinstance(logprobs, list) or len(logprobs) != len(requests):
            raise StepFailed(f"{self.name}: the server sent no log-probabilities though it was asked for them")
        for request, answer, row in zip(requests, answers, logprobs, strict=True):
            try:
                tokens = span(answer, request.prompt, request.continuation, self._pieces)
            except EchoNotFound as error:
                lost.append((request.id, error))
                continue
            terms = row[tokens.start - 1 : tokens.stop - 1]  # the first token of a text has none
            if tokens.start == 0 or len(terms) < len(tokens) or not all(map(math.isfinite, terms)):
                raise StepFailed(f"{self.name}: {request.id}: the server sent no log-probability for each token of it")
            scores.append(Score(request.id, math.fsum(terms), len(terms)))
        self._refuse(lost, len(requests))
        return scores

    def _answers(self, rows: int, reply: Any) -> list[ServerRow]:
        parts = [reply.get(key) for key in ("sentences", "tokens", "token_ids")] if isinstance(reply, dict) else [None]
        if not all(isinstance(part, list) and len(part) == rows for part in parts):
            excerpt = json.dumps(reply, ensure_ascii=False)[:200]
            raise StepFailed(
                f"{self.name}: asked {rows} prompts and was not answered with as many sentences: {excerpt}"
            )
        return [ServerRow(s, tuple(map(str, t)), tuple(i)) for s, t, i in zip(*parts, strict=True)]

    def _refuse(self, lost: list[tuple[str, EchoNotFound]], rows: int) -> None:
        if lost:
            name, error = lost[0]
            tell = "is it the tokenizer of the model that is served?" if self._pieces else "give the model's tokenizer"
            raise StepFailed(
                f"{self.name}: {len(lost)} of {rows} answers do not begin with their prompts, so that nobody can tell "
                f"what the model wrote; {name}: {error}; {tell}"
            )


def _penalised(sampling: Sampling) -> bool:
    """Upstream keeps track of the tokens to penalise only while it computes log-probabilities, and never if greedy.

    So a penalty asks for log-probabilities, and greedy with a penalty is top_k 1.
    """
    return sampling.repetition_penalty != 1


@dataclass(frozen=True, slots=True)
class _Call:
    """One call: the requests it is for, by number, its body, and the seconds its work may take."""

    rows: tuple[int, ...]
    body: Mapping[str, Any]
    seconds: float


class _Lost(Exception):
    """A server did not answer, however often it was asked."""


class _Callers:
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
        self._running: set[_CoroutineThread] = set()
        self._closed = False

    def run(self, calls: Sequence[_Call]) -> Iterator[tuple[_Call, Any]]:
        """Make every call and yield it with the server's reply, in the order in which replies come.

        Raises:
            StepFailed: when a server refuses a call, or when no server is left.
        """
        if self._closed:
            raise StepFailed(f"{self._name}: the client is closed")
        if not calls:
            return
        replies: SimpleQueue[Any] = SimpleQueue()
        run = _CoroutineThread(self._serve_all(calls, replies), replies, calls)
        self._running.add(run)
        try:
            run.start()
            for _ in calls:
                match replies.get():
                    case (_Call() as call, reply):
                        yield call, reply
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

    async def _serve_all(self, calls: Sequence[_Call], replies: SimpleQueue[Any]) -> None:
        import httpx

        waiting: asyncio.Queue[_Call | None] = asyncio.Queue()
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

    async def _ask(self, http: httpx.AsyncClient, url: str, call: _Call) -> Any:
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
                if response.status_code < 500 and response.status_code not in _PASSING:
                    reply = _json(response)
                    if response.status_code == 200 and isinstance(reply, dict):
                        return reply
                    if response.status_code != 200 or reply is not None:
                        raise StepFailed(f"{self._name}: {url} refused a call, {why}")
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


class _CoroutineThread(threading.Thread):
    """A coroutine in a thread. Its result goes into no place but ``replies``: an exception, or CancelledError."""

    def __init__(self, work: Coroutine[Any, Any, None], replies: SimpleQueue[Any], calls: Sequence[_Call]) -> None:
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
