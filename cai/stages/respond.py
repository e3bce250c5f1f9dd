"""Respond: a helpful-only model answers the red-team prompts; its answers are what the revisions start from.

No few-shots here: they would teach the answers that the revisions are meant to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from cai.chat import Message
from cai.clients.base import Request
from cai.data.rows import Conversation, Prompt
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

if TYPE_CHECKING:
    from cai.stages.flow.base import Turn


class RespondSpec(EngineSpec):
    """One answer of ``model`` to each of ``prompts``."""

    MAKES: ClassVar[str] = "responses"
    USES_TEMPLATE: ClassVar[bool] = True
    kind: Literal["respond"] = "respond"
    model: Annotated[str, Wants("model")]
    prompts: Annotated[str, Wants("prompts", "conversations", "comparisons")]
    sampling: Sampled = Sampled()
    system: Annotated[str, Field(description="system message put before each prompt that has none")] = ""
    unfinished: Unfinished = Unfinished.TRIM
    thinking: Annotated[Thinking, ADDED(Thinking.KEEP), Field(description="what becomes of a thought: keep, drop")] = (
        Thinking.KEEP
    )
    limit: Annotated[int | None, Field(ge=1, description="only the first n prompts")] = None
    chunk: Annotated[int, Field(ge=1, description="prompts asked together; decides the draws")] = 32
    max_drop_rate: Annotated[float, RUNTIME, Field(ge=0, le=1, description="a larger dropped share fails")] = 0.5
    shards: Annotated[int, RUNTIME, Field(ge=1, le=1000, description="processes that share the rows")] = 1

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """One call a prompt."""
        n = limited(rows.get("prompts"), self.limit)
        return Estimate(n, n or 0, (n or 0) * PROMPT_TOKENS, (n or 0) * self.sampling.max_tokens)


def limited(rows: int | None, limit: int | None) -> int | None:
    """How many rows remain under a limit."""
    return rows if limit is None or rows is None else min(rows, limit)


def with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """The messages, opened by a system message where there is one to give and none yet."""
    if not system or (messages and messages[0].role == "system"):
        return messages
    return (Message("system", system), *messages)


def run(spec: RespondSpec, ctx: Context) -> Outcome:
    """Answer every prompt; empty and (as the spec says) unfinished answers are dropped and counted."""
    sampling = spec.sampling.sampling(ctx.stops)

    def work(row: Prompt) -> Turn:
        messages = with_system(row.messages, spec.system)
        seed = sampling_seed(ctx.seed, row.id, "respond")
        (answer,) = yield [Request(row.id, ctx.chat.prompt(messages), sampling, seed, messages)]
        text, reason = settled(answer, spec.unfinished)
        said = Message("assistant", text, kept_thought(answer, spec.thinking))
        conversation = Conversation(row.id, (*row.messages, said), row.topic, row.meta)
        rows, dropped = ((), {reason: 1}) if reason else ((conversation,), {})
        return Entry(row.id, rows, dropped, thought_counts([answer]), 1, answer.tokens)

    source = source_of(ctx.input("prompts"), as_prompt, spec.limit)
    return through(ctx, source, work, spec, tokens=len(source) * spec.sampling.max_tokens)
