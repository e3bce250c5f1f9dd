"""Before a step trains: whether its rows ask nearly what the plan's evaluations ask. Here all rows are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from cai.data.rows import Row, read_rows
from cai.data.source import part_rows
from cai.errors import Problem, SpecError
from cai.files.library import Library
from cai.plan import Plan, Step
from cai.planning.lineage import (
    RowOrigin,
    bound_for_training,
    evaluated_parts,
    origins,
    split_apart,
    trained_inputs,
)
from cai.planning.overlap import asked_by, hint, hold, near_rows, placed_source
from cai.stages import KINDS
from cai.stages.base import Artifact, EngineSpec
from cai.stages.flow.generation import part, row_type
from cai.store.artifacts import Store


def check_overlap(plan: Plan, step: Step, artifacts: Mapping[str, Artifact], store: Store) -> None:
    """A step that trains must not learn what is evaluated on; its validation part is not learnt.

    So that no model is asked for days before that is found, a step that asks one about data for a later training is
    held to it, too: for what is left out nowhere on the way.

    Raises:
        SpecError: with the rows that are alike, and what to do.
        PrerequisiteError: when an evaluation set can neither be found in the store nor read.
    """
    steps = {each.name: each for each in plan.steps}
    inputs = [(entry, RowOrigin(entry.step)) for entry in trained_inputs(step, steps)]
    if not inputs and step.kind in KINDS and issubclass(KINDS[step.kind].spec, EngineSpec):
        inputs = bound_for_training(step, steps)
    parts = evaluated_parts(steps) if inputs else []
    problems: list[Problem] = []
    for entry, origin in inputs:
        # What a mix holds out is left to the training itself: it then sees what is left. Other parts of the sources
        # that are read here are held apart by their split.
        reads = [steps[each.read_step] for each in origins(entry.step, steps)]
        left_out = origin.apart | origin.held_out
        apart = [
            each
            for each in parts
            if each.read_step not in left_out and not any(split_apart(read, steps[each.read_step]) for read in reads)
        ]
        prompts = hold(apart, lambda each: asked_by(_rows_read(steps[each.read_step], store)))
        if len(prompts) and (near := near_rows(asked_by(_rows_of(artifacts[entry.step])), prompts)):
            words = "; ".join(each.words() for each in near)
            problems.append(Problem(f"{step.name}.{entry.role}", f"of '{entry.step}' {words}", hint(entry.step, near)))
    if problems:
        raise SpecError(problems)


def _rows_read(step: Step, store: Store) -> Iterable[Row]:
    """The rows of a part: those in the store, or where it has not been read yet, those of its files."""
    stored = store.find(step.kind, step.key)
    if stored is not None:
        return _rows_of(Artifact(step.key, stored.makes, stored.path))
    source, name = placed_source(step, Library.here())
    return part_rows(source, name, roots=(Path.cwd(), *Library.here().roots))


def _rows_of(artifact: Artifact) -> Iterable[Row]:
    path = part(artifact, "train")
    return read_rows(path, row_type(artifact)) if path is not None and path.is_file() else ()
