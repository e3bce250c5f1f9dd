"""SFT: fine-tune a model on conversations; loss is taken on the spans that the chat template marks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cai.chat import ChatTemplate
from cai.data.rows import Conversation
from cai.engines.base import Trained
from cai.engines.methods.base import TrainText
from cai.engines.methods.sft import SFT, SftData, SftSettings
from cai.errors import Problem, SpecError
from cai.identity import ADDED
from cai.stages.base import Artifact, Context, EngineSpec, Estimate, Ledger, Outcome, Wants
from cai.stages.flow.generation import PROMPT_TOKENS, rows_of


class SftSpec(EngineSpec):
    """Train ``model`` on ``data``; the data's part ``val``, where it has one, is only measured."""

    MAKES: ClassVar[str] = "model"
    USES_TEMPLATE: ClassVar[bool] = True
    kind: Literal["sft"] = "sft"
    model: Annotated[str, Wants("model")]
    data: Annotated[str, Wants("conversations")]
    loss: Annotated[
        Literal["last", "all"], Field(description="learn the last answer only, or every answer of the conversation")
    ] = "last"
    thinking: Annotated[
        Literal["drop", "train"],
        ADDED("drop"),
        Field(description="learn what was thought before an answer, or leave it out; the template must have it"),
    ] = "drop"
    training: SftSettings = SftSettings()

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Every row is read once an epoch."""
        n = rows.get("data")
        return Estimate(n, tokens=int((n or 0) * self.training.epochs * 2 * PROMPT_TOKENS))

    def check_template(self, template: Callable[[], ChatTemplate]) -> None:
        """Thinking can be learnt where the template writes it."""
        if self.thinking == "train" and not (chat := template()).speaks_thinking:
            message = f"the template '{chat.name}' writes no thinking, so there is none to learn"
            raise SpecError(Problem("thinking", message, "use template=chatml_tools, or thinking: drop"))


def run(spec: SftSpec, ctx: Context) -> Outcome:
    """Render the conversations and hand them to the engine."""
    spec.check_template(lambda: ctx.chat)
    train, val = (_texts(spec, ctx, ctx.input("data"), name) for name in ("train", "val"))
    data = SftData(ctx.input("model").path, train, val, ctx.chat.header.answer_end)
    trained = ctx.engine.train(SFT, data, spec.training, ctx.attempt)
    return trained_outcome(trained, len(train) + len(val))


def trained_outcome(trained: Trained, rows: int) -> Outcome:
    """What training did with its rows, training and validation together."""
    dropped = {reason: n for reason, n in trained.dropped.items() if n}
    return Outcome(Ledger(rows, rows - sum(dropped.values()), dropped), trained.metrics)


def _texts(spec: SftSpec, ctx: Context, data: Artifact, name: str) -> list[TrainText]:
    thinking = spec.thinking == "train"
    return [
        TrainText(
            row.id,
            ctx.chat.spans(row.messages, spec.loss, thinking=thinking),
            ctx.chat.harmless(row.messages),
        )
        for row in rows_of(data, name)
        if isinstance(row, Conversation)
    ]
