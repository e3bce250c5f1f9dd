"""Hydra's multirun: a sweep's command line taken apart, and cells sent through whatever launcher was chosen.

Hydra's launcher is only told numbers, and each job runs the frozen plan of its number: what was shown is what runs.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.errors import Problem, SpecError
from cai.experiment import hydra_private
from cai.experiment.compose import CELL_CONFIG, ROOT_CONFIG, hydra_errors, serving, to_plain
from cai.files.library import Library


@dataclass(frozen=True)
class SweepRequest:
    """A sweep's command line taken apart: overrides of each cell, what is swept in it, and what Hydra itself is told.

    ``preset`` and ``settings`` are of ``+sweep=NAME`` and ``sweep.field=value``; ``launch`` are Hydra's own overrides.
    """

    cells: tuple[tuple[str, ...], ...]
    values: tuple[dict[str, str], ...]
    preset: str
    settings: tuple[tuple[str, Any], ...]
    launch: tuple[str, ...]


def split_sweep(overrides: Sequence[str], library: Library) -> SweepRequest:
    """Every combination of the swept values, as Hydra's basic sweeper makes them: the last override varies fastest.

    Raises:
        SpecError: for what Hydra's grammar cannot read, an interval, or a sweep over presets.
    """
    lists: dict[str, list[str]] = {}
    swept: list[str] = []
    preset, settings, launch = "", list[tuple[str, Any]](), list[str]()
    with serving(library), hydra_errors(overrides, library):
        for parsed in hydra_private.parse_overrides(overrides, hydra_private.config_loader()):
            key, line = parsed.key_or_group, parsed.input_line or ""
            if parsed.is_hydra_override():
                launch.append(line)
            elif key == "sweep" or key.startswith("sweep."):
                if parsed.is_sweep_override() or (key == "sweep" and not isinstance(parsed.value(), str)):
                    raise SpecError(Problem(line, "names more than one sweep", "run one after the other"))
                if key == "sweep":
                    preset = str(parsed.value())
                else:
                    settings.append((key.removeprefix("sweep."), parsed.value()))
            elif not parsed.is_sweep_override():
                lists[key] = [line]
            elif parsed.is_discrete_sweep():
                head = parsed.get_key_element()
                lists[key] = [f"{head}={value}" for value in parsed.sweep_string_iterator()]
                swept.append(key)
            else:
                hint = "give the values, or range(start, stop, step)"
                raise SpecError(Problem(line, "an interval has no end of values", hint))
    cells = tuple(itertools.product(*lists.values()))
    names = list(lists)
    values = tuple(
        {name: line.partition("=")[2] for name, line in zip(names, cell, strict=True) if name in swept}
        for cell in cells
    )
    return SweepRequest(cells, values, preset, tuple(settings), tuple(launch))


def check_launch(overrides: Sequence[str], library: Library) -> None:
    """Make sure that Hydra itself can use what it is told: its launcher and that launcher's settings.

    Raises:
        SpecError: for an unknown launcher, or a setting that it does not have.
    """
    with serving(library), hydra_errors(overrides, library):
        hydra_private.check_launch_config(CELL_CONFIG, overrides)


def multirun(overrides: Sequence[str], task: Callable[[dict[str, Any], Sequence[str]], Any]) -> None:
    """Hydra's native multirun (any sweeper and launcher): ``task(data, overrides)`` is called for each cell."""
    from hydra.core.hydra_config import HydraConfig

    def run(config: Any) -> Any:
        return task(to_plain(config), list(HydraConfig.get().overrides.task))

    _hydra_main(overrides, run, ROOT_CONFIG, "runs/multirun")


def launch_numbers(count: int, overrides: Sequence[str], folder: Path, task: Callable[[int], Any]) -> None:
    """Call ``task`` with 0 to ``count`` - 1 through the Hydra launcher that ``overrides`` choose.

    The cells themselves are not Hydra's business: each job is told its number only. ``folder`` is where a launcher
    keeps its own files; the task must be one that can be sent to another process.

    Raises:
        SpecError: for an unknown launcher, or a setting that it does not have.
    """

    def run(config: Any) -> Any:
        return task(int(config.cell))

    numbers = ",".join(map(str, range(count)))
    quiet = ["hydra.output_subdir=null", "hydra.job.chdir=false"]
    _hydra_main([*quiet, *overrides, f"+cell={numbers}"], run, CELL_CONFIG, str(folder))


def _hydra_main(overrides: Sequence[str], run: Callable[[Any], Any], config_name: str, folder: str) -> None:
    import sys

    import hydra

    library = Library.here()
    quiet = ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled", f"hydra.sweep.dir={_word(folder)}"]
    flags = [o for o in overrides if o.startswith("-")]
    fields = [o for o in overrides if not o.startswith("-")]
    quiet = [o for o in quiet if not any(f.startswith(o.partition("=")[0]) for f in fields)]
    flags += [] if {"-m", "--multirun"} & set(flags) else ["-m"]
    # Flags first: Hydra's parser takes one unbroken list of overrides.
    argv_before = sys.argv
    sys.argv = [sys.argv[0], *flags, *quiet, *fields]
    # Without this Hydra prints errors in its own words and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.getLogger("hydra").setLevel(logging.WARNING)
    try:
        with serving(library), hydra_errors(overrides, library):
            hydra.main(config_path=None, config_name=config_name, version_base="1.3")(run)()
    finally:
        sys.argv = argv_before


def _word(text: str) -> str:
    """A text as one quoted value of Hydra's grammar; interpolations in it stay text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return f'"{escaped}"'
