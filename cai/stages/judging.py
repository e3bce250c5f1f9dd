"""The judge's scorings: each asks about the pairs of one row, and reads votes from what comes back.

A scoring yields the calls it needs now and is sent their results, like the work it is a part of (``cai.stages.flow``).
What cannot be read is no vote, and says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from cai.clients.base import Call, Completion, Finish, OptionScores, OptionsRequest, Score, ScoreRequest
from cai.data.rows import Candidates
from cai.identity import counted, sampling_seed
from cai.stages.base import Context
from cai.stages.generation import transcript
from cai.stages.judge_pairs import REFUSED, Pair, Verdict, Vote
from cai.stages.judge_reading import NO_NUMBER, read_choice, read_options, sigmoid
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


class Order(str, Enum):
    """How the two answers of a pair are shown: both ways and averaged, in an order drawn for the question, as given."""

    BOTH = "both"
    RANDOM = "random"
    GIVEN = "given"


Asked = tuple[str, str]
"""A principle's id and the comparison question."""

EXEMPLARS: list[Asked] = [("exemplars", "")]
"""What a prompt asks that shows exemplars and no principle."""

Scorer = Callable[[Candidates, Sequence[Pair], Sequence[Asked]], Generator[Sequence[Call], Sequence[Any], Verdict]]


def questions(ctx: Context, row: str, principles: Principles, k: int) -> list[Asked]:
    """The questions of one row, by rendezvous: rewording a principle moves no row."""
    if principles is Principles.WHOLE:
        return [("whole", ctx.principles.as_text())]
    drawn = ctx.principles.draw_many(ctx.seed, row, "judge", k if principles is Principles.ENSEMBLE else 1)
    return [(principle.id, principle.comparison) for principle in drawn]


def contrast(spec: JudgeSpec, ctx: Context) -> Scorer:
    """log p(answer | good exemplars) - log p(answer | bad exemplars), for each answer; a pair compares the two.

    Both prompts differ in their exemplars' answers alone, so how likely the answer is as such, its length and its
    topic cancel out.
    """
    ask = asking(ctx, "prompt")
    exemplars = records(ctx, "exemplars", "exemplars", EXEMPLAR_FIELDS)[: spec.n_exemplars]
    sides = {side: [{"prompt": e["prompt"], "answer": e[side]} for e in exemplars] for side in ("good", "bad")}

    def score(
        row: Candidates, pairs: Sequence[Pair], asked: Sequence[Asked]
    ) -> Generator[Sequence[Call], Sequence[Any], Verdict]:
        if not pairs:
            return Verdict()
        found: dict[str, Sequence[Score]] = {}
        # One turn for each side: a client computes what all prompts of a list begin with once.
        for side, shots in sides.items():
            calls: list[Call] = []
            for k, (_, question) in enumerate(asked):
                values = {"shots": shots, "side": side, "principle": question, "messages": transcript(row.messages)}
                text = ask.text(**values)
                calls += [
                    ScoreRequest(f"{row.id}/{k}/{side}/{i}", text, ask.continuation(text, answer))
                    for i, answer in enumerate(row.answers)
                ]
            found[side] = yield calls
        n = len(row.answers)
        ratios = [_ratio(spec, good, bad) for good, bad in zip(found["good"], found["bad"], strict=True)]
        votes = []
        for i, j in pairs:
            for k in range(len(asked)):
                difference = ratios[k * n + i] - ratios[k * n + j]
                read = math.isfinite(difference)
                p = sigmoid(difference / spec.temperature) if read else None
                votes.append(Vote(i, j, k, None, 0, p, "" if read else NO_NUMBER))
        scores = [*found["good"], *found["bad"]]
        return Verdict(votes, len(scores), sum(s.tokens for s in scores))

    return score


def _ratio(spec: JudgeSpec, good: Score, bad: Score) -> float:
    return (good.logprob - bad.logprob) / (max(good.tokens, 1) if spec.per_token else 1)


@dataclass(frozen=True, slots=True)
class _Question:
    """One question about one pair in one order; ``vote`` is what is known of its answer so far."""

    id: str
    vote: Vote
    values: Mapping[str, Any]


def _ask(
    spec: JudgeSpec, ctx: Context, row: Candidates, pairs: Sequence[Pair], asked: Sequence[Asked]
) -> list[_Question]:
    """Every question, once for each sample. The first sample has the question's own id, and so its seed."""
    found = []
    messages = transcript(row.messages)
    for i, j in pairs:
        for k, (principle, question) in enumerate(asked):
            for flipped in _orders(spec, ctx.seed, f"{row.id}/{i}-{j}", principle):
                first, second = (j, i) if flipped else (i, j)
                values = {
                    "principle": question,
                    "messages": messages,
                    "first": row.answers[first],
                    "second": row.answers[second],
                    "options": spec.options,
                    "tie_option": spec.tie_option,
                    "think": False,
                    "reasoning": "",
                }
                name = f"{row.id}/{i}-{j}/{k}/{int(flipped)}"
                for sample in range(spec.samples):
                    vote = Vote(i, j, k, flipped, sample, None)
                    found.append(_Question(f"{name}/s{sample}" if sample else name, vote, values))
    return found


