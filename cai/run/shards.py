"""Shards: one step's rows over many processes. Each does its part; merging is what resuming always was.

Rows are dealt by cohort (cai.stages.flow.base), every shard writes a journal of its own beside the others', and who
then builds the step opens all of them and asks only what is missing. So a shard that dies costs nothing but time, and
how many there were leaves no trace in the artifact.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from glob import escape
from pathlib import Path
from typing import Any

from cai.clients.spending import Spent
from cai.engines import commands_of
from cai.engines.base import Places, Progress
from cai.errors import PrerequisiteError, Problem, SpecError, StepFailed
from cai.figures.usage import FlowUsage
from cai.launchers.base import Command, Server
from cai.launchers.local import LocalRunner
from cai.launchers.settings import Local
from cai.plan import Plan, Step
from cai.run.job_files import job_file, read_json, word_file
from cai.stages.base import Shard, StageSpec
from cai.stages.flow.base import JOURNAL
from cai.store.artifacts import Store, artifact_name

MOST = 1000
_ROWS = "rows"
"""File of a step's ``work`` in which a shard says how many rows the step has."""
_TICK = 0.25
"""Seconds between two looks at the shards."""
_ROW = re.compile(rb'\{"crc":"[0-9a-f]{8}","row":\d+,"kind":"row",')


def shards_of(step: Step) -> int:
    """In how many parts a step is to be done; kinds that cannot be parted have no such field."""
    return int(step.spec.get("shards", 1))


def parse_shard(text: str) -> Shard:
    """``K/N`` from the command line, K from 0.

    Raises:
        SpecError: when it is none.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count) <= MOST):
        hint = f"write K/N with K from 0 to N - 1, N at most {MOST}: --shard 0/4"
        raise SpecError(Problem("--shard", f"{text!r} is no part of a step", hint))
    return Shard(int(index), int(count))


def check_shard(spec: StageSpec, step: Step) -> None:
    """A step's kind must be one whose rows can be dealt.

    Raises:
        SpecError: when it is not.
    """
    if "shards" not in type(spec).model_fields:
        raise SpecError(Problem(step.name, f"a step of kind {step.kind} is not done in parts", "leave --shard out"))


def check_servers(plan: Plan, name: str, store: Store, plan_file: Path) -> None:
    """A step that starts its model's servers cannot be parted: every part would start them again, on the same ports.

    Raises:
        SpecError: when it does.
    """
    places = Places(store.root, str(plan_file))
    for step in plan.steps:
        if step.name == name and any(command.background for command in commands_of(plan, step, places)):
            message = "starts its model's servers, so it is not done in parts"
            raise SpecError(Problem(name, message, "leave --shard out; more servers: engine.servers.<model>.count"))


class ShardProgress:
    """A shard's progress: of the step's rows it tells its share, and leaves their number where the others look."""

    def __init__(self, inner: Progress, shard: Shard, work: Path) -> None:
        self._inner = inner
        self._shard = shard
        self._work = work

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """How much there is to do in the step."""
        if rows is not None:
            (self._work / _ROWS).write_text(str(rows), encoding="utf-8")
        count = self._shard.count
        self._inner.expect(None if rows is None else -(-rows // count), None if tokens is None else tokens // count)

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """How much more is done."""
        self._inner.advance(rows, tokens)

    def note(self, event: str, **fields: Any) -> None:
        """Pass an event on."""
        self._inner.note(event, **fields)


class Merging:
    """The progress of whoever puts the parts together: rows that were told while the shards ran are not told again."""

    def __init__(self, inner: Progress, reported_rows: int) -> None:
        self._inner = inner
        self._not_yet_merged = reported_rows

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """How many rows there are; tokens were the shards'."""
        self._inner.expect(rows)

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """How much more is done."""
        reported_before = min(rows, self._not_yet_merged)
        self._not_yet_merged -= reported_before
        self._inner.advance(rows - reported_before, tokens)

    def note(self, event: str, **fields: Any) -> None:
        """Pass an event on."""
        self._inner.note(event, **fields)


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """How a shard ended that did not end well: its exit code, and why."""

    index: int
    code: int
    error: str


