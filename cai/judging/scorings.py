"""The judge's scorings: each asks about the pairs of one row, or about all its answers at once, and reads votes from
what comes back.

A scoring yields the calls it needs now and is sent their results, like the work it is a part of.
What cannot be read is no vote, and says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Generic, TypeVar

from cai.chat.messages import transcript
from cai.clients.base import Call, Completion, Finish, OptionScores, OptionsRequest, Sampling, Score, ScoreRequest
from cai.clients.prompting import Asking
from cai.constitution.model import Constitution
from cai.data.rows import Candidates
from cai.identity import counted, sampling_seed
from cai.judging.pairs import NO_ANSWER, REFUSED, Pair, Verdict, Vote
from cai.judging.reading import (
    NO_NUMBER,
    OPEN_THOUGHT,
    both_ends,
    letters,
    read_choice,
    read_ends,
    read_options,
    sigmoid,
)
from cai.judging.sets import Reading, distinct
from cai.judging.settings import Order, Principles, Scoring

V = TypeVar("V", Vote, Reading)

EXEMPLAR_FIELDS = ("prompt", "good", "bad")
MOST_CHOICES = 250
"""A server is kept to so many answers at most (the ordered pairs of 16 options); limits of theirs begin above that."""


PrincipleQuestion = tuple[str, str]
"""A principle's id and the comparison question."""

EXEMPLARS: list[PrincipleQuestion] = [("exemplars", "")]
"""What a prompt asks that shows exemplars and no principle."""

Scorer = Callable[
    [Candidates, Sequence[Pair], Sequence[PrincipleQuestion]], Generator[Sequence[Call], Sequence[Any], Verdict]
]


GREEDY = Sampling()
"""What a judge that writes nothing draws with."""


@dataclass(frozen=True, slots=True)
class Judge:
    """How a judge is asked, and how its answers are read; the scoring is a function of it.

    ``sampling`` is of the reasoning and of a written choice. ``temperature`` divides the difference of two answers
    (nats, per token when ``per_token``) before the sigmoid. ``exemplars`` have ``EXEMPLAR_FIELDS``.
    """

    prompt: Asking
    seed: int
    sampling: Sampling = GREEDY
    order: Order = Order.BOTH
    options: tuple[str, str] = ("(A)", "(B)")
    tie_option: str = ""
    structured: bool = True
    reasoning: bool = False
    samples: int = 1
    temperature: float = 1.0
    per_token: bool = True
    exemplars: Sequence[Mapping[str, str]] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """What the judge may answer: the options, and the tie where it is one."""
        return (*self.options, self.tie_option) if self.tie_option else self.options


def questions(
    constitution: Constitution, seed: int, row: str, *, principles: Principles, ensemble: int
) -> list[PrincipleQuestion]:
    """The questions of one row, by rendezvous: rewording a principle moves no row."""
    if principles is Principles.WHOLE:
        return [("whole", constitution.as_text())]
    drawn = constitution.draw_many(seed, row, "judge", ensemble if principles is Principles.ENSEMBLE else 1)
    return [(principle.id, principle.comparison) for principle in drawn]


def contrast(judge: Judge) -> Scorer:
    """log p(answer | good exemplars) - log p(answer | bad exemplars), for each answer; a pair compares the two.

    Both prompts differ in their exemplars' answers alone, so how likely the answer is as such, its length and its
    topic cancel out.
    """
    ask = judge.prompt
    sides = {side: [{"prompt": e["prompt"], "answer": e[side]} for e in judge.exemplars] for side in ("good", "bad")}

    def score(
        row: Candidates, pairs: Sequence[Pair], principle_questions: Sequence[PrincipleQuestion]
    ) -> Generator[Sequence[Call], Sequence[Any], Verdict]:
        if not pairs:
            return Verdict()
        scores_by_side: dict[str, Sequence[Score]] = {}
        # One turn for each side: a client computes what all prompts of a list begin with once.
        for side, shots in sides.items():
            calls: list[Call] = []
            for k, (_, question) in enumerate(principle_questions):
                values = {"shots": shots, "side": side, "principle": question, "messages": transcript(row.messages)}
                text = ask.text(**values)
                calls += [
                    ScoreRequest(f"{row.id}/{k}/{side}/{i}", text, ask.continuation(text, answer))
                    for i, answer in enumerate(row.answers)
                ]
            scores_by_side[side] = yield calls
        n = len(row.answers)
        both_sides = list(zip(scores_by_side["good"], scores_by_side["bad"], strict=True))
        ratios = [_ratio(judge, good, bad) for good, bad in both_sides]
        refused = [good.refused or bad.refused for good, bad in both_sides]
        votes = []
        for i, j in pairs:
            for k in range(len(principle_questions)):
                difference = ratios[k * n + i] - ratios[k * n + j]
                readable = math.isfinite(difference)
                p = sigmoid(difference / judge.temperature) if readable else None
                why = refused[k * n + i] or refused[k * n + j]
                why = "" if readable else f"{REFUSED}: {why}" if why else NO_NUMBER
                votes.append(Vote(i, j, k, None, 0, p, why))
        scores = [*scores_by_side["good"], *scores_by_side["bad"]]
        return Verdict(votes, len(scores), sum(s.tokens for s in scores))

    return score


