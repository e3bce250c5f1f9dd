"""A client of any servers that speak OpenAI's protocol, reached over HTTP with a key from the environment.

What is said is in ``openai_bodies``, how it travels in ``http_pool``; here the two meet: what a reply means, what can
pass and is tried again, and what cannot and says what to set. The key is kept in an object that shows it to nobody, and
is taken out of every text that a server sends.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar, cast

from yarl import URL

from cai.clients import openai_bodies as bodies
from cai.clients.api_key import ApiKey
from cai.clients.base import (
    Call,
    Completion,
    OptionScores,
    OptionsRequest,
    Pool,
    Request,
    Result,
    Score,
    ScoreRequest,
    Unanswered,
)
from cai.clients.endpoints import Trouble, TroubleKind
from cai.clients.key_hosts import check_key_hosts
from cai.clients.openai_logprobs import NoLogprobs
from cai.clients.settings import ApiLimits
from cai.clients.speaker import Anew, Answered, Reply, Sent
from cai.clients.traffic import Traffic
from cai.errors import PrerequisiteError, Problem, SpecError, StepFailed
from cai.identity import parse_json

PASSING = frozenset({408, 425, 429})
"""Statuses below 500 that may be different the next time."""

LOGPROBS = ("", "prompt", "top")
"""What a server is asked for where likelihoods are wanted: nothing, the prompt's tokens, the likeliest next tokens."""

_log = logging.getLogger(__name__)
_R = TypeVar("_R", Completion, Score, OptionScores)


