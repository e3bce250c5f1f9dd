"""Nobody is to train on what they evaluate on: found by near duplicates in the text, and not by names.

While planning this is looked for in what planning reads of local files (``cai.data.preview``); before a step trains, in
all of its rows (``cai.run.overlap``). Sets that are published for evaluation alone are refused by where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from cai.data.near import NearPrompts, beginning_of, prompt_text
from cai.data.preview import rows_seen
from cai.data.public import PUBLIC, evaluation_only
from cai.data.rows import Row
from cai.data.source import DataSource
from cai.data.splits import prompt_key
from cai.errors import Problem
from cai.files.library import Library
from cai.plan import Step
from cai.planning.compilation import Compilation
from cai.planning.lineage import (
    EvaluatedPart,
    RowOrigin,
    evaluated_parts,
    origins,
    split_apart,
    trained_inputs,
)
from cai.stages.read import ReadSpec

_EXAMPLES = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """What a row asks: all that the user says, and the first question, by which rows are split and held out."""

    text: str
    first: str


@dataclass(frozen=True, slots=True)
class NearRows:
    """Rows that ask nearly what an evaluation set asks: how many, and the first of them beside what they are like."""

    place: str
    rows: int
    examples: tuple[tuple[str, str], ...]

    def words(self) -> str:
        """For an error, after the name of what is trained on."""
        pairs = ", ".join(f"'{training}' is like '{evaluated}'" for training, evaluated in self.examples)
        verb = "asks" if self.rows == 1 else "ask"
        return f"{self.rows:,} row{'s' * (self.rows != 1)} {verb} nearly what '{self.place}' asks: {pairs}"


def overlap_problems(work: Compilation) -> list[Problem]:
    """What stages train on that they must not: sets for evaluation only, and rows like those that are evaluated on."""
    steps = work.steps
    return [*_evaluation_only(work, steps), *_near_duplicates(work, steps)]


def hint(name: str, near: Sequence[NearRows]) -> str:
    """What to do about rows of a step that are like evaluation data."""
    places = ", ".join(f"'{each.place}'" for each in near)
    return (
        f"leave them out by a stage `kind: decontaminate` with `data: {name}` and `against:` the data of {places}, and "
        "train on what it makes; or name the set under `seen` of the evaluation, if it is to show what was learnt"
    )


def near_rows(
    questions: Iterable[Asked], prompts: NearPrompts, exempt: Collection[tuple[str, str]] = frozenset()
) -> list[NearRows]:
    """The rows that are like evaluation prompts, by set; ``exempt`` are first questions that are held out of a set."""
    counts: dict[str, int] = {}
    examples: dict[str, list[tuple[str, str]]] = {}
    for row in questions:
        match = prompts.like(row.text)
        if match is None or (match.source, row.first) in exempt:
            continue
        counts[match.source] = counts.get(match.source, 0) + 1
        if len(pairs := examples.setdefault(match.source, [])) < _EXAMPLES:
            pairs.append((beginning_of(row.text), match.beginning))
    return [NearRows(place, count, tuple(examples[place])) for place, count in counts.items()]


def hold(parts: Iterable[EvaluatedPart], questions: Callable[[EvaluatedPart], Iterable[Asked]]) -> NearPrompts:
    """The prompts of what is evaluated on, each under the place of its set."""
    prompts = NearPrompts()
    for part in parts:
        for row in islice(questions(part), part.limit):
            prompts.add(row.text, part.place)
    return prompts


def asked_by(rows: Iterable[Row]) -> Iterator[Asked]:
    """What rows ask."""
    return (Asked(prompt_text(row), prompt_key(row)) for row in rows)


def placed_source(step: Step, library: Library) -> tuple[DataSource, str]:
    """The source and the part that a step reads, its paths where the library has them."""
    spec = ReadSpec.model_validate(step.spec)
    paths = tuple(map(library.placed, spec.source.paths))
    return spec.source.model_copy(update={"path": paths}), spec.part


def _evaluation_only(work: Compilation, steps: Mapping[str, Step]) -> Iterator[Problem]:
    for step in steps.values():
        for entry in trained_inputs(step, steps):
            for data in sorted({origin.read_step for origin in origins(entry.step, steps)}):
                for name in evaluation_only(ReadSpec.model_validate(steps[data].spec).source.paths):
                    way = f" (by '{entry.step}')" if entry.step != data else ""
                    reason = f"trains on '{data}'{way}, which is {PUBLIC}{name}: a set for evaluation only"
                    action = f"take '{data}' out of what is trained on; evaluate may read it, and `held_out` of a mix"
                    yield Problem(work.where(f"stages.{step.name}.{entry.role}"), reason, action)


def _near_duplicates(work: Compilation, steps: Mapping[str, Step]) -> Iterator[Problem]:
    parts, reported = evaluated_parts(steps), set[tuple[str, str]]()
    for step in steps.values() if parts else ():
        for entry in trained_inputs(step, steps):
            for origin in sorted(origins(entry.step, steps), key=lambda each: each.read_step):
                near = [n for n in _look(work, origin, parts) if (origin.read_step, n.place) not in reported]
                reported |= {(origin.read_step, each.place) for each in near}
                if near:
                    way = f" (by '{entry.step}')" if entry.step != origin.read_step else ""
                    words = "; ".join(each.words() for each in near)
                    reason = f"trains on '{origin.read_step}'{way}, of which {words}"
                    yield Problem(work.where(f"stages.{step.name}.{entry.role}"), reason, hint(origin.read_step, near))


def _look(work: Compilation, origin: RowOrigin, parts: Sequence[EvaluatedPart]) -> tuple[NearRows, ...]:
    read = work.steps[origin.read_step]
    apart = tuple(
        part
        for part in parts
        if part.read_step not in origin.apart and not split_apart(read, work.steps[part.read_step])
    )
    names = (origin.read_step, *(part.read_step for part in apart))
    data = {name: _PartRead(work.steps[name], work.library) for name in names}
    evaluated = tuple((part, data[part.read_step]) for part in apart)
    held_out = tuple((part, source) for part, source in evaluated if part.read_step in origin.held_out)
    return _near(data[origin.read_step], evaluated, held_out)


class _PartRead:
    """A step that reads data; its key says which rows, so that cells of a sweep look at them once."""

    def __init__(self, step: Step, library: Library) -> None:
        self.step = step
        self.library = library

    def __eq__(self, another: object) -> bool:
        return isinstance(another, _PartRead) and another.step.key == self.step.key

    def __hash__(self) -> int:
        return hash(self.step.key)


_Evaluated = tuple[tuple[EvaluatedPart, _PartRead], ...]


@lru_cache(maxsize=64)
def _near(trained: _PartRead, evaluated: _Evaluated, held_out: _Evaluated) -> tuple[NearRows, ...]:
    prompts = _evaluation_prompts(evaluated)
    exempt = {(part.place, row.first) for part, source in held_out for row in _questions(source)}
    return tuple(near_rows(_questions(trained), prompts, exempt)) if len(prompts) else ()


@lru_cache(maxsize=4)
def _evaluation_prompts(evaluated: _Evaluated) -> NearPrompts:
    sources = dict(evaluated)
    return hold(sources, lambda part: _questions(sources[part]))


@lru_cache(maxsize=16)
def _questions(data: _PartRead) -> tuple[Asked, ...]:
    source, part = placed_source(data.step, data.library)
    return tuple(asked_by(rows_seen(source, part, data.library.data_roots())))
