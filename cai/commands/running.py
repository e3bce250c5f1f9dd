"""``run`` and ``apply``: the plan is shown, then carried out."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

from cai.commands.common import RUNS, options, read_plan
from cai.plan import Plan


def run_verb(args: Sequence[str]) -> int:
    """Compile and run one experiment, or with ``-m`` every cell of a Hydra sweep."""
    if any(word in ("-m", "--multirun") or word.startswith("--") for word in args):
        return _with_hydra(args)
    from cai.commands.planning import compile_plan

    return carry_out(compile_plan(args))


def apply_verb(args: Sequence[str]) -> int:
    """Run a plan file as it stands, whatever has been edited since."""
    parser = options("apply", "Run exactly a plan written by `plan --out`.")
    parser.add_argument("plan", type=Path)
    return carry_out(read_plan(parser.parse_args(list(args)).plan))


def carry_out(plan: Plan, runs: Path = RUNS) -> int:
    """Run a plan with everything a person sees of it; returns the exit code."""
    from cai.console import ConsoleWatcher
    from cai.engines import make_engine
    from cai.events import new_run_folder
    from cai.execution.status import previous_plan
    from cai.executor import default_store, run
    from cai.summary import print_summary

    gc.enable()
    previous = previous_plan(runs, plan.experiment)
    folder = new_run_folder(runs, plan.experiment)
    with ConsoleWatcher() as watcher:
        result = run(
            plan, store=default_store(), run_dir=folder, make_engine=make_engine, watch=watcher, previous=previous
        )
    print_summary(result)
    return 0


def _cell(data: dict[str, object], overrides: Sequence[str]) -> int:
    from cai.experiment import parse
    from cai.library import Library
    from cai.resolver import resolve

    return carry_out(resolve(parse(data), Library.here()))


def _with_hydra(args: Sequence[str]) -> int:
    from cai.compose import multirun

    multirun(args, _cell)
    return 0
