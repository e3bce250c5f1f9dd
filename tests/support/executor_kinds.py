"""Scripted stages for the executor's tests, and a small program that runs a plan of them in a process of its own.

``python -m tests.support.executor_kinds HOME RUN_DIR ROWS [KILL_AFTER]`` runs the plan and kills itself with SIGKILL
after so many journal appends.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from cai.data.journal import Journal, Record
from cai.identity import RUNTIME
from cai.plan import Ingredients, Plan, Step, inputs_of
from cai.run.executor import run
from cai.stages.base import Context, Ledger, Outcome, StageSpec, Wants, take_apart
from cai.store.artifacts import Store

SIDE = "CAI_TEST_SIDE"


class CountSpec(StageSpec):
    MAKES: ClassVar[str] = "prompts"
    kind: str = "count"
    rows: int = 8
    drop: int = 0
    lose: int = 0
    max_drop_rate: Annotated[float, RUNTIME] = 0.5


class JoinSpec(StageSpec):
    MAKES: ClassVar[str] = "prompts"
    kind: str = "join"
    a: Annotated[str, Wants("prompts")] = ""
    b: Annotated[tuple[str, ...], Wants("prompts")] = ()
    c: Annotated[dict[str, str], Wants("prompts")] = Field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    spec: type[StageSpec]
    run: Callable[[Any, Context], Outcome]


def work_done(what: str) -> None:
    """Count a piece of work where the test can see it, across processes."""
    if SIDE in os.environ:
        with Path(os.environ[SIDE]).open("a") as file:
            file.write(what + "\n")


def count(spec: CountSpec, ctx: Context) -> Outcome:
    with closing(Journal(ctx.work / "journal.jsonl")) as journal:
        return counted(spec, ctx, journal)


def counted(spec: CountSpec, ctx: Context, journal: Journal) -> Outcome:
    ctx.progress.expect(rows=spec.rows)
    for i in range(spec.rows):
        if i not in journal:
            work_done(f"{ctx.name} r{i}")
            journal.append([Record(i, {"id": f"r{i}", "text": f"{ctx.seed} {i}"})])
            if i >= int(os.environ.get("CAI_TEST_KILL_AFTER", 10**9)):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(float(os.environ.get("CAI_TEST_PAUSE", 0)))
        ctx.progress.advance(rows=1)
    with (ctx.out / "train.jsonl").open("w") as file:
        for i in range(spec.drop, spec.rows):
            file.write(json.dumps(journal[i]) + "\n")
    ctx.progress.note("count.done", rows=spec.rows)
    rows = spec.rows - spec.drop
    dropped = {"too long": spec.drop} if spec.drop else {}
    return Outcome(Ledger(spec.rows, rows - spec.lose, dropped, {"train": rows}), {"nan": float("nan")}, 3, 40)


def join(spec: JoinSpec, ctx: Context) -> Outcome:
    work_done(f"{ctx.name} join")
    text = ""
    for role, found in sorted(ctx.inputs.items()):
        several = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else [found]
        text += role + "".join((a.path / "train.jsonl").read_text() for a in several)
    (ctx.out / "train.jsonl").write_text(json.dumps({"id": "all", "text": text}) + "\n")
    return Outcome(Ledger(1, 1))


KINDS = {"count": Kind(CountSpec, count), "join": Kind(JoinSpec, join)}


def step(name: str, kind: str = "count", seed: int = 0, inputs: Any = None, keys: Any = None, **spec: Any) -> Step:
    # Kinds of other tests are known to them only.
    spec_type = KINDS[kind].spec if kind in KINDS else StageSpec
    named = (inputs or {}) if kind in KINDS else {}
    counted = {name: value for name, value in spec.items() if name != "max_drop_rate"}
    if kind in KINDS:
        checked = spec_type.model_validate({"kind": kind, **spec, **named})
        counted = {name: value for name, value in take_apart(checked).semantic.items() if name != "kind"}
    ingredients = Ingredients(kind=kind, version=spec_type.VERSION, spec=counted, seed=seed, inputs=keys)
    return Step(
        name,
        kind,
        "prompts",
        ingredients.key(),
        seed,
        inputs_of(inputs or {}),
        {"kind": kind, **spec, **named},
        ingredients=ingredients,
    )


def small_plan(rows: int = 8, seed: int = 0, **spec: Any) -> Plan:
    one, two = step("one", rows=rows, seed=seed, **spec), step("two", rows=3, seed=seed)
    roles = {"a": "one", "b": ["one", "two"], "c": {"x": "two"}}
    keys = {"a": one.key, "b": [one.key, two.key], "c": [["x", two.key]]}
    return Plan("small", seed, {"kind": "none"}, (one, two, step("all", "join", seed, roles, keys)))


def no_engine(settings: dict[str, Any]) -> Any:
    raise AssertionError("no stage asked for the engine")


def main() -> None:
    home, run_dir, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    if len(sys.argv) > 4:
        os.environ["CAI_TEST_KILL_AFTER"] = sys.argv[4]
    run(small_plan(rows), store=Store(home), run_dir=run_dir, make_engine=no_engine, kinds=KINDS)


if __name__ == "__main__":
    main()
