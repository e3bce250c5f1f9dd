"""The judge's scorings: each asks a client about a chunk of candidates and says how likely each answer is better.

A verdict's ``p[i, j]`` is the probability that answer ``i`` is better than answer ``j``; None where nothing readable
came back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import combinations
from typing import TYPE_CHECKING, Any

from cai.clients.base import Client, Score, ScoreRequest
from cai.data.rows import Candidates
from cai.identity import sampling_seed
from cai.stages.base import Context
from cai.stages.generation import complete, transcript
from cai.stages.prompting import Asking, asking, records

if TYPE_CHECKING:
    from cai.stages.judge import JudgeSpec

EXEMPLAR_FIELDS = ("prompt", "good", "bad")


class Scoring(str, Enum):
    """How the judge's opinion is read."""

    LOGPROB = "logprob"
    CONTRAST = "contrast"
    CHOICE = "choice"


class Principles(str, Enum):
    """What the judge is told: one principle drawn for the row, several averaged, or the whole constitution."""

    ONE = "one"
    ENSEMBLE = "ensemble"
    WHOLE = "whole"


@dataclass(slots=True)
class Verdict:
    """What the judge thinks of one row's candidates; ``both`` and ``agree`` count pairs asked in both orders."""

    p: dict[tuple[int, int], float | None] = field(default_factory=dict)
    calls: int = 0
    tokens: int = 0
    both: int = 0
    agree: int = 0


Question = tuple[str, str]
"""A principle's id and the comparison question."""

EXEMPLARS: list[Question] = [("exemplars", "")]
"""What a prompt asks that shows exemplars and no principle."""

Asked = Mapping[str, list[Question]]
Score_ = Callable[[Client, list[Candidates], Asked], dict[str, Verdict]]


def questions(ctx: Context, row: str, principles: Principles, k: int) -> list[Question]:
    """The questions of one row, by rendezvous: rewording a principle moves no row."""
    if principles is Principles.WHOLE:
        return [("whole", ctx.principles.as_text())]
    drawn = ctx.principles.draw_many(ctx.seed, row, "judge", k if principles is Principles.ENSEMBLE else 1)
    return [(principle.id, principle.comparison) for principle in drawn]


def sigmoid(x: float) -> float:
    """The logistic function, without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def scores(client: Client, requests: Sequence[ScoreRequest]) -> dict[str, Score]:
    """Scores by request id.

    Raises:
        RuntimeError: when the client leaves a request without a score, or gives one that is no number.
    """
    found = {score.id: score for score in client.score(requests)} if requests else {}
    for request in requests:
        score = found.get(request.id)
        if score is None or not math.isfinite(score.logprob):
            raise RuntimeError(f"{client.name}: no finite log-probability for {request.id!r}")
    return found


def _different(row: Candidates) -> list[tuple[int, int]]:
    return [(i, j) for i, j in combinations(range(len(row.answers)), 2) if row.answers[i] != row.answers[j]]


def contrast(spec: JudgeSpec, ctx: Context) -> Score_:
    """log p(answer | good exemplars) - log p(answer | bad exemplars), for each answer; a pair compares the two.

    Both prompts differ in their exemplars' answers alone, so how likely the answer is as such, its length and its
    topic cancel out.
    """
    ask = asking(ctx, "prompt")
    exemplars = records(ctx, "exemplars", "exemplars", EXEMPLAR_FIELDS)[: spec.n_exemplars]
    sides = {side: [{"prompt": e["prompt"], "answer": e[side]} for e in exemplars] for side in ("good", "bad")}

    def score(client: Client, chunk: list[Candidates], asked: Asked) -> dict[str, Verdict]:
        found: dict[str, Score] = {}
        # One list for each side: a client computes what all prompts of a list begin with once.
        for side, shots in sides.items():
            requests = []
            for row in chunk:
                for k, (_, question) in enumerate(asked[row.id]):
                    values = {"shots": shots, "side": side, "principle": question, "messages": transcript(row.messages)}
                    text = ask.text(**values)
                    requests += [
                        ScoreRequest(f"{row.id}/{k}/{side}/{i}", text, ask.continuation(text, answer))
                        for i, answer in enumerate(row.answers)
                    ]
            found |= scores(client, requests)
        verdicts = {}
        for row in chunk:
            verdict = verdicts[row.id] = Verdict()
            votes = range(len(asked[row.id]))
            ratio = [[_ratio(spec, found, f"{row.id}/{k}", i) for i in range(len(row.answers))] for k in votes]
            for i, j in _different(row):
                verdict.p[i, j] = _mean([sigmoid((r[i] - r[j]) / spec.temperature) for r in ratio])
            mine = [found[f"{row.id}/{k}/{s}/{i}"] for k in votes for s in sides for i in range(len(row.answers))]
            verdict.calls, verdict.tokens = len(mine), sum(s.tokens for s in mine)
        return verdicts

    return score


def _ratio(spec: JudgeSpec, found: Mapping[str, Score], row: str, i: int) -> float:
    good, bad = found[f"{row}/good/{i}"], found[f"{row}/bad/{i}"]
    return (good.logprob - bad.logprob) / (max(good.tokens, 1) if spec.per_token else 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One question about one pair in one order; ``flipped`` shows answer ``j`` first."""

    id: str
    row: str
    i: int
    j: int
    flipped: bool
    values: dict[str, Any]


