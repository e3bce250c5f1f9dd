"""Every extra can be resolved: with the locked versions, and without them on the oldest Python.

``uv`` only reads what packages say of themselves; nothing is downloaded but that, and nothing is installed.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

EXTRAS = ("", "embedded", "openvino", "trackers", "dev", "nemo")
UNREACHABLE = ("dns error", "error sending request", "Could not connect", "timed out", "Failed to fetch")


def resolve(extra: str, folder: Path, *options: str) -> set[str]:
    """``name==version`` of everything that the base and an extra bring."""
    out = folder / "resolved.txt"
    named = ["--extra", extra] if extra else []
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    command = [str(uv), "pip", "compile", "pyproject.toml", *named, *options, "--quiet", "--no-header", "-o", str(out)]
    completed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
    if completed.returncode and any(words in completed.stderr for words in UNREACHABLE):
        pytest.skip(f"no package index can be reached from here: {completed.stderr.strip().splitlines()[0]}")
    assert completed.returncode == 0, completed.stderr
    lines = out.read_text(encoding="utf-8").splitlines()
    return {_normalised(line) for line in lines if line and not line.lstrip().startswith("#")}


def _normalised(line: str) -> str:
    name, _, version = line.partition(" ")[0].partition("==")
    return f"{canonicalize_name(name)}=={version}"


@pytest.mark.long
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_resolved_with_the_locked_versions(extra: str, tmp_path: Path) -> None:
    lock = "constraints-nemo.txt" if extra == "nemo" else "constraints.txt"
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    locked = {_normalised(line) for line in lines if line and not line.startswith("#")}
    resolved = resolve(extra, tmp_path, "--constraint", lock, "--python-version", "3.11")
    names = {line.partition("==")[0] for line in locked}
    assert {line for line in resolved if line.partition("==")[0] in names} <= locked
    assert any(line.startswith("pydantic==") for line in resolved)


@pytest.mark.long
@pytest.mark.parametrize("extra", ["", "embedded", "trackers"])
def test_an_extra_is_resolved_on_the_oldest_python(extra: str, tmp_path: Path) -> None:
    resolved = {line.partition("==")[0] for line in resolve(extra, tmp_path, "--python-version", "3.10")}
    assert ("torch" in resolved) is (extra == "embedded")
    assert "hydra-core" in resolved
