"""The rows that people look at: every answer with its rewards, every critique and revision, every judgement.

Artifacts are read twice as streams. The first pass counts, and decides which rows are taken where there are more than
the page shall hold; the second writes them, packed, a thousand at a time. So memory does not grow with the rows.

Which rows are taken is a function of the prompt's id alone: the same prompts are taken from every stage and in every
run, and small stages are taken whole.
"""

from __future__ import annotations

import base64
import gzip
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai.constitution.model import TEXTS
from cai.engines.methods import METHODS
from cai.identity import uniform
from cai.plan import Step
from cai.report.exchange import SamplePart, exchange, thought_parts
from cai.report.model import SampleIndex
from cai.report.runs import Run, json_lines

LIMIT = 50_000
CHUNK = 1_000
PURPOSE = "report"
LONGEST = 20_000
"""Characters of one text in the page; what is cut is said there."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A row as the browser shows it. ``principles`` are all that it is about, ``draws`` those drawn for it."""

    id: str
    prompt: str
    parts: tuple[SamplePart, ...]
    topic: str = ""
    earlier: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    principles: tuple[str, ...] = ()
    draws: tuple[str, ...] = ()


Reader = Callable[[Mapping[str, Any]], SampleRow]


@dataclass(slots=True)
class SampleSource:
    """One artifact's rows, shared by all runs that use it; what the first pass learns of them."""

    label: str
    path: Path
    parse_row: Reader
    requests: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    order: array[float] = field(default_factory=lambda: array("d"))
    drawn: Counter[str] = field(default_factory=Counter)
    bound: float = 1.0
    broken: int = 0

    def samples(self) -> Iterator[SampleRow]:
        """Every row; what is not a row of this kind is left out and counted."""
        self.broken = 0
        for row in json_lines(self.path):
            try:
                yield self.parse_row(row)
            except (KeyError, TypeError, IndexError, AttributeError, ValueError):
                self.broken += 1


@dataclass(slots=True)
class SampleSurvey:
    """What the first pass found: the lists that the page chooses from, and the sources with what is taken of them."""

    index: SampleIndex
    sources: tuple[SampleSource, ...]

    @property
    def drawn(self) -> dict[str, dict[str, int]]:
        """How often each principle was drawn, by source that draws."""
        return {s.label: dict(s.drawn) for s in self.sources if s.drawn}


def survey(runs: Sequence[Run], limit: int = LIMIT) -> SampleSurvey:
    """Read all rows once."""
    sources = sources_of(runs)
    topics: dict[str, None] = {}
    principles: dict[str, None] = {}
    scores: dict[str, None] = {}
    for source in sources:
        for sample in source.samples():
            source.order.append(place_of(sample.id))
            topics.setdefault(sample.topic)
            scores.update(dict.fromkeys(sample.scores))
            source.drawn.update(sample.draws)
            principles.update(dict.fromkeys(sample.principles))
    there = sum(len(source.order) for source in sources)
    included = 0
    for source, quota in zip(sources, quotas([len(s.order) for s in sources], limit), strict=True):
        if quota < len(source.order):
            source.bound = sorted(source.order)[quota - 1] if quota else -1.0
        included += sum(place <= source.bound for place in source.order) if quota < len(source.order) else quota
        source.order = array("d")
    notes = []
    if included < there:
        notes.append(
            f"{included:,} of {there:,} rows are in this file, the same prompts of every stage, chosen by a hash of "
            f"their id; --rows N takes more."
        )
    notes += [f"{s.broken:,} lines of {s.label} could not be read." for s in sources if s.broken]
    index = SampleIndex(
        tuple(s.label for s in sources),
        tuple(topics),
        tuple(principles),
        tuple(scores),
        included,
        there,
        tuple(notes),
        tuple(s.requests for s in sources),
    )
    return SampleSurvey(index, tuple(sources))


def place_of(id: str) -> float:
    """Where a row stands in the order of choice: by the id of its prompt, so that stages choose the same ones."""
    return uniform(0, id.partition("/")[0], PURPOSE)


