"""Hydra's private modules: used in one file, and still what that file takes them for."""

from __future__ import annotations

import ast
from importlib.metadata import version
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from packaging.version import Version

from cai.experiment import hydra_private
from cai.experiment.compose import ROOT_CONFIG, compose, serving, to_plain
from cai.files.library import Library
from tests.support.paths import ROOT

ALLOWED = "cai/experiment/hydra_private.py"
TODO = """
Hydra {} is here. Read what this file's other tests say: each holds one private name to what it is used for. Where one
fails, look in Hydra's release notes for a public way first (compose with defaults=, initialize_config_module), change
cai/experiment/hydra_private.py and nothing else, run tests/experiment, tests/sweep and benchmarks/plan_latency.py, and
then raise the bound in pyproject.toml and the version here.
"""


def test_only_one_file_imports_what_is_private() -> None:
    users = set()
    for path in (ROOT / "cai").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            private = any(name.startswith("hydra.") and "._" in name for name in names)
            if private or any(name.startswith("hydra.core.override_parser") for name in names):
                users.add(path.relative_to(ROOT).as_posix())
    assert users == {ALLOWED}


def test_the_version_is_one_that_this_was_tried_with() -> None:
    installed = version("hydra-core")
    assert Version("1.3.2") <= Version(installed) < Version("1.4"), TODO.format(installed)


@pytest.fixture
def library() -> Library:
    return Library.here(ROOT)


def test_overrides_are_taken_apart_by_hydras_grammar() -> None:
    chosen, plain, swept = hydra_private.parse_overrides(["constitution=mine", "seed=3", "stages.sft.epochs=1,2"])
    assert (chosen.key_or_group, chosen.value()) == ("constitution", "mine")
    assert (plain.key_or_group, plain.value(), plain.is_sweep_override()) == ("seed", 3, False)
    assert swept.is_discrete_sweep()
    assert [str(value) for value in swept.sweep_string_iterator()] == ["1", "2"]
    (own,) = hydra_private.parse_overrides(["hydra.job.chdir=false"], hydra_private.config_loader())
    assert own.is_hydra_override()


def test_values_put_on_a_composed_config_are_those_that_composing_would_give(library: Library) -> None:
    values = ["seed=5", "stages.sft.training.epochs=7", "+stages.sft.training.val_every=3", "~stages.evaluate"]
    with serving(library):
        GlobalHydra.instance().clear()
        hydra_private.begin()
        from hydra import compose as hydra_compose

        files = ["experiment=quickstart", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
        config = hydra_compose(ROOT_CONFIG, overrides=files)
        hydra_private.apply_overrides(hydra_private.parse_overrides(values), config)
        late = to_plain(config)
        together = to_plain(hydra_compose(ROOT_CONFIG, overrides=[*files, *values]))
    assert late == together
    assert compose(["experiment=quickstart", *values], library).data == together


def test_a_launcher_that_is_not_there_is_found_without_starting_anything(library: Library, tmp_path: Path) -> None:
    from hydra.errors import HydraException

    from cai.experiment.compose import CELL_CONFIG

    with serving(library):
        hydra_private.check_launch_config(CELL_CONFIG, [])
        with pytest.raises(HydraException):
            hydra_private.check_launch_config(CELL_CONFIG, ["hydra/launcher=nowhere"])
