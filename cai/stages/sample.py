"""Sample: several answers to each prompt, which the judge then compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cai.clients.base import Completion, Request
from cai.data.rows import Candidates, Prompt
from cai.identity import ADDED, RUNTIME, sampling_seed
from cai.stages.base import Context, EngineSpec, Estimate, Outcome, Sampled, Wants
from cai.stages.flow.entries import Entry
from cai.stages.flow.generation import (
    PROMPT_TOKENS,
    Thinking,
    Unfinished,
    as_prompt,
    kept_thought,
    settled,
    source_of,
    thought_counts,
    through,
)
from cai.stages.respond import limited, with_system

if TYPE_CHECKING:
    from cai.stages.flow.base import Turn


class SampleSpec(EngineSpec):
    """``n`` answers of ``model`` to each prompt, each with a seed of its own.

    ``temperatures`` gives each candidate its own; empty means that all use ``sampling.temperature``.
    """

    MAKES: ClassVar[str] = "candidates"
    USES_TEMPLATE: ClassVar[bool] = True
    kind: Literal["sample"] = "sample"
    model: Annotated[str, Wants("model")]
    prompts: Annotated[str, Wants("prompts", "conversations", "comparisons")]
    n: Annotated[int, Field(ge=2, le=64, description="candidates for each prompt")] = 2
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = ()
    sampling: Sampled = Sampled()
    system: str = ""
    unfinished: Unfinished = Unfinished.TRIM
    thinking: Annotated[Thinking, ADDED(Thinking.KEEP), Field(description="what becomes of a thought: keep, drop")] = (
        Thinking.KEEP
    )
    distinct: Annotated[bool, Field(description="leave out a candidate equal to an earlier one")] = True
    limit: Annotated[int | None, Field(ge=1, description="only the first n prompts")] = None
    chunk: Annotated[int, Field(ge=1, description="prompts asked together; decides the draws")] = 32
    max_drop_rate: Annotated[float, RUNTIME, Field(ge=0, le=1, description="a larger dropped share fails")] = 0.5
    shards: Annotated[int, RUNTIME, Field(ge=1, le=1000, description="processes that share the rows")] = 1

    @model_validator(mode="after")
    def _temperatures_fit(self) -> SampleSpec:
        if self.temperatures and len(self.temperatures) != self.n:
            raise ValueError(
                f"temperatures has {len(self.temperatures)} values for n={self.n} candidates; give n or none"
            )
        greedy = [t for t in self.temperatures or (self.sampling.temperature,) * self.n if t == 0]
        if len(greedy) > 1:
            raise ValueError(f"{len(greedy)} candidates would be greedy and so identical; use temperatures above 0")
        return self

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """``n`` calls a prompt."""
        n = limited(rows.get("prompts"), self.limit)
        calls = (n or 0) * self.n
        return Estimate(n, calls, calls * PROMPT_TOKENS, calls * self.sampling.max_tokens, self.n)


def run(spec: SampleSpec, ctx: Context) -> Outcome:
    """Draw the candidates; a prompt left with fewer than two usable ones is dropped and counted."""
    sampling = spec.sampling.sampling(ctx.stops)
    temperatures = spec.temperatures or (spec.sampling.temperature,) * spec.n

    def work(row: Prompt) -> Turn:
        messages = with_system(row.messages, spec.system)
        prompt = ctx.chat.prompt(messages)
        completions = yield [
            Request(
                f"{row.id}/{i}",
                prompt,
                replace(sampling, temperature=temperature),
                sampling_seed(ctx.seed, row.id, f"sample/{i}"),
                messages,
            )
            for i, temperature in enumerate(temperatures)
        ]
        return _entry(spec, row, completions)

    source = source_of(ctx.input("prompts"), as_prompt, spec.limit)
    return through(ctx, source, work, spec, tokens=len(source) * spec.n * spec.sampling.max_tokens)


def _entry(spec: SampleSpec, row: Prompt, completions: Sequence[Completion]) -> Entry:
    settle = [settled(completion, spec.unfinished) for completion in completions]
    usable = [text for text, reason in settle if not reason]
    thoughts = [
        kept_thought(completion, spec.thinking)
        for completion, (_, reason) in zip(completions, settle, strict=True)
        if not reason
    ]
    # The thought of an answer that came twice is that of its first time.
    shown = [usable.index(text) for text in dict.fromkeys(usable)] if spec.distinct else list(range(len(usable)))
    answers = tuple(usable[i] for i in shown)
    thinking = {"thinking": [thoughts[i] for i in shown]} if any(thoughts) else {}
    counts = {
        "unusable candidates": len(settle) - len(usable),
        "identical candidates": len(usable) - len(set(usable)),
        **thought_counts(completions),
    }
    reason = "" if len(answers) > 1 else "identical" if len(usable) > 1 else "fewer than two usable"
    candidates = Candidates(row.id, row.messages, answers, row.topic, {**row.meta, **thinking})
    tokens = sum(completion.tokens for completion in completions)
    return Entry(row.id, () if reason else (candidates,), {reason: 1} if reason else {}, counts, spec.n, tokens)
