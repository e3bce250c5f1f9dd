"""One compilation of an experiment while it lasts: what is found out step by step, and every problem on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cai.constitution import Constitution
from cai.data.preview import SourceLook
from cai.errors import Problem, SpecError
from cai.experiment.model import Experiment, Outline
from cai.files.library import Library
from cai.plan import Ingredients, Input, Step, StepEstimate
from cai.planning.engines import PlanEngine, PlanEngines
from cai.planning.identity import complete, former_key
from cai.planning.texts import NamedText
from cai.stages.base import Estimate, SpecParts, StageSpec

Where = Callable[[str], str]
Looked = dict[str, SourceLook | SpecError]
"""Data sources that have been looked at, by what they say; of one that cannot be read, why."""


@dataclass
class Compilation:
    """One compilation while it lasts: what has been found out, and what is wrong."""

    outline: Outline
    library: Library
    where: Where
    engines: PlanEngines
    constitution: Constitution | None
    template: NamedText | None
    parts: dict[str, SpecParts]
    sources: Looked
    problems: list[Problem] = field(default_factory=list)
    # Apart: the steps that read such data are there, so that engines can be asked of the plan all the same.
    data_problems: list[Problem] = field(default_factory=list)
    steps: dict[str, Step] = field(default_factory=dict)
    rows: dict[str, int | None] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    # The format of every model that lies in a folder; one that is served elsewhere has none.
    formats: dict[str, str] = field(default_factory=dict)
    linted: set[tuple[str, str]] = field(default_factory=set)
    # Of templates and tokenizers, which concern many steps.
    told_notes: set[str] = field(default_factory=set)

    @property
    def experiment(self) -> Experiment:
        """What can be read of the experiment."""
        return self.outline.experiment

    def unread(self, *path: str) -> bool:
        """Whether a block, or what it stands in, cannot be read; that is told already, so nothing is said of it."""
        return any(".".join(path[:depth]) in self.outline.unread for depth in range(1, len(path) + 1))

    @property
    def whole(self) -> bool:
        """Whether every stage has its step, wired as it is meant."""
        stages_done = all(name in self.steps for name in self.experiment.stages)
        return stages_done and not self.problems and not self.outline.unread

    def sure_of(self, engine: PlanEngine) -> bool:
        """Whether the engine is the one that is meant, and not one in the place of a block that cannot be read."""
        return not self.unread(*(("engines", engine.label) if engine.label else ("engine",)))

    def wrong(self, path: str, reason: str, hint: str = "") -> None:
        """Note a problem of a field."""
        self.problems.append(Problem(self.where(path), reason, hint))

    def gather(self, error: SpecError, below: str = "") -> None:
        """Take up problems; those of fields below ``below`` are told where they stand in the files."""
        for problem in error.problems:
            path = ".".join(part for part in (below, problem.where) if part)
            self.problems.append(Problem(self.where(path), problem.message, problem.next) if below else problem)

    def step(
        self,
        name: str,
        spec: StageSpec,
        ingredients: Ingredients,
        *,
        makes: str,
        estimate: Estimate,
        inputs: tuple[Input, ...] = (),
        resources: Mapping[str, Any] | None = None,
        engine: PlanEngine | None = None,
        notes: list[str] | None = None,
    ) -> Step:
        """A step of the plan: its ingredients completed, and hashed."""
        seed = self.experiment.seed
        keys = {step.name: step.key for step in self.steps.values()}
        completed = complete(ingredients, spec, name, inputs, keys=keys, engine=engine or self.engines.own, seed=seed)
        former = {step.name: step.former for step in self.steps.values() if step.former}
        return Step(
            name=name,
            kind=spec.kind,
            makes=makes,
            key=completed.key(),
            seed=seed,
            inputs=inputs,
            # Which engine does the step is the plan's to say, not the spec's.
            spec=spec.model_dump(mode="json", by_alias=True, exclude={"engine"}),
            resources=dict(resources or {}),
            ingredients=completed,
            estimate=StepEstimate(
                rows=estimate.rows,
                calls=estimate.calls,
                prompt_tokens=estimate.prompt_tokens,
                tokens=estimate.tokens,
                width=estimate.width,
            ),
            notes=[*(notes or []), *([f"with engine {engine.label}"] if engine is not None and engine.label else [])],
            engine=engine.label if engine is not None else "",
            former=former_key(completed, inputs, keys=keys, former=former),
        )
