"""A client of any servers that speak OpenAI's protocol, reached over HTTP with a key from the environment.

What is said is in ``openai_bodies``, how answers are read in ``openai_answers``, what becomes of them in ``outcomes``,
how all of it travels in ``http_pool``; here they meet, and what cannot pass says what to set. The key is kept in an
object that shows it to nobody, and is taken out of every text that a server sends.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, TypeVar, cast

from yarl import URL

from cai.clients import dialects
from cai.clients import openai_bodies as bodies
from cai.clients.api_key import ApiKey
from cai.clients.base import (
    Call,
    Completion,
    Finish,
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
from cai.clients.openai_answers import error_words, read_answer
from cai.clients.openai_logprobs import NoLogprobs
from cai.clients.outcomes import CallOutcome, Fate, Fault, Observed, drop_reason, outcome_of
from cai.clients.served_models import MOST, ServedModel
from cai.clients.settings import ApiLimits
from cai.clients.speaker import Anew, Answered, Refused, Reply, Sent
from cai.clients.spending import Account
from cai.clients.traffic import Traffic
from cai.errors import PrerequisiteError, Problem, SpecError, StepFailed
from cai.identity import parse_json

LOGPROBS = ("", "prompt", "top")
"""What a server is asked for where likelihoods are wanted: nothing, the prompt's tokens, the likeliest next tokens."""

