"""What is installed: a small base, extras for the rest, and a clear word when an extra is missing."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cai.engines.methods import METHODS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAME = PYPROJECT["project"]["name"]
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
EMBEDDED = {"torch", "transformers", "safetensors", "gguf"}
HEAVY = EMBEDDED | {"trl", "peft", "datasets"}
# What of the extra ``dev`` is run and not imported, and plug-ins.
PROGRAMS = {
    "import-linter",
    "hydra-joblib-launcher",
    "mypy",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "types-pyyaml",
    "uv",
}
# Where a package is imported under a name that is not its own.
DISTRIBUTIONS = {
    "hydra": "hydra-core",
    "mlflow": "mlflow-skinny",
    "yaml": "pyyaml",
}
# The folders and files of ``cai`` that may import more than the base, and the extra that has it.
ROOMS = {
    "cai/engines/embedded/openvino_client.py": "openvino",
    "cai/engines/embedded/": "embedded",
    "cai/trackers/": "trackers",
}


def requirements(lines):
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


def extra(name):
    """An extra's own requirements and those of the extras that it includes."""
    found = requirements(EXTRAS[name])
    itself = found.pop(NAME, None)
    for other in itself.extras if itself else ():
        found |= extra(other)
    return found


def base():
    return requirements(PYPROJECT["project"]["dependencies"])


def imported(path):
    """The packages that a file imports, by the names of their distributions; neither Python's own nor ours."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        for name in names:
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "cai":
                yield canonicalize_name(DISTRIBUTIONS.get(top, top))


def pinned(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(package): version
        for package, _, version in (line.partition("==") for line in lines if line and not line.startswith("#"))
    }


def test_the_base_brings_nothing_heavy():
    assert not HEAVY & set(base())
    assert set(extra("embedded")) == EMBEDDED
    assert set(extra("openvino")) > EMBEDDED


def test_whatever_is_imported_is_declared_where_it_is_imported():
    missing = []
    for path in sorted((ROOT / "cai").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        room = next((extra(room) for prefix, room in ROOMS.items() if name.startswith(prefix)), {})
        missing += [f"{name}: {package}" for package in imported(path) if package not in base() | room]
    assert missing == []


def test_whatever_the_base_declares_is_imported():
    used = {package for path in (ROOT / "cai").rglob("*.py") for package in imported(path)}
    assert set(base()) - used == set()


@pytest.mark.parametrize("name", ["embedded", "openvino", "trackers"])
def test_whatever_an_extra_declares_is_imported_where_it_belongs(name):
    folders = [prefix for prefix, room in ROOMS.items() if room in (name, "embedded" if name == "openvino" else name)]
    files = [
        path for path in (ROOT / "cai").rglob("*.py") if path.relative_to(ROOT).as_posix().startswith(tuple(folders))
    ]
    assert set(extra(name)) - {package for path in files for package in imported(path)} == set()


def test_what_tests_and_benchmarks_import_is_declared_and_what_dev_declares_is_used():
    folders = [ROOT / name for name in ("tests", "benchmarks", "tools")]
    # The first two run in the environment of the extra ``nemo``, the last in one of its own.
    skipped = [ROOT / "tests" / name for name in ("lab", "standin", "servers_lab/llamacpp_server.py")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    files = [path for path in files if not any(path.is_relative_to(other) for other in skipped)]
    files.remove(ROOT / "benchmarks" / "with_data_designer.py")  # runs in an environment that has data-designer
    used = {package for path in files for package in imported(path)} - {"tests", "benchmarks", "tools"}
    everything = base() | {n: r for name in ("openvino", "trackers", "dev") for n, r in extra(name).items()}
    assert sorted(used - set(everything)) == []
    assert sorted(set(extra("dev")) - used - PROGRAMS - {"tomli"}) == []


def test_the_packages_that_the_engine_asks_for_are_those_it_imports():
    from cai.engines.embedded.settings import PACKAGES

    folder = ROOT / "cai" / "engines" / "embedded"
    heavy = {p for path in folder.glob("*.py") for p in imported(path) if p in HEAVY}
    assert set(PACKAGES) == heavy


def test_upstream_s_packages_and_the_embedded_engine_s_are_declared_to_exclude_each_other():
    conflicts = [{entry["extra"] for entry in pair} for pair in PYPROJECT["tool"]["uv"]["conflicts"]]
    assert {"nemo", "embedded"} in conflicts
    assert {"nemo", "openvino"} in conflicts


@pytest.mark.parametrize(
    ("file", "extras"),
    [("constraints.txt", ("embedded", "openvino", "trackers", "dev")), ("constraints-nemo.txt", ("nemo",))],
)
def test_the_locked_versions_are_those_that_the_extras_allow(file, extras):
    locked, bad = pinned(file), []
    for name, found in [*base().items(), *(pair for each in extras for pair in extra(each).items())]:
        if found.marker is None or found.marker.evaluate():
            version = locked.get(name, "")
            if not version or not found.specifier.contains(version):
                bad.append(f"{found} is locked at {version or 'nothing'}")
    assert bad == []


def test_the_lock_of_upstream_leaves_torch_to_the_machine():
    assert not {"torch", "torchvision", "triton"} & set(pinned("constraints-nemo.txt"))


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-nemo.txt"])
def test_a_lock_has_exact_versions_and_says_nothing_of_the_machine_that_made_it(file):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    versions = [line for line in lines if not line.startswith("#")]
    assert [line for line in versions if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line)] == []
    assert [line for line in lines if "://" in line or re.search(r"(^|[\s'\"=])/\w", line)] == []


def test_the_makefile_installs_extras_that_there_are():
    [wanted] = re.findall(r"--editable '\.\[([a-z,]+)\]'", (ROOT / "Makefile").read_text())
    assert set(wanted.split(",")) == set(EXTRAS) - {"nemo"}


# An import of these fails as if they were not installed; all that is installed beside them stays.
WITHOUT = f"""
import sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(HEAVY | {"openvino", "openvino_genai", "tensorboard", "wandb", "mlflow"})}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Gone())
"""


def without_extras(code, folder, *args):
    environment = {**os.environ, "CAI_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-c", WITHOUT + code, *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


CAI = "from cai.__main__ import main; main()"


def test_without_the_extra_the_quickstart_says_what_to_install(tmp_path):
    done = without_extras(CAI, tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "torch, transformers" in done.stderr
    assert "pip install 'constitution-as-code[embedded]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra_everything_that_the_engine_does_says_what_to_install(tmp_path):
    code = """
from pathlib import Path
from functools import partial
from cai.engines.methods import METHODS
from cai.engines.methods import METHODS
from cai.engines import make_engine
from cai.engines.methods import METHODS
from cai.errors import PrerequisiteError

session, folder = make_engine({"kind": "embedded"}).session(None), Path("model")
for what in (
    lambda: session.fetch(None, folder, None),
    lambda: session.client(folder),
    lambda: session.reward_scorer(folder),
    *(partial(session.train, method, None, None, None) for method in METHODS.values()),
):
    try:
        what()
    except PrerequisiteError as error:
        print("constitution-as-code[embedded]" in str(error))
"""
    done = without_extras(code, tmp_path)
    assert done.stdout.split() == ["True"] * (3 + len(METHODS)), done.stderr


@pytest.mark.parametrize(
    "command", [["plan", "experiment=mistral_rl_cai"], ["plan"], ["plan", "-m", "seed=0,1"], ["validate", "--all"]]
)
def test_without_the_extra_plans_are_made(command, tmp_path):
    done = without_extras(CAI, tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
