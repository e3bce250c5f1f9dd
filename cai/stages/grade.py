"""Grade: what each answer does with its request, from complied to gibberish; by the shipped rules, a judge, or both.

The rows come out as they went in, with ``grades`` in their ``meta``: a grade for a conversation's last answer, a list
for the answers of candidates and for the two of a comparison. Two graders stand side by side and are never averaged;
``grades.json`` says how often each gave which grade and how far they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from cai.chat import Message
from cai.chat.messages import question, transcript
from cai.clients.base import Completion, Finish, Request
from cai.clients.prompting import Asking
from cai.data.rows import Candidates, Comparison, Conversation, Row
from cai.grading.rubric import ReadGrade, read_grade, rubric
from cai.identity import RUNTIME, sampling_seed
from cai.stages.base import Context, EngineSpec, Estimate, Outcome, Sampled, TextFile, Wants
from cai.stages.flow.entries import Entry, StoredEntry, stored_entry, write_entries
from cai.stages.flow.generation import source_of, through
from cai.stages.flow.input_rows import RowSource
from cai.stages.flow.prompting import asking
from cai.stages.respond import limited

if TYPE_CHECKING:
    from cai.stages.flow.base import Turn, Work

LEXICAL, JUDGE = "lexical", "judge"
RUBRIC = "grade.jinja"
"""The shipped prompt template of a judge."""
RUBRIC_TOKENS = 420
"""Assumed of a question with the shipped rubric and a short answer."""


class GradeSpec(EngineSpec):
    """Grade every answer of ``answers``: by the shipped rules (``lexical``), and by ``model`` where one is named.

    A judge is asked once for each answer, with ``rubric``. What it says that is no name of a grade is no grade; it is
    counted, and where no other grader stands beside it a row without any grade is dropped.
    """

    kind: Literal["grade"] = "grade"
    answers: Annotated[
        str,
        Wants("conversations", "candidates", "comparisons"),
        Field(description="conversations (the last answer), candidates or comparisons (each answer)"),
    ]
    lexical: Annotated[bool, Field(description="grade by the shipped rules")] = True
    model: Annotated[str | None, Wants("model"), Field(description="a judge, asked with the rubric")] = None
    rubric: Annotated[str, TextFile(), Field(description="prompt template; empty takes the shipped one")] = ""
    sampling: Annotated[Sampled, Field(description="of the grade that a judge writes")] = Sampled(
        max_tokens=24, temperature=0.0
    )
    limit: Annotated[int | None, Field(ge=1, description="only the first n rows")] = None
    chunk: Annotated[int, Field(ge=1, description="rows asked together; decides the draws")] = 32
    max_drop_rate: Annotated[float, RUNTIME, Field(ge=0, le=1, description="a larger dropped share fails")] = 0.5

    @model_validator(mode="before")
    @classmethod
    def _as_asked(cls, raw: Any) -> Any:
        """The shipped rubric where a judge is named without one, so that only a text that is read counts."""
        if isinstance(raw, Mapping) and raw.get("model"):
            return {**raw, "rubric": raw.get("rubric") or RUBRIC}
        return raw

    @model_validator(mode="after")
    def _someone_grades(self) -> GradeSpec:
        if not self.lexical and self.model is None:
            raise ValueError("nobody grades: name a model, or leave lexical on")
        if self.rubric and self.model is None:
            raise ValueError("rubric is what a judge is asked with: name a model as well")
        return self

    @property
    def USES_TEMPLATE(self) -> bool:  # type: ignore[override]  # noqa: N802
        """Only where a judge is asked."""
        return self.model is not None

    @property
    def graders(self) -> tuple[str, ...]:
        """Who grades, in the order in which their figures stand."""
        return (*((LEXICAL,) if self.lexical else ()), *((JUDGE,) if self.model is not None else ()))

    def makes(self, inputs: Mapping[str, str]) -> str:
        """What came in."""
        return inputs["answers"]

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """One call an answer where a judge is asked, else none."""
        n, width = limited(rows.get("answers"), self.limit), rows.get("answers:width") or 1
        calls = (n or 0) * width if self.model is not None else 0
        return Estimate(n, calls, calls * RUBRIC_TOKENS, calls * self.sampling.max_tokens, width)


def run(spec: GradeSpec, ctx: Context) -> Outcome:
    """Grade every answer; writes the rows with their grades to ``rows.jsonl``, and ``grades.json``."""
    from cai.grading.report import GradeTally  # late, as the grader below

    tally = GradeTally(spec.graders)

    def count(entry: StoredEntry) -> None:
        if "grades" in entry.facts:
            tally.add(entry.facts["grades"], entry.facts.get("unread", ()))

    source = source_of(ctx.input("answers"), _answered, spec.limit)
    if spec.model is None:
        outcome, _ = write_entries(ctx, _counted(_by_rules(ctx, source), count))
    else:
        tokens = len(source) * spec.sampling.max_tokens
        outcome = through(ctx, source, _judging(spec, ctx), spec, tokens=tokens, on_entry=count)
    tally.write(ctx.out)
    return replace(outcome, metrics={**outcome.metrics, **tally.metrics()})


def _answered(row: Row) -> Row | str:
    """The row, where it has an answer."""
    return row if isinstance(row, Conversation | Candidates | Comparison) else "no answer to grade"


def _prompt_of(row: Row) -> tuple[Message, ...]:
    return row.prompt if isinstance(row, Conversation) else row.messages


def _answers_of(row: Row) -> tuple[str, ...]:
    """The answers of a row, in the order in which its grades stand."""
    if isinstance(row, Candidates):
        return row.answers
    if isinstance(row, Comparison):
        return (row.chosen, row.rejected)
    assert isinstance(row, Conversation)
    return (row.answer,)


def _by_rules(ctx: Context, source: RowSource[Row]) -> Iterator[StoredEntry]:
    """The entry of every row, where nobody is asked."""
    ctx.progress.expect(rows=len(source))
    for numbered in source.missing(lambda number: False):
        if numbered.row is None:
            entry = Entry(numbered.id, dropped={numbered.reason: 1})
        else:
            entry = _entry(numbered.row, {LEXICAL: lexical_grades(numbered.row)})
        yield stored_entry(entry.plain())
        ctx.progress.advance(rows=1)


def _counted(entries: Iterator[StoredEntry], count: Callable[[StoredEntry], None]) -> Iterator[StoredEntry]:
    for entry in entries:
        count(entry)
        yield entry


def lexical_grades(row: Row) -> list[str | None]:
    """The shipped grader's grades of a row's answers; its last user turn is the request."""
    from cai.grading.lexical import grade  # late: planning reads this module too, and compiles no patterns

    request = question(_prompt_of(row))
    return [grade(request, answer).grade.value for answer in _answers_of(row)]


def _judging(spec: GradeSpec, ctx: Context) -> Work[Row]:
    ask = asking(ctx, "rubric")

    def work(row: Row) -> Turn:
        calls = [_request(spec, ctx, ask, row=row, number=k) for k in range(len(_answers_of(row)))]
        completions = yield calls
        read = [read_completion(completion) for completion in completions]
        by_grader = {LEXICAL: lexical_grades(row)} if spec.lexical else {}
        by_grader[JUDGE] = [each.grade.value if each.grade else None for each in read]
        unread = [each.why for each in read if each.grade is None]
        tokens = sum(completion.tokens for completion in completions)
        if not spec.lexical and len(unread) == len(read):
            return Entry(
                row.id, dropped={unread[0]: 1}, calls=len(calls), tokens=tokens, facts=_facts(by_grader, unread)
            )
        return replace(_entry(row, by_grader, unread), calls=len(calls), tokens=tokens)

    return work


def _request(spec: GradeSpec, ctx: Context, ask: Asking, *, row: Row, number: int) -> Request:
    name = f"{row.id}/{number}"
    values = {"messages": transcript(_prompt_of(row)), "answer": _answers_of(row)[number], "grades": rubric()}
    request = ask.request(name, spec.sampling.sampling(ask.stops), sampling_seed(ctx.seed, name, "grade"), **values)
    return replace(request, choices=tuple(grade["name"] for grade in rubric()))


def read_completion(completion: Completion) -> ReadGrade:
    """The grade that a judge wrote; or why there is none, which the server may have said."""
    if completion.finish is Finish.REFUSED:
        return ReadGrade(why="refused by the server")
    if not completion.answered:
        return ReadGrade(why="no answer")
    return read_grade(completion.text)


def _facts(by_grader: Mapping[str, Sequence[str | None]], unread: Sequence[str]) -> dict[str, Any]:
    return {"grades": dict(by_grader), **({"unread": list(unread)} if unread else {})}


def _entry(row: Row, by_grader: Mapping[str, Sequence[str | None]], unread: Sequence[str] = ()) -> Entry:
    """The row with its grades; a conversation has one answer, and so one grade and no list."""
    single = isinstance(row, Conversation)
    shown = {grader: grades[0] if single else list(grades) for grader, grades in by_grader.items()}
    before = row.meta.get("grades")
    graded = replace(row, meta={**row.meta, "grades": {**(before if isinstance(before, dict) else {}), **shown}})
    return Entry(row.id, (graded,), facts=_facts(by_grader, unread))
