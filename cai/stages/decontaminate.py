"""Decontaminate: leave out the rows that ask nearly what a set asks which is evaluated on; the rest stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cai.data.near import NearPrompts, prompt_text
from cai.data.rows import Row, read_rows, write_rows
from cai.stages.base import IS_A, Artifact, Context, Estimate, Ledger, Outcome, StageSpec, Wants
from cai.stages.flow.generation import part, row_type

NEAR = "near evaluation data"
"""The reason in the ledger."""
TRAIN, VAL = "train", "val"


class DecontaminateSpec(StageSpec):
    """The rows of ``data`` without those whose prompt is a near duplicate of a prompt of ``against``.

    What a near duplicate is, ``cai.data.near`` says; it is that by which a plan refuses to train on what it evaluates.
    """

    ONLY_COMPARED: ClassVar[tuple[str, ...]] = ("against",)
    kind: Literal["decontaminate"] = "decontaminate"
    data: Annotated[str, Wants("prompts", "conversations", "candidates", "comparisons")]
    against: Annotated[
        tuple[str, ...],
        Wants("prompts", "conversations", "comparisons"),
        Field(min_length=1, description="data that is evaluated on"),
    ]

    @model_validator(mode="after")
    def _leaves_something(self) -> DecontaminateSpec:
        if self.data in self.against:
            raise ValueError(
                f"against names '{self.data}' itself, so no row would be left; name the data to stay apart"
            )
        return self

    def makes(self, inputs: Mapping[str, str]) -> str:
        """Rows of the kind that it reads."""
        return next(iter(IS_A.get(inputs["data"], ())), inputs["data"])

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Rows before any is left out."""
        return Estimate(rows.get("data"))


def run(spec: DecontaminateSpec, ctx: Context) -> Outcome:
    """Copy the rows that stay, part by part, streamed; of ``against`` the prompts are held.

    Raises:
        SpecError: where ``against`` has more prompts than can be held.
    """
    near = near_prompts_of(spec, ctx)
    data, dropped = ctx.input("data"), Counter[str]()
    written: dict[str, int] = {}
    for name in (TRAIN, VAL):
        if (path := part(data, name)) is not None:
            written[name] = write_rows(ctx.out / path.name, _apart(read_rows(path, row_type(data)), near, dropped))
    ledger = Ledger(sum(written.values()) + dropped.total(), sum(written.values()), dict(dropped), written)
    ctx.progress.expect(rows=ledger.rows_in)
    ctx.progress.advance(rows=ledger.rows_in)
    return Outcome(ledger)


def near_prompts_of(spec: DecontaminateSpec, ctx: Context) -> NearPrompts:
    """The prompts of what the rows must stay apart from."""
    artifacts, near = ctx.inputs["against"], NearPrompts()
    assert isinstance(artifacts, tuple)
    for name, artifact in zip(spec.against, artifacts, strict=True):
        for path in _parts(artifact):
            for row in read_rows(path, row_type(artifact)):
                near.add(prompt_text(row), name)
    return near


def _parts(artifact: Artifact) -> Iterator[Path]:
    return (path for name in (TRAIN, VAL) if (path := part(artifact, name)) is not None)


def _apart(rows: Iterator[Row], near: NearPrompts, dropped: Counter[str]) -> Iterator[Row]:
    for row in rows:
        if near.like(prompt_text(row)) is None:
            yield row
        else:
            dropped[NEAR] += 1
