"""The steps that read data: what the files are, what of them makes rows, and what a person should know before a run."""

from __future__ import annotations

from pathlib import Path

from cai.data.preview import SourceLook, look_at, unseen
from cai.data.source import DataSource, part_makes
from cai.errors import Problem, SpecError
from cai.identity import is_commit
from cai.plan import Ingredients
from cai.planning.compilation import Compilation
from cai.planning.models import moving_note
from cai.stages import KINDS
from cai.stages.base import Estimate


def data_step(work: Compilation, name: str, part: str, source: DataSource) -> str:
    """The step that reads a part of a data source, made when it is first asked for; what is wrong with it is noted."""
    step = name if len(source.splits) == 1 else f"{name}.{part}"
    if step in work.steps:
        return step
    roots = work.library.data_roots()
    paths = tuple(map(work.library.placed, source.paths))
    # Where the files lie is no part of the spec: only the look at them is told of it.
    placed = source if paths == source.paths else source.model_copy(update={"path": paths})
    look_key = repr((placed, roots))
    if look_key not in work.sources:
        work.sources[look_key] = _look(placed, roots)
    look = work.sources[look_key]
    if isinstance(look, SpecError):
        work.data_problems += [Problem(work.where(f"data.{name}"), p.message, p.next) for p in look.problems]
        look = unseen(source)  # what else is wrong with whatever reads it is told, too
    spec = KINDS["read"].spec.model_validate(
        {"kind": "read", "source": source.model_dump(), "part": part, "identity": look.identity}
    )
    work.rows[step] = look.counts[part]
    notes = [f"downloads {entry['file']} of {entry['name']} at {entry['revision']}" for entry in look.identity["hub"]]
    moving = {entry["revision"] for entry in look.identity["hub"] if not is_commit(entry["revision"])}
    notes += map(moving_note, sorted(moving))
    if not any(other.kind == "read" and other.name.partition(".")[0] == name for other in work.steps.values()):
        notes += look.notes  # of the whole source: told where it is first read
    notes += look.part_notes.get(part, ())
    work.steps[step] = work.step(
        step,
        spec,
        Ingredients(data=look.identity, part=part),
        makes=part_makes(source),
        estimate=Estimate(look.counts[part]),
        notes=notes,
    )
    return step


def _look(source: DataSource, roots: tuple[Path, ...]) -> SourceLook | SpecError:
    try:
        return look_at(source, roots)
    except SpecError as error:
        return error


def without_rows(work: Compilation, step: str) -> str | None:
    """The first step that leaves a step, which has no rows, without them; None where it has some or that is not known.

    What is read decides: a stage that makes no rows has read none.
    """
    if work.rows.get(step) != 0:
        return None
    for name in work.steps[step].needs():
        if (origin := without_rows(work, name)) is not None:
            return origin
    return step