_log = logging.getLogger(__name__)
_R = TypeVar("_R", Completion, Score, OptionScores)


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A call, what was sent for it and what came back."""

    call: Call
    request: Sent
    reply: Reply


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
        dialect: str = "",
        name: str = "",
        api_key_env: str = "",
        account: Account | None = None,
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
        self._dialect = dialect
        self._key = ApiKey(api_key)
        # By server: what it has said that it does not take.
        self._left_out: dict[str, frozenset[str]] = {}
        self._noted: set[str] = set()
        self._account = account
        self.served: dict[str, ServedModel] = {}
        self._traffic = Traffic(self, urls, limits or ApiLimits(), model)

    @property
    def name(self) -> str:
        """``MODEL at URL``, or what it was given."""
        return self._name

    def __repr__(self) -> str:
        return f"OpenAiClient({self._name})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} holds connections and a key, which are not written anywhere")

    def open_pool(self, account: Account | None = None) -> Pool:
        """A way to send calls and to take results as they come."""
        return self._traffic.open(account or self._account)

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

    def unread(self, call: Call, why: str, finish: Finish = Finish.REFUSED) -> Result:
        """The result of a call that has no answer, as the ledger counts it."""
        return bodies.unread(call, why, finish)

    def request(self, call: Call, server: str) -> Sent:
        """What to send, in the model's dialect, without what this server has said that it does not take."""
        left_out = self._left_out.get(server, frozenset())
        body = bodies.body(call, self._model, left_out)
        if isinstance(call, Request):
            body = dialects.spoken(self._dialect, body)
        return Sent(bodies.address(call), json.dumps(body).encode(), left_out, server)

    def headers(self) -> dict[str, str]:
        """The key."""
        return self._key.headers()

    def hide(self, text: str) -> str:
        """A text without the key, on one line, and not too long."""
        # First hidden, then cut: a key cut in two would not be found.
        text = " ".join("".join(c if c.isprintable() else " " for c in self._key.hide(text)).split())
        return text if len(text) <= 300 else f"{text[:297]}..."

    def interpret(self, call: Call, request: Sent, reply: Reply) -> Answered | Refused | Anew | Trouble:
        """What a reply means: what ``outcomes`` says of it, in the words of this server.

        Raises:
            PrerequisiteError: what cannot pass.
        """
        if 200 <= reply.status < 300:
            self._tell_of_dialect(call, request, reply)
            return self._answered(call, request, reply)
        text = reply.payload.decode("utf-8", "replace")
        observed = Observed(reply.status, self.hide(error_words(text)))
        decided = outcome_of(observed)
        if decided.fate is Fate.REFUSED and self._learns(call, request, text):
            return Anew()
        if decided.fate is Fate.RETRY:
            return self._passing(decided, observed, reply)
        words = observed.words or self.hide(reply.reason) or "nothing more is said"
        return self._final(decided, _Exchange(call, request, reply), words)

    def _final(self, decided: CallOutcome, exchange: _Exchange, words: str) -> Answered | Refused:
        """A refusal, of this row or of all."""
        error = self._error(decided, exchange, words)
        if decided.fate is Fate.STOP:
            raise error
        unread = bodies.unread(exchange.call, drop_reason(decided, Observed(exchange.reply.status, words)))
        if decided.fate is Fate.DROP:
            self._note("refuses a prompt", f"refuses a prompt ({words}); such prompts count as unanswered")
            return Answered(unread)
        return Refused(unread, error, may_pass=decided.fault is Fault.CREDIT)

    def _answered(self, call: Call, request: Sent, reply: Reply) -> Answered | Refused | Trouble:
        try:
            read = read_answer(call, reply.payload, request.path == "/chat/completions", self._key.hide)
        except NoLogprobs as error:
            alternative = "`top`" if self._logprobs == "prompt" else "`prompt`"
            hint = f"set the model's `logprobs` to {alternative} if the server offers that, or use `scoring: choice`"
            problem = f"answers without the log-probabilities that `logprobs: {self._logprobs}` needs ({error})"
            return Refused(
                bodies.unread(call, "no log-probabilities"), PrerequisiteError(f"{self._name}: {problem}; {hint}")
            )
        except ValueError:
            words = self.hide(error_words(reply.payload.decode("utf-8", "replace"))) or "nothing more is said"
            problem = "answers something that is no completion"
            return Trouble(TroubleKind.FAULT, problem, f"{problem} ({words})")
        decided = read.outcome
        if decided.fate is Fate.RETRY:
            problem = f"ends an answer with {decided.reason}" if decided.reason else "answers with an error"
            detail = f"{problem} ({read.words})" if read.words else problem
            return Trouble(decided.trouble, problem, detail, final=decided.reason)
        if read.result is None:  # an error in a body that came as an answer
            return self._final(decided, _Exchange(call, request, replace(reply, status=read.status)), read.words)
        if read.served is not None and len(self.served) < MOST:
            served = ServedModel(self.hide(read.served.model), self.hide(read.served.system_fingerprint))
            self.served.setdefault(served.model, served)
        return Answered(read.result, read.prompt_tokens, read.tokens, read.counted)

    def _learns(self, call: Call, request: Sent, text: str) -> bool:
        """Whether a refusal names fields that this server does not take; they are left out from now on."""
        new = bodies.refused_fields(bodies.body(call, self._model, request.left_out), text)
        known = self._left_out.get(request.server, frozenset())
        for name in sorted(new - known):
            instead = ", with max_completion_tokens instead" if name == "max_tokens" else ""
            instead = "; answers are cut at the stops here" if name == "stop" else instead
            self._note(f"{request.server} {name}", f"does not take {name}; asked without{instead}")
        self._left_out[request.server] = known | new
        return bool(new)

    def _error(self, decided: CallOutcome, exchange: _Exchange, words: str) -> PrerequisiteError | StepFailed:
        """What to mend where every call ends so."""
        status = f"{exchange.reply.status}: {words}"
        match decided.fault:
            case Fault.KEY:
                setting = (
                    f"set the environment variable {self._key_env} to a key that may use this model"
                    if self._key_env
                    else "give the model `api_key_env`, the name of the environment variable that holds the key"
                )
                return PrerequisiteError(f"{self._name}: refuses the key ({status}); {setting}")
            case Fault.CREDIT:
                return PrerequisiteError(f"{self._name}: has no credit left for this key ({words})")
            case Fault.MODEL:
                setting = (
                    "check the model's `source`, and its `url`, which ends before /chat/completions, often with /v1"
                )
                if exchange.request.path == "/completions":
                    setting += "; a server without /completions needs a prompt template with `format: chat`"
                return PrerequisiteError(
                    f"{self._name}: has no such model or no {exchange.request.path} ({status}); {setting}"
                )
            case Fault.ADDRESS:
                to = self.hide(exchange.reply.headers.get("Location", "elsewhere"))
                return PrerequisiteError(f"{self._name}: redirects to {to}; give the model that `url`")
        return StepFailed(f"{self._name}: refuses the request {exchange.call.id!r} ({status})")

    def _passing(self, decided: CallOutcome, observed: Observed, reply: Reply) -> Trouble:
        status = reply.status
        words = observed.words or self.hide(reply.reason) or "nothing more is said"
        wait = bodies.retry_after(reply.headers.get("Retry-After", ""))
        kind = TroubleKind.LIMIT if wait is not None else decided.trouble
        if kind is TroubleKind.LIMIT:
            self._note("limit", f"is asked as much as it allows ({status}: {words}); asked more slowly")
        return Trouble(kind, f"answers {status}", f"answers {status} ({words})", wait)

    def _tell_of_dialect(self, call: Call, request: Sent, reply: Reply) -> None:
        """Say it where the first answer of a server of no named dialect shows that it ignores what it was asked."""
        if isinstance(call, Request) and not self._dialect and "dialect" not in self._noted:
            name = dialects.recognised(reply.headers, reply.payload)
            if words := dialects.remark(name, parse_json(request.payload)) if name else "":
                self._note("dialect", words)
            self._noted.add("dialect")

    def _note(self, kind: str, message: str) -> None:
        """Say it once."""
        if kind not in self._noted:
            self._noted.add(kind)
            _log.warning("%s: %s", self._name, message)


def open_endpoint(
    path: Path,
    api_key_env: str | None = None,
    limits: ApiLimits | None = None,
    replicas: Sequence[str] = (),
    *,
    place: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> OpenAiClient:
    """The client of an ``endpoint.json`` ({model, url, api_key_env, ``logprobs`` and ``dialect`` where set}).

    ``api_key_env`` and what ``place`` says (``model``, ``url``, ``logprobs``) go before the file's; ``replicas`` are
    more addresses of the same model. What is spent goes into the ``account``.

    Raises:
        PrerequisiteError: when the variable is not set, holds what can be no key, or may not be sent there.
    """
    raw = {**parse_json(path.read_text(encoding="utf-8")), **(place or {})}
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
    return OpenAiClient(
        url,
        model,
        key,
        replicas=replicas,
        limits=limits,
        logprobs=logprobs,
        dialect=raw.get("dialect") or "",
        api_key_env=variable,
        account=account,
    )


def _check(name: str, url: str) -> None:
    try:
        address = URL(url)
        good = address.scheme in ("http", "https") and bool(address.host)
    except ValueError:
        good = False
    if not good:
        raise PrerequisiteError(f"{name}: {url!r} is no address of a server; write https://HOST/v1")
