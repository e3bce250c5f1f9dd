"""Completions and likelihoods from NeMo's ``/generate`` servers (``megatron_gpt_eval.py server=True``).

A server works on one call at a time and gives every prompt of a call as many tokens as the longest one gets. So calls
are few and large, prompts of like length go together, each server has one call in flight, and every completion is cut
at its own budget here. What goes into a call follows from the list of requests, ``batch`` and the number of servers
alone; which server answers it changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cai.clients.base import Completion, Finish, Request, Sampling, Score, ScoreRequest
from cai.clients.echo import BEGINS, EchoNotFound, ServerRow, span, strip_prompt
from cai.clients.nemo_calls import NemoCall, NemoCallers, NemoRefusal
from cai.clients.outcomes import FinishReason, ModelAnswer, Observed, completed, drop_reason, outcome_of
from cai.clients.refusals import DECIDE
from cai.data.nemo_tokens import Pieces
from cai.errors import Problem, SpecError, StepFailed
from cai.identity import counted

if TYPE_CHECKING:
    pass

END_OF_TEXT = "<|endoftext|>"
"""NeMo's name for the end token of any tokenizer. It is matched by id; any other string costs a look at every text."""
LARGEST = 128
_SMALLEST = 8  # rows; a call of fewer takes as long, so that fewer are not spread over several servers
_SEEDS = 2**24  # upstream hands the seed to the other GPUs as a float32, which holds no larger integer exactly
_LOGPROBS = 2**31  # rows x tokens x vocabulary of a call that asks for log-probabilities: 4 GiB in bfloat16
_VOCAB = 2**16  # where it is not known


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
        self._callers = NemoCallers(name, urls, timeout=timeout, retries=retries, backoff=backoff)

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
        refused = _RefusedRows(self.name)
        for call, reply in self._callers.run(calls):
            if isinstance(reply, NemoRefusal):
                refused.add(requests[call.rows[0]], reply)
            else:
                refused.answered = True
                yield from self._completions([requests[n] for n in call.rows], reply)
        yield from refused.completions()

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
        refused = _RefusedRows(self.name)
        for call, reply in self._callers.run(calls):
            if isinstance(reply, NemoRefusal):
                refused.add(requests[call.rows[0]], reply)
            else:
                refused.answered = True
                yield from self._scores([requests[n] for n in call.rows], reply)
        yield from refused.scores()

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
    ) -> NemoCall:
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
    ) -> NemoCall:
        row_lengths = [lengths[n] for n in rows]
        # Far more than any GPU needs: half a second for each step, 500 tokens of the prompts in a second.
        steps = body["tokens_to_generate"] + max(row_lengths) - min(row_lengths)
        seconds = 0.5 * steps + sum(row_lengths) / 500
        return NemoCall(tuple(rows), {"sentences": sentences, "add_BOS": bos, **body}, seconds)

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


@dataclass
class _RefusedRows:
    """The rows that the servers refuse, each asked alone: their own fate where others are answered, else the run's."""

    name: str
    answered: bool = False
    rows: list[tuple[Request | ScoreRequest, NemoRefusal]] = field(default_factory=list)

    def add(self, row: Request | ScoreRequest, refusal: NemoRefusal) -> None:
        """Take note of a refusal.

        Raises:
            StepFailed: when the first dozen were all refused.
        """
        self.rows.append((row, refusal))
        if len(self.rows) >= DECIDE:
            self._check()

    def completions(self) -> list[Completion]:
        """The refused rows' completions; raises StepFailed when no row was answered."""
        self._check()
        return [
            Completion(row.id, "", len(row.prompt.split()), 0, Finish.REFUSED, self._why(refusal))
            for row, refusal in self.rows
        ]

    def scores(self) -> list[Score]:
        """As ``completions``, of rows that were to be scored."""
        self._check()
        return [Score(row.id, math.nan, 0, self._why(refusal)) for row, refusal in self.rows]

    def _check(self) -> None:
        if self.rows and not self.answered:
            refusal = self.rows[0][1]
            words = f"{refusal.server} refused a call, status {refusal.status}: {refusal.words}"
            raise StepFailed(f"{self.name}: {words}; none of {len(self.rows)} was answered")

    def _why(self, refusal: NemoRefusal) -> str:
        observed = Observed(refusal.status, refusal.words)
        return drop_reason(outcome_of(observed), observed)


def _penalised(sampling: Sampling) -> bool:
    """Upstream keeps track of the tokens to penalise only while it computes log-probabilities, and never if greedy.

    So a penalty asks for log-probabilities, and greedy with a penalty is top_k 1.
    """
    return sampling.repetition_penalty != 1
