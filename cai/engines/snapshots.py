"""Policies kept on the way of RL: where they lie in a trained model's folder, and what is wrong with asking for one.

A snapshot that no training keeps is found from the plan alone, before anything runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cai.engines.methods import METHODS, method_of
from cai.errors import Problem
from cai.plan import Plan, Step

SNAPSHOT = "snapshot"
"""The kind of the steps that take one up."""
FOLDER = "snapshots"
"""The subfolder of a trained model in which its snapshots are, each in a folder named by its iteration."""


def snapshot_folder(model: Path, iteration: int) -> Path:
    """Where the policy after ``iteration`` iterations is kept."""
    return model / FOLDER / str(iteration)


def put_file(source: Path, dest: Path) -> None:
    """A file under another name: the same bytes on the disk where the file system can, else a copy."""
    dest.unlink(missing_ok=True)
    try:
        os.link(source, dest)
    except OSError:
        shutil.copyfile(source, dest)


def kept_iterations(step: Step) -> tuple[int, ...]:
    """The iterations whose policies a step keeps."""
    return tuple(step.spec.get("training", {}).get("snapshots", ())) if _keeps(step.kind) else ()


def _keeps(kind: str) -> bool:
    """Whether steps of a kind can keep models on their way."""
    method = method_of(kind)
    return method is not None and method.snapshots


def problems(plan: Plan, where: Callable[[str], str] = str) -> tuple[Problem, ...]:
    """Snapshots that are asked of this engine's steps, and that none of these keeps."""
    snapshot_problems = []
    for step in plan.steps:
        if step.kind != SNAPSHOT or plan.step(step.sources("of")[0]).engine:
            continue
        of, iteration = plan.step(step.sources("of")[0]), int(step.spec["iteration"])
        iterations = kept_iterations(of)
        if iteration in iterations:
            continue
        if not _keeps(of.kind):
            kinds = " or ".join(method.stage for method in METHODS.values() if method.snapshots)
            message = f"'{of.name}' is of kind {of.kind}, and only {kinds} keeps snapshots"
            snapshot_problems.append(Problem(where(f"stages.{step.name}.of"), message, f"name a stage of kind {kinds}"))
        elif iterations:
            message = f"'{of.name}' keeps no policy of iteration {iteration}"
            snapshot_problems.append(
                Problem(where(f"stages.{step.name}.iteration"), message, f"it keeps {', '.join(map(str, iterations))}")
            )
        else:
            message, hint = f"'{of.name}' keeps no snapshots", f"set stages.{of.name}.training.snapshots: [{iteration}]"
            snapshot_problems.append(Problem(where(f"stages.{step.name}.iteration"), message, hint))
    return tuple(snapshot_problems)


def refused(plan: Plan, engine: str, where: Callable[[str], str] = str) -> tuple[Problem, ...]:
    """Every snapshot of this engine's steps, for an engine that keeps none."""
    snapshot_problems = []
    for step in plan.steps:
        if step.engine:
            continue
        if kept_iterations(step):
            path = where(f"stages.{step.name}.training.snapshots")
            snapshot_problems.append(
                Problem(path, f"engine {engine} keeps only the last policy", "leave snapshots out")
            )
        elif step.kind == SNAPSHOT:
            message = f"engine {engine} keeps only the last policy"
            snapshot_problems.append(Problem(where(f"stages.{step.name}"), message, "leave the stage out"))
    return tuple(snapshot_problems)
