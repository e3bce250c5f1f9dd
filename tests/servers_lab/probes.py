"""What a running server makes of each field: asked with it and without it, the answers compared.

Nothing is believed of a server's documents. A field is honoured when the answer is another one, or the one that it must
be; ignored when the answer is the same; refused when the request is.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cai.clients.base import ScoreRequest
from cai.clients.dialect_table import FIELDS, Support
from cai.clients.dialects import recognised, spoken
from cai.clients.openai_api import OpenAiClient
from cai.errors import CaiError

REPEATING = "Repeat the word: ha ha ha ha ha ha ha ha ha"
OPEN = "Tell me about the sea."
BRIEF = "Answer with one word only: what is the capital of France?"
CHOICE = "Which is better, (A) a cat or (B) a dog?"
SCHEMA = {
    "type": "object",
    "properties": {"choice": {"type": "string", "enum": ["(A)", "(B)"]}},
    "required": ["choice"],
    "additionalProperties": False,
}
HOT = 1.5
"""A temperature at which two seeds do not give the same 16 tokens."""
HOT_ANSWERS = 4
STOP_COUNTS = (1, 4, 5, 16, 64)
TOP_COUNTS = (1, 5, 20, 21)


@dataclass(frozen=True)
class Answer:
    """What came back: ``status`` 200 and a text, or a refusal."""

    status: int
    text: str = ""
    tokens: int = 0
    finish: str = ""
    raw: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None


class Probe:
    """Asks one server, in its ``dialect`` or (empty) as the protocol has it."""

    def __init__(self, url: str, model: str, dialect: str = "") -> None:
        self._url = url
        self._model = model
        self._dialect = dialect

    def ask(self, text: str, **fields: Any) -> Answer:
        """One chat completion; greedy, of 16 tokens, unless ``fields`` say otherwise (None takes a field out)."""
        body: dict[str, Any] = {"model": self._model, "max_tokens": 16, "temperature": 0, "top_p": 1.0, "seed": 1}
        body |= {"messages": [{"role": "user", "content": text}], **fields}
        return self._post("/chat/completions", spoken(self._dialect, {k: v for k, v in body.items() if v is not None}))

    def _post(self, path: str, body: Mapping[str, Any]) -> Answer:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as reply:
                raw = json.loads(reply.read())
                head = dict(reply.headers.items())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode("utf-8", "replace"))
        choice, usage = raw["choices"][0], raw.get("usage") or {}
        return Answer(
            200,
            choice["message"]["content"] or "",
            usage.get("completion_tokens", 0),
            choice.get("finish_reason") or "",
            raw,
            head,
        )

    # ---- the fields, each by its name ------------------------------------------------------------------------------

    def fates(self, names: Iterable[str] = FIELDS) -> dict[str, Support]:
        """What becomes of each field."""
        return {name: getattr(self, f"_{name}")() for name in names}

    def _max_tokens(self) -> Support:
        answer = self.ask(OPEN, max_tokens=5)
        return _fate([answer], answer.tokens == 5)

    def _max_completion_tokens(self) -> Support:
        answer = self.ask(OPEN, max_tokens=None, max_completion_tokens=5)
        return _fate([answer], answer.tokens == 5)

    def _temperature(self) -> Support:
        answers = [self.ask(OPEN), *(self.ask(OPEN, temperature=HOT, seed=seed) for seed in (3, 4, 5))]
        return _fate(answers, len(_texts(answers)) > 1)

    @cached_property
    def _draws(self) -> bool:
        """Where it does not draw, whatever narrows a draw would seem to be kept to."""
        return self._temperature() is Support.HONOURED

    def _top_p(self) -> Support:
        answers = [self.ask(OPEN), *(self.ask(OPEN, temperature=HOT, top_p=1e-6, seed=seed) for seed in (3, 4))]
        return _fate(answers, self._draws and len(_texts(answers)) == 1)

    def _top_k(self) -> Support:
        answers = [self.ask(OPEN), *(self.ask(OPEN, temperature=HOT, top_k=1, seed=seed) for seed in (3, 4))]
        return _fate(answers, self._draws and len(_texts(answers)) == 1)

    def _repetition_penalty(self) -> Support:
        answers = [self.ask(REPEATING, max_tokens=24, repetition_penalty=penalty) for penalty in (1.01, 1.9)]
        return _fate(answers, len(_texts(answers)) == 2)

    def _min_tokens(self) -> Support:
        assert self.ask(BRIEF, max_tokens=32).tokens < 24, "the model says more than was reckoned with"
        answer = self.ask(BRIEF, max_tokens=32, min_tokens=24)
        return _fate([answer], answer.tokens >= 24)

    def _seed(self) -> Support:
        once, again, other = (self.ask(OPEN, temperature=HOT, seed=seed) for seed in (3, 3, 4))
        return _fate([once, again, other], once.text == again.text != other.text)

    def _response_format(self) -> Support:
        asked = {"type": "json_schema", "json_schema": {"name": "choice", "strict": True, "schema": SCHEMA}}
        answer = self.ask(CHOICE, max_tokens=48, response_format=asked)
        return _fate([answer], _is_choice(answer.text))

    # ---- what else the table says ----------------------------------------------------------------------------------

    def stops(self) -> int:
        """How many stop strings are taken, of the numbers tried; the last one is what cuts the answer."""
        whole, kept = self.ask(OPEN), 0
        assert whole.finish == "length", "an answer that ends by itself shows nothing"
        word = whole.text.split()[3]
        for count in STOP_COUNTS:
            answer = self.ask(OPEN, stop=[*(f"zz{i}" for i in range(count - 1)), word])
            # Some servers leave the stop string itself in the text.
            if answer.status != 200 or answer.finish != "stop" or len(answer.text) >= len(whole.text):
                break
            kept = count
        return kept

    def top_logprobs(self) -> int:
        """How many likely tokens are listed at most, of the numbers tried."""
        listed = 0
        for count in TOP_COUNTS:
            answer = self.ask(OPEN, max_tokens=1, logprobs=True, top_logprobs=count)
            choice = answer.raw["choices"][0] if answer.raw else {}
            places = (choice.get("logprobs") or {}).get("content") or [{}]
            if len(places[0].get("top_logprobs") or []) < count:
                break
            listed = count
        return listed

    def prompt_logprobs(self) -> bool:
        """Whether the client gets likelihoods of a text out of it."""
        client = OpenAiClient(self._url, self._model, "", logprobs="prompt")
        try:
            likely, odd = client.score(
                [
                    ScoreRequest("likely", "The capital of France is", " Paris."),
                    ScoreRequest("odd", "The capital of France is", " cheese."),
                ]
            )
        except CaiError:
            return False
        finally:
            client.close()
        by_id = {score.id: score.logprob for score in (likely, odd)}
        return by_id["odd"] < by_id["likely"] < 0

    def reasoning_field(self) -> str:
        """The field of a message that has what was thought, where the server sends it empty too."""
        answer = self.ask(OPEN, max_tokens=1)
        message = answer.raw["choices"][0]["message"] if answer.raw else {}
        return next((name for name in ("reasoning", "reasoning_content") if name in message), "")

    def recognised(self) -> str:
        """The dialect that its answers give away."""
        answer = self.ask(OPEN, max_tokens=1)
        return recognised(answer.headers or {}, json.dumps(answer.raw).encode())

    def hot(self) -> list[str]:
        """Drawn answers, asked one after the other."""
        return [self._hot(seed) for seed in range(HOT_ANSWERS)]

    def hot_at_once(self) -> list[str]:
        """The same, asked at the same time."""
        with ThreadPoolExecutor(HOT_ANSWERS) as threads:
            return list(threads.map(self._hot, range(HOT_ANSWERS)))

    def _hot(self, seed: int) -> str:
        return self.ask(OPEN, temperature=HOT, seed=seed).text

    def unasked(self) -> list[str]:
        """Answers that nothing but what was asked should limit; servers with limits of their own give others."""
        return [self.ask(REPEATING, max_tokens=24).text, *self.hot()]


def _texts(answers: Sequence[Answer]) -> set[str]:
    return {answer.text for answer in answers}


def _fate(answers: Sequence[Answer], kept: bool) -> Support:
    if any(answer.status in (400, 422) for answer in answers):
        return Support.REFUSED
    wrong = [answer for answer in answers if answer.status != 200]
    assert not wrong, f"{wrong[0].status}: {wrong[0].text[:500]}"
    return Support.HONOURED if kept else Support.IGNORED


def _is_choice(text: str) -> bool:
    try:
        raw = json.loads(text)
    except ValueError:
        return False
    return isinstance(raw, dict) and raw.get("choice") in ("(A)", "(B)")