def _turns(spec: JudgeSpec, chunk: list[Candidates], asked: Asked) -> list[_Turn]:
    turns = []
    for row in chunk:
        for i, j in _different(row):
            for k, (_, question) in enumerate(asked[row.id]):
                for flipped in (False, True) if spec.swap else (False,):
                    first, second = (j, i) if flipped else (i, j)
                    values = {
                        "principle": question,
                        "messages": transcript(row.messages),
                        "first": row.answers[first],
                        "second": row.answers[second],
                        "options": spec.options,
                        "think": False,
                        "reasoning": "",
                    }
                    turns.append(_Turn(f"{row.id}/{i}-{j}/{k}/{int(flipped)}", row.id, i, j, flipped, values))
    return turns


def _collect(
    chunk: list[Candidates], turns: Sequence[_Turn], p_first: Mapping[str, float | None]
) -> dict[str, Verdict]:
    """Average over orders and principles; a question without a readable answer does not vote."""
    votes: dict[tuple[str, int, int], list[float]] = {}
    straight: dict[str, float] = {}
    verdicts = {row.id: Verdict() for row in chunk}
    for turn in turns:
        verdict, p = verdicts[turn.row], p_first[turn.id]
        verdict.p.setdefault((turn.i, turn.j), None)
        if p is None:
            continue
        p = 1 - p if turn.flipped else p
        votes.setdefault((turn.row, turn.i, turn.j), []).append(p)
        question = turn.id.rpartition("/")[0]
        if not turn.flipped:
            straight[question] = p
        elif question in straight:
            verdict.both += 1
            verdict.agree += (p > 0.5) == (straight[question] > 0.5)
    for (row, i, j), values in votes.items():
        verdicts[row].p[i, j] = _mean(values)
    return verdicts


def _written(
    spec: JudgeSpec, ctx: Context, client: Client, ask: Asking, turns: list[_Turn], think: bool
) -> dict[str, Any]:
    sampling = spec.sampling.sampling(ask.stops)
    return complete(
        client,
        [
            ask.request(t.id, sampling, sampling_seed(ctx.seed, t.id, "judge"), **{**t.values, "think": think})
            for t in turns
        ],
    )


def logprob(spec: JudgeSpec, ctx: Context) -> Score_:
    """p(first option) / (p(first option) + p(second option)), after the judge's reasoning when it is asked for."""
    ask = asking(ctx, "prompt")

    def score(client: Client, chunk: list[Candidates], asked: Asked) -> dict[str, Verdict]:
        turns = _turns(spec, chunk, asked)
        thoughts = _written(spec, ctx, client, ask, turns, think=True) if spec.reasoning else {}
        requests = []
        for turn in turns:
            thought = thoughts[turn.id].text.strip() if turn.id in thoughts else ""
            text = ask.text(**{**turn.values, "reasoning": thought})
            requests += [
                ScoreRequest(f"{turn.id}/{o}", text, ask.continuation(text, option))
                for o, option in enumerate(spec.options)
            ]
        found = scores(client, requests)
        p_first: dict[str, float | None] = {
            t.id: sigmoid((found[f"{t.id}/0"].logprob - found[f"{t.id}/1"].logprob) / spec.temperature) for t in turns
        }
        verdicts = _collect(chunk, turns, p_first)
        for turn in turns:
            verdicts[turn.row].calls += 2 + (turn.id in thoughts)
            verdicts[turn.row].tokens += thoughts[turn.id].tokens if turn.id in thoughts else 0
        return verdicts

    return score


def choice(spec: JudgeSpec, ctx: Context) -> Score_:
    """The option that the judge writes first; both or neither is no vote."""
    ask = asking(ctx, "prompt")

    def score(client: Client, chunk: list[Candidates], asked: Asked) -> dict[str, Verdict]:
        turns = _turns(spec, chunk, asked)
        found = _written(spec, ctx, client, ask, turns, think=False)
        p_first = {turn.id: parse_choice(found[turn.id].text, spec.options) for turn in turns}
        verdicts = _collect(chunk, turns, p_first)
        for turn in turns:
            verdicts[turn.row].calls += 1
            verdicts[turn.row].tokens += found[turn.id].tokens
        return verdicts

    return score


def parse_choice(text: str, options: tuple[str, str]) -> float | None:
    """1 for the first option, 0 for the second, None when the text names neither or both.

    An option also counts without its brackets, as a word by itself: ``A``, ``Option B.``
    """
    named = []
    for option in options:
        bare = option.strip("()[] .:")
        pattern = rf"{re.escape(option)}|(?<!\w){re.escape(bare)}(?!\w)" if bare else re.escape(option)
        named.append(re.search(pattern, text) is not None)
    return None if named[0] == named[1] else float(named[0])


SCORINGS: dict[Scoring, Callable[[JudgeSpec, Context], Score_]] = {
    Scoring.LOGPROB: logprob,
    Scoring.CONTRAST: contrast,
    Scoring.CHOICE: choice,
}