def _ratio(judge: Judge, good: Score, bad: Score) -> float:
    return (good.logprob - bad.logprob) / (max(good.tokens, 1) if judge.per_token else 1)


@dataclass(frozen=True, slots=True)
class _Question(Generic[V]):
    """One question about one pair, or one set, in one order; ``vote`` is what is known of its answer so far."""

    id: str
    vote: V
    values: Mapping[str, Any]

    def refused(self, completion: Completion) -> V:
        """The vote where the server would not answer, or the answer is none."""
        kind = NO_ANSWER if completion.finish is Finish.UNUSABLE else REFUSED
        why = f"{kind}: {completion.refused}" if completion.refused else kind
        return replace(self.vote, why=why)


def _ask(
    judge: Judge, row: Candidates, pairs: Sequence[Pair], principle_questions: Sequence[PrincipleQuestion]
) -> list[_Question[Vote]]:
    """Every question, once for each sample. The first sample has the question's own id, and so its seed."""
    questions = []
    messages = transcript(row.messages)
    for i, j in pairs:
        for k, (principle, question) in enumerate(principle_questions):
            for flipped in _orders(judge, f"{row.id}/{i}-{j}", principle):
                first, second = (j, i) if flipped else (i, j)
                values = {
                    "principle": question,
                    "messages": messages,
                    "first": row.answers[first],
                    "second": row.answers[second],
                    "options": judge.options,
                    "tie_option": judge.tie_option,
                    "think": False,
                    "reasoning": "",
                }
                name = f"{row.id}/{i}-{j}/{k}/{int(flipped)}"
                for sample in range(judge.samples):
                    vote = Vote(i, j, k, flipped, sample, None)
                    questions.append(_Question(f"{name}/s{sample}" if sample else name, vote, values))
    return questions


def _orders(judge: Judge, pair: str, principle: str) -> tuple[bool, ...]:
    if judge.order is Order.BOTH:
        return (False, True)
    return (judge.order is Order.RANDOM and counted(judge.seed, pair, f"judge/order/{principle}") % 2 == 1,)


def _write(
    judge: Judge, ask: Asking, questions: Sequence[_Question[V]], *, think: bool, choices: tuple[str, ...] = ()
) -> list[Call]:
    sampling = judge.sampling
    purpose = "judge" if think or not judge.reasoning else "judge/choice"
    calls: list[Call] = []
    for question in questions:
        seed = sampling_seed(judge.seed, question.id, purpose)
        request = ask.request(question.id, sampling, seed, **{**question.values, "think": think})
        calls.append(replace(request, choices=choices) if choices else request)
    return calls


def _think(
    judge: Judge, ask: Asking, questions: list[_Question[V]], verdict: Verdict
) -> Generator[Sequence[Call], Sequence[Any], list[_Question[V]]]:
    """Let the judge reason about every question, where it shall; the questions as they are asked then.

    One whose reasoning the server refused goes no further.
    """
    if not judge.reasoning or not questions:
        return questions
    thoughts = yield _write(judge, ask, questions, think=True)
    _count(verdict, thoughts)
    going = []
    for question, thought in zip(questions, thoughts, strict=True):
        if not thought.answered:
            verdict.add(question.refused(thought))
        else:
            # A model that thinks by itself may have spent all its words on it: that is its reasoning then.
            reasoning = thought.text.strip() or thought.thinking.strip()
            going.append(replace(question, values={**question.values, "reasoning": reasoning}))
    return going


def _count(verdict: Verdict, results: Sequence[Any]) -> None:
    verdict.calls += len(results)
    verdict.tokens += sum(result.tokens for result in results)


def logprob(judge: Judge) -> Scorer:
    """p(first option) / (p(first option) + p(second option)), after the judge's reasoning when it is asked for."""
    ask = judge.prompt

    def score(
        row: Candidates, pairs: Sequence[Pair], principle_questions: Sequence[PrincipleQuestion]
    ) -> Generator[Sequence[Call], Sequence[Any], Verdict]:
        verdict = Verdict()
        going = yield from _think(judge, ask, _ask(judge, row, pairs, principle_questions), verdict)
        calls: list[Call] = []
        for question in going:
            filled = ask.fill(**question.values)
            options = tuple(ask.continuation(filled.text, option) for option in judge.answers)
            calls.append(OptionsRequest(question.id, filled.text, options, filled.messages))
        scores_of_options: Sequence[OptionScores] = (yield calls) if calls else ()
        verdict.calls += len(scores_of_options)  # a judge that reads writes no tokens
        for question, scores in zip(going, scores_of_options, strict=True):
            p, why = read_options(scores.logprobs, judge.temperature)
            why = f"{REFUSED}: {scores.refused}" if scores.refused else why
            verdict.add(replace(question.vote, p=p, why=why))
        return verdict

    return score


