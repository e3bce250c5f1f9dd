"""Revise: rounds of critique and revision; every round of every row draws a principle of its own.

Few-shot transcripts precede the critique and the revision only. All that was asked and answered on the way is kept in
the row's ``meta``, so that a person can read why an answer became what it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cai.chat import Message
from cai.chat.messages import question, transcript
from cai.clients.base import Completion, Request
from cai.clients.prompting import Asking
from cai.constitution import Principle
from cai.data.rows import Conversation
from cai.identity import ADDED, RUNTIME, rendezvous_order, sampling_seed
from cai.stages.base import Context, EngineSpec, Estimate, Outcome, Sampled, TextFile, Wants
from cai.stages.flow.entries import Entry
from cai.stages.flow.generation import (
    Thinking,
    Unfinished,
    as_conversation,
    kept_thought,
    settled,
    source_of,
    thought_counts,
    through,
)
from cai.stages.flow.prompting import asking, records
from cai.stages.respond import limited

if TYPE_CHECKING:
    from cai.stages.flow.base import Turn

SHOT_TOKENS, TURN_TOKENS = 100, 170
SHOT_FIELDS = ("prompt", "response", "critique_request", "critique", "revision_request", "revision")


class Failed(str, Enum):
    """What becomes of a row whose round gave nothing usable: dropped and counted, or kept as it was before."""

    DROP = "drop"
    KEEP = "keep"


class ReviseSpec(EngineSpec):
    """``rounds`` of critique and revision of ``responses`` by ``model``.

    ``train_on`` decides what comes out: ``final``, ``all`` revisions, or those ``upto:N``. ``direct`` revises without
    a critique. ``failed`` is about empty, garbled and copied texts, ``unchanged`` about revisions that change nothing.
    """

    MAKES: ClassVar[str] = "revisions"
    USES_TEMPLATE: ClassVar[bool] = True
    PRINCIPLE_FIELDS: ClassVar[tuple[str, ...]] = ("critique", "revision")
    kind: Literal["revise"] = "revise"
    model: Annotated[str, Wants("model")]
    responses: Annotated[str, Wants("responses", "conversations")]
    rounds: Annotated[int, Field(ge=1, le=16)] = 1
    direct: bool = False
    train_on: Annotated[str, Field(pattern=r"^(final|all|upto:[1-9][0-9]*)$")] = "final"
    critique: Annotated[str, TextFile(), Field(description="prompt template of the critique")] = "critique.jinja"
    revision: Annotated[str, TextFile(), Field(description="prompt template of the revision")] = "revision.jinja"
    few_shots: Annotated[str | None, TextFile(), Field(description="worked examples; null for none")] = (
        "few_shots/revision.yaml"
    )
    n_shots: Annotated[int, Field(ge=0, description="how many of the worked examples a row is shown")] = 4
    draw_shots: Annotated[bool, Field(description="draw them for each row; otherwise always the first")] = True
    critique_sampling: Sampled = Sampled()
    revision_sampling: Sampled = Sampled()
    unfinished: Unfinished = Unfinished.TRIM
    thinking: Annotated[Thinking, ADDED(Thinking.KEEP), Field(description="what becomes of a thought: keep, drop")] = (
        Thinking.KEEP
    )
    failed: Failed = Failed.DROP
    unchanged: Failed = Failed.DROP
    markers: Annotated[tuple[str, ...], Field(description="a revision that holds one of these is garbled")] = (
        "Critique request:",
        "Critique:",
        "Revision request:",
        "Revision:",
    )
    limit: Annotated[int | None, Field(ge=1, description="only the first n responses")] = None
    chunk: Annotated[int, Field(ge=1, description="rows asked together; decides the draws")] = 32
    max_drop_rate: Annotated[float, RUNTIME, Field(ge=0, le=1, description="a larger dropped share fails")] = 0.5
    shards: Annotated[int, RUNTIME, Field(ge=1, le=1000, description="processes that share the rows")] = 1

    @model_validator(mode="after")
    def _rounds_exist(self) -> ReviseSpec:
        if self.train_on.startswith("upto:") and self.last > self.rounds:
            raise ValueError(f"train_on is {self.train_on}, but there are only {self.rounds} rounds")
        return self

    @property
    def last(self) -> int:
        """The last round whose revision comes out."""
        return int(self.train_on.partition(":")[2]) if self.train_on.startswith("upto:") else self.rounds

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """A critique and a revision for every row and round."""
        n = limited(rows.get("responses"), self.limit)
        turns = (n or 0) * self.rounds
        shots = self.n_shots * SHOT_TOKENS if self.few_shots else 0
        prompt = turns * (1 if self.direct else 2) * (shots + TURN_TOKENS)
        round_tokens = self.revision_sampling.max_tokens + (0 if self.direct else self.critique_sampling.max_tokens)
        out = None if n is None else n if self.train_on == "final" else n * self.last
        return Estimate(out, turns * (1 if self.direct else 2), prompt, turns * round_tokens)


@dataclass
class _Chain:
    """One row on its way through the rounds."""

    row: Conversation
    text: str
    thinking: str = ""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    revisions: list[tuple[int, Message]] = field(default_factory=list)
    ended: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    tokens: int = 0

    def took(self, completion: Completion) -> None:
        self.calls += 1
        self.tokens += completion.tokens
        self.counts.update(thought_counts([completion]))

    def fail(self, reason: str, failed: Failed) -> None:
        """End the chain, or go on with the text as it is."""
        if failed is Failed.DROP:
            self.ended = reason
        else:
            self.counts[f"kept: {reason}"] += 1


@dataclass(frozen=True, slots=True)
class _RoundPrompt:
    """How a critique or a revision is asked for; ``copies`` are those of the worked examples, which it must not be."""

    part: str
    asking: Asking
    sampling: Sampled
    copies: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Round:
    """A row's round: its number (from 1), the principle drawn for it, and what its templates are filled with."""

    number: int
    principle: Principle
    variables: dict[str, Any]