def _orders(spec: JudgeSpec, seed: int, pair: str, principle: str) -> tuple[bool, ...]:
    if spec.order is Order.BOTH:
        return (False, True)
    return (spec.order is Order.RANDOM and counted(seed, pair, f"judge/order/{principle}") % 2 == 1,)


def _write(
    spec: JudgeSpec, ctx: Context, ask: Asking, questions: Sequence[_Question], think: bool, choices: tuple[str, ...]
) -> list[Call]:
    sampling = spec.sampling.sampling(ask.stops)
    purpose = "judge" if think or not spec.reasoning else "judge/choice"
    calls: list[Call] = []
    for question in questions:
        seed = sampling_seed(ctx.seed, question.id, purpose)
        request = ask.request(question.id, sampling, seed, **{**question.values, "think": think})
        calls.append(replace(request, choices=choices) if choices else request)
    return calls


def _think(
    spec: JudgeSpec, ctx: Context, ask: Asking, questions: list[_Question], verdict: Verdict
) -> Generator[Sequence[Call], Sequence[Any], list[_Question]]:
    """Let the judge reason about every question, where it shall; the questions as they are asked then.

    One whose reasoning the server refused goes no further.
    """
    if not spec.reasoning or not questions:
        return questions
    thoughts = yield _write(spec, ctx, ask, questions, True, ())
    _count(verdict, thoughts)
    going = []
    for question, thought in zip(questions, thoughts, strict=True):
        if thought.finish is Finish.REFUSED:
            verdict.votes.append(replace(question.vote, why=_refusal(thought)))
        else:
            going.append(replace(question, values={**question.values, "reasoning": thought.text.strip()}))
    return going


def _refusal(completion: Completion) -> str:
    return f"{REFUSED}: {completion.refused}" if completion.refused else REFUSED


def _count(verdict: Verdict, results: Sequence[Any]) -> None:
    verdict.calls += len(results)
    verdict.tokens += sum(result.tokens for result in results)


def logprob(spec: JudgeSpec, ctx: Context) -> Scorer:
    """p(first option) / (p(first option) + p(second option)), after the judge's reasoning when it is asked for."""
    ask = asking(ctx, "prompt")

    def score(
        row: Candidates, pairs: Sequence[Pair], asked: Sequence[Asked]
    ) -> Generator[Sequence[Call], Sequence[Any], Verdict]:
        verdict = Verdict()
        going = yield from _think(spec, ctx, ask, _ask(spec, ctx, row, pairs, asked), verdict)
        calls: list[Call] = []
        for question in going:
            filled = ask.fill(**question.values)
            options = tuple(ask.continuation(filled.text, option) for option in spec.answers)
            calls.append(OptionsRequest(question.id, filled.text, options, filled.messages))
        found: Sequence[OptionScores] = (yield calls) if calls else ()
        verdict.calls += len(found)  # a judge that reads writes no tokens
        for question, scores in zip(going, found, strict=True):
            p, why = read_options(scores.logprobs, spec.temperature)
            verdict.votes.append(replace(question.vote, p=p, why=why))
        return verdict

    return score


def choice(spec: JudgeSpec, ctx: Context) -> Scorer:
    """The option that the judge writes, after its reasoning when it is asked for; several or none is no vote."""
    ask = asking(ctx, "prompt")

    def score(
        row: Candidates, pairs: Sequence[Pair], asked: Sequence[Asked]
    ) -> Generator[Sequence[Call], Sequence[Any], Verdict]:
        verdict = Verdict()
        going = yield from _think(spec, ctx, ask, _ask(spec, ctx, row, pairs, asked), verdict)
        choices = spec.answers if spec.structured else ()
        found: Sequence[Completion] = (yield _write(spec, ctx, ask, going, False, choices)) if going else ()
        _count(verdict, found)
        for question, completion in zip(going, found, strict=True):
            if completion.finish is Finish.REFUSED:
                verdict.votes.append(replace(question.vote, why=_refusal(completion)))
                continue
            p, why = read_choice(completion.text, spec.answers)
            verdict.votes.append(replace(question.vote, p=p, why=why))
        return verdict

    return score


SCORINGS: dict[Scoring, Callable[[JudgeSpec, Context], Scorer]] = {
    Scoring.LOGPROB: logprob,
    Scoring.CONTRAST: contrast,
    Scoring.CHOICE: choice,
}