def _chosen(
    judge: Judge,
    ask: Asking,
    questions: list[_Question[V]],
    *,
    choices: tuple[str, ...],
    read_vote: Callable[[V, str], V],
) -> Generator[Sequence[Call], Sequence[Any], Verdict]:
    """What the judge writes to every question, one of ``choices``, after its reasoning when it is asked for;
    ``read_vote`` makes a vote of it."""
    verdict = Verdict()
    going = yield from _think(judge, ask, questions, verdict)
    choices = choices if judge.structured and len(choices) <= MOST_CHOICES else ()
    completions: Sequence[Completion] = (yield _write(judge, ask, going, think=False, choices=choices)) if going else ()
    _count(verdict, completions)
    for question, completion in zip(going, completions, strict=True):
        if not completion.answered:
            verdict.add(question.refused(completion))
        elif completion.finish is Finish.LENGTH and completion.thinking and not completion.text.strip():
            verdict.add(replace(question.vote, why=OPEN_THOUGHT))  # a choice is read after the thought only
        else:
            verdict.add(read_vote(question.vote, completion.text))
    return verdict


def choice(judge: Judge) -> Scorer:
    """The option that the judge writes, after its reasoning when it is asked for; several or none is no vote."""
    ask = judge.prompt

    def read_vote(vote: Vote, text: str) -> Vote:
        p, why = read_choice(text, judge.answers)
        return replace(vote, p=p, why=why)

    def score(
        row: Candidates, pairs: Sequence[Pair], principle_questions: Sequence[PrincipleQuestion]
    ) -> Generator[Sequence[Call], Sequence[Any], Verdict]:
        questions = _ask(judge, row, pairs, principle_questions)
        return (yield from _chosen(judge, ask, questions, choices=judge.answers, read_vote=read_vote))

    return score


def best_worst(judge: Judge) -> Scorer:
    """Which of all answers of a row the judge writes to be the best, and which the worst, each answer shown once."""
    ask = judge.prompt

    def score(
        row: Candidates, pairs: Sequence[Pair], principle_questions: Sequence[PrincipleQuestion]
    ) -> Generator[Sequence[Call], Sequence[Any], Verdict]:
        if not pairs:
            return Verdict()
        answers = distinct(row.answers)
        options = letters(len(answers))

        def read_vote(reading: Reading, text: str) -> Reading:
            ends = read_ends(text, options)
            if ends.best is None or ends.worst is None:
                return replace(reading, why=ends.why)
            return replace(reading, best=reading.shown_order[ends.best], worst=reading.shown_order[ends.worst])

        choices = tuple(both_ends(best, worst) for best, worst in permutations(options, 2))
        questions = _ask_sets(judge, row, answers, principle_questions)
        return (yield from _chosen(judge, ask, questions, choices=choices, read_vote=read_vote))

    return score


def _ask_sets(
    judge: Judge, row: Candidates, answers: Sequence[int], principle_questions: Sequence[PrincipleQuestion]
) -> list[_Question[Reading]]:
    """Every question about the answers with these numbers, once for each sample."""
    questions = []
    messages = transcript(row.messages)
    for k, (principle, question) in enumerate(principle_questions):
        for order, shown_order in enumerate(_places(judge, row.id, principle, answers)):
            values = {
                "principle": question,
                "messages": messages,
                "answers": [row.answers[i] for i in shown_order],
                "options": letters(len(shown_order)),
                "think": False,
                "reasoning": "",
            }
            name = f"{row.id}/set/{k}/{order}"
            for sample in range(judge.samples):
                reading = Reading(k, order, sample, shown_order)
                questions.append(_Question(f"{name}/s{sample}" if sample else name, reading, values))
    return questions


def _places(judge: Judge, row: str, principle: str, answers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The orders in which a set is shown.

    Also of ``both`` the first is drawn: its reverse makes up for a liking for the first place or the last, but a liking
    for one in the middle would always go to the same candidates, which may be those of one temperature.
    """
    if judge.order is Order.GIVEN:
        return (tuple(answers),)
    drawn = tuple(sorted(answers, key=lambda i: counted(judge.seed, row, f"judge/place/{principle}/{i}")))
    return (drawn, drawn[::-1]) if judge.order is Order.BOTH else (drawn,)


SCORINGS: dict[Scoring, Callable[[Judge], Scorer]] = {
    Scoring.LOGPROB: logprob,
    Scoring.CONTRAST: contrast,
    Scoring.CHOICE: choice,
    Scoring.BEST_WORST: best_worst,
}
