"""A client of any server that speaks OpenAI's protocol, reached over HTTP with a key from the environment.

Requests with messages go to ``/chat/completions``, where the server applies its own chat template; raw prompts go to
``/completions``. A pool of threads keeps ``concurrency`` requests in flight. What may pass is tried again (rate limits,
overload, torn connections, bodies that are no answer); what cannot pass fails at once and says what to set.

The key is kept in one object that shows it to nobody, and is taken out of every text that the server sends.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn
from urllib.parse import quote

import httpx

from cai.clients.base import Completion, Finish, Request, Sampling, Score, ScoreRequest
from cai.errors import PrerequisiteError, Problem, SpecError, StepFailed

BACKOFF, LONGEST_BACKOFF, LONGEST_RETRY_AFTER = 0.5, 30.0, 120.0
"""Seconds: before the first retry (doubled each time), at most, and at most where the server says how long."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be different the next time."""

STOPS = 4
"""Stop strings that the protocol allows; the rest is cut here."""

EXTENSIONS = ("top_k", "repetition_penalty", "min_tokens", "seed")
"""Fields that some servers do not know; left out, with one note, when the server names them in a refusal."""

_TOO_LONG = re.compile(r"maximum context length|context_length_exceeded|content_filter|prompt is too long", re.I)
_log = logging.getLogger(__name__)


class _Stopped(Exception):
    """The caller has stopped listening."""


class _Passing(Exception):
    """Something went wrong that may not go wrong again; ``wait`` is how long the server asks for, in seconds."""

    def __init__(self, what: str, wait: float | None = None, everyone: bool = False) -> None:
        super().__init__(what)
        self.wait, self.everyone = wait, everyone


