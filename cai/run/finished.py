"""A run as it lies on the disk: its plan, and what of it the store has. Reads; starts and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from cai.errors import Problem, SpecError
from cai.figures.documents import typed
from cai.figures.evaluation import EVALUATION, Evaluation, read_evaluation
from cai.identity import parse_json
from cai.plan import Plan, Step, plan_from_json
from cai.store.artifacts import Store, Stored


@dataclass(frozen=True)
class Finished:
    """One run. ``artifacts`` are by step name; a step that was not made, or was removed since, is not among them.

    ``name`` is what a sweep calls its cell; empty for other runs.
    """

    folder: Path
    plan: Plan
    artifacts: Mapping[str, Stored]
    record: RunRecord
    name: str = ""

    @property
    def whole(self) -> bool:
        """Whether the store has every step's artifact."""
        return len(self.artifacts) == len(self.plan.steps)

    def steps(self, kind: str) -> Iterator[tuple[Step, Stored]]:
        """The steps of a kind whose artifacts are there, in the plan's order."""
        for step in self.plan.steps:
            if step.kind == kind and step.name in self.artifacts:
                yield step, self.artifacts[step.name]

    def evaluations(self) -> dict[str, Evaluation]:
        """What every evaluation measured, by step name.

        Raises:
            SpecError: when one cannot be read.
        """
        return {step.name: read_evaluation(artifact.path / EVALUATION) for step, artifact in self.steps("evaluate")}


def read_finished(folder: Path, store: Store, name: str = "") -> Finished:
    """The run of a folder that holds ``plan.json``.

    Raises:
        SpecError: when the folder holds no run.
        PrerequisiteError: when the store cannot be read.
    """
    path = folder / "plan.json"
    try:
        plan = plan_from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            Problem(str(folder), f"is no run folder ({error})", "name a folder with a plan.json")
        ) from error
    return Finished(folder, plan, stored_steps(plan, store), read_run_record(folder) or {}, name)


def stored_steps(plan: Plan, store: Store) -> dict[str, Stored]:
    """The artifacts of a plan's steps, by name, of those that the store has."""
    return {step.name: stored for step in plan.steps if (stored := store.find(step.kind, step.key)) is not None}


class RunRecord(TypedDict, total=False):
    """``record.json`` of a run's folder: how it ended. More may stand there."""

    experiment: str
    status: str
    error: str
    started: str
    seconds: Annotated[float, Field(allow_inf_nan=False, ge=0)]
    steps: dict[str, dict[str, Any]]
    versions: dict[str, str]


def read_run_record(folder: Path) -> RunRecord | None:
    """How the run of a folder ended; None while it goes on, or after it was killed: then there is no record.

    Raises:
        SpecError: when the record cannot be read.
    """
    path = folder / "record.json"
    if not path.is_file():
        return None
    return typed(_run_record(), read_json(path), str(path))


@cache
def _run_record() -> TypeAdapter[RunRecord]:
    return TypeAdapter(RunRecord)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        SpecError: when it cannot be read, with the reason.
    """
    try:
        json_object = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(Problem(str(path), f"cannot be read ({error})", "run `store verify`")) from error
    if not isinstance(json_object, dict):
        raise SpecError(Problem(str(path), "is no JSON object", "run `store verify`"))
    return json_object
