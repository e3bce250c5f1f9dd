"""The answers that an evaluation compares: asked of every model, scored by the reward model, kept in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.chat.messages import question
from cai.clients.base import Client, Finish, Request
from cai.data.journal import Journal, Record
from cai.data.rows import Prompt
from cai.engines.base import RewardScorer
from cai.figures.usage import FlowUsage
from cai.grading.lexical import grade
from cai.identity import sampling_seed
from cai.stages.base import Artifact, Context, chunks
from cai.stages.evaluate.spec import AnswerGrader, EvaluateSpec
from cai.stages.flow.base import Flow, Shared, Turn
from cai.stages.flow.drive import drive
from cai.stages.flow.entries import Entry, StoredEntry
from cai.stages.flow.generation import as_prompt, distinct, rows_of, source_of, writable


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to one prompt; ``reward`` is None without a reward model, ``grade`` empty without a grader."""

    text: str
    tokens: int
    ended: bool
    reward: float | None
    grade: str = ""


Answers = dict[str, dict[str, dict[str, Answer]]]
"""By prompt set, model, row id."""
Pair = tuple[str, str]
"""A rendered prompt and a rendered answer."""


@dataclass
class Used:
    """What all flows of a stage asked of their models: calls and tokens of every entry, and this run's ``usage``."""

    calls: int = 0
    tokens: int = 0
    usage: FlowUsage = FlowUsage()

    def add(self, flow: Flow[Any], entries: Sequence[StoredEntry]) -> None:
        """One flow that has come to its end."""
        self.calls += sum(entry.calls for entry in entries)
        self.tokens += sum(entry.tokens for entry in entries)
        self.usage = self.usage.followed_by(flow.tally.usage())

    def metrics(self) -> dict[str, Any]:
        """For the record, as the stages with one flow have it."""
        return self.usage.to_metrics(cost_last=False)


def artifacts_by_label(ctx: Context, role: str) -> dict[str, Artifact]:
    """The artifacts of a role by label."""
    artifacts = ctx.inputs.get(role, {})
    if not isinstance(artifacts, dict):
        raise TypeError(f"{ctx.name}: input {role!r} is not named")
    return artifacts


def prompt_sets(spec: EvaluateSpec, ctx: Context) -> tuple[dict[str, list[Prompt]], int]:
    """The prompts of every set, and how many were left out because their id comes twice."""
    rows_and_repeats = {
        name: distinct([as_prompt(row) for row in rows_of(artifact)][: spec.limit])
        for name, artifact in artifacts_by_label(ctx, "prompts").items()
    }
    return {name: rows for name, (rows, _) in rows_and_repeats.items()}, sum(n for _, n in rows_and_repeats.values())


@contextmanager
def served(ctx: Context, role: str, label: str = "") -> Iterator[Shared]:
    """A model for several flows; it is served only when something is left for it."""
    with ExitStack() as stack:
        clients: list[Client] = []

        def opened() -> Client:
            if not clients:
                clients.append(stack.enter_context(ctx.client(role, label)))
            return clients[0]

        yield Shared(opened, announce=False)


def answer(spec: EvaluateSpec, ctx: Context, model: str, used: Used) -> dict[str, list[StoredEntry]]:
    """One model's answers to every set, by set."""
    own = ctx.templates.get(model)
    chat, sampling = own or ctx.chat, spec.sampling.sampling(own.stops if own else ctx.stops)

    def work(row: Prompt) -> Turn:
        # The same seed for every model: what differs between their answers is the model.
        seed = sampling_seed(ctx.seed, row.id, "evaluate")
        (completion,) = yield [Request(row.id, chat.prompt(row.messages), sampling, seed, row.messages)]
        ended = completion.finish is Finish.STOP
        facts = {"text": writable(completion.text).strip(), "ended": ended}
        return Entry(row.id, calls=1, tokens=completion.tokens, facts=facts)

    entries_by_set: dict[str, list[StoredEntry]] = {}
    with served(ctx, "models", model) as shared:
        for name, artifact in artifacts_by_label(ctx, "prompts").items():
            source = source_of(artifact, as_prompt, spec.limit)
            journal = f"{model}.{name}"
            with Flow(ctx, "models", source, work, size=spec.chunk, name=journal, label=model, shared=shared) as flow:
                drive(flow)
                entries_by_set[name] = [entry for entry in flow.entries() if not entry.dropped]
                used.add(flow, entries_by_set[name])
    return entries_by_set


def scored(
    spec: EvaluateSpec,
    ctx: Context,
    sets: Mapping[str, list[Prompt]],
    entries_by_model: Mapping[str, Mapping[str, list[StoredEntry]]],
    *,
    scorer: RewardScorer | None,
) -> Answers:
    """What was said with the reward model's opinion, which is journaled too."""
    answers: Answers = {}
    for name, rows in sets.items():
        answers[name] = {}
        for model in spec.models:
            entries = entries_by_model[model][name]
            rewards: Sequence[float | None] = [None] * len(rows)
            if scorer is not None:
                # Whatever the model reads, the reward model reads the experiment's template.
                pairs = [
                    [(ctx.chat.prompt(row.messages), ctx.chat.answer(row.messages, entry.facts["text"]))]
                    for row, entry in zip(rows, entries, strict=True)
                ]
                path = ctx.work / f"rewards.{model}.{name}.jsonl"
                rewards = [row_rewards[0] for row_rewards in rewards_of(pairs, scorer, path, spec.chunk)]
            answers[name][model] = {
                entry.id: Answer(
                    entry.facts["text"],
                    entry.tokens,
                    entry.facts["ended"],
                    reward,
                    _grade(spec, row, entry.facts["text"]),
                )
                for row, entry, reward in zip(rows, entries, rewards, strict=True)
            }
    return answers


def _grade(spec: EvaluateSpec, row: Prompt, text: str) -> str:
    return grade(question(row.messages), text).grade.value if spec.grader is AnswerGrader.LEXICAL else ""


def rewards_of(rows: Sequence[Sequence[Pair]], scorer: RewardScorer, path: Path, size: int) -> list[list[float]]:
    """The rewards of every row's pairs, ``size`` rows at once; what the journal at ``path`` has is not scored again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(Journal(path)) as journal:
        for numbers in chunks(list(range(len(rows))), size):
            if not all(n in journal for n in numbers):
                rewards = iter(scorer.score([pair for n in numbers for pair in rows[n]]))
                journal.append([Record(n, {"rewards": [next(rewards) for _ in rows[n]]}) for n in numbers])
        return [journal[n]["rewards"] for n in range(len(rows))]


def write_answers(ctx: Context, sets: Mapping[str, list[Prompt]], answers: Answers) -> None:
    """Every prompt with what every model answered, a line each, to ``answers.jsonl``."""
    with (ctx.out / "answers.jsonl").open("w", encoding="utf-8") as file:
        for name, rows in sets.items():
            for row in rows:
                answers_by_model = {
                    model: {
                        "text": a.text,
                        "tokens": a.tokens,
                        "ended": a.ended,
                        "reward": a.reward,
                        **({"grade": a.grade} if a.grade else {}),
                    }
                    for model, by_row in answers[name].items()
                    for a in (by_row[row.id],)
                }
                line = {
                    "id": row.id,
                    "set": name,
                    "prompt": question(row.messages),
                    "topic": row.topic,
                    "answers": answers_by_model,
                }
                file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
