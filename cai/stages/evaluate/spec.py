"""Evaluate: what the training changed, with intervals, on prompts and pairs that no stage has trained on.

The reward model's opinion is one figure among several: beside it stand its accuracy on held-out and independent
pairs, lengths, variety, refusals, evasions, what a judge says of each principle, and a list of caveats computed from
those figures. docs/evaluation.md says what each figure means.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cai.clients.metering import ModelUse
from cai.identity import ADDED, RUNTIME
from cai.stages.base import EngineSpec, Estimate, Sampled, TextFile, Wants
from cai.stages.flow.generation import PROMPT_TOKENS

JUDGE_TOKENS = 200
PROMPT = "adherence.jinja"
"""The shipped prompt template of a judge of adherence."""


class AdherenceScoring(str, Enum):
    """How the judge's opinion is read: the option that it writes, or the probabilities of both."""

    CHOICE = "choice"
    LOGPROB = "logprob"


class AnswerGrader(str, Enum):
    """What refusals and evasions are found by: phrases in an answer, or the grade that the shipped rules give it."""

    PHRASES = "phrases"
    LEXICAL = "lexical"


class EvaluateSpec(EngineSpec):
    """Compare ``models`` (in order: before first) on sets of ``prompts``; check ``reward`` on sets of ``comparisons``.

    ``benign`` names the prompt sets on which a refusal is a fault, ``grader`` what finds one, ``seen`` the sets (of
    prompts or of comparisons) that tell how the model does on what it has learnt; all others are held apart from
    training data. ``axes`` are the sets
    that an Elo is made of, by the axis' name; without them harmlessness has the sets that are not benign, and
    helpfulness those that are. ``revisions`` are scored round by round. The model ``adherence`` is asked of every
    answer and principle whether the one violates the other. ``examples`` answers are shown for every set, drawn by
    chance and not picked.
    """

    VERSION: ClassVar[int] = 2
    MAKES: ClassVar[str] = "evaluation"
    USES_TEMPLATE: ClassVar[bool] = True
    kind: Literal["evaluate"] = "evaluate"
    models: Annotated[dict[str, str], Wants("model"), Field(min_length=1)]
    reward: Annotated[str | None, Wants("reward_model")] = None
    prompts: Annotated[dict[str, str], Wants("prompts", "conversations", "comparisons"), Field(min_length=1)]
    comparisons: Annotated[dict[str, str], Wants("comparisons")] = Field(default_factory=dict)
    revisions: Annotated[
        dict[str, str], Wants("revisions"), Field(description="whose rounds the reward model compares")
    ] = Field(default_factory=dict)
    benign: tuple[str, ...] = ()
    grader: Annotated[
        AnswerGrader,
        ADDED(AnswerGrader.PHRASES),
        Field(description="what refusals and evasions are found by: phrases, or lexical grades"),
    ] = AnswerGrader.PHRASES
    seen: Annotated[
        tuple[str, ...],
        RUNTIME,
        Field(description="sets that hold what is trained on, by intent: they are not held apart from it"),
    ] = ()
    axes: Annotated[
        dict[str, tuple[str, ...]],
        Field(description="prompt sets of each axis of the Elo; empty: by benign"),
    ] = Field(default_factory=dict)
    adherence: Annotated[
        str | None, Wants("model"), Field(description="a judge, asked which principles an answer violates")
    ] = None
    adherence_prompt: Annotated[str, TextFile(), Field(description="prompt template; empty takes the shipped one")] = ""
    adherence_scoring: AdherenceScoring = AdherenceScoring.CHOICE
    adherence_options: Annotated[
        tuple[str, str], Field(description="what the judge would write for the first statement, the second")
    ] = ("(A)", "(B)")
    adherence_sampling: Annotated[Sampled, Field(description="of the written choice")] = Sampled(
        max_tokens=8, temperature=0.0
    )
    adherence_limit: Annotated[int | None, Field(ge=1, description="only the first n prompts of each set")] = 100
    sampling: Sampled = Sampled(max_tokens=96, temperature=0.0)
    limit: Annotated[int | None, Field(ge=1, description="only the first n prompts of each set")] = None
    examples: Annotated[int, Field(ge=0, description="prompts of each set whose answers are shown")] = 3
    chunk: Annotated[int, Field(ge=1, description="prompts asked together; decides the draws")] = 32

    @model_validator(mode="before")
    @classmethod
    def _as_asked(cls, raw: Any) -> Any:
        """The shipped prompt where a judge is named without one, so that only a text that is read counts."""
        if isinstance(raw, Mapping) and raw.get("adherence"):
            return {**raw, "adherence_prompt": raw.get("adherence_prompt") or PROMPT}
        return raw

    @model_validator(mode="after")
    def _names_exist(self) -> EvaluateSpec:
        name_lists = [("benign", self.benign), *((f"axes.{axis}", sets) for axis, sets in self.axes.items())]
        for where, names in name_lists:
            unknown = [name for name in names if name not in self.prompts]
            if unknown:
                raise ValueError(
                    f"{where} names {unknown[0]!r}, which is no prompt set; there are {', '.join(self.prompts)}"
                )
        if strange := [name for name in self.seen if name not in self.prompts and name not in self.comparisons]:
            sets = ", ".join([*self.prompts, *self.comparisons])
            raise ValueError(f"seen names {strange[0]!r}, which is no set of prompts or comparisons; there are {sets}")
        for field in ("comparisons", "revisions"):
            if getattr(self, field) and self.reward is None:
                raise ValueError(f"{field} are what the reward model is asked about: give reward as well")
        if len(set(self.adherence_options)) < 2 or not all(self.adherence_options):
            raise ValueError("adherence_options must be two different texts")
        return self

    @property
    def PRINCIPLE_FIELDS(self) -> tuple[str, ...]:  # type: ignore[override]  # noqa: N802
        """What the judge is told of a principle; nothing is read, and nothing counts, where no judge is asked."""
        return ("critique", "revision") if self.adherence else ()

    @property
    def compared(self) -> dict[str, tuple[str, ...]]:
        """The axes: as they are named, or by whether a set is benign; only those that have a set."""
        harmful = tuple(name for name in self.prompts if name not in self.benign)
        axes = self.axes or {"harmlessness": harmful, "helpfulness": self.benign}
        return {axis: sets for axis, sets in axes.items() if sets}

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Every model answers every prompt; a judge is asked about every answer and principle, as though no two models
        ever said the same."""
        sets = [rows.get(f"prompts.{name}") for name in self.prompts]
        counts = [min(n, self.limit or n) for n in sets if n is not None]
        total = sum(counts) if len(counts) == len(sets) else None
        prompts = sum(counts)
        each = ModelUse(prompts, prompts * PROMPT_TOKENS, prompts * self.sampling.max_tokens)
        uses = {f"models.{label}": each for label in self.models}
        if self.adherence:
            judged = sum(min(n, self.adherence_limit or n) for n in counts) * len(self.models)
            questions = judged * (rows.get("constitution:principles") or 1)
            written = self.adherence_sampling.max_tokens * (self.adherence_scoring is AdherenceScoring.CHOICE)
            uses["adherence"] = ModelUse(questions, questions * JUDGE_TOKENS, questions * written)
        return Estimate(
            total,
            sum(use.calls for use in uses.values()),
            sum(use.prompt_tokens for use in uses.values()),
            sum(use.tokens for use in uses.values()),
            uses=dict.fromkeys(uses) if total is None else uses,
        )
