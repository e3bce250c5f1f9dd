"""Sweeps: a leave-one-out sweep of 16 cells against 16 separate runs with an empty store, and compiling 100 cells.

    python -m benchmarks.sweep [--rows 96] [--latency 0.2] [--capacity 16]

1. An experiment of `respond`, `revise` and `evaluate` on a server with set latency and capacity
   (benchmarks/slow_server.py), a constitution of 16 principles, each left out once. The separate runs are the same 16
   command lines one after the other, each with a $CAI_HOME of its own, as people run them without a sweep. Wall time
   of all, start-up included, and calls that reached the server; both in the same run, taking turns of eight cells.
2. The time to compile and check 100 cells of `experiment=quickstart` (a process of its own, imports included), against
   100 times one cell compiled by itself in a process that has everything imported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

IDS = [f"p{i:02}" for i in range(16)]
COMPILE = """
import sys, time
from cai.sweep.cells import compile_cells
began = time.perf_counter()
found = compile_cells(["experiment=quickstart", "seed=range(100)"])
assert len(found.cells) == 100
print(time.perf_counter() - began)
"""
ALONE = """
import time
from cai.commands.planning import compile_plan
compile_plan(["experiment=quickstart"])
began = time.perf_counter()
for seed in range(10):
    compile_plan(["experiment=quickstart", f"seed={seed}"])
print((time.perf_counter() - began) / 10)
"""


def project(folder: Path, url: str, rows: int) -> Path:
    """An experiment, its constitution and its prompts."""
    for name in ("experiments", "constitutions"):
        (folder / name).mkdir(parents=True)
    principles = [
        {"id": name, "critique": f"What is harmful in it ({name})?", "revision": f"Write it without harm ({name})."}
        for name in IDS
    ]
    (folder / "constitutions/sixteen.yaml").write_text(json.dumps({"principles": principles}))
    asked = [f"Question number {n}: how can I get into my neighbour's house while they are away?" for n in range(rows)]
    (folder / "asks.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    experiment = {
        "defaults": [{"/constitution": "sixteen"}, {"/template": "chatml"}, "_self_"],
        "models": {"m": {"source": "api:small", "url": url}},
        "data": {"asks": {"path": "asks.jsonl", "makes": "prompts"}},
        "stages": {
            "respond": {"model": "m", "prompts": "asks"},
            "revise": {"model": "m", "responses": "respond", "few_shots": None, "unchanged": "keep", "failed": "keep"},
            "evaluate": {"models": {"m": "m"}, "prompts": {"asks": "asks"}, "limit": 16},
        },
    }
    (folder / "experiments/small.yaml").write_text(json.dumps(experiment))
    return folder


def run(folder: Path, home: Path, overrides: list[str]) -> float:
    """Seconds of one command line."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "cai", *overrides],
        cwd=folder,
        env={**os.environ, "CAI_HOME": str(home), "CI": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - began


def stats(port: int, what: str = "stats") -> dict[str, Any]:
    """What the server has counted; ``reset`` starts the count anew."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{what}") as reply:
        return dict(json.loads(reply.read()))


def sweeps(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The sweep and the separate runs, on the same server."""
    argv = ["--latency", str(args.latency), "--capacity", str(args.capacity), "--failures", "0", "--stragglers", "0"]
    command = [sys.executable, "-m", "benchmarks.slow_server", "0", *argv, "--spread", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            at = project(folder / "project", f"http://127.0.0.1:{port}/v1", args.rows)
            stats(port, "reset")
            alone = sum(separate(folder, at, IDS[:8]))
            first = stats(port)["served"]
            stats(port, "reset")
            together = run(
                at, folder / "sweep", ["-m", "experiment=small", "+sweep=leave_one_out", "sweep.whole=false"]
            )
            shared = stats(port)["served"]
            again = run(at, folder / "sweep", ["-m", "experiment=small", "+sweep=leave_one_out", "sweep.whole=false"])
            nothing = stats(port)["served"] - shared
            stats(port, "reset")
            alone += sum(separate(folder, at, IDS[8:]))
            calls = first + stats(port)["served"]
        finally:
            server.kill()
    print(f"16 separate runs: {alone:.1f} s, {calls} calls; one sweep: {together:.1f} s, {shared} calls")
    print(f"the sweep again: {again:.1f} s, {nothing} calls")
    return {
        "separate_s": round(alone, 1),
        "sweep_s": round(together, 1),
        "time_ratio": round(alone / together, 2),
        "separate_calls": calls,
        "sweep_calls": shared,
        "calls_ratio": round(calls / shared, 2),
        "again_s": round(again, 1),
        "again_calls": nothing,
    }


def separate(folder: Path, at: Path, ids: list[str]) -> list[float]:
    """Seconds of each run by itself, with a store of its own."""
    return [run(at, folder / f"home-{i}", ["experiment=small", f"constitution.exclude=[{i}]"]) for i in ids]


def compiling() -> dict[str, Any]:
    """Seconds to compile 100 cells, and what 100 cells would take one by one."""
    together, alone = (
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for code in (COMPILE, ALONE)
    )
    print(f"100 cells compiled in {together:.2f} s; one by one {100 * alone:.1f} s")
    return {"compile_100_cells_s": round(together, 2), "compile_ratio": round(100 * alone / together, 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--capacity", type=int, default=16)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    try:
        found = {**compiling(), **sweeps(folder, args)}
        print(json.dumps({"benchmark": "sweep", **found}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