class OpenAiClient:
    """A model behind one or several OpenAI-compatible servers.

    ``url`` and ``replicas`` end before ``/chat/completions``. ``api_key`` may be empty for servers that want none;
    ``api_key_env`` is the variable it came from, for errors. Draws are the server's: the seed is sent along, and no
    server promises to keep to it.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str,
        *,
        replicas: Sequence[str] = (),
        limits: ApiLimits | None = None,
        logprobs: str = "",
        name: str = "",
        api_key_env: str = "",
    ) -> None:
        urls = list(dict.fromkeys(each.rstrip("/") for each in (url, *replicas)))
        self._model = model
        self._name = name or f"{model} at {urls[0]}"
        self._key_env = api_key_env
        if logprobs not in LOGPROBS:
            raise SpecError(Problem(self._name, f"logprobs {logprobs!r} is unknown", f"use one of {LOGPROBS[1:]}"))
        for each in urls:
            _check(self._name, each)
        self._logprobs = logprobs
        self._key = ApiKey(api_key)
        self._left_out: frozenset[str] = frozenset()
        self._noted: set[str] = set()
        self._traffic = Traffic(self, urls, limits or ApiLimits(), model)

    @property
    def name(self) -> str:
        """``MODEL at URL``, or what it was given."""
        return self._name

    def __repr__(self) -> str:
        return f"OpenAiClient({self._name})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} holds connections and a key, which are not written anywhere")

    def open_pool(self) -> Pool:
        """A way to send calls and to take results as they come."""
        return self._traffic.open()

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete every request and yield each answer when it is there.

        A prompt that the server refuses to read (too long, filtered) comes back as refused, which the stages count.

        Raises:
            PrerequisiteError: the key is refused, or there is no such model or address.
            StepFailed: the server refuses a request, or goes on failing after all retries.
        """
        return self._all(requests, Completion)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Log-likelihoods of continuations, from a server that repeats its prompt with log-probabilities.

        Raises:
            SpecError: the model's ``logprobs`` is not ``prompt``.
            PrerequisiteError, StepFailed: as for ``generate``, or the server sends no log-probabilities.
        """
        for request in requests[:1]:
            self.parts(request)
        return self._all(requests, Score)

    def options(self, requests: Sequence[OptionsRequest]) -> Iterator[OptionScores]:
        """Log-likelihoods of short options as the next text.

        Raises:
            SpecError: the model's ``logprobs`` is not set.
            PrerequisiteError, StepFailed: as for ``score``.
        """
        for request in requests[:1]:
            self.parts(request)
        return self._all(requests, OptionScores)

    def close(self) -> None:
        """Give up what is on its way and close the connections, within a second."""
        self._traffic.close()

    def _all(self, calls: Sequence[Call], kind: type[_R]) -> Iterator[_R]:
        pool = self.open_pool()
        try:
            for tag, call in enumerate(calls):
                pool.submit(tag, call)
            open_calls = len(calls)
            while open_calls:
                for _, answer in pool.take():
                    open_calls -= 1
                    if isinstance(answer, Unanswered):
                        raise StepFailed(f"{self._name}: gives no answer to {answer.id!r} ({answer.why})")
                    yield cast(_R, answer)
        finally:
            pool.close()

    # What http_pool asks of a speaker.

    def parts(self, call: Call) -> tuple[Call, ...]:
        """The calls that a server is asked for one call."""
        if isinstance(call, Request):
            return (call,)
        if not self._logprobs:
            problem, hint = "the model's `logprobs` is not set", "set it to what the server offers (`prompt` or `top`)"
            raise SpecError(
                Problem(self._name, f"{problem}, so it gives no likelihoods", f"{hint}, or use `scoring: choice`")
            )
        if isinstance(call, ScoreRequest) and self._logprobs == "top":
            problem = "lists only the likeliest next tokens (`logprobs: top`), which gives no likelihood of a text"
            raise SpecError(
                Problem(self._name, problem, "use `scoring: choice`, or `logprobs: prompt` where it is offered")
            )
        return bodies.parts(call, self._logprobs)

    def joined(self, call: Call, results: Sequence[Result]) -> Result:
        """The result of a call from those of its parts."""
        return bodies.joined(call, results)

    def unread(self, call: Call, why: str) -> Result:
        """The result of a call that counts as refused."""
        return bodies.unread(call, why)

    def request(self, call: Call) -> Sent:
        """What to send, without what the servers have said they do not take."""
        body = bodies.body(call, self._model, self._left_out)
        return Sent(bodies.address(call), json.dumps(body).encode(), self._left_out)

    def headers(self) -> dict[str, str]:
        """The key."""
        return self._key.headers()

    def hide(self, text: str) -> str:
        """A text without the key, on one line, and not too long."""
        # First hidden, then cut: a key cut in two would not be found.
        text = " ".join("".join(c if c.isprintable() else " " for c in self._key.hide(text)).split())
        return text if len(text) <= 300 else f"{text[:297]}..."

    def interpret(self, call: Call, request: Sent, reply: Reply) -> Answered | Anew | Trouble:
        """What a reply means.

        Raises:
            PrerequisiteError, StepFailed: what cannot pass.
        """
        if reply.status == 200:
            return self._answer(call, reply)
        text = reply.payload.decode("utf-8", "replace")
        if reply.status in (400, 422):
            new = bodies.refused_fields(bodies.body(call, self._model, request.left_out), text)
            if new:
                if new - self._left_out:
                    fields = ", ".join(sorted(new - self._left_out))
                    _log.warning("%s: does not take %s; asked without", self._name, fields)
                self._left_out |= new
                return Anew()
        return self._refused(call, request.path, reply, text)

    def _answer(self, call: Call, reply: Reply) -> Answered | Trouble:
        try:
            return Answered(*bodies.answer(call, reply.payload, self._key.hide))
        except NoLogprobs as error:
            alternative = "`top`" if self._logprobs == "prompt" else "`prompt`"
            hint = f"set the model's `logprobs` to {alternative} if the server offers that, or use `scoring: choice`"
            problem = f"answers without the log-probabilities that `logprobs: {self._logprobs}` needs ({error})"
            raise PrerequisiteError(f"{self._name}: {problem}; {hint}") from None
        except ValueError:
            server_message = self._server_message(reply, reply.payload.decode("utf-8", "replace"))
            problem = "answers something that is no completion"
            return Trouble(TroubleKind.FAULT, problem, f"{problem} ({server_message})")

    def _refused(self, call: Call, path: str, reply: Reply, text: str) -> Answered | Trouble:
        status, server_message = reply.status, self._server_message(reply, text)
        if status in PASSING or status >= 500:
            return self._passing(reply, server_message, text)
        if status in (401, 403):
            setting = (
                f"set the environment variable {self._key_env} to a key that may use this model"
                if self._key_env
                else "give the model `api_key_env`, the name of the environment variable that holds the key"
            )
            raise PrerequisiteError(f"{self._name}: refuses the key ({status}: {server_message}); {setting}")
        if status == 404:
            setting = "check the model's `source`, and its `url`, which ends before /chat/completions, often with /v1"
            if path == "/completions":
                setting += "; a server without /completions needs a prompt template with `format: chat`"
            raise PrerequisiteError(f"{self._name}: has no such model or no {path} (404: {server_message}); {setting}")
        if 300 <= status < 400:
            to = self.hide(reply.headers.get("Location", "elsewhere"))
            raise PrerequisiteError(f"{self._name}: redirects to {to}; give the model that `url`")
        if why := bodies.refusal(status, text):
            self._note("refuses a prompt", f"refuses a prompt ({server_message}); such prompts count as unanswered")
            return Answered(bodies.unread(call, why))
        raise StepFailed(f"{self._name}: refuses the request {call.id!r} ({status}: {server_message})")

    def _passing(self, reply: Reply, server_message: str, text: str) -> Trouble:
        status = reply.status
        wait = bodies.retry_after(reply.headers.get("Retry-After", ""))
        if status == 429 and "insufficient_quota" in text:
            # OpenAI's word for an account without credit: no waiting helps.
            raise PrerequisiteError(f"{self._name}: has no credit left for this key ({server_message})")
        if status == 429 or wait is not None:
            kind = TroubleKind.LIMIT
            self._note("limit", f"is asked as much as it allows ({status}: {server_message}); asked more slowly")
        else:
            kind = TroubleKind.OVERLOAD if status == 503 else TroubleKind.FAULT
        return Trouble(kind, f"answers {status}", f"answers {status} ({server_message})", wait)

    def _note(self, kind: str, message: str) -> None:
        """Say it once."""
        if kind not in self._noted:
            self._noted.add(kind)
            _log.warning("%s: %s", self._name, message)

    def _server_message(self, reply: Reply, text: str) -> str:
        """What the server says about an error, on one line."""
        return self.hide(bodies.message(text)) or self.hide(reply.reason) or "nothing more is said"


def open_endpoint(
    path: Path, api_key_env: str | None = None, limits: ApiLimits | None = None, replicas: Sequence[str] = ()
) -> OpenAiClient:
    """The client of an ``endpoint.json`` ({model, url, api_key_env, and ``logprobs`` where it is set}).

    ``api_key_env`` goes before the file's; ``replicas`` are more addresses of the same model.

    Raises:
        PrerequisiteError: when the variable is not set, holds what can be no key, or may not be sent there.
    """
    raw = parse_json(path.read_text(encoding="utf-8"))
    model, url = raw["model"], raw["url"]
    variable = raw["api_key_env"] if api_key_env is None else api_key_env
    if variable:
        check_key_hosts(variable, (url, *replicas))
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        hint = f"export {variable} with the key and run the same command again"
        raise PrerequisiteError(f"{model} at {url}: the environment variable {variable} is not set; {hint}")
    if not key.isascii() or not key.isprintable() or " " in key:
        hint = "copy it again"
        raise PrerequisiteError(f"{model} at {url}: the value of {variable} has characters that no key has; {hint}")
    logprobs = raw.get("logprobs") or ""
    return OpenAiClient(url, model, key, replicas=replicas, limits=limits, logprobs=logprobs, api_key_env=variable)


def _check(name: str, url: str) -> None:
    try:
        address = URL(url)
        good = address.scheme in ("http", "https") and bool(address.host)
    except ValueError:
        good = False
    if not good:
        raise PrerequisiteError(f"{name}: {url!r} is no address of a server; write https://HOST/v1")
