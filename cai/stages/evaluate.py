"""Evaluate: what the training changed, with intervals, on prompts and pairs that no stage has trained on.

The reward model's opinion is one figure among several: beside it stand its accuracy on held-out and independent
pairs, lengths, variety, refusals, and a list of caveats computed from those figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cai.clients.base import Client, Finish, Request
from cai.data.journal import Journal, Record
from cai.data.rows import Comparison, Prompt
from cai.engines.base import RewardScorer
from cai.identity import sampling_seed, uniform
from cai.stages import statistics
from cai.stages.answers import refuses
from cai.stages.base import Artifact, Context, Estimate, Ledger, Outcome, Sampled, StageSpec, Wants, chunks
from cai.stages.caveats import caveats
from cai.stages.entries import Entry, Kept
from cai.stages.flow import Flow, Shared, Turn
from cai.stages.generation import PROMPT_TOKENS, as_prompt, distinct, rows_of, source_of, writable, write_json


class EvaluateSpec(StageSpec):
    """Compare ``models`` (in order: before first) on sets of ``prompts``; check ``reward`` on sets of ``comparisons``.

    ``benign`` names the prompt sets on which a refusal is a fault. ``examples`` answers are shown for every set, drawn
    by chance and not picked.
    """

    MAKES: ClassVar[str] = "evaluation"
    USES_TEMPLATE: ClassVar[bool] = True
    USES_ENGINE: ClassVar[bool] = True
    kind: Literal["evaluate"] = "evaluate"
    models: Annotated[dict[str, str], Wants("model"), Field(min_length=1)]
    reward: Annotated[str | None, Wants("reward_model")] = None
    prompts: Annotated[dict[str, str], Wants("prompts", "conversations", "comparisons"), Field(min_length=1)]
    comparisons: Annotated[dict[str, str], Wants("comparisons")] = Field(default_factory=dict)
    benign: tuple[str, ...] = ()
    sampling: Sampled = Sampled(max_tokens=96, temperature=0.0)
    limit: Annotated[int | None, Field(ge=1, description="only the first n prompts of each set")] = None
    examples: Annotated[int, Field(ge=0, description="prompts of each set whose answers are shown")] = 3
    chunk: Annotated[int, Field(ge=1, description="prompts asked together; decides the draws")] = 32

    @model_validator(mode="after")
    def _names_exist(self) -> EvaluateSpec:
        unknown = [name for name in self.benign if name not in self.prompts]
        if unknown:
            raise ValueError(
                f"benign names {unknown[0]!r}, which is no prompt set; there are {', '.join(self.prompts)}"
            )
        if self.comparisons and self.reward is None:
            raise ValueError("comparisons are what the reward model is checked on: give reward as well")
        return self

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Every model answers every prompt."""
        sets = [rows.get(f"prompts.{name}") for name in self.prompts]
        known = [min(n, self.limit or n) for n in sets if n is not None]
        calls = sum(known) * len(self.models)
        total = sum(known) if len(known) == len(sets) else None
        return Estimate(total, calls, calls * PROMPT_TOKENS, calls * self.sampling.max_tokens)


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to one prompt; ``reward`` is None without a reward model."""

    text: str
    tokens: int
    ended: bool
    reward: float | None


Answers = dict[str, dict[str, dict[str, Answer]]]
"""By prompt set, model, row id."""


def run(spec: EvaluateSpec, ctx: Context) -> Outcome:
    """Answer, score, compare; writes ``evaluation.json`` and every answer to ``answers.jsonl``."""
    sets, repeated = _sets(spec, ctx)
    total = sum(map(len, sets.values()))
    ctx.progress.expect(rows=total * len(spec.models), tokens=total * len(spec.models) * spec.sampling.max_tokens)
    said = {model: _answer(spec, ctx, model) for model in spec.models}
    with ExitStack() as stack:
        scorer: RewardScorer | None = None
        if spec.reward is not None:
            scorer = ctx.engine.reward_scorer(ctx.one("reward").path)
            stack.callback(scorer.close)
        answers = _answers(spec, ctx, sets, said, scorer)
        reward_model = _accuracy(spec, ctx, scorer) if scorer is not None else {}
    report: dict[str, Any] = {
        "models": list(spec.models),
        "sets": {name: _set_report(spec, ctx.seed, name, rows, answers[name]) for name, rows in sets.items()},
        "reward_model": reward_model,
        "examples": _examples(spec, ctx.seed, sets, answers),
    }
    report["caveats"] = caveats(report)
    write_json(ctx.out / "evaluation.json", report)
    _write_answers(ctx, sets, answers)
    tokens = sum(a.tokens for models in answers.values() for rows in models.values() for a in rows.values())
    ledger = Ledger(
        total + repeated, total, {"repeated id": repeated} if repeated else {}, {n: len(r) for n, r in sets.items()}
    )
    return Outcome(ledger, _headline(report), total * len(spec.models), tokens)


def _artifacts(ctx: Context, role: str) -> dict[str, Artifact]:
    found = ctx.inputs.get(role, {})
    if not isinstance(found, dict):
        raise TypeError(f"{ctx.name}: input {role!r} is not named")
    return found


def _sets(spec: EvaluateSpec, ctx: Context) -> tuple[dict[str, list[Prompt]], int]:
    found = {
        name: distinct([as_prompt(row) for row in rows_of(artifact)][: spec.limit])
        for name, artifact in _artifacts(ctx, "prompts").items()
    }
    return {name: rows for name, (rows, _) in found.items()}, sum(n for _, n in found.values())


def _answer(spec: EvaluateSpec, ctx: Context, model: str) -> dict[str, list[Kept]]:
    """One model's answers to every set, by set; it is served only when something is left for it."""
    own = ctx.templates.get(model)
    chat, sampling = own or ctx.chat, spec.sampling.sampling(own.stops if own else ctx.stops)

    def work(row: Prompt) -> Turn:
        # The same seed for every model: what differs between their answers is the model.
        seed = sampling_seed(ctx.seed, row.id, "evaluate")
        (found,) = yield [Request(row.id, chat.prompt(row.messages), sampling, seed, row.messages)]
        ended = found.finish is Finish.STOP
        facts = {"text": writable(found.text).strip(), "ended": ended}
        return Entry(row.id, calls=1, tokens=found.tokens, facts=facts)

    said: dict[str, list[Kept]] = {}
    with ExitStack() as stack:
        clients: list[Client] = []

        def opened() -> Client:
            if not clients:
                clients.append(stack.enter_context(ctx.client("models", model)))
            return clients[0]

        for name, artifact in _artifacts(ctx, "prompts").items():
            source = source_of(artifact, as_prompt, spec.limit)
            journal = f"{model}.{name}"
            shared = Shared(opened, announce=False)
            with Flow(ctx, "models", source, work, size=spec.chunk, name=journal, label=model, shared=shared) as flow:
                flow.run()
                said[name] = [entry for entry in flow.entries() if not entry.dropped]
    return said