class _Key:
    """An API key that cannot be printed, pickled or copied by accident."""

    __slots__ = ("_shown", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        forms = {value, value.replace("/", "\\/"), json.dumps(value)[1:-1], quote(value, safe="")} - {""}
        found = [re.escape(form) for form in sorted(forms, key=len, reverse=True)]
        if len(value) >= 16:
            # Servers echo a key in part as well: what begins like it goes.
            found.append(re.escape(value[: min(len(value) // 2, 12)]) + r"[^\s\"'<>,;)]*")
        self._shown = re.compile("|".join(found) or "(?!)")

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def hide(self, text: str) -> str:
        """``text`` without the key."""
        return self._shown.sub("***", text)

    def __repr__(self) -> str:
        return "<key>" if self._value else "<no key>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key is not written anywhere")


class OpenAiClient:
    """A model behind an OpenAI-compatible server.

    ``url`` ends before ``/chat/completions``. ``api_key`` may be empty for servers that want none; ``api_key_env`` is
    the variable it came from, for errors. ``timeout`` is in seconds without a byte; a request is tried ``1 + retries``
    times. Draws are the server's: the seed is sent along, and no server promises to keep to it.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str,
        *,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 6,
        name: str = "",
        api_key_env: str = "",
    ) -> None:
        self._url, self._model, self._retries = url.rstrip("/"), model, retries
        self._name, self._key_env, self._key = name or f"{model} at {self._url}", api_key_env, _Key(api_key)
        self._concurrency = concurrency
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        waits = httpx.Timeout(timeout, connect=min(timeout, 15.0), pool=None)
        self._http = httpx.Client(limits=limits, timeout=waits)
        self._lock = threading.Lock()
        self._left_out: frozenset[str] = frozenset()
        self._noted: set[str] = set()
        self._not_before = 0.0
        self._working, self._closed = 0, False

    @property
    def name(self) -> str:
        """``MODEL at URL``, or what it was given."""
        return self._name

    def __repr__(self) -> str:
        return f"OpenAiClient({self._name})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} holds connections and a key, which are not written anywhere")

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete every request, ``concurrency`` at a time, and yield each answer when it is there.

        A prompt that the server refuses to read (too long, filtered) gets an empty text, which the stages count.

        Raises:
            PrerequisiteError: the key is refused, or there is no such model or address.
            StepFailed: the server refuses a request, or goes on failing after all retries.
        """
        todo: SimpleQueue[Request] = SimpleQueue()
        done: SimpleQueue[Completion | Exception] = SimpleQueue()
        stop = threading.Event()
        for request in requests:
            todo.put(request)

        def work() -> None:
            try:
                while not stop.is_set():
                    done.put(self._complete(todo.get_nowait(), stop))
            except (Empty, _Stopped):
                pass  # Nothing is left to do, or nobody waits for it.
            except Exception as error:
                done.put(error)
            finally:
                self._worked()

        try:
            for _ in range(min(self._concurrency, len(requests))):
                # Not an executor: its threads are waited for at exit, and Ctrl-C must not wait for a server.
                with self._lock:
                    self._working += 1
                threading.Thread(target=work, name="openai_api", daemon=True).start()
            for _ in requests:
                found = done.get()
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            stop.set()

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Log-probability scoring over HTTP is not offered yet.

        Raises:
            SpecError: always.
        """
        what = "log-probability scoring over HTTP is not offered yet"
        raise SpecError(Problem(self._name, what, "use `scoring: choice`"))

    def close(self) -> None:
        """Close the connections, those in use as soon as their answers are in or overdue."""
        with self._lock:
            self._closed = True
            idle = self._working == 0
        if idle:
            self._http.close()

    def _worked(self) -> None:
        with self._lock:
            self._working -= 1
            last = self._closed and self._working == 0
        if last:
            self._http.close()

    def _complete(self, request: Request, stop: threading.Event) -> Completion:
        for attempt in range(self._retries + 1):
            closed = self._not_before - time.monotonic()
            self._wait(closed + random.uniform(0, BACKOFF) if closed > 0 else 0, stop)
            try:
                return self._ask(request)
            except _Passing as error:
                if attempt == self._retries:
                    raise StepFailed(f"{self._name}: {error}, {attempt + 1} times in a row") from None
                delay = error.wait
                if delay is None:
                    # A limit counts by the minute: waiting from the start as long as it takes to get past that.
                    first = BACKOFF * 4 if error.everyone else BACKOFF
                    delay = min(LONGEST_BACKOFF, first * 2**attempt) * random.uniform(0.75, 1.25)
                if error.everyone:
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + delay)
                else:
                    self._wait(delay, stop)
        raise AssertionError("unreachable: the last attempt returns or raises")

    @staticmethod
    def _wait(seconds: float, stop: threading.Event) -> None:
        if stop.is_set() or (seconds > 0 and stop.wait(seconds)):
            raise _Stopped

    def _ask(self, request: Request) -> Completion:
        """One attempt."""
        while True:
            left_out = self._left_out
            path, body = _body(request, self._model, left_out)
            try:
                response = self._http.post(
                    f"{self._url}{path}",
                    content=json.dumps(body).encode(),
                    headers={"Content-Type": "application/json", **self._key.headers()},
                )
            except httpx.TransportError as error:
                what = "timed out" if isinstance(error, httpx.TimeoutException) else "the connection failed"
                raise _Passing(f"{what} ({self._hide(str(error)) or type(error).__name__})") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _Passing(f"no answer ({self._hide(str(error))})") from None
            if response.status_code == 200:
                return self._read(request, response)
            named = _named(body, response) if response.status_code in (400, 422) else set()
            if not named:
                return self._refused(request, path, response)
            self._leave_out(named)

    def _leave_out(self, named: set[str]) -> None:
        with self._lock:
            new = named - self._left_out
            self._left_out |= named
        if new:
            _log.warning("%s: does not take %s; asked without", self._name, ", ".join(sorted(new)))

    def _read(self, request: Request, response: httpx.Response) -> Completion:
        try:
            raw = json.loads(response.content)
            choice = raw["choices"][0]
            text = choice["message"]["content"] if request.messages else choice["text"]
            usage = raw.get("usage") or {}
            # A filter or a budget spent on thinking leaves no content; the stages count an empty answer.
            text = "" if text is None else text
            if not isinstance(text, str) or not isinstance(usage, Mapping):
                raise TypeError
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise _Passing(f"answers something that is no completion ({self._said(response)})") from None
        finish = Finish.LENGTH if choice.get("finish_reason") == "length" else Finish.STOP
        # The key cannot be in an answer, unless the server is made to echo it; rows are kept and shared.
        text = self._key.hide(text)
        cut = min((at for stop in request.sampling.stop if stop and (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            text, finish = text[:cut], Finish.STOP
        # A server that does not count is counted for, roughly, in words.
        asked = _whole(usage.get("prompt_tokens"), request.prompt)
        return Completion(request.id, text, asked, _whole(usage.get("completion_tokens"), text), finish)

    def _refused(self, request: Request, path: str, response: httpx.Response) -> Completion:
        status, said = response.status_code, self._said(response)
        if status in PASSING:
            wait = _retry_after(response.headers.get("Retry-After", ""))
            raise _Passing(f"answers {status} ({said})", wait, everyone=status == 429 or wait is not None)
        if status in (401, 403):
            setting = (
                f"set the environment variable {self._key_env} to a key that may use this model"
                if self._key_env
                else "give the model `api_key_env`, the name of the environment variable that holds the key"
            )
            raise PrerequisiteError(f"{self._name}: refuses the key ({status}: {said}); {setting}")
        if status == 404:
            setting = "check the model's `source`, and its `url`, which ends before /chat/completions, often with /v1"
            if not request.messages:
                setting += "; a server without /completions needs a prompt template with `format: chat`"
            raise PrerequisiteError(f"{self._name}: has no such model or no {path} (404: {said}); {setting}")
        if 300 <= status < 400:
            to = self._hide(response.headers.get("Location", "elsewhere"))
            raise PrerequisiteError(f"{self._name}: redirects to {to}; give the model that `url`")
        if status in (400, 413, 422) and (status == 413 or _TOO_LONG.search(response.text)):
            self._note(f"refuses a prompt ({said}); such prompts count as unanswered")
            return Completion(request.id, "", _whole(None, request.prompt), 0, Finish.STOP)
        raise StepFailed(f"{self._name}: refuses the request {request.id!r} ({status}: {said})")

    def _note(self, what: str) -> None:
        """Say it once."""
        kind = what.partition("(")[0]
        with self._lock:
            new = kind not in self._noted
            self._noted.add(kind)
        if new:
            _log.warning("%s: %s", self._name, what)

    def _said(self, response: httpx.Response) -> str:
        """What the server says about an error, on one line."""
        return self._hide(_message(response)) or self._hide(response.reason_phrase) or "nothing more is said"

    def _hide(self, text: str) -> str:
        # First hidden, then cut: a key cut in two would not be found.
        text = " ".join("".join(c if c.isprintable() else " " for c in self._key.hide(text)).split())
        return text if len(text) <= 300 else f"{text[:297]}..."


def open_endpoint(path: Path, api_key_env: str | None = None) -> OpenAiClient:
    """The client of an ``endpoint.json`` ({model, url, api_key_env}); ``api_key_env`` goes before the file's.

    Raises:
        PrerequisiteError: when the variable is not set, or holds what can be no key.
    """
    raw = json.loads(path.read_text(encoding="utf-8"))
    model, url = raw["model"], raw["url"]
    variable = raw["api_key_env"] if api_key_env is None else api_key_env
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        hint = f"export {variable} with the key and run the same command again"
        raise PrerequisiteError(f"{model} at {url}: the environment variable {variable} is not set; {hint}")
    if not key.isascii() or not key.isprintable() or " " in key:
        hint = "copy it again"
        raise PrerequisiteError(f"{model} at {url}: the value of {variable} has characters that no key has; {hint}")
    return OpenAiClient(url, model, key, api_key_env=variable)


def _body(request: Request, model: str, left_out: frozenset[str]) -> tuple[str, dict[str, Any]]:
    """The path and the JSON of a request."""
    drawn: Sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": drawn.max_tokens,
        "temperature": drawn.temperature,
        "top_p": drawn.top_p,
        "seed": request.seed,
    }
    if stops := [stop for stop in drawn.stop if stop]:
        body["stop"] = stops[:STOPS]
    if drawn.top_k:
        body["top_k"] = drawn.top_k
    if drawn.repetition_penalty != 1.0:
        body["repetition_penalty"] = drawn.repetition_penalty
    if drawn.min_tokens:
        body["min_tokens"] = drawn.min_tokens
    body = {name: value for name, value in body.items() if name not in left_out}
    if not request.messages:
        return "/completions", {**body, "prompt": request.prompt}
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    return "/chat/completions", {**body, "messages": messages}


def _named(body: Mapping[str, Any], response: httpx.Response) -> set[str]:
    """The extensions in ``body`` that a refusal names."""
    # The message and the place of the error, not what the server repeats of the request: that names every field.
    try:
        raw = json.loads(response.content)
        details = raw.get("detail")
        if isinstance(details, list):
            told = " ".join(f"{d.get('loc', '')} {d.get('msg', '')}" for d in details if isinstance(d, Mapping))
        else:
            told = _message(response) + " " + str((raw.get("error") or {}).get("param", ""))
    except (ValueError, AttributeError):
        told = response.text
    return {name for name in EXTENSIONS if name in body and re.search(rf"\b{name}\b", told)}


def _message(response: httpx.Response) -> str:
    """The server's own words, where they can be found; else the body."""
    try:
        raw: Any = json.loads(response.content)
    except (ValueError, RecursionError):
        return response.text
    for name in ("error", "detail", "message"):
        if isinstance(raw, Mapping) and raw.get(name):
            raw = raw[name]
    return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)


def _retry_after(value: str) -> float | None:
    """Seconds to wait as a ``Retry-After`` header says it, in seconds or as a date (RFC 9110, 10.2.3), capped."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if seconds == seconds else None


def _whole(count: object, text: str) -> int:
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else len(text.split())
