"""Policies kept on the way of RL: where they lie in a trained model's folder, and what is wrong with asking for one.

A snapshot that no training keeps is found from the plan alone, before anything runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cai.errors import Problem
from cai.plan import Plan, Step

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


def kept(step: Step) -> tuple[int, ...]:
    """The iterations whose policies a step keeps."""
    return tuple(step.spec.get("training", {}).get("snapshots", ())) if step.kind == "rl" else ()


def problems(plan: Plan, where: Callable[[str], str] = str) -> tuple[Problem, ...]:
    """Snapshots that are asked for and that no training keeps."""
    found = []
    for step in plan.steps:
        if step.kind != "snapshot":
            continue
        of, iteration = plan.step(str(step.inputs["of"])), int(step.spec["iteration"])
        known = kept(of)
        if iteration in known:
            continue
        if of.kind != "rl":
            what = f"'{of.name}' is of kind {of.kind}, and only rl keeps snapshots"
            found.append(Problem(where(f"stages.{step.name}.of"), what, "name a stage of kind rl"))
        elif known:
            what = f"'{of.name}' keeps no policy of iteration {iteration}"
            found.append(
                Problem(where(f"stages.{step.name}.iteration"), what, f"it keeps {', '.join(map(str, known))}")
            )
        else:
            what, hint = f"'{of.name}' keeps no snapshots", f"set stages.{of.name}.training.snapshots: [{iteration}]"
            found.append(Problem(where(f"stages.{step.name}.iteration"), what, hint))
    return tuple(found)


def refused(plan: Plan, engine: str, where: Callable[[str], str] = str) -> tuple[Problem, ...]:
    """Every snapshot of a plan, for an engine that keeps none."""
    found = []
    for step in plan.steps:
        if kept(step):
            path = where(f"stages.{step.name}.training.snapshots")
            found.append(Problem(path, f"engine {engine} keeps only the last policy", "leave snapshots out"))
        elif step.kind == "snapshot":
            what = f"engine {engine} keeps only the last policy"
            found.append(Problem(where(f"stages.{step.name}"), what, "leave the stage out"))
    return tuple(found)
