"""``diff`` and ``lock``: what a change means, and the resolved experiment as a file to commit."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cai.commands.common import Options, options, split_overrides
from cai.commands.planning import plan_of
from cai.errors import CaiError, Problem, SpecError
from cai.experiment.compose import compose
from cai.files.library import Library
from cai.plan import Plan
from cai.planning.compilation import Looked
from cai.review.changes import Change
from cai.review.gates import GateVerdict, gates, judged
from cai.review.lock import experiment_of, lock_data, lock_path, lock_text, own_experiments
from cai.review.review import Review, review
from cai.review.sides import EXPERIMENT, Opener, Side, against, is_side, opener
from cai.store.artifacts import default_store

_WIDTH = 100


def diff_verb(args: Sequence[str]) -> int:
    """Show what is different between two sides; 1 where a gate holds back, or with ``--exit-code`` anything differs."""
    parsed = split_overrides(args, _diff_options())
    active_gates = gates(parsed.fail_on) if parsed.fail_on is not None else ()
    with opener(plan_of, default_store()) as opened:
        if parsed.since is not None:
            reviews = list(_since(opened, parsed.since, parsed.given))
        else:
            reviews = [_two(opened, parsed.given)]
    verdicts = [judged(active_gates, r) for r in reviews]
    _show(reviews, verdicts, parsed)
    failed = [
        (r.subject, v) for r, gate_verdicts in zip(reviews, verdicts, strict=True) for v in gate_verdicts if v.failed
    ]
    for subject, verdict in failed:
        print(f"held back by {verdict.gate}: {subject}: {verdict.why}", file=sys.stderr)
    if any(r.problems for r in reviews):
        return 2
    differ = parsed.exit_code and any(not r.same for r in reviews)
    return 1 if failed or differ else 0


def _diff_options() -> Options:
    parser = options("diff", "Show what is different between two sides, what runs again, and what came of it.")
    sides = "an experiment, 'EXPERIMENT field=value', REV:EXPERIMENT, a plan, a run's folder, a lock; then overrides"
    parser.add_argument("given", nargs="*", metavar="A B", help=f"{sides}; with B alone, A is HEAD:B")
    parser.add_argument("--since", metavar="REV", help="every experiment that differs from that git revision")
    parser.add_argument("--format", choices=("text", "md", "json"), default="text")
    parser.add_argument("--out", type=Path, help="write it to a file too")
    parser.add_argument("--exit-code", action="store_true", help="end with 1 where anything differs")
    parser.add_argument("--fail-on", metavar="WHAT", help="end with 1 for any of these, e.g. principles,labels>5%%")
    return parser


def _two(opened: Opener, words: Sequence[str]) -> Review:
    sides = [word for word in words if is_side(word)]
    overrides = [word for word in words if not is_side(word)]
    if not 1 <= len(sides) <= 2:
        message = "wants two sides, or one to hold against HEAD" if not sides else f"has {len(sides)} sides"
        raise SpecError(Problem("diff", message, "e.g. diff main:quickstart quickstart; see `python -m cai diff -h`"))
    if len(sides) == 1:
        # First what was named: where that is nothing, HEAD need not be asked.
        base_side = against(sides[0])
        after = opened.open(sides[0], overrides)
        before = opened.open(base_side, overrides)
    else:
        before, after = (opened.open(side, overrides) for side in sides)
    fixed = [side.label for side in (before, after) if side.kind in ("plan", "run", "lock")]
    if overrides and len(fixed) == 2:
        raise SpecError(Problem(overrides[0], f"nothing to override: {fixed[0]} and {fixed[1]} stand as they are"))
    return review(before, after, opened.store)


def _since(opened: Opener, revision: str, overrides: Sequence[str]) -> Iterator[Review]:
    """Every experiment whose plan differs between a revision and the working tree, by name."""
    for word in overrides:
        if is_side(word):
            raise SpecError(Problem(word, "--since looks at every experiment", "leave it out, or leave --since out"))
    _, library = opened.revision(revision)
    there = {name for name, _ in library.names("experiments")}
    here = {name for name, _ in Library.here().names("experiments")}
    for name in sorted(there | here):
        before, was_wrong = _compiled(opened, revision, name, overrides) if name in there else (None, ())
        after, is_wrong = _compiled(opened, None, name, overrides) if name in here else (None, ())
        sides = (f"{revision}:{name}", "revision"), (name, "experiment")
        if is_wrong:
            # What was wrong at the revision already is no news.
            if is_wrong != was_wrong:
                yield Review(name, *sides, problems=is_wrong)
        elif before is not None or after is not None:
            compared = _compared(opened, name, before=before, after=after, sides=sides)
            if before is None or after is None:
                whole_change = _whole(
                    name, revision, before or after, was=name in there, is_now=name in here, wrong=was_wrong
                )
                compared = replace(compared, changes=(whole_change,))
            if not compared.same:
                yield compared


Labels = tuple[tuple[str, str], tuple[str, str]]


def _compared(opened: Opener, name: str, *, before: Plan | None, after: Plan | None, sides: Labels) -> Review:
    """Two plans held against each other; one that is not there is a plan without steps."""
    existing = after or before
    nothing = Plan(name, existing.seed if existing else 0, dict(existing.engine) if existing else {}, ())
    (old, old_kind), (new, new_kind) = sides
    return review(Side(old, old_kind, before or nothing), Side(new, new_kind, after or nothing), opened.store, name)


def _whole(name: str, revision: str, plan: Plan | None, *, was: bool, is_now: bool, wrong: Sequence[str]) -> Change:
    """An experiment that only one side has: said once, since every line of it is new, or gone."""
    where = f"experiments/{name}"
    if was and is_now:
        words = f"experiment {name} could not be compiled at {revision}: {'; '.join(wrong)}"
        return Change("stages", "repaired", where, None, name, words)
    kind = "added" if is_now else "removed"
    stages = [step.name for step in plan.steps if step.kind not in ("fetch", "read")] if plan else []
    words = f"experiment {name} {kind}: {', '.join(stages)}"
    return Change("stages", kind, where, None if is_now else name, name if is_now else None, words)


def _compiled(
    opened: Opener, revision: str | None, name: str, overrides: Sequence[str]
) -> tuple[Plan | None, tuple[str, ...]]:
    """A plan, or what is wrong with the experiment."""
    try:
        if revision is None:
            return opened.working(name, overrides), ()
        return opened.at_revision(revision, name, overrides), ()
    except SpecError as error:
        return None, tuple(str(p).removeprefix(f"{revision}: ") for p in error.problems)
    except CaiError as error:
        return None, (str(error),)


def _show(reviews: Sequence[Review], verdicts: Sequence[Sequence[GateVerdict]], parsed: argparse.Namespace) -> None:
    if parsed.format == "text":
        from cai.review.text import ReviewText
        from cai.terminal.output import PlainConsole, make_console

        text_view = ReviewText(reviews, verdicts, parsed.since)
        make_console().print(text_view)
        if parsed.out:
            file = io.StringIO()
            PlainConsole(file=file, width=_WIDTH, highlight=False, markup=False, emoji=False).print(text_view)
            _write(parsed.out, file.getvalue())
        return
    if parsed.format == "md":
        from cai.review.markdown import document
    else:
        from cai.review.data import document
    from cai.terminal.output import make_console

    text = document(reviews, verdicts, parsed.since)
    make_console().out(text, end="", highlight=False)
    if parsed.out:
        _write(parsed.out, text)


def _write(path: Path, text: str) -> None:
    from cai.files.durable import write_durably

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, text)
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror})"
        raise SpecError(Problem("--out", message, "give another path")) from error


def lock_verb(args: Sequence[str]) -> int:
    """Write the resolved experiment as a file to commit; ``validate --locked`` holds it against the experiment."""
    parser = options("lock", "Write the resolved experiment, with every default and digest, as a file to commit.", True)
    parser.add_argument("--out", type=Path, help="the file; by default locks/EXPERIMENT.lock.yaml")
    parser.add_argument("--all", action="store_true", help="every experiment of the folder where you stand")
    parsed = split_overrides(args, parser)
    if parsed.all and parsed.out:
        raise SpecError(Problem("--out", "is one file, and --all writes one for each", "leave one of them out"))
    library = Library.here()
    names = own_experiments(library) if parsed.all else [experiment_of(parsed.overrides)]
    looked: Looked = {}
    for name in names:
        overrides = [f"{EXPERIMENT}{name}", *(o for o in parsed.overrides if not o.startswith(EXPERIMENT))]
        plan = plan_of(compose(overrides, library), library, looked)
        path = parsed.out or lock_path(name)
        _write(path, lock_text(lock_data(plan, overrides)))
        print(f"{name}: locked in {path}")
    return 0