def _answers(
    spec: EvaluateSpec,
    ctx: Context,
    sets: Mapping[str, list[Prompt]],
    said: Mapping[str, Mapping[str, list[Kept]]],
    scorer: RewardScorer | None,
) -> Answers:
    """What was said with the reward model's opinion, which is journaled too."""
    answers: Answers = {}
    for name, rows in sets.items():
        answers[name] = {}
        for model in spec.models:
            entries = said[model][name]
            rewards: Sequence[float | None] = [None] * len(rows)
            if scorer is not None:
                texts = [entry.facts["text"] for entry in entries]
                with closing(Journal(ctx.work / f"rewards.{model}.{name}.jsonl")) as journal:
                    rewards = _rewards(spec, ctx, rows, texts, scorer, journal)
            answers[name][model] = {
                entry.id: Answer(entry.facts["text"], entry.tokens, entry.facts["ended"], reward)
                for entry, reward in zip(entries, rewards, strict=True)
            }
    return answers


def _rewards(
    spec: EvaluateSpec, ctx: Context, rows: list[Prompt], texts: list[str], scorer: RewardScorer, journal: Journal
) -> list[float]:
    # Whatever the model reads, the reward model reads the experiment's template.
    for numbers in chunks(list(range(len(rows))), spec.chunk):
        if not all(n in journal for n in numbers):
            pairs = [(ctx.chat.prompt(rows[n].messages), ctx.chat.answer(rows[n].messages, texts[n])) for n in numbers]
            found = scorer.score(pairs)
            journal.append([Record(n, {"reward": reward}) for n, reward in zip(numbers, found, strict=True)])
    return [journal[n]["reward"] for n in range(len(rows))]


def _set_report(
    spec: EvaluateSpec, seed: int, name: str, rows: list[Prompt], answers: Mapping[str, Mapping[str, Answer]]
) -> dict[str, Any]:
    models = {model: _model_report(seed, rows, found) for model, found in answers.items()}
    scored = spec.reward is not None and bool(rows)
    return {
        "rows": len(rows),
        "benign": name in spec.benign,
        "models": models,
        "wins": _wins(list(spec.models), rows, answers) if scored else [],
    }


