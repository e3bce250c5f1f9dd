"""``plan`` and ``validate``: compile, look, start nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cai.commands.common import options, split_overrides
from cai.errors import CaiError, Problem, SpecError
from cai.experiment.compose import Composed, compose
from cai.files.library import Library
from cai.plan import Plan
from cai.planning.compilation import Looked
from cai.planning.resolver import resolve_data

if TYPE_CHECKING:
    from cai.run.examples import StepExamples


def compile_plan(overrides: Sequence[str], library: Library | None = None) -> Plan:
    """Overrides -> plan; the one way from a command line to a plan."""
    library = library or Library.here()
    composed = compose(overrides, library)
    if "sweep" in composed.data:
        raise SpecError(Problem("sweep", "is for the many cells of a sweep", "add -m to run, or to plan, all of them"))
    return plan_of(composed, library)


def plan_of(composed: Composed, library: Library, looked: Looked | None = None) -> Plan:
    """Composed data -> plan; problems of fields, texts, names and data are told together."""
    return resolve_data(composed.data, library, composed.where, looked)


def plan_verb(args: Sequence[str]) -> int:
    """Print the plan with what would happen to each step."""
    parser = options("plan", "Compile an experiment and show what would run and why; starts nothing.", True)
    parser.add_argument("--out", type=Path, help="write the plan as JSON, for `apply`")
    parser.add_argument("--format", choices=("text", "md", "json"), default="text")
    parser.add_argument("--script", type=Path, metavar="DIR", help="write the commands as shell or sbatch scripts")
    parser.add_argument("-m", "--multirun", action="store_true", help="of a sweep: what its cells share and cost")
    parser.add_argument(
        "--pilot",
        type=int,
        metavar="N",
        help="ask models behind an API for the first N rows; what all will cost",
    )
    parser.add_argument("--examples", action="store_true", help="two prompts of each stage, as its model reads them")
    parsed = split_overrides(args, parser)
    if parsed.pilot is not None:
        return _pilot(parsed)
    if parsed.multirun and parsed.examples:
        raise SpecError(Problem("--examples", "shows the prompts of one experiment", "leave -m out"))
    if parsed.multirun:
        from cai.commands.sweeping import plan_sweep

        return plan_sweep(parsed.overrides, parsed.format, parsed.out, parsed.script)
    from cai.terminal.shell_text import shell_word

    plan = compile_plan(parsed.overrides)
    examples = _examples(plan) if parsed.examples else None
    if parsed.out:
        _write(parsed.out, plan)
        apply = f"python -m cai apply {shell_word(str(parsed.out))}"
        print(f"plan written to {parsed.out}; run it with: {apply}", file=sys.stderr)
    from cai.planning.rates import with_times
    from cai.run.status import statuses
    from cai.store.artifacts import default_store
    from cai.terminal.plan_view import print_plan

    store = default_store()
    if parsed.script:
        from cai.run.scripts import write_scripts

        first = write_scripts(plan, store, parsed.script)
        print(f"scripts written; run them with: bash {shell_word(str(first))}", file=sys.stderr)
    from cai.engines import step_commands
    from cai.engines.base import Places

    commands = step_commands(plan, Places(store.root, str(parsed.out.absolute()) if parsed.out else "plan.json"))
    plan = with_times(plan, store)
    print_plan(plan, statuses(plan, store), format=parsed.format, commands=commands, examples=examples)
    return 0


def _examples(plan: Plan) -> tuple[StepExamples, ...]:
    from cai.run.examples import plan_examples

    return plan_examples(plan, Library.here())


def _pilot(parsed: argparse.Namespace) -> int:
    """Ask for the first rows, and print what all rows will cost."""
    if parsed.pilot < 1 or parsed.multirun or parsed.script or parsed.out or parsed.examples:
        message = "asks for so many rows of one experiment's plan"
        hint = "give a number from 1 on, and neither -m nor --out nor --script nor --examples"
        raise SpecError(Problem("--pilot", message, hint))
    from functools import partial

    from cai.engines import make_engine
    from cai.run.pilot import run_pilot
    from cai.store.artifacts import default_store
    from cai.terminal.console import ConsoleWatcher
    from cai.terminal.output import make_console
    from cai.terminal.pilot_view import pilot_data, pilot_text

    plan = compile_plan(parsed.overrides)
    progress = make_console(stderr=True)
    with ConsoleWatcher(progress, show_plan=False) as watcher:
        engine = partial(make_engine, plan=plan, run_dir=Path())
        pilot = run_pilot(plan, parsed.pilot, store=default_store(), make_engine=engine, watch=watcher)
    data = pilot_data(pilot.figures, pilot.unmeasured, pilot.totals())
    make_console().out(pilot_text(data, parsed.format), end="", highlight=False)
    return 0


def _write(path: Path, plan: Plan) -> None:
    from cai.files.durable import write_durably

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, plan.to_json())
    except OSError as error:
        raise SpecError(
            Problem("--out", f"{path} cannot be written ({error.strerror})", "give another path")
        ) from error


def validate_verb(args: Sequence[str]) -> int:
    """Print every problem, of one experiment or of all."""
    parser = options("validate", "Check experiments and print every problem at once.", True)
    parser.add_argument("--all", action="store_true", help="every experiment and constitution that can be named")
    parser.add_argument("--locked", action="store_true", help="the locks too: whether one is missing or stale")
    parsed = split_overrides(args, parser)
    library = Library.here()
    if parsed.locked:
        _check_locks(parsed, library)
    if not parsed.all:
        compile_plan(parsed.overrides, library)
        print("valid")
        return 0
    failed = 0
    for name, path in library.names("experiments"):
        failed += _check(
            f"experiment {name}", library.display_path(path), [f"experiment={name}", *parsed.overrides], library
        )
    failed += _check_constitutions(library)
    return 2 if failed else 0


def _check_locks(parsed: argparse.Namespace, library: Library) -> None:
    """Hold the locks against what their experiments are now.

    Raises:
        SpecError: with all that is missing or stale.
    """
    from cai.review.lock import check_lock, experiment_of, locked_experiments, own_experiments

    names = [experiment_of(parsed.overrides)]
    if parsed.all:
        names = list(dict.fromkeys((*own_experiments(library), *locked_experiments())))
    others = [o for o in parsed.overrides if not o.startswith("experiment=")]
    problems: list[Problem] = []
    for name in names:
        try:
            problems += check_lock(name, lambda overrides: compile_plan(overrides, library), others)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    print(f"locked: {', '.join(names)}")


def _check(subject: str, display_path: str, overrides: Sequence[str], library: Library) -> int:
    try:
        compile_plan(overrides, library)
    except CaiError as error:
        problems = error.problems if isinstance(error, SpecError) else (error,)
        print(f"{subject} ({display_path}): {len(problems)} problem{'s' * (len(problems) > 1)}")
        for problem in problems:
            print(f"  {problem}")
        return 1
    print(f"{subject} ({display_path}): valid")
    return 0


def _check_constitutions(library: Library) -> int:
    from cai.commands.common import named_constitution
    from cai.constitution import lint

    failed = 0
    for name, path in library.names("constitutions"):
        try:
            findings = lint(named_constitution(library, name))
        except SpecError as error:
            print(f"constitution {name} ({library.display_path(path)}): {len(error.problems)} problems")
            for problem in error.problems:
                print(f"  {problem}")
            failed += 1
            continue
        errors = [f for f in findings if f.level == "error"]
        print(f"constitution {name} ({library.display_path(path)}): {'valid' if not errors else 'has errors'}")
        for finding in findings:
            print(f"  {finding.level}: {finding.where}: {finding.message}; {finding.next}".rstrip("; "))
        failed += bool(errors)
    return failed
