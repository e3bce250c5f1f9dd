"""Verbs. The only place that exits; each verb's module is loaded when it is called, so that start-up stays quick."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from cai.errors import CaiError, SpecError
from cai.text import shown_output

VERBS: dict[str, tuple[str, str]] = {
    "run": ("running", "compile an experiment, show the plan, run it (the verb when none is given)"),
    "plan": ("planning", "the dry run: what would be reused or run, why, and what it costs"),
    "apply": ("running", "run exactly a plan written by `plan --out`"),
    "diff": ("reviewing", "what is different between two experiments, plans, runs or revisions, and what it costs"),
    "status": ("jobs", "how far a run is, step by step"),
    "resume": ("jobs", "go on with a run from its own plan; on a cluster, come back to its jobs"),
    "cancel": ("jobs", "cancel the jobs of a run"),
    "step": ("jobs", "one step of a plan; what cluster jobs run"),
    "validate": ("planning", "every problem of an experiment at once (--all: of every experiment)"),
    "lock": ("reviewing", "write the resolved experiment as a file to commit; `validate --locked` checks it"),
    "list": ("looking", "experiments, constitutions and templates that can be named"),
    "show": ("looking", "one experiment, constitution or template, rendered"),
    "schema": ("looking", "JSON Schema of the experiment or the constitution file, for editors"),
    "rows": ("looking", "the ledger of a run, or the rows of one step"),
    "report": ("reporting", "one HTML file about a run, or several runs compared"),
    "store": ("looking", "ls, verify, gc: the artifacts that runs share"),
    "download": ("fetching", "fetch a model or a data file from the hub, e.g. where the nodes have no network"),
    "export": ("exporting", "write rows of data or of a finished step as a file for another trainer"),
    "allow": ("allowing", "let the key in an environment variable be sent to a server"),
    "import": ("importing", "read a published principle file into constitutions/"),
    "chat": ("talking", "talk to the finished model"),
    "serve": ("talking", "serve the finished model with an OpenAI-compatible API"),
}


def usage() -> str:
    """The help text."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {description}" for verb, (_, description) in VERBS.items()]
    return "\n".join(
        [
            "usage: python -m cai [VERB] [experiment=NAME] [field=value ...] [-m]",
            "",
            *lines,
            "",
            "  --detach with a cluster: submit the jobs and return; `status`, `resume` and `cancel` come back to them",
            "  -m       sweep with Hydra: python -m cai -m experiment=quickstart 'seed=range(3)'",
            "  VERB -h  the verb's own options",
            "",
            "Without arguments: the quickstart experiment, end to end, on this machine.",
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit code: 0 done, 1 failed, 2 wrong input, 3 incomplete, 130 interrupted."""
    # Loading classes makes no garbage: looking for it would be a fifth of the start-up. Work switches it on again.
    gc.disable()
    with shown_output():
        return _exit_code(argv)


def _exit_code(argv: Sequence[str]) -> int:
    args = list(argv)
    verb = args.pop(0) if args and not _is_override(args[0]) else "run"
    try:
        if text := _help_or_version(argv):
            print(text, flush=True)
            return 0
        if verb not in VERBS:
            from cai.errors import Problem, did_you_mean

            raise SpecError(Problem(verb, "unknown verb", did_you_mean(verb, VERBS)))
        module = importlib.import_module(f"cai.commands.{VERBS[verb][0]}")
        return int(getattr(module, f"{verb}_verb")(args))
    except SpecError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        if len(error.problems) > 1:
            print(f"{len(error.problems)} problems", file=sys.stderr)
        return error.exit_code
    except CaiError as error:
        print(f"error: {error}", file=sys.stderr)
        if os.environ.get("CAI_TRACE"):
            traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (``| head``): nothing is wrong, but Python would complain while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _help_or_version(argv: Sequence[str]) -> str:
    """What is printed for a command line that only asks about the program; empty for all others."""
    if argv and argv[0] in ("-h", "--help", "help"):
        return usage()
    if argv and argv[0] == "--version":
        from importlib.metadata import version

        return version("constitution-as-code")
    return ""


def _is_override(word: str) -> bool:
    return "=" in word or word.startswith(("-", "+", "~"))
