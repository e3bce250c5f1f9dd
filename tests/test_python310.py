"""The package in a real Python 3.10, that of NVIDIA's image: installed as docs/nemo.md says, then used.

Only the base is installed, as in the container: no torch, no extra.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cai.commands.planning import compile_plan
from cai.files.library import Library, shipped_root

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
OFFLINE = ("(from versions: none)", "Retrying (Retry")
"""What pip says when it reaches no packages."""


def python310() -> Path | None:
    """A Python 3.10 on the PATH or among pyenv's; a shim of pyenv that leads nowhere is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which("python3.10"), *sorted(pyenv.glob("versions/3.10*/bin/python"), reverse=True)]
    for path in filter(None, found):
        told = run([path, "-c", "import sys; print(sys.version_info[:2], sys.executable)"])
        if told.returncode == 0 and told.stdout.startswith("(3, 10)"):
            return Path(told.stdout.split(") ")[1].strip())
    return None


def run(command: Sequence[str | Path], cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment | variables,
        timeout=280,
        check=False,
    )


def documented() -> list[str]:
    """The lines of docs/nemo.md that are for inside the container, without comments."""
    text = (ROOT / "docs" / "nemo.md").read_text(encoding="utf-8")
    [block] = re.findall(r"Inside the container:\n\n```bash\n(.*?)```", text, re.DOTALL)
    return [line.partition("  #")[0].rstrip() for line in block.splitlines()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that the documented lines make, and pytest in it."""
    python = python310()
    if python is None:
        pytest.skip("no Python 3.10: neither python3.10 on the PATH nor one of pyenv's")
    folder = tmp_path_factory.mktemp("python310")
    lines = [line for line in documented() if " venv " in line or " install " in line]
    assert len(lines) == 2
    script = "\n".join(["set -e", *lines]) + " pytest pytest-timeout"
    script = script.replace("/shared/cai-env", str(folder / "env")).replace("/path/to/constitution-as-code", str(ROOT))
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(python)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    # Compiling every package would take longer than all that runs here.
    done = run(
        ["bash", "-c", script],
        folder,
        PATH=path,
        PIP_COMPILE="0",
        PIP_QUIET="1",
        PIP_RETRIES="1",
        PIP_DEFAULT_TIMEOUT="15",
    )
    if done.returncode != 0 and (
        said := [line for line in done.stderr.splitlines() if any(w in line for w in OFFLINE)]
    ):
        pytest.skip(f"pip reaches no packages: {said[0].strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "env"


def cai(installed: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return run([installed / "bin" / "python", "-W", "error", "-m", "cai", *args], folder, CAI_HOME=str(folder / "home"))


def test_the_documented_commands_after_the_install_are_those_tried_here():
    lines = [line for line in documented() if " -m cai " in line]
    assert lines == [
        "/shared/cai-env/bin/python -m cai plan experiment=mistral_rl_cai",
        "/shared/cai-env/bin/python -m cai experiment=mistral_rl_cai",
    ]


def test_every_module_but_the_extras_can_be_imported(installed: Path, tmp_path: Path):
    code = """
import importlib, importlib.util, pkgutil, sys
import cai

assert sys.version_info[:2] == (3, 10)
assert importlib.util.find_spec("torch") is None
modules = [m.name for m in pkgutil.walk_packages(cai.__path__, "cai.") if not m.name.endswith("__main__")]
modules = [m for m in modules if not m.startswith(("cai.engines.embedded.", "cai.trackers."))]
for module in modules:
    importlib.import_module(module)
print(len(modules), cai.__file__)
"""
    done = run([installed / "bin" / "python", "-W", "error", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    count, file = done.stdout.split()
    assert int(count) > 150
    assert Path(file).is_relative_to(installed)


def test_plans_are_those_of_any_other_python(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = cai(installed, tmp_path, "plan", "experiment=mistral_rl_cai")
    assert shown.returncode == 0, shown.stderr
    assert "train_gpt_ppo_actor.py" in shown.stdout
    told = cai(installed, tmp_path, "plan", "experiment=mistral_rl_cai", "--format", "json")
    assert told.returncode == 0, told.stderr
    keys = {step["name"]: step["key"] for step in json.loads(told.stdout)["steps"]}
    monkeypatch.chdir(tmp_path)
    here = compile_plan(["experiment=mistral_rl_cai"], Library((tmp_path, shipped_root())))
    assert keys == {step.name: step.key for step in here.steps}


def test_scripts_are_written(installed: Path, tmp_path: Path):
    done = cai(installed, tmp_path, "plan", "experiment=mistral_rl_cai", "--script", "scripts")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "scripts").glob("*rl*"))


def test_every_shipped_experiment_is_valid(installed: Path, tmp_path: Path):
    done = cai(installed, tmp_path, "validate", "--all")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_engine_that_is_not_installed_says_so(installed: Path, tmp_path: Path):
    done = cai(installed, tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "pip install 'constitution-as-code[embedded]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_differs_between_pythons_works(installed: Path):
    """Digests, tasks that are cancelled together, time limits."""
    chosen = "identity or early or too_long or frees or never_work"
    files = ["tests/test_identity.py", "tests/clients/test_nemo_generate.py", "tests/clients/test_http_pool.py"]
    flags = ["-p", "no:cacheprovider", "-k", chosen, *files]
    done = run([installed / "bin" / "python", "-m", "pytest", *flags], ROOT, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
