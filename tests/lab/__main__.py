"""Run the lab: ``python -m tests.lab``. Brings upstream's wheels once, beside this project's own environment.

The wheels of ``nemo-wheels.txt``, in the versions of ``constraints-nemo.txt`` (about 1.5 GB; torch is the project's
own), are unzipped into a folder under ``$CAI_LAB`` (default ``$CAI_HOME/lab``), which only this run puts on its path;
nothing is installed. With ``--check`` the lock is not written, and a machine that cannot run the lab says why and skips
it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cai.files.home import cai_home
from tests.lab.planned import VERSIONS, WHEELS

ROOM = 6 << 30
"""Bytes that must be free before the wheels are fetched: the archives and what is in them."""


def main(words: list[str]) -> int:
    """Fetch, run, and return pytest's exit code."""
    check = "--check" in words
    folder = _folder()
    if why := _unfit(folder):
        print(f"nemo-lab skipped: {why}" if check else f"nemo-lab cannot run: {why}")
        return 0 if check else 2
    if not folder.is_dir() and not _fetch(folder):
        print("nemo-lab skipped: the wheels could not be fetched" if check else "the wheels could not be fetched")
        return 0 if check else 1
    env = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "CAI_LAB_LOCK": "" if check else "write",
    }
    more = [word for word in words if word != "--check"] or [str(Path(__file__).parent)]
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--show-capture=no", "--tb=short", *more]
    return subprocess.run(argv, env=env, check=False).returncode


def _folder() -> Path:
    name = hashlib.sha256(WHEELS.read_bytes() + VERSIONS.read_bytes()).hexdigest()[:12]
    return Path(os.environ.get("CAI_LAB") or cai_home() / "lab") / f"nemo-{name}"


def _unfit(folder: Path) -> str:
    if not os.environ.get("CAI_UPSTREAM"):
        return "CAI_UPSTREAM names no folder with the configs of NeMo-Aligner v0.7.0 and NeMo v2.1.0"
    if sys.version_info[:2] != (3, 11) or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "the list of wheels is for Python 3.11 on Linux, x86-64"
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if not folder.is_dir() and free < ROOM:
        return f"{folder.parent} has {free >> 30} GiB free, and the wheels need {ROOM >> 30}"
    return ""


def _fetch(folder: Path) -> bool:
    start = time.monotonic()
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    print(f"fetching upstream's wheels into {folder}", flush=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--target", str(partial)]
    wanted = ["--constraint", str(VERSIONS), "--requirement", str(WHEELS)]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options, *wanted], check=False)
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        return False
    partial.rename(folder)
    print(f"fetched in {time.monotonic() - start:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
