"""How much disk a plan needs before it is done: in the store, and in each node's temporary folder.

A checkpoint of Apex's distributed Adam holds 14 bytes a parameter (weights in bf16; master weights and two moments in
fp32), a .nemo 2. While upstream saves, the best checkpoint, the last one and the one being written are there together.
It packs a .nemo from a copy in the temporary folder, and a model that it is given as a packed .nemo it unpacks there,
every rank for itself; models that this program keeps are folders, which are read where they lie.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

from cai.engines.nemo_aligner.commands import Compiled
from cai.engines.nemo_aligner.memory import BF16, STATE, fetched_shape
from cai.engines.nemo_aligner.methods import trainer_of
from cai.engines.nemo_aligner.survey import PlanSurvey
from cai.plan import Step

GB = 1e9
CHECKPOINT = BF16 + STATE
"""Bytes a parameter of one checkpoint with its optimizer."""
SAVED = {"train": 3, "actor": 3, "critic": 2}
"""By role, checkpoints that are there together: the best (not of a critic), the last, and the one being written."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of a step: in the store while it works, in the store from then on, in a node's temporary folder."""

    working: float = 0.0
    permanent: float = 0.0
    temporary: float = 0.0


def check(survey: PlanSurvey) -> None:
    """A line for each step that makes a model, and at the largest moment one for the whole plan."""
    permanent, peak, peak_step = 0.0, 0.0, ""
    for step in (step for step in survey.plan.steps if not step.engine):
        disk = disk_of(survey, step)
        if disk is None:
            continue
        if permanent + disk.working > peak:
            peak, peak_step = permanent + disk.working, step.name
        permanent += disk.permanent
        temporary = f", {disk.temporary / GB:.0f} GB of a node's temporary folder" if disk.temporary else ""
        survey.note(step.name, f"disk: {disk.working / GB:.0f} GB in the store while it works{temporary}")
    if peak_step:
        survey.note(
            peak_step,
            f"disk of the whole plan: {peak / GB:.0f} GB in the store at most, now; {permanent / GB:.0f} GB stay",
        )


def disk_of(survey: PlanSurvey, step: Step) -> Disk | None:
    """What a step needs; None where it makes no model here, or how large that is is not known."""
    origin = survey.origin(step.name) if step.makes == "model" or trainer_of(step.kind) is not None else None
    source = str(origin.spec.get("source", "")) if origin is not None else ""
    shape = fetched_shape(origin) if origin is not None and not source.startswith("api:") else None
    if shape is None:
        return None
    model = BF16 * shape.parameters
    if step.kind == "fetch":
        # What is downloaded and what is packed lie there until the folder is made; a nemo:FILE is the user's own.
        before = sum(c.command.role in ("download", "convert") for c in survey.compiled[step.name])
        return Disk((before + 1) * model, model, model if before else 0.0)
    saved = sum(SAVED.get(c.command.role, 0) for c in survey.compiled[step.name])
    # The .nemo that upstream packs at the end, and the folder that is made of it.
    return Disk(saved * CHECKPOINT * shape.parameters + 2 * model, model, model + _unpacked(survey, step, model))


def _unpacked(survey: PlanSurvey, step: Step, model: float) -> float:
    """What the ranks of one node unpack of models that are packed files: of ``nemo:FILE`` artifacts of older stores."""
    ranks = [c.command.resources.gpus_per_node for c in survey.compiled[step.name] if _reads_archive(c)]
    return model * sum(ranks)


def _reads_archive(compiled: Compiled) -> bool:
    paths = [o.value for o in compiled.overrides if o.key.endswith("restore_from_path")]
    return any(isinstance(path, str) and Path(path).is_file() and tarfile.is_tarfile(path) for path in paths)
