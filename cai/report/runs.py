"""A run as the report reads it: short names, what became of it, and its files, each of which may be missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from cai.errors import SpecError
from cai.figures.evaluation import EVALUATION, Evaluation, read_evaluation
from cai.identity import parse_json
from cai.plan import Plan, Step
from cai.planning.reasons import plan_changes
from cai.run.finished import Finished
from cai.store.artifacts import Stored
from cai.store.events import read_events


@dataclass(frozen=True)
class Run:
    """A finished (or unfinished) run under the name that tells it from the others in the report."""

    label: str
    finished: Finished

    @property
    def plan(self) -> Plan:
        """Its plan."""
        return self.finished.plan

    @property
    def artifacts(self) -> Mapping[str, Stored]:
        """What the store has of it, by step."""
        return self.finished.artifacts

    @cached_property
    def events(self) -> tuple[dict[str, Any], ...]:
        """What happened: starts, ends and failures; the thousands of lines on progress are left out."""
        path = self.finished.folder / "events.jsonl"
        if not path.is_file():
            return ()
        return tuple(e for e in read_events(path) if str(e.get("event", "")).startswith(("run.", "step.")))

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """What was measured, by step; an evaluation that cannot be read is left out and told by ``faults``."""
        return {name: entry for name, entry in self._evaluations.items() if isinstance(entry, Evaluation)}

    @cached_property
    def faults(self) -> tuple[str, ...]:
        """What could not be read."""
        return tuple(fault for fault in self._evaluations.values() if isinstance(fault, str))

    @cached_property
    def _evaluations(self) -> dict[str, Evaluation | str]:
        evaluations: dict[str, Evaluation | str] = {}
        for step, artifact in self.finished.steps("evaluate"):
            try:
                evaluations[step.name] = read_evaluation(artifact.path / EVALUATION)
            except SpecError as error:
                evaluations[step.name] = str(error)
        return evaluations

    @property
    def missing(self) -> tuple[str, ...]:
        """Steps whose artifacts the store does not have."""
        return tuple(step.name for step in self.plan.steps if step.name not in self.artifacts)

    @property
    def status(self) -> str:
        """How it ended, in a word; of a run without a record, what its events tell."""
        if status := self.finished.record.get("status"):
            return str(status)
        return "not finished" if self.events else "not started"

    @property
    def error(self) -> str:
        """Why it ended early; empty when it did not."""
        return str(self.finished.record.get("error") or "")

    @property
    def started(self) -> str:
        """When it began (UTC), to the minute; ``-`` when that is not known."""
        try:
            return datetime.fromisoformat(str(self.finished.record["started"])).strftime("%Y-%m-%d %H:%M UTC")
        except (KeyError, ValueError):
            return "-"

    @property
    def seconds(self) -> float | None:
        """Wall time."""
        seconds = self.finished.record.get("seconds")
        return float(seconds) if isinstance(seconds, int | float) else None

    def reused(self, step: Step) -> bool | None:
        """Whether the run found the step's artifact ready; None when it did not get to it."""
        facts = self.finished.record.get("steps", {}).get(step.name)
        if isinstance(facts, Mapping):
            return bool(facts.get("reused"))
        for event in reversed(self.events):
            if event.get("event") == "step.done" and event.get("step") == step.name:
                return bool(event.get("reused"))
        return None

    @cached_property
    def changes(self) -> Mapping[str, Sequence[str]]:
        """What is different from the experiment's run before this one, by step; empty for the first."""
        before = self._before()
        return plan_changes(before, self.plan) if before else {}

    @cached_property
    def follows(self) -> str:
        """The folder's name of the run before this one; empty for the first."""
        path = self._folder_before()
        return path.name if path else ""

    def _folder_before(self) -> Path | None:
        folder = self.finished.folder.resolve()
        older = [p.parent for p in folder.parent.glob("*/plan.json") if not p.parent.is_symlink()]
        return max((p for p in older if p.name < folder.name), key=lambda p: p.name, default=None)

    def _before(self) -> Plan | None:
        from cai.plan import plan_from_json

        path = self._folder_before()
        if path is None:
            return None
        try:
            before = plan_from_json((path / "plan.json").read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError, SpecError):
            return None
        return before if before.experiment == self.plan.experiment else None

    def metrics(self, step: str) -> list[dict[str, Any]]:
        """The lines of a training step's ``metrics.jsonl``; none when it has no such file."""
        artifact = self.artifacts.get(step)
        path = artifact.path / "metrics.jsonl" if artifact else None
        if path is None or not path.is_file():
            return []
        return [line for line in json_lines(path) if isinstance(line, dict)]


def json_lines(path: Path) -> Iterator[Any]:
    """The values of a JSONL file; lines that are no JSON are skipped."""
    with path.open("rb") as file:
        for line in file:
            try:
                yield parse_json(line)
            except ValueError:
                continue


def labelled_runs(finished_runs: Sequence[Finished]) -> tuple[Run, ...]:
    """Runs under the shortest names that tell them apart: a cell's own, experiment, then seed, then folder."""
    forms = (
        lambda run: run.name or run.plan.experiment,
        lambda run: f"{run.plan.experiment}, seed {run.plan.seed}",
        lambda run: f"{run.plan.experiment}, {run.folder.resolve().name}",
        lambda run: str(run.folder),
    )
    for form in forms:
        labels = [form(run) for run in finished_runs]
        if max(Counter(labels).values(), default=1) == 1:
            return tuple(Run(label, run) for label, run in zip(labels, finished_runs, strict=True))
    return tuple(Run(f"{run.folder} ({number})", run) for number, run in enumerate(finished_runs, 1))


def of(run: Run, runs: Sequence[Run], name: str) -> str:
    """A name with its run's where there are several runs."""
    return f"{run.label}: {name}" if len(runs) > 1 else name


def slug(text: str) -> str:
    """Text as part of an HTML id."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)
