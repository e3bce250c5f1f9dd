"""Judge every row: ask, label, and beside the labels write how far they can be trusted."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cai.clients.base import Call
from cai.data.rows import Candidates, Comparison, Row
from cai.engines.base import Progress
from cai.errors import Incomplete, Problem, SpecError
from cai.figures.judge_report import JUDGE_REPORT, write_judge_report
from cai.figures.usage import USAGE_OF_LABELLED
from cai.judging.pairs import Verdict, different
from cai.judging.scorings import EXEMPLAR_FIELDS, EXEMPLARS, SCORINGS, Judge, PrincipleQuestion, questions
from cai.judging.settings import Scoring
from cai.stages.base import Context, Outcome
from cai.stages.flow.base import Flow, Turn, Work
from cai.stages.flow.drive import drive
from cai.stages.flow.entries import Entry
from cai.stages.flow.generation import source_of, through
from cai.stages.flow.input_rows import RowSource
from cai.stages.flow.prompting import asking, records
from cai.stages.judge.calibration import Calibration
from cai.stages.judge.gate import check_standing
from cai.stages.judge.labels import as_candidates, entry, facts
from cai.stages.judge.report import JudgeTally, headline
from cai.stages.judge.spec import BestWorstJudge, ChoiceJudge, ContrastJudge, JudgeSpec, LogprobJudge


def judge_of(spec: JudgeSpec, ctx: Context) -> Judge:
    """How the judge of a step is asked."""
    prompt = asking(ctx, "prompt")
    if isinstance(spec, ContrastJudge):
        exemplars = records(ctx, "exemplars", "exemplars", EXEMPLAR_FIELDS)[: spec.n_exemplars]
        return Judge(
            prompt, ctx.seed, temperature=spec.temperature, per_token=spec.per_token, exemplars=tuple(exemplars)
        )
    assert isinstance(spec, LogprobJudge | ChoiceJudge | BestWorstJudge)
    judge = Judge(
        prompt,
        ctx.seed,
        sampling=spec.sampling.sampling(prompt.stops),
        order=spec.order,
        reasoning=spec.reasoning,
        samples=spec.samples,
    )
    if isinstance(spec, LogprobJudge):
        return replace(judge, options=spec.options, tie_option=spec.tie_option, temperature=spec.temperature)
    if isinstance(spec, ChoiceJudge):
        return replace(judge, options=spec.options, tie_option=spec.tie_option, structured=spec.structured)
    return replace(judge, structured=spec.structured)


def run(spec: JudgeSpec, ctx: Context) -> Outcome:
    """Judge every row; a row in is a pair looked at.

    Raises:
        StepFailed: when labelled pairs say that the judge is no better than chance, before any row is judged, unless
            the spec says ``uncalibrated``.
    """
    judge = judge_of(spec, ctx)
    score = SCORINGS[spec.scoring](judge)
    variables = judge.prompt.template.variables()
    if judge.tie_option and "tie_option" not in variables:
        message = "never shows tie_option, so the judge cannot know of it"
        raise SpecError(Problem(f"{ctx.name}.prompt", message, "show {{ tie_option }}, or leave tie_option empty"))
    if spec.scoring is Scoring.BEST_WORST and "answers" not in variables:
        message = "never shows answers, of which scoring 'best_worst' asks for the best and the worst"
        raise SpecError(Problem(f"{ctx.name}.prompt", message, "begin with a copy of comparison_set.jinja"))
    # A prompt that does not show the principle is asked once, and the row does not claim that one was read.
    reads = "principle" in variables
    again = ctx.input("candidates").makes == Comparison.MAKES

    def questions_of(row: Candidates) -> list[PrincipleQuestion]:
        if not reads:
            return EXEMPLARS
        return questions(ctx.principles, ctx.seed, row.id, principles=spec.principles, ensemble=spec.ensemble)

    def judged(row: Candidates) -> Generator[Sequence[Call], Sequence[Any], tuple[Verdict, list[str]]]:
        principle_questions = questions_of(row)
        verdict = yield from score(row, different(spec.pairs, row), principle_questions)
        return verdict, [principle for principle, _ in principle_questions]

    def work(row: Candidates) -> Turn:
        verdict, principles = yield from judged(row)
        return entry(spec, row, verdict, principles=principles, human=again)

    def beside(row: Candidates) -> Turn:
        verdict, principles = yield from judged(row)
        row_facts = facts(row, verdict, principles, True)
        return Entry(row.id, (), {}, {}, verdict.calls, verdict.tokens, row_facts)

    def convert(row: Row) -> Candidates | str:
        return as_candidates(row, ctx.seed)

    labelled = _LabelledSet()
    if spec.labelled:
        labelled = _judge_labelled(spec, ctx, source_of(ctx.input("labelled"), convert, spec.labelled_limit), beside)
        if labelled.calibration is not None:
            check_standing(spec, labelled.calibration.figures())
    tally = JudgeTally(spec.margin, spec.both_orders)
    source = source_of(ctx.input("candidates"), convert, spec.limit)
    expected = spec.estimate({"candidates": len(source)}).tokens
    outcome = through(ctx, source, work, spec, tokens=expected, on_entry=tally.see)
    if labelled.late is not None:
        raise labelled.late
    report = tally.figures(_settings(spec), labelled.calibration)
    write_judge_report(ctx.out / JUDGE_REPORT, report)
    metrics = {**_metrics(outcome.metrics), **headline(report), **labelled.usage}
    calls, tokens = outcome.calls + labelled.calls, outcome.tokens + labelled.tokens
    return replace(outcome, metrics=metrics, calls=calls, tokens=tokens)


@dataclass
class _LabelledSet:
    """What came of the labelled set. ``late``: some of it got no answer, which the next run asks again."""

    calibration: Calibration | None = None
    calls: int = 0
    tokens: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    late: Incomplete | None = None


def _judge_labelled(
    spec: JudgeSpec, ctx: Context, source: RowSource[Candidates], work: Work[Candidates]
) -> _LabelledSet:
    """Judge the labelled set, apart from the step's rows and ledger."""
    labelled = _LabelledSet()
    apart = replace(ctx, progress=_Beside(ctx.progress))
    with Flow(apart, "model", source, work, size=spec.chunk, name="labelled") as flow:
        try:
            drive(flow)
        except Incomplete as error:
            return replace(labelled, late=error)  # The work itself need not wait for what is only held against it.
        if ctx.shard is None:
            labelled.calibration = Calibration(spec.both_orders)
            for stored_entry in flow.entries():
                labelled.calibration.see(stored_entry.facts, stored_entry.dropped)
                labelled.calls += stored_entry.calls
                labelled.tokens += stored_entry.tokens
        labelled.usage = flow.tally.usage().to_metrics(USAGE_OF_LABELLED)
    return labelled


def _settings(spec: JudgeSpec) -> dict[str, Any]:
    """What one must know of the judge to read its report."""
    values = spec.model_dump(mode="json", include=set(spec.shown_settings))
    return {name: values[name] for name in spec.shown_settings if values[name] not in ("", False)}


class _Beside:
    """The progress of work beside the rows: its tokens count, its rows do not."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """Nothing: the rows of the step are to come."""

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """Tokens alone."""
        self._progress.advance(tokens=tokens)

    def note(self, event: str, **fields: Any) -> None:
        """As it is."""
        self._progress.note(event, **fields)


def _metrics(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Sums over the rows as shares; what is 0 is left out."""
    pairs, both = counts.get("pairs", 0), counts.get("judged in both orders", 0)
    shares = {"mean p_chosen": counts.get("p_chosen", 0.0) / pairs} if pairs else {}
    if both:
        shares["agreement of the two orders"] = counts.get("orders agree", 0) / both
    return {**{k: v for k, v in counts.items() if v and k != "p_chosen"}, **shares}