def run_shards(step: Step, store: Store, run_dir: Path, progress: Progress) -> tuple[int, list[ShardEnd]]:
    """Do a step's parts in processes of this machine; returns the rows that were told, and which did not end well.

    Each is ``python -m cai step`` under a guard of its own, so whatever ends this process ends them. Their output goes
    to ``logs/<step>.shard-K.log`` of the run.

    Raises:
        PrerequisiteError: when a shard failed of what will fail again (exit code 2): a refused key, a missing file.
    """
    count = shards_of(step)
    if sys.platform != "linux":
        progress.note("shards", reason="only Linux can guard them; one process does all rows")
        return 0, []
    rows = _Rows(store.root / f"{artifact_name(step.kind, step.key)}.partial" / "work", count, progress)
    runner, running, ended = LocalRunner(Local()), dict[int, Server](), list[ShardEnd]()
    rows.look()
    try:
        for index in range(count):
            word_file(run_dir, step.name, index).unlink(missing_ok=True)
            running[index] = runner.start(
                _command(step.name, Shard(index, count), store, run_dir), _log(run_dir, step, index)
            )
        while running:
            time.sleep(_TICK)
            for over in _over(running, run_dir, step.name):
                ended.append(over)
                progress.note("shard.failed", shard=over.index, of=count, code=over.code, error=over.error)
            rows.look()
    finally:
        runner.close()
    again = next((over for over in ended if over.code == SpecError.exit_code), None)
    if again is not None:
        raise PrerequisiteError(f"{step.name}: shard {again.index} of {count}: {again.error}")
    return rows.reported_rows, ended


def _command(step: str, shard: Shard, store: Store, run_dir: Path) -> Command:
    place = f"{shard.index}/{shard.count}"
    argv = (sys.executable, "-m", "cai", "step", str(run_dir / "plan.json"), step, "--shard", place)
    env = {"CAI_HOME": str(store.home), "PYTHONUNBUFFERED": "1"}
    return Command(f"shard-{shard.index}", argv, env=env, background=True)


def _log(run_dir: Path, step: Step, index: int) -> Path:
    return run_dir / "logs" / job_file(run_dir, step.name, f".shard-{index}.log").name


def _over(running: dict[int, Server], run_dir: Path, step: str) -> Iterator[ShardEnd]:
    """Take out those that have ended; gives those that did not end well."""
    for index, server in list(running.items()):
        try:
            server.check()
        except StepFailed as error:
            del running[index]
            # A process that was killed leaves no word; what its log ends with is told then.
            word: dict[str, Any] = {"code": StepFailed.exit_code, "error": str(error)}
            with suppress(OSError, ValueError):
                word = read_json(word_file(run_dir, step, index))
            if word["code"]:
                yield ShardEnd(index, int(word["code"]), str(word["error"]))


def with_usage(metrics: Mapping[str, Any], run_dir: Path, step: str) -> dict[str, Any]:
    """What whoever merges asked, and with it what the shards of this run asked, as they said at their end."""
    shard_usages: list[FlowUsage] = []
    for path in sorted((run_dir / "jobs").glob(f"{escape(job_file(run_dir, step, '').name)}.shard-*.exit.json")):
        with suppress(OSError, ValueError):
            shard_usages.append(FlowUsage.from_metrics(read_json(path)))
    if all(usage == FlowUsage() for usage in shard_usages):
        return dict(metrics)
    # What this process found done is what the shards did.
    own = replace(FlowUsage.from_metrics(metrics), rows_done_before=0)
    return {**metrics, **reduce(FlowUsage.beside, shard_usages, own).to_metrics(cost_last=False)}


def with_spent(metrics: Mapping[str, Any], own: FlowUsage, others: Spent) -> dict[str, Any]:
    """The metrics with what was asked and paid by all processes that worked on the step, killed ones too.

    ``own`` is what this process asked, ``others`` what the accounts say of all others: shards, and attempts before.
    """
    if not others.calls:
        return dict(metrics)
    merged = FlowUsage.from_metrics(metrics)
    cost = (own.cost or 0.0) + others.cost
    usage = replace(
        merged,
        calls=max(merged.calls, own.calls + others.answers),
        attempts=max(merged.attempts, own.attempts + others.calls),
        cost=max(merged.cost or 0.0, round(cost, 6)) if cost else merged.cost,
    )
    return {**metrics, **usage.to_metrics()}


class _Rows:
    """Finished rows of all shards, counted in their journals as these grow."""

    def __init__(self, work: Path, count: int, progress: Progress) -> None:
        self._work = work
        self._progress = progress
        self._pattern = f"{JOURNAL}.*-of-{count}.jsonl"
        self._ends: dict[Path, int] = {}  # how far each journal has been read, in bytes
        self._expected = False  # whether the number of rows has been told
        self.reported_rows = 0

    def look(self) -> None:
        """Tell what has been added since the last look."""
        if not self._expected:
            with suppress(OSError, ValueError):
                self._progress.expect(rows=int((self._work / _ROWS).read_text(encoding="utf-8")))
                self._expected = True
        more = sum(map(self._more, self._work.glob(self._pattern)))
        if more:
            self.reported_rows += more
            self._progress.advance(rows=more)

    def _more(self, path: Path) -> int:
        finished_rows, end = 0, self._ends.get(path, 0)
        with suppress(OSError), path.open("rb") as file:
            file.seek(end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                finished_rows += _ROW.match(line) is not None
        self._ends[path] = end
        return finished_rows
