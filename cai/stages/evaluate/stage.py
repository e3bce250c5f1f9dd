"""Answer, score, compare: the work of an evaluation."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from cai.engines.base import RewardScorer
from cai.figures.evaluation import EVALUATION, Evaluation, write_evaluation
from cai.stages.base import Context, Ledger, Outcome
from cai.stages.evaluate.adherence import adherence, check_judge
from cai.stages.evaluate.answers import Used, answer, prompt_sets, scored, write_answers
from cai.stages.evaluate.caveats import caveats
from cai.stages.evaluate.figures import elo, examples, headline, over_refusal, set_figures
from cai.stages.evaluate.revisions import revisions
from cai.stages.evaluate.reward import accuracy
from cai.stages.evaluate.spec import EvaluateSpec


def run(spec: EvaluateSpec, ctx: Context) -> Outcome:
    """Answer, score, compare; writes ``evaluation.json`` and every answer to ``answers.jsonl``."""
    if spec.adherence:
        check_judge(spec, ctx)
    sets, repeated = prompt_sets(spec, ctx)
    total = sum(map(len, sets.values()))
    used = Used()
    judged = sum(min(len(rows), spec.adherence_limit or len(rows)) for rows in sets.values()) if spec.adherence else 0
    each = total * len(spec.models)
    ctx.progress.expect(rows=each + judged, tokens=each * spec.sampling.max_tokens)
    unscored = {model: answer(spec, ctx, model, used) for model in spec.models}
    with ExitStack() as stack:
        scorer: RewardScorer | None = None
        if spec.reward is not None:
            scorer = ctx.engine.reward_scorer(ctx.input("reward").path)
            stack.callback(scorer.close)
        answers = scored(spec, ctx, sets, unscored, scorer=scorer)
        reward_model = accuracy(spec, ctx, scorer) if scorer is not None else {}
        revised = revisions(spec, ctx, scorer) if scorer is not None else {}
    evaluation = Evaluation(
        models=tuple(spec.models),
        sets={
            name: set_figures(spec, ctx.seed, name=name, rows=rows, answers=answers[name])
            for name, rows in sets.items()
        },
        axes=spec.compared,
        grader=spec.grader.value,
        elo=elo(spec, ctx.seed, sets, answers),
        over_refusal=over_refusal(spec, sets, answers),
        reward_model=reward_model,
        revisions=revised,
        adherence=adherence(spec, ctx, answers, used) if spec.adherence else None,
        examples=examples(spec, ctx.seed, sets, answers),
    )
    evaluation = replace(evaluation, caveats=tuple(caveats(evaluation)))
    write_evaluation(ctx.out / EVALUATION, evaluation)
    write_answers(ctx, sets, answers)
    ledger = Ledger(
        total + repeated, total, {"repeated id": repeated} if repeated else {}, {n: len(r) for n, r in sets.items()}
    )
    return Outcome(ledger, {**headline(evaluation), **used.metrics()}, used.calls, used.tokens)
