"""Mix: blend sources into one training set, filter it, and split it so that no prompt is on both sides.

What is filtered out here is in no artifact, so nothing downstream can train on it by mistake. Lengths are those that
training will see: the rendered chat text, in the tokens of ``model``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cai.chat import ChatTemplate
from cai.chat.messages import readable, turns_text
from cai.data.nemo_tokens import open_tokenizer
from cai.data.rows import Comparison, Row
from cai.data.seen import Seen
from cai.data.splits import prompt_key
from cai.errors import PlanError, PrerequisiteError, Problem
from cai.identity import counted, row_id
from cai.settings import Settings
from cai.stages.base import Artifact, Context, Estimate, Ledger, Outcome, StageSpec, Wants, fits
from cai.stages.flow.generation import part, row_type, rows_of
from cai.stages.mix.table import RowAt, RowDraws, RowTable, rows_at

TRAIN, VAL = "train", "val"


class MixSource(Settings):
    """One source; ``rows`` of it, or ``ratio`` times as many rows as the first source gives, or (neither) all."""

    source: Annotated[str, Wants("conversations", "comparisons"), Field(alias="from")]
    rows: Annotated[int | None, Field(ge=1)] = None
    ratio: Annotated[float | None, Field(gt=0)] = None

    @model_validator(mode="after")
    def _one_size(self) -> MixSource:
        if self.rows is not None and self.ratio is not None:
            raise ValueError("give rows or ratio, not both")
        return self


class MixSpec(StageSpec):
    """Blend ``sources`` (all conversations or all comparisons), drop duplicates and long rows, split off ``val``."""

    USES_TEMPLATE: ClassVar[bool] = True
    ONLY_COMPARED: ClassVar[tuple[str, ...]] = ("held_out",)
    kind: Literal["mix"] = "mix"
    sources: Annotated[tuple[MixSource, ...], Field(min_length=1)]
    val: Annotated[float, Field(ge=0, lt=1, description="share of the prompts that goes to validation")] = 0.1
    deduplicate: Annotated[bool, Field(description="keep one of rows with the same prompt and answers")] = True
    held_out: Annotated[
        tuple[str, ...],
        Wants("prompts", "conversations", "comparisons"),
        Field(description="data whose prompts must not be trained on, e.g. test sets"),
    ] = ()
    model: Annotated[str | None, Wants("model"), Field(description="whose tokens max_tokens counts")] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="tokens of the rendered text")] = None
    max_chars: Annotated[int | None, Field(ge=1, description="characters of the rendered text")] = None
    min_chars: Annotated[int, Field(ge=0, description="characters of the shortest answer")] = 1

    @model_validator(mode="after")
    def _settings_agree(self) -> MixSpec:
        if (self.max_tokens is None) != (self.model is None):
            raise ValueError("max_tokens counts the tokens of `model`: give both or neither (max_chars needs no model)")
        if self.sources[0].ratio is not None:
            raise ValueError("ratio is relative to the first source, so the first has none; give it rows, or neither")
        if {source.source for source in self.sources} <= set(self.held_out):
            raise ValueError("held_out names every source, so no row would be left to train on; hold out other data")
        return self

    def makes(self, inputs: Mapping[str, str]) -> str:
        """Conversations or comparisons, whichever all the sources are."""
        kinds = {
            "comparisons" if fits(kind, ("comparisons",)) else "conversations"
            for role, kind in inputs.items()
            if role.startswith("sources")
        }
        if len(kinds) > 1:
            where, message = "sources", "mixes conversations with comparisons"
            raise PlanError(Problem(where, message, "make one mix of each"))
        return kinds.pop()

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Rows before duplicates and long ones are dropped."""
        total, first = 0, rows.get("sources.0")
        for i, source in enumerate(self.sources):
            source_rows = rows.get(f"sources.{i}")
            if source_rows is None or (source.ratio is not None and first is None):
                return Estimate()
            base = min(first or 0, self.sources[0].rows or first or 0)
            quota = source.rows if source.ratio is None else round(source.ratio * base)
            total += source_rows if quota is None else min(source_rows, quota)
        return Estimate(total)


