"""``run`` and ``apply``: the plan is shown, then carried out here or as jobs of a cluster."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cai.commands.common import RUNS, options, read_plan
from cai.errors import Problem, SpecError
from cai.plan import Plan

if TYPE_CHECKING:
    from rich.console import Console

DETACH = "--detach"


def run_verb(args: Sequence[str]) -> int:
    """Compile and run one experiment, or with ``-m`` every cell of a Hydra sweep.

    ``--detach`` submits the jobs of a cluster and returns.
    """
    detach = DETACH in args
    args = [word for word in args if word != DETACH]
    flags = [word for word in args if word.startswith("-")]
    if flags and all(flag in ("-m", "--multirun") for flag in flags) and not _own_sweeper(args):
        from cai.commands.sweeping import run_sweep

        return run_sweep([word for word in args if word not in flags], detach)
    if flags:
        return _with_hydra(args, detach)
    from cai.commands.planning import compile_plan

    return carry_out(compile_plan(args), detach=detach)


def apply_verb(args: Sequence[str]) -> int:
    """Run a plan file as it stands, whatever has been edited since."""
    parser = options("apply", "Run exactly a plan written by `plan --out`.")
    parser.add_argument("plan", type=Path)
    parser.add_argument(DETACH, action="store_true", help="submit the jobs of a cluster and return")
    parsed = parser.parse_args(list(args))
    return carry_out(read_plan(parsed.plan), detach=parsed.detach)


def carry_out(plan: Plan, runs: Path = RUNS, detach: bool = False, group: str = "") -> int:
    """Run a plan with everything a person sees of it; returns the exit code. ``group`` is for trackers: the sweep.

    Raises:
        SpecError: when ``detach`` is asked for a plan that runs in this process.
    """
    from cai.run.submitted import launcher_of
    from cai.store.events import new_run_folder

    if launcher_of(plan) is None:
        return run_here(plan, None, runs=runs, detach=detach, group=group)
    from cai.planning.rates import with_times
    from cai.run.status import statuses
    from cai.run.submission import submit
    from cai.store.artifacts import default_store
    from cai.terminal.plan_view import print_plan
    from cai.trackers.watching import check_trackers

    check_trackers(plan)
    store = default_store()
    step_statuses = statuses(plan, store, runs)
    if any(status.action != "reuse" for status in step_statuses):
        print_plan(with_times(plan, store), step_statuses)
        print(flush=True)
    folder = new_run_folder(runs, plan.experiment)
    submit(plan, store, folder)
    return see_through(folder, detach, group)


def run_here(plan: Plan, folder: Path | None, *, runs: Path = RUNS, detach: bool = False, group: str = "") -> int:
    """Run a plan in this process; in ``folder``, or in a new one under ``runs``."""
    from cai.engines import make_engine
    from cai.run.executor import run
    from cai.run.status import previous_plan
    from cai.store.artifacts import default_store
    from cai.store.events import new_run_folder
    from cai.terminal.console import ConsoleWatcher
    from cai.terminal.summary import print_summary
    from cai.trackers.watching import check_trackers, tracked

    if detach:
        raise SpecError(
            Problem(DETACH, "this run's steps are no jobs: they run in this process", "leave it out, or use `nohup`")
        )
    check_trackers(plan)
    gc.enable()
    previous = previous_plan(runs, plan.experiment)
    run_dir = folder or new_run_folder(runs, plan.experiment)
    engine = partial(make_engine, plan=plan, run_dir=run_dir)
    store = default_store()
    with ConsoleWatcher() as watcher, tracked(plan, run_dir, store.home, partial(_say, watcher.console), group=group):
        result = run(plan, store=store, run_dir=run_dir, make_engine=engine, watch=watcher, previous=previous)
    print_summary(result)
    return 0


def _say(console: Console, text: str) -> None:
    from rich.text import Text

    from cai.text import one_line

    console.print(Text(one_line(text, 400), style="dim"), soft_wrap=True)


def see_through(folder: Path, detach: bool = False, group: str = "") -> int:
    """Watch a submitted run to its end and show its summary; with ``detach`` say how to come back."""
    from cai.run.submission import shown_run, watch
    from cai.run.submitted import open_submission
    from cai.terminal.output import make_console
    from cai.terminal.summary import print_summary
    from cai.trackers.watching import tracked

    if detach:
        run_name = shown_run(folder)
        print(f"the jobs of {run_name} are submitted")
        print(f"  python -m cai status {run_name}\n  python -m cai resume {run_name}")
        return 0
    sub, console = open_submission(folder), make_console()
    say = partial(_say, console)
    with tracked(sub.plan, folder, sub.store.home, say, group=group, unfinished="running"):
        result = watch(folder, console)
    print_summary(result)
    return 0


def _cell(data: dict[str, object], overrides: Sequence[str], detach: bool = False) -> int:
    from cai.experiment.model import parse
    from cai.files.library import Library
    from cai.planning.resolver import resolve

    return carry_out(resolve(parse(data), Library.here()), detach=detach)


def _own_sweeper(args: Sequence[str]) -> bool:
    """Whether the user brings another sweeper, whose cells nobody can know before it has seen results."""
    return any(word.lstrip("+").startswith("hydra/sweeper=") for word in args)


def _with_hydra(args: Sequence[str], detach: bool) -> int:
    from cai.sweep.multirun import multirun

    multirun(args, partial(_cell, detach=detach))
    return 0
