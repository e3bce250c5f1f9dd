"""What several verbs share: options beside overrides, and which run is meant."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.constitution import Constitution, load_constitution
from cai.errors import Problem, SpecError, did_you_mean
from cai.files.library import Library
from cai.files.yaml_lines import load_mapping
from cai.plan import Plan, plan_from_json

RUNS = Path("runs")


class Options(argparse.ArgumentParser):
    """An argument parser whose errors are ours."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Wrong use is the user's input being wrong."""
        raise SpecError(Problem(f"python -m cai {self.prog}", message, f"see `python -m cai {self.prog} -h`"))


def options(verb: str, description: str, takes_overrides: bool = False) -> Options:
    """A parser for one verb."""
    parser = Options(prog=verb, description=description)
    if takes_overrides:
        parser.add_argument("overrides", nargs="*", help="experiment=NAME and field=value, as Hydra reads them")
    return parser


def split_overrides(args: Sequence[str], parser: Options) -> argparse.Namespace:
    """Parse options and overrides in any order (``~key`` and ``+key=v`` included)."""
    return parser.parse_intermixed_args(list(args))


def find_run(name: str | None) -> Path:
    """The folder of a run: a run folder, an experiment's newest run, or the newest of all.

    Raises:
        SpecError: when there is none.
    """
    if name:
        for path in (Path(name), RUNS / name / "latest", RUNS / name):
            if (path / "plan.json").is_file():
                return path.resolve()
            if (path / "sweep.json").is_file():
                raise SpecError(Problem(name, "is a sweep of many runs", f"name one of its cells, e.g. {path}/0"))
        run_names = [p.parent.parent.name for p in RUNS.glob("*/latest/plan.json")]
        hint = did_you_mean(name, run_names) if run_names else "start one with `python -m cai`"
        raise SpecError(Problem(name, f"no run of that name under {RUNS}/", hint))
    plans = [p for p in RUNS.glob("*/latest/plan.json") if p.is_file()]
    if not plans:
        raise SpecError(Problem(f"{RUNS}/", "there is no run here yet", "start one with `python -m cai`"))
    return max(plans, key=lambda p: p.stat().st_mtime).parent.resolve()


def read_plan(path: Path) -> Plan:
    """A plan file.

    Raises:
        SpecError: when it is not there or is no plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(Problem(str(path), f"cannot be read ({error})", "make one with `plan --out FILE`")) from error
    return plan_from_json(text, str(path))


def named_constitution(library: Library, name: str) -> Constitution:
    """A constitution of the library with everything it extends.

    Raises:
        SpecError: with every problem.
    """

    def find(base_name: str) -> Mapping[str, Any]:
        path = library.find("constitutions", base_name)
        return load_mapping(path, library.display_path(path))

    path = library.find("constitutions", name)
    return load_constitution(path, find, library.display_path(path))
