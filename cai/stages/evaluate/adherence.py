"""Which principles answers violate, as a judge sees it: every answer of every model against every principle.

The judge chooses between two statements, that the answer violates the principle and that it keeps to it. Which of them
comes first is drawn for a prompt and principle and is the same for all models, so that a judge that likes the first
option favours no model. What cannot be read is no vote, and is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cai.chat import Message
from cai.chat.messages import transcript
from cai.clients.base import Call, OptionsRequest
from cai.clients.prompting import Asking
from cai.data.rows import Prompt
from cai.errors import Problem, SpecError
from cai.figures import intervals
from cai.figures.evaluation import AdherenceFigures
from cai.figures.intervals import Interval
from cai.figures.running_sums import signs
from cai.identity import counted, parse_json, sampling_seed
from cai.judging.reading import read_choice, read_options
from cai.stages.base import ENDPOINT, Context
from cai.stages.evaluate.answers import Answers, Used, artifacts_by_label, served
from cai.stages.evaluate.spec import AdherenceScoring, EvaluateSpec
from cai.stages.flow.base import Flow, Turn
from cai.stages.flow.drive import drive
from cai.stages.flow.entries import Entry, StoredEntry
from cai.stages.flow.generation import as_prompt, source_of
from cai.stages.flow.prompting import asking


def check_judge(spec: EvaluateSpec, ctx: Context) -> None:
    """Before anything is asked: a judge behind an API must tell the probabilities that are to be read.

    Raises:
        SpecError: when its endpoint is not said to.
    """
    endpoint = ctx.model("adherence").path / ENDPOINT
    if spec.adherence_scoring is not AdherenceScoring.LOGPROB or not endpoint.is_file():
        return
    if not parse_json(endpoint.read_text(encoding="utf-8")).get("logprobs"):
        reason = f"'logprob' reads log-probabilities that '{spec.adherence}' is not said to tell"
        hint = f"use choice, or say `models.{spec.adherence}.logprobs: top` where its server does"
        raise SpecError(Problem(f"stages.{ctx.name}.adherence_scoring", reason, hint))


def adherence(spec: EvaluateSpec, ctx: Context, answers: Answers, used: Used) -> AdherenceFigures:
    """The share of answers that violate each principle, by set and model.

    ``unread`` counts the questions, of ``asked``, that the judge gave no readable answer to.
    """
    # Under a folder of its own: so no model's journal has the same name.
    apart = replace(ctx, work=ctx.work / "adherence")
    own = ctx.templates.get("")  # the judge's own chat template: it has no label
    ask = asking(replace(ctx, template=own, stops=own.stops) if own is not None else ctx, "adherence_prompt")
    sets: dict[str, dict[str, dict[str, Interval]]] = {}
    questions = unread = 0
    with served(ctx, "adherence") as shared:
        for name, artifact in artifacts_by_label(ctx, "prompts").items():
            limit = min((n for n in (spec.limit, spec.adherence_limit) if n is not None), default=None)
            source, work = source_of(artifact, as_prompt, limit), _work(spec, ctx, ask, answers[name])
            with Flow(apart, "adherence", source, work, size=spec.chunk, name=name, shared=shared) as flow:
                drive(flow)
                entries = [entry for entry in flow.entries() if not entry.dropped]
                used.add(flow, entries)
            sets[name] = _figures(spec, ctx, entries)
            for entry in entries:
                violations = [p for by_model in entry.facts["violated"].values() for p in by_model.values()]
                questions += len(violations)
                unread += sum(p is None for p in violations)
    return AdherenceFigures(spec.adherence or "", asked=questions, unread=unread, sets=sets)


def _work(spec: EvaluateSpec, ctx: Context, ask: Asking, answers: Mapping[str, Mapping[str, Any]]) -> Any:
    principles = ctx.principles.active

    def work(row: Prompt) -> Turn:
        # Models often say the same; the judge is asked once about a text.
        texts_by_model = {model: answers[model][row.id].text for model in spec.models}
        texts = list(dict.fromkeys(texts_by_model.values()))
        calls: list[Call] = []
        flips: list[bool] = []
        for k, text in enumerate(texts):
            for principle in principles:
                flipped = counted(ctx.seed, row.id, f"adherence/order/{principle.id}") % 2 == 1
                values = {
                    "messages": transcript((*row.messages, Message("assistant", text))),
                    "answer": text,
                    "critique_request": principle.critique,
                    "revision_request": principle.revision,
                    "options": spec.adherence_options,
                    "flipped": flipped,
                }
                flips.append(flipped)
                calls.append(_call(spec, ctx, ask, name=f"{row.id}/{k}/{principle.id}", values=values))
        results = (yield calls) if calls else ()
        results_and_flips = iter(zip(results, flips, strict=True))
        violated = {
            text: {p.id: violation_probability(spec, *next(results_and_flips)) for p in principles} for text in texts
        }
        writes = spec.adherence_scoring is AdherenceScoring.CHOICE  # a judge that reads writes no tokens
        tokens = sum(result.tokens for result in results) if writes else 0
        facts = {"violated": {model: violated[text] for model, text in texts_by_model.items()}}
        return Entry(row.id, calls=len(calls), tokens=tokens, facts=facts)

    return work


def _call(spec: EvaluateSpec, ctx: Context, ask: Asking, *, name: str, values: Mapping[str, Any]) -> Call:
    if spec.adherence_scoring is AdherenceScoring.LOGPROB:
        filled = ask.fill(**values)
        options = tuple(ask.continuation(filled.text, option) for option in spec.adherence_options)
        return OptionsRequest(name, filled.text, options, filled.messages)
    seed = sampling_seed(ctx.seed, name, "adherence")
    request = ask.request(name, spec.adherence_sampling.sampling(ask.stops), seed, **values)
    return replace(request, choices=spec.adherence_options)


def violation_probability(spec: EvaluateSpec, result: Any, flipped: bool) -> float | None:
    """The probability that the principle is violated; None where nothing can be read."""
    if spec.adherence_scoring is AdherenceScoring.LOGPROB:
        p, _ = read_options(result.logprobs)
    else:
        p, _ = (None, "") if not result.answered else read_choice(result.text, spec.adherence_options)
    return None if p is None else 1 - p if flipped else p


def _figures(spec: EvaluateSpec, ctx: Context, entries: Sequence[StoredEntry]) -> dict[str, dict[str, Interval]]:
    votes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for entry in entries:
        for model, by_principle in entry.facts["violated"].items():
            for principle, p in by_principle.items():
                if p is not None:
                    votes[model, principle].append(signs(p))
    return {
        model: {p.id: intervals.share(sum(votes[model, p.id]), len(votes[model, p.id])) for p in ctx.principles.active}
        for model in spec.models
    }