def run(spec: ReviseSpec, ctx: Context) -> Outcome:
    """Take every row through its rounds."""
    shots = records(ctx, "few_shots", "shots", SHOT_FIELDS) if spec.few_shots else []
    critique = _prompt_of("critique", asking(ctx, "critique"), spec.critique_sampling, shots)
    revision = _prompt_of("revision", asking(ctx, "revision"), spec.revision_sampling, shots)

    def work(row: Conversation) -> Turn:
        chain = _Chain(row, row.answer)
        for number in range(1, spec.rounds + 1):
            principle = ctx.principles.draw(ctx.seed, row.id, f"revise/{number}")
            round_shots = shots_of_round(spec, shots, seed=ctx.seed, row=row.id, number=number)
            this_round = _Round(number, principle, _variables(chain, principle, round_shots))
            if not spec.direct:
                completion = yield [_request(ctx, critique, chain, this_round)]
                this_round.variables["critique"] = _criticised(spec, chain, completion[0], critique.copies)
                if chain.ended:
                    break
            completion = yield [_request(ctx, revision, chain, this_round)]
            _revised(spec, chain, completion[0], this_round=this_round, copies=revision.copies)
            if chain.ended:
                break
        return _entry(spec, chain)

    round_tokens = spec.revision_sampling.max_tokens + (0 if spec.direct else spec.critique_sampling.max_tokens)
    source = source_of(ctx.input("responses"), as_conversation, spec.limit)
    return through(ctx, source, work, spec, tokens=len(source) * spec.rounds * round_tokens)


def _prompt_of(part: str, ask: Asking, sampling: Sampled, shots: Sequence[Mapping[str, str]]) -> _RoundPrompt:
    return _RoundPrompt(part, ask, sampling, frozenset(_plain(shot[part]) for shot in shots))


def shots_of_round(
    spec: ReviseSpec, shots: list[dict[str, str]], *, seed: int, row: str, number: int
) -> list[dict[str, str]]:
    """The worked examples of one row and round: drawn without replacement, or the first ones."""
    if not spec.draw_shots:
        return shots[: spec.n_shots]
    # A shot is drawn by what it asks, so that adding one to the file moves few rows.
    order = rendezvous_order(seed, row, f"revise/{number}/shots", [(shot["prompt"], 1.0) for shot in shots])
    shots_by_prompt = {shot["prompt"]: shot for shot in shots}
    return [shots_by_prompt[name] for name in order[: spec.n_shots]]


