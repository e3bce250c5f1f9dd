"""Two prompts of every stage as its model would read them, before anything runs.

Each stage does its own work on the first rows, in a folder that is thrown away, with a stand-in for every model that
notes what it is asked. So what is shown is what the stage renders, and no second way of rendering it. What an earlier
step would have written, and data that is not here yet, is a marked placeholder: ``⟨answer 1 of respond⟩``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cai.chat import ChatTemplate, Message
from cai.clients.base import Completion, Finish, OptionScores, OptionsRequest, Request, Score, ScoreRequest
from cai.constitution import Constitution
from cai.data.preview import first_rows
from cai.data.rows import ROW_TYPES, Candidates, Comparison, Conversation, Prompt, Row, read_rows, write_rows
from cai.engines.base import Attempt, ModelSource, Progress, Trained
from cai.engines.methods.base import Method, PairText, PromptText, TrainText
from cai.engines.methods.ppo import PpoData
from cai.errors import CaiError, SpecError
from cai.files.library import Library
from cai.plan import Plan, Step, by_role
from cai.planning.pilot import LIMITS, is_api
from cai.run.watch import Silent
from cai.stages import KINDS
from cai.stages.base import IS_A, Artifact, Context
from cai.stages.flow.entries import ROWS
from cai.stages.flow.generation import as_prompt, part

SHOWN = 2
"""Prompts of each stage, and rows that it is given."""
MOST_SHOWN = 4_000
"""Characters of a prompt that are kept."""
LEARNT = ("⟪", "⟫")
"""What stands around the part of a text that is learnt."""


@dataclass(frozen=True, slots=True)
class PromptExample:
    """A prompt of a step as ``model`` reads it; one that is longer than ``text`` has ``characters`` in all.

    ``messages``: the model's server is given turns, and renders them itself.
    """

    model: str
    text: str
    characters: int
    messages: bool = False


@dataclass(frozen=True)
class StepExamples:
    """The examples of a step; ``problem`` says why there are none, or no more."""

    step: str
    kind: str
    prompts: tuple[PromptExample, ...]
    problem: str = ""


def plan_examples(plan: Plan, library: Library) -> tuple[StepExamples, ...]:
    """Examples of every step that asks a model or trains one, in the order of the plan. Nothing of it is kept."""
    shown: list[StepExamples] = []
    with TemporaryDirectory(prefix="cai-examples-", ignore_cleanup_errors=True) as folder:
        bench = _Bench(plan, library, Path(folder))
        for step in plan.steps:
            if step.kind == "read":
                bench.keep(step, _rows_read(step, library))
            elif step.kind == "mix":
                bench.keep(step, bench.first_rows(step, "sources"))
            elif step.kind == "decontaminate":
                bench.keep(step, bench.first_rows(step, "data"))
            elif step.kind in ("fetch", "snapshot"):
                bench.keep(step, ())
            else:
                shown.append(bench.work(step))
    return tuple(shown)


def _rows_read(step: Step, library: Library) -> Sequence[Row]:
    """The first rows of a part, where its files are here; else rows that say what will stand there."""
    spec = KINDS["read"].spec.model_validate(step.spec)
    source, part_name = getattr(spec, "source"), step.spec["part"]  # noqa: B009 - a field of this kind alone
    placed = source.model_copy(update={"path": tuple(map(library.placed, source.paths))})
    with suppress(SpecError):
        if rows := first_rows(placed, library.data_roots()).get(part_name):
            return rows
    return _stand_ins(step.makes, [_prompt(f"⟨prompt {n} of {step.name}⟩", n) for n in range(1, SHOWN + 1)], step.name)


def _prompt(text: str, number: int) -> Prompt:
    return Prompt(f"example-{number}", (Message("user", text),))


def _stand_ins(makes: str, prompts: Sequence[Prompt], step: str) -> list[Row]:
    """Rows of a kind about some prompts, in which placeholders stand for what a step would have written."""
    rows: list[Row] = []
    for n, prompt in enumerate(prompts, 1):
        first, second = f"⟨answer {n}a of {step}⟩", f"⟨answer {n}b of {step}⟩"
        common: dict[str, Any] = {"topic": prompt.topic, "meta": prompt.meta}
        kind = next((k for k in (makes, *IS_A.get(makes, ())) if k in ROW_TYPES), "")
        if kind == "prompts":
            rows.append(prompt)
        elif kind == "conversations":
            rows.append(Conversation(prompt.id, (*prompt.messages, Message("assistant", first)), **common))
        elif kind == "candidates":
            rows.append(Candidates(prompt.id, prompt.messages, (first, second), **common))
        elif kind == "comparisons":
            rows.append(Comparison(prompt.id, prompt.messages, first, second, **common))
    return rows


class _Bench:
    """Where the stages do their work: the folder, and what each step so far has made in it."""

    def __init__(self, plan: Plan, library: Library, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._artifacts: dict[str, Artifact] = {}

    def keep(self, step: Step, rows: Sequence[Row]) -> None:
        """Take rows for what a step has made; a model is an empty folder."""
        path = self._folder / f"{len(self._artifacts)}"
        path.mkdir()
        write_rows(path / ROWS, list(rows))
        self._artifacts[step.name] = Artifact(step.key, step.makes, path)

    def first_rows(self, step: Step, *roles: str) -> list[Row]:
        """The first rows of a step's inputs (of all, or of some roles), as many of each."""
        rows: dict[str, Row] = {}
        for name in (entry.step for entry in step.inputs if not roles or entry.role in roles):
            for row in _rows_of(self._artifacts[name]):
                rows.setdefault(row.id, row)
        return list(rows.values())

    def work(self, step: Step) -> StepExamples:
        """Let a step work on the first rows; what its models were asked, and what it makes, are kept."""
        session = _NotingSession(step.name, {self._artifacts[name].path: name for name in step.needs()})
        problem = ""
        rows: list[Row] = []
        work = self._folder / f"work-{len(self._artifacts)}"
        try:
            spec = KINDS[step.kind].spec.variant(step.spec).model_validate(_limited(step.spec))
            context = _context(step, self._artifacts, session, work)
            KINDS[step.kind].run(spec, context)
            rows = _rows_of(replace(self._artifacts[step.needs()[0]], path=context.out, makes=step.makes))
        except Exception as error:  # placeholders are no answers: what was asked before is still worth seeing
            problem = "" if session.calls else str(error) if isinstance(error, CaiError) else f"{error!r}"
        if not rows:
            prompts = [as_prompt(row) for row in self.first_rows(step)[:SHOWN]]
            rows = _stand_ins(step.makes, prompts, step.name)
        self.keep(step, rows)
        api = {name for name in step.needs() if is_api(self._plan.step(name))}
        return StepExamples(step.name, step.kind, tuple(_examples(session.calls, api)), problem)


