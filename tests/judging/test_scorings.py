"""What a judge's answers count for: a choice is read after its thought, and an end that is no answer is no vote."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from cai.chat import ChatTemplate, PromptTemplate
from cai.clients.base import Completion, Finish, OptionScores, Request, Score
from cai.clients.outcomes import FinishReason, ModelAnswer, completed
from cai.clients.prompting import Asking
from cai.data.rows import Candidates
from cai.judging.pairs import Verdict, unread
from cai.judging.scorings import Judge, choice, contrast, logprob
from tests.support.stage_doubles import shipped, user

ROW = Candidates("row", user("How are you?"), ("Well.", "Ill."))


def judge(prompt: str = "comparison.jinja", **settings: Any) -> Judge:
    chat = ChatTemplate.from_text("chatml", shipped("chatml.jinja"))
    return Judge(Asking(PromptTemplate.from_text(prompt, shipped(prompt)), chat, chat.stops), 0, **settings)


def verdict(scorer: Any, respond: Callable[[Any], Any]) -> Verdict:
    """Run a scoring to its end; every call gets what ``respond`` says."""
    work = scorer(ROW, [(0, 1)], [("p", "Which one is kinder?")])
    results: Any = None
    while True:
        try:
            calls = work.send(results)
        except StopIteration as end:
            found: Verdict = end.value
            return found
        results = [respond(call) for call in calls]


def written(text: str, reason: FinishReason = FinishReason.STOP) -> Callable[[Request], Completion]:
    return lambda request: completed(request, ModelAnswer(text, reason, 1, 9))[1]


def test_a_choice_is_read_after_its_thought_only() -> None:
    found = verdict(choice(judge()), written("<think>At first (B), since (B) is short.</think>\n(A)"))
    assert [vote.p for vote in found.votes] == [1.0, 1.0]


def test_a_thought_that_is_cut_is_no_vote_whatever_it_names() -> None:
    found = verdict(choice(judge()), written("<think>It must be (A)", FinishReason.LENGTH))
    assert {(vote.p, vote.why) for vote in found.votes} == {(None, "its thought was not finished")}


def test_an_end_that_is_no_answer_is_no_vote_under_its_name() -> None:
    found = verdict(choice(judge()), written("(A)", FinishReason.TOOL_CALLS))
    assert {vote.why for vote in found.votes} == {"no answer: tool calls"}
    assert unread(found.votes) == "no answer: tool calls"


def test_a_judge_that_thinks_by_itself_reasons_with_its_thought() -> None:
    prompts: list[str] = []

    def respond(request: Request) -> Completion:
        prompts.append(request.prompt)
        text = "<think>The first is kinder.</think>" if "(A)" in request.prompt and len(prompts) <= 2 else "(A)"
        return completed(request, ModelAnswer(text, FinishReason.STOP, 1, 9))[1]

    found = verdict(choice(judge(reasoning=True)), respond)
    assert len(found.votes) == 2
    assert all("The first is kinder." in prompt for prompt in prompts[2:])


def test_likelihoods_that_a_server_refuses_say_why() -> None:
    refused = verdict(logprob(judge()), lambda call: OptionScores(call.id, (None, None), 0, "a log-probability is NaN"))
    assert {vote.why for vote in refused.votes} == {"refused by the server: a log-probability is NaN"}


@pytest.mark.parametrize("why", ["prompt too long", ""])
def test_a_contrast_without_a_score_is_no_vote(why: str) -> None:
    exemplars = [{"prompt": "Hi?", "good": "Yes.", "bad": "No."}]

    def respond(call: Any) -> Score:
        bad = call.id.endswith("bad/1")
        return Score(call.id, math.nan if bad else -1.0, 0 if bad else 3, why if bad else "")

    found = verdict(contrast(judge("judge_contrast.jinja", exemplars=exemplars)), respond)
    assert [vote.why for vote in found.votes] == [f"refused by the server: {why}" if why else "no log-probability"]


def test_a_refusal_is_told_apart_from_an_unusable_answer() -> None:
    found = verdict(choice(judge()), lambda call: Completion(call.id, "", 1, 0, Finish.REFUSED, "filtered"))
    assert {vote.why for vote in found.votes} == {"refused by the server: filtered"}
    assert unread(found.votes) == "refused by the server"