def _variables(chain: _Chain, principle: Principle, shots: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "shots": shots,
        "messages": transcript((*chain.row.prompt, Message("assistant", chain.text))),
        "prompt": question(chain.row.prompt) if chain.row.prompt else "",
        "critique_request": principle.critique,
        "revision_request": principle.revision,
        "critique": "",
    }


def _request(ctx: Context, prompt: _RoundPrompt, chain: _Chain, this_round: _Round) -> Request:
    seed = sampling_seed(ctx.seed, chain.row.id, f"revise/{this_round.number}/{prompt.part}")
    sampling = prompt.sampling.sampling(prompt.asking.stops)
    return prompt.asking.request(chain.row.id, sampling, seed, **this_round.variables)


def _criticised(spec: ReviseSpec, chain: _Chain, completion: Completion, copies: frozenset[str]) -> str:
    """Take a critique up and return it; an unusable one ends the row, or counts as empty."""
    chain.took(completion)
    text, reason = settled(completion, spec.unfinished)
    reason = reason or _fault(spec, text, copies)
    if reason:
        chain.fail(f"critique: {reason}", spec.failed)
    return "" if reason else text


def _revised(
    spec: ReviseSpec, chain: _Chain, completion: Completion, *, this_round: _Round, copies: frozenset[str]
) -> None:
    """Take a revision up; an unusable one ends the row, or leaves its text as it was."""
    chain.took(completion)
    text, reason = settled(completion, spec.unfinished)
    reason = reason or _fault(spec, text, copies)
    record = {
        "round": this_round.number,
        "principle": this_round.principle.id,
        "critique": this_round.variables["critique"],
    }
    if reason:
        chain.fail(f"revision: {reason}", spec.failed)
        chain.rounds.append({**record, "revision": chain.text, "failed": reason})
    else:
        if _plain(text) == _plain(chain.row.answer):
            chain.fail("revision: unchanged", spec.unchanged)
        chain.text = text
        chain.thinking = kept_thought(completion, spec.thinking)
        chain.rounds.append({**record, "revision": text})
    if not chain.ended:
        chain.revisions.append((this_round.number, Message("assistant", chain.text, chain.thinking)))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _fault(spec: ReviseSpec, text: str, originals: frozenset[str]) -> str:
    """Why a critique or revision is unusable, empty when it is not.

    Small models run on into the next request, say a sentence twice, or repeat a worked example (here: give or take a
    word in ten).
    """
    if any(marker in text for marker in spec.markers):
        return "garbled"
    sentences = [_plain(s) for s in re.split(r"(?<=[.!?])\s+", text) if len(s.split()) > 3]
    if len(set(sentences)) < len(sentences):
        return "repeats itself"
    words = _plain(text).split()
    if any(SequenceMatcher(None, words, original.split(), autojunk=False).ratio() >= 0.9 for original in originals):
        return "copied from the few-shots"
    return ""


def _entry(spec: ReviseSpec, chain: _Chain) -> Entry:
    """The revisions that ``train_on`` asks for; those a failed chain did not reach count as dropped."""
    row = chain.row
    round_numbers = [spec.rounds] if spec.train_on == "final" else list(range(1, spec.last + 1))
    revisions = dict(chain.revisions)
    rows = []
    for number in round_numbers:
        if number in revisions:
            meta = {**row.meta, "response": row.answer, "rounds": chain.rounds[:number]}
            name = row.id if spec.train_on == "final" else f"{row.id}/{number}"
            rows.append(Conversation(name, (*row.prompt, revisions[number]), row.topic, meta))
    missing = len(round_numbers) - len(rows)
    dropped = {chain.ended: missing} if missing else {}
    return Entry(row.id, tuple(rows), dropped, dict(chain.counts), chain.calls, chain.tokens)