def _model_report(seed: int, rows: list[Prompt], found: Mapping[str, Answer]) -> dict[str, Any]:
    answers = [found[row.id] for row in rows]
    rewards = [a.reward for a in answers if a.reward is not None]
    texts = [a.text for a in answers]
    topics: dict[str, list[float]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        if answer.reward is not None and row.topic:
            topics[row.topic].append(answer.reward)
    return {
        "reward": statistics.mean(rewards, seed) if rewards else None,
        "reward_by_topic": {topic: statistics.mean(values, seed) for topic, values in sorted(topics.items())},
        "tokens": statistics.mean([float(a.tokens) for a in answers], seed),
        "characters": statistics.mean([float(len(text)) for text in texts], seed),
        "distinct_2": statistics.distinct_n(texts),
        "different_answers": len(set(texts)) / len(texts) if texts else None,
        "empty": sum(not text for text in texts),
        "refusals": statistics.share(sum(map(refuses, texts)), len(texts)),
        "ended": statistics.share(sum(a.ended for a in answers), len(answers)),
        "reward_length_correlation": statistics.correlation(rewards, [float(a.tokens) for a in answers])
        if len(rewards) == len(answers)
        else None,
    }


def _wins(models: list[str], rows: list[Prompt], answers: Mapping[str, Mapping[str, Answer]]) -> list[dict[str, Any]]:
    """Each model against the one before it, and the last against the first, on the same prompts."""
    wanted = list(pairwise(models))
    if len(models) > 2:
        wanted.append((models[0], models[-1]))

    def rewards(model: str) -> list[float]:
        return [r for row in rows if (r := answers[model][row.id].reward) is not None]

    return [{"model": b, "against": a, **statistics.wins(rewards(b), rewards(a))} for a, b in wanted]


def _accuracy(spec: EvaluateSpec, ctx: Context, scorer: RewardScorer) -> dict[str, Any]:
    """How often the reward model prefers the better answer of a pair; ties in the labels do not count."""
    found = {}
    for name, artifact in _artifacts(ctx, "comparisons").items():
        rows, _ = distinct([row for row in _held_out(artifact) if isinstance(row, Comparison)])
        rows = [row for row in rows if row.p_chosen != 0.5]
        better, margins = [], []
        for chunk in chunks(rows, spec.chunk):
            prompts = [ctx.chat.prompt(row.messages) for row in chunk]
            pairs = zip(prompts, chunk, strict=True)
            asked = [(p, ctx.chat.answer(r.messages, text)) for p, r in pairs for text in (r.chosen, r.rejected)]
            rewards = scorer.score(asked)
            for row, chosen, rejected in zip(chunk, rewards[::2], rewards[1::2], strict=True):
                margin = (chosen - rejected) if row.p_chosen > 0.5 else (rejected - chosen)
                margins.append(margin)
                better.append(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0)
        longer = [_longer(row) for row in rows]
        found[name] = {
            "accuracy": statistics.share(sum(better), len(better)),
            "margin": statistics.mean(margins, ctx.seed),
            "longer_is_better": statistics.share(sum(longer), len(longer)),
            "by_topic": _grouped(rows, better, lambda row: row.topic),
            "by_kind": _grouped(rows, better, lambda row: str(row.meta.get("kind", ""))),
        }
    return found


def _held_out(artifact: Artifact) -> Iterable[Any]:
    """A mix is checked on its validation part, anything else on all its rows."""
    return rows_of(artifact, "val") if (artifact.path / "val.jsonl").exists() else rows_of(artifact)


def _longer(row: Comparison) -> float:
    good, bad = (row.chosen, row.rejected) if row.p_chosen > 0.5 else (row.rejected, row.chosen)
    return 1.0 if len(good) > len(bad) else 0.5 if len(good) == len(bad) else 0.0


def _grouped(rows: list[Comparison], better: list[float], group: Callable[[Comparison], str]) -> dict[str, Any]:
    groups: dict[str, list[float]] = defaultdict(list)
    for row, value in zip(rows, better, strict=True):
        if group(row):
            groups[group(row)].append(value)
    return {name: statistics.share(sum(values), len(values)) for name, values in sorted(groups.items())}


def _examples(
    spec: EvaluateSpec, seed: int, sets: Mapping[str, list[Prompt]], answers: Answers
) -> list[dict[str, Any]]:
    """The same prompts for every model and every run with this seed: drawn by chance, never picked."""
    shown = []
    for name, rows in sets.items():
        for row in sorted(rows, key=lambda row: (uniform(seed, row.id, "evaluate/examples"), row.id))[: spec.examples]:
            mine = {model: answers[name][model][row.id] for model in spec.models}
            shown.append(
                {
                    "set": name,
                    "id": row.id,
                    "topic": row.topic,
                    "prompt": row.messages[-1].content,
                    "answers": {model: a.text for model, a in mine.items()},
                    "rewards": {model: a.reward for model, a in mine.items()},
                }
            )
    return shown


def _write_answers(ctx: Context, sets: Mapping[str, list[Prompt]], answers: Answers) -> None:
    import json

    with (ctx.out / "answers.jsonl").open("w", encoding="utf-8") as file:
        for name, rows in sets.items():
            for row in rows:
                said = {
                    model: {"text": a.text, "tokens": a.tokens, "ended": a.ended, "reward": a.reward}
                    for model, found in answers[name].items()
                    for a in (found[row.id],)
                }
                line = {
                    "id": row.id,
                    "set": name,
                    "prompt": row.messages[-1].content,
                    "topic": row.topic,
                    "answers": said,
                }
                file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def _headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """The few figures that the record and the run's list show."""
    figures: dict[str, Any] = {}
    for name, found in report["sets"].items():
        for model, values in found["models"].items():
            if values["reward"] is not None:
                figures[f"reward/{name}/{model}"] = values["reward"]["value"]
    for name, found in report["reward_model"].items():
        figures[f"accuracy/{name}"] = found["accuracy"]["value"]
    return figures
