"""The ledger of a run: rows in = rows out + rows dropped, for each step; and the rows themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cai.errors import Problem, SpecError, did_you_mean
from cai.identity import parse_json
from cai.plan import Plan
from cai.store.artifacts import Store


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One step's rows; ``finished`` is False, and all counts are 0, while the step has no artifact."""

    step: str
    kind: str
    makes: str
    finished: bool
    rows_in: int = 0
    rows_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)


class HasRows(Protocol):
    """An artifact, the store's or a stage's."""

    @property
    def makes(self) -> str:
        """What kind of artifact it is."""
        ...

    @property
    def path(self) -> Path:
        """Its folder."""
        ...


def ledger_table(plan: Plan, store: Store) -> list[LedgerLine]:
    """The ledger of every step of a plan, in the plan's order."""
    lines = []
    for step in plan.steps:
        stored = store.find(step.kind, step.key)
        counts = stored.record["outcome"].get("ledger", {}) if stored else {}
        known = {name: counts[name] for name in ("rows_in", "rows_out", "dropped", "parts") if name in counts}
        lines.append(LedgerLine(step.name, step.kind, step.makes, stored is not None, **known))
    return lines


def iter_rows(artifact: HasRows, part: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of an artifact as plain data, streamed; ``part`` names one of its files (``train``, ``val`` ...).

    Raises:
        SpecError: when it has no rows or no such part.
    """
    files = {path.stem: path for path in sorted(artifact.path.glob("*.jsonl"))}
    if not files:
        raise SpecError(Problem(str(artifact.path), f"a {artifact.makes} has no rows", "look at its files"))
    if part is not None and part not in files:
        raise SpecError(Problem(str(artifact.path), f"no part {part!r}", did_you_mean(part, files)))
    return _parsed_rows(list(files.values()) if part is None else [files[part]])


def _parsed_rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    for path in files:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield parse_json(line)
                except ValueError as error:
                    message = f"is no JSON ({error})"
                    raise SpecError(Problem(f"{path}: line {number}", message, "run `store verify`")) from error