def quotas(sizes: Sequence[int], limit: int) -> list[int]:
    """How many rows each source may give: small ones all, the others the same number, together ``limit``."""
    remaining, granted = limit, [0] * len(sizes)
    for served, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        granted[i] = min(sizes[i], remaining // (len(sizes) - served))
        remaining -= granted[i]
    return granted


def packed(sample_survey: SampleSurvey) -> Iterator[str]:
    """The rows that are taken, as base64 of gzipped JSON lists of at most ``CHUNK`` rows."""
    index = sample_survey.index
    topics, principles, scores = (
        {v: i for i, v in enumerate(x)} for x in (index.topics, index.principles, index.scores)
    )
    waiting: list[list[Any]] = []
    for number, source in enumerate(sample_survey.sources):
        for sample in source.samples():
            if source.bound < 1.0 and place_of(sample.id) > source.bound:
                continue
            values = [v for name, value in sample.scores.items() for v in (scores[name], round(value, 4))]
            parts = [_part(part, principles) for part in sample.parts]
            principle_indices = [principles[name] for name in sample.principles]
            head = [number, sample.id, topics[sample.topic], principle_indices, values]
            waiting.append([*head, _cut(sample.prompt), _cut(sample.earlier), parts])
            if len(waiting) == CHUNK:
                yield _pack(waiting)
                waiting = []
    if waiting:
        yield _pack(waiting)


def _part(part: SamplePart, principles: Mapping[str, int]) -> list[Any]:
    principle = principles[part.principle] if part.principle else -1
    texts = [part.label, _cut(part.text), part.note, principle, part.against, part.share]
    return [*texts, part.kind] if part.kind else texts


def _pack(rows: list[list[Any]]) -> str:
    # ASCII: a lone surrogate has no UTF-8, but an escape.
    text = json.dumps(rows, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [... {len(text) - LONGEST:,} characters more]"


def sources_of(runs: Sequence[Run]) -> list[SampleSource]:
    """The artifacts with rows to look at, evaluations first; one that several runs share is there once."""
    artifacts: dict[tuple[str, str], tuple[list[str], Path, Reader, Mapping[str, Mapping[str, str]]]] = {}
    for kind, (name, parse_row) in READERS.items():
        for run in runs:
            for step, artifact in run.finished.steps(kind):
                if (artifact.path / name).is_file():
                    texts = requests_of(step)
                    users = artifacts.setdefault((kind, step.key), ([], artifact.path / name, parse_row, texts))[0]
                    users.append(f"{run.label}: {step.name}" if len(runs) > 1 else step.name)
    return [SampleSource(_label(users), path, parse_row, texts) for users, path, parse_row, texts in artifacts.values()]


def requests_of(step: Step) -> dict[str, dict[str, str]]:
    """What the principles of a step's constitution ask for, by id."""
    principles = (step.resources.get("constitution") or {}).get("principles", ())
    return {str(p["id"]): {k: str(p[k]) for k in TEXTS if p.get(k)} for p in principles}


def _label(users: Sequence[str]) -> str:
    return users[0] if len(users) == 1 else f"{users[0]} (and {len(users) - 1} more)"


def _evaluated(row: Mapping[str, Any]) -> SampleRow:
    answers: Mapping[str, Any] = row["answers"]
    rewards = {m: float(a["reward"]) for m, a in answers.items() if isinstance(a.get("reward"), int | float)}
    parts: list[SamplePart] = []
    for model, answer in answers.items():
        note = ", ".join(
            [f"reward {rewards[model]:.2f}"] * (model in rewards)
            + [f"{answer['tokens']} tokens"] * ("tokens" in answer)
            + ["cut at the limit"] * (answer.get("ended") is False)
        )
        parts += [*thought_parts(answer, model), SamplePart(model, str(answer["text"]), note)]
    scores = {f"reward of {m}": value for m, value in rewards.items()}
    first, last = next(iter(answers), ""), next(reversed(list(answers)), "")
    if first != last and first in rewards and last in rewards:
        scores[f"change of reward, {first} to {last}"] = rewards[last] - rewards[first]
    topic = " / ".join(filter(None, (str(row.get("set", "")), str(row.get("topic", "")))))
    return SampleRow(str(row["id"]), str(row["prompt"]), tuple(parts), topic, scores=scores)


def _revised(row: Mapping[str, Any]) -> SampleRow:
    meta = row["meta"]
    asked = exchange(row["messages"][:-1])
    parts = [*asked.parts, SamplePart("first answer", str(meta["response"]))]
    before = len(asked.parts)
    for turn in meta["rounds"]:
        principle = str(turn.get("principle", ""))
        if turn.get("critique"):
            parts.append(SamplePart("critique", str(turn["critique"]), f"round {turn['round']}", principle))
        parts.append(SamplePart("revision", str(turn["revision"]), f"round {turn['round']}", principle, before))
        before = len(parts) - 1
    parts += thought_parts(row["messages"][-1], "the last revision")
    drawn = [part.principle for part in parts if part.label == "revision"]
    # Where every round comes out, a row repeats the rounds of the rows before it.
    own = drawn[-1:] if "/" in str(row["id"]) else drawn
    principles = tuple(dict.fromkeys(filter(None, drawn)))
    topic = str(row.get("topic", ""))
    return SampleRow(
        str(row["id"]), asked.prompt, tuple(parts), topic, asked.earlier, {}, principles, tuple(filter(None, own))
    )


def _judged(row: Mapping[str, Any]) -> SampleRow:
    p = float(row["p_chosen"])
    meta = row.get("meta", {})
    principles = tuple(str(name) for name in meta.get("principles", []))
    notes = [f"p {p:.2f}"]
    if isinstance(meta.get("judged"), int | float) and abs(meta["judged"] - p) > 5e-7:
        notes.append(f"judged {meta['judged']:.2f} before ties and clamps")
    if isinstance(meta.get("human"), int | float):
        notes.append(f"people {meta['human']:.2f}")
    note = ", ".join(notes)
    asked = exchange(row["messages"])
    parts = (
        *asked.parts,
        SamplePart("preferred", str(row["chosen"]), note, share=p),
        SamplePart("other", str(row["rejected"]), f"p {1 - p:.2f}", share=1 - p),
    )
    scores = {"p of the preferred": p}
    topic = str(row.get("topic", ""))
    return SampleRow(str(row["id"]), asked.prompt, parts, topic, asked.earlier, scores, principles, principles)


def _sampled(row: Mapping[str, Any]) -> SampleRow:
    asked = exchange(row["messages"])
    answers = tuple(SamplePart(f"answer {n}", str(text)) for n, text in enumerate(row["answers"], 1))
    topic = str(row.get("topic", ""))
    return SampleRow(str(row["id"]), asked.prompt, (*asked.parts, *answers), topic, asked.earlier)


def _responded(row: Mapping[str, Any]) -> SampleRow:
    whole = exchange(row["messages"])
    if not whole.parts:
        raise ValueError("nothing answers the last question")
    return SampleRow(str(row["id"]), whole.prompt, whole.parts, str(row.get("topic", "")), whole.earlier)


def _rolled(row: Mapping[str, Any]) -> SampleRow:
    reward = float(row["reward"])
    part = SamplePart("answer", str(row["answer"]), f"reward {reward:.2f}, iteration {row['iteration']}")
    parts = (*thought_parts(row, "the answer"), part)
    return SampleRow(
        f"{row['id']}/{row['iteration']}",
        str(row["prompt"]),
        parts,
        f"iteration {row['iteration']}",
        scores={"reward while training": reward},
    )


READERS: dict[str, tuple[str, Reader]] = {
    "evaluate": ("answers.jsonl", _evaluated),
    "revise": ("rows.jsonl", _revised),
    "judge": ("rows.jsonl", _judged),
    **{method.stage: ("samples.jsonl", _rolled) for method in METHODS.values() if method.samples},
    "sample": ("rows.jsonl", _sampled),
    "respond": ("rows.jsonl", _responded),
}
"""Which file of a kind of step has rows to look at, and how one is read; in the order of the page."""