def _rows_of(artifact: Artifact) -> list[Row]:
    kind = next((ROW_TYPES[k] for k in (artifact.makes, *IS_A.get(artifact.makes, ())) if k in ROW_TYPES), None)
    path = part(artifact, "train")
    return [] if kind is None or path is None or not path.is_file() else list(read_rows(path, kind))[:SHOWN]


def _limited(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A step's fields for its first rows, however many of them are dropped."""
    limits = {name: SHOWN for name in LIMITS if name in spec}
    free = {name: value for name, value in (("shards", 1), ("max_drop_rate", 1.0)) if name in spec}
    return {**spec, **limits, **free}


def _context(step: Step, artifacts: Mapping[str, Artifact], session: _NotingSession, work: Path) -> Context:
    def chat_template(frozen: Mapping[str, str]) -> ChatTemplate:
        return ChatTemplate.from_text(frozen["name"], frozen["text"], frozen["name"])

    inputs: dict[str, Artifact | tuple[Artifact, ...] | dict[str, Artifact]] = {}
    for role, names in by_role(step.inputs).items():
        if isinstance(names, str):
            inputs[role] = artifacts[names]
        elif isinstance(names, dict):
            inputs[role] = {label: artifacts[name] for label, name in names.items()}
        else:
            inputs[role] = tuple(artifacts[name] for name in names)
    template, constitution = step.resources.get("template"), step.resources.get("constitution")
    chat = chat_template(template) if template else None
    (work / "out").mkdir(parents=True)
    return Context(
        name=step.name,
        seed=step.seed,
        inputs=inputs,
        out=work / "out",
        work=work / "work",
        engine=session,
        progress=Silent().step_started(step, False),
        template=chat,
        constitution=Constitution.from_json(constitution) if constitution else None,
        texts=step.resources.get("texts", {}),
        stops=chat.stops if chat else (),
        templates={label: chat_template(own) for label, own in step.resources.get("templates", {}).items()},
        key=step.key,
    )


# ---- stand-ins -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _NotedCall:
    """What a model was asked, in the ``batch``-th list of calls of the step."""

    model: str
    text: str
    batch: int
    messages: tuple[Message, ...] = ()


@dataclass
class _NotingSession:
    """An engine in the place of any other, for one step; ``models`` are the names of models by their folders."""

    step: str
    models: Mapping[Path, str]
    flows: bool = False
    calls: list[_NotedCall] = field(default_factory=list)

    def fetch(self, source: ModelSource, dest: Path, progress: Progress) -> dict[str, Any]:
        """Nothing is fetched."""
        return {}

    def client(self, model: Path) -> _NotingClient:
        """A model that answers with placeholders."""
        return _NotingClient(self.step, self.models.get(model, model.name), self.calls)

    def train(self, method: Method[Any, Any], data: Any, settings: Any, attempt: Attempt) -> Trained:
        """Note the texts that would be trained on."""
        folder: Path = data.policy if isinstance(data, PpoData) else data.model
        texts: Sequence[Any] = data.prompts if isinstance(data, PpoData) else data.train
        model = self.models.get(folder, folder.name)
        self.calls += [_NotedCall(model, text, 0) for text in map(_trained_text, texts)]
        return Trained({}, {})

    def reward_scorer(self, model: Path) -> _NoScorer:
        """A reward model without an opinion."""
        return _NoScorer()

    def close(self) -> None:
        """Nothing is open."""


class _NoScorer:
    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """As good as any other."""
        return [0.0] * len(pairs)

    def close(self) -> None:
        """Nothing is open."""


def _trained_text(text: TrainText | PairText | PromptText) -> str:
    """A text of training with its learnt parts marked; of a pair the answer that was chosen."""
    if isinstance(text, TrainText):
        return "".join(f"{LEARNT[0]}{s.text}{LEARNT[1]}" if s.loss else s.text for s in text.spans)
    if isinstance(text, PairText):
        return f"{text.prompt}{LEARNT[0]}{text.chosen}{LEARNT[1]}"
    return text.prompt


@dataclass
class _NotingClient:
    """A model that notes what it is asked, and answers each question with a placeholder of its own."""

    step: str
    model: str
    calls: list[_NotedCall]

    @property
    def name(self) -> str:
        """The model's."""
        return self.model

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """A placeholder for every answer."""
        batch = self._next_batch()
        for request in requests:
            self.calls.append(_NotedCall(self.model, request.prompt, batch, request.messages))
            answer = f"⟨answer {len(self.calls)} of {self.step}⟩"
            yield Completion(request.id, answer, 1, 1, Finish.STOP)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Every continuation is as likely as any other."""
        batch = self._next_batch()
        for request in requests:
            self.calls.append(_NotedCall(self.model, request.prompt + request.continuation, batch))
            yield Score(request.id, -1.0, 1)

    def options(self, requests: Sequence[OptionsRequest]) -> Iterator[OptionScores]:
        """Likewise of options."""
        batch = self._next_batch()
        for request in requests:
            self.calls.append(_NotedCall(self.model, request.prompt, batch, request.messages))
            yield OptionScores(request.id, (-1.0,) * len(request.options), 1)

    def close(self) -> None:
        """Nothing is open."""

    def _next_batch(self) -> int:
        return self.calls[-1].batch + 1 if self.calls else 0


def _examples(calls: Sequence[_NotedCall], api: set[str]) -> Iterator[PromptExample]:
    """The first call, and the first of the last list of calls: of a revision, the critique and what comes of it."""
    distinct = list({(call.model, call.text): call for call in reversed(calls)}.values())[::-1]
    last = [call for call in distinct if call.batch == distinct[-1].batch]
    chosen = [distinct[0], last[0] if last[0] is not distinct[0] else last[1]] if len(distinct) > 1 else distinct
    for call in chosen[:SHOWN]:
        as_turns = call.model in api and bool(call.messages)
        text = "\n".join(f"[{m.role}] {m.content}" for m in call.messages) if as_turns else call.text
        yield PromptExample(call.model, text[:MOST_SHOWN], len(text), as_turns)