def run(spec: MixSpec, ctx: Context) -> Outcome:
    """Filter, choose, order and split. Every choice is counted from the seed and the row, so order does not matter.

    Rows are read once and written from where they lie: about 50 bytes of each are held, whatever its length.
    """
    sources = ctx.inputs["sources"]
    assert isinstance(sources, tuple)
    length = None
    if spec.max_tokens is not None or spec.max_chars is not None:
        length = _Length(ctx.chat, ctx.input("model").path if spec.model else None)
    dropped: Counter[str] = Counter()
    filters = _Filters(spec, _groups_of(ctx.inputs.get("held_out", ())), Seen(), length)
    shares: dict[str, int] = {}
    rows_in = first = 0
    with RowTable() as table:
        for i, (setting, artifact) in enumerate(zip(spec.sources, sources, strict=True)):
            begin, good = len(table), 0
            for file, row_at in _lines(artifact, table):
                rows_in += 1
                reason = _drop_reason(row_at.row, filters)
                if reason:
                    dropped[reason] += 1
                else:
                    good += 1
                    table.add(file, row_at, _draws(ctx.seed, row_at.row, i))
            quota = setting.rows if setting.ratio is None else round(setting.ratio * first)
            chosen = table.keep_lowest(begin, quota)
            if chosen < good:
                dropped["not chosen"] += good - chosen
            first = first if i else chosen
            shares[f"{i}/{setting.source}"] = chosen
        written = table.write({TRAIN: ctx.out / "train.jsonl", VAL: ctx.out / "val.jsonl"}, spec.val)
    ledger = Ledger(rows_in, sum(written.values()), dict(sorted(dropped.items())), written)
    ctx.progress.expect(rows=rows_in)
    ctx.progress.advance(rows=rows_in)
    return Outcome(ledger, {"rows by source": shares})


def _lines(artifact: Artifact, table: RowTable) -> Iterator[tuple[int, RowAt]]:
    kind = row_type(artifact)
    for name in (TRAIN, VAL):
        path = part(artifact, name)
        if path is not None:
            file = table.open(path)
            for row_at in rows_at(path, kind):
                yield file, row_at


def _draws(seed: int, row: Row, source: int) -> RowDraws:
    """Content, and what is drawn for it: whether it is chosen, its place, its side."""
    content, group = _content(row), prompt_group(row)
    return RowDraws(
        content=int(content, 16),
        choice=counted(seed, content, f"mix/{source}"),
        place=counted(seed, content, "mix/order"),
        side=counted(seed, group, "mix/split"),
    )


def prompt_group(row: Row) -> str:
    """What keeps rows on one side: the conversation's first question, as in the splits of data sources."""
    return row_id(prompt_key(row))


def _answers(row: Row) -> tuple[str, ...]:
    return (row.chosen, row.rejected) if isinstance(row, Comparison) else (readable(row.messages[-1]),)


def _content(row: Row) -> str:
    """A row's content: what was said, thought and called, and by whom; its id and topic do not count."""
    turns = ["\x1e".join(turns_text((message,))) for message in row.messages]
    return row_id(*turns, *(_answers(row) if isinstance(row, Comparison) else ()))


def _groups_of(artifacts: object) -> set[str]:
    held_out = artifacts if isinstance(artifacts, tuple) else ()
    return {prompt_group(row) for a in held_out if isinstance(a, Artifact) for row in _everything(a)}


def _everything(artifact: Artifact) -> Iterator[Row]:
    for name in (TRAIN, VAL):
        yield from rows_of(artifact, name)


class _Length:
    """Lengths of a row's rendered texts: in characters, and in the tokens of the model's own tokenizer."""

    def __init__(self, chat: ChatTemplate, model: Path | None) -> None:
        self._chat = chat
        self._counts = None
        if model is not None:
            try:
                self._counts = open_tokenizer(model).counts
            except PrerequisiteError as error:
                raise PrerequisiteError(f"{error}; or use max_chars instead") from error

    def of(self, row: Row) -> tuple[int, int | None]:
        """Characters and tokens of the longest text that training will read from this row."""
        texts = self._texts(row)
        tokens = None
        if self._counts is not None:
            tokens = max(self._counts(texts))
        return max(map(len, texts)), tokens

    def _texts(self, row: Row) -> list[str]:
        if isinstance(row, Comparison):
            prompt = self._chat.prompt(row.messages)
            return [prompt + self._chat.answer(row.messages, answer) for answer in _answers(row)]
        return ["".join(span.text for span in self._chat.spans(row.messages))]


@dataclass(frozen=True, slots=True)
class _Filters:
    """What a row must pass: the spec's bounds, groups that are held out, contents that came before, and lengths."""

    spec: MixSpec
    held_out_groups: set[str]
    seen_contents: Seen
    length: _Length | None


def _drop_reason(row: Row, filters: _Filters) -> str:
    """Why a row is not used; empty when it is. Notes its content as seen."""
    spec, length = filters.spec, filters.length
    if min(len(answer.strip()) for answer in _answers(row)) < spec.min_chars:
        return "too short"
    if filters.held_out_groups and prompt_group(row) in filters.held_out_groups:
        return "held out"
    if length is not None:
        chars, tokens = length.of(row)
        if spec.max_chars is not None and chars > spec.max_chars:
            return "too long"
        if spec.max_tokens is not None and tokens is not None and tokens > spec.max_tokens:
            return "too long"
    return "duplicate" if spec.deduplicate and not filters.seen_contents.add(_content(row)) else ""
