"""A million rows through one stage: memory over time, and how soon a killed run is at work again.

    python -m benchmarks.million_rows [--rows 1000000] [--home DIR] [--plain-rows 50000]

The stage `respond` answers the prompts through the scripted client (no model, no network: what is measured is ours),
with journal, request cache and artifact on the disk. A first process is killed with SIGKILL half-way; a second goes on
and ends. The figures: the highest resident memory of both, its growth per row beside that of a plain script that keeps
all in lists (measured in the same run, on fewer rows), and the seconds from the start of the second process
until it asks its first new row, Python's own start included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cai.figures.usage import FlowUsage

PROMPT = "Question number {n}: what should a person think about before they decide this, and who could be harmed by it?"


def write_prompts(path: Path, rows: int) -> None:
    """The input artifact."""
    from cai.chat import Message
    from cai.data.rows import Prompt, dump_line
    from cai.identity import row_id

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            text = PROMPT.format(n=n)
            file.write(dump_line(Prompt(row_id("user", text), (Message("user", text),), f"topic {n % 12}")))


def work(home: Path, mark: Path) -> None:
    """The stage, in a process of its own; notes when it asks its first call."""
    from cai.chat import ChatTemplate
    from cai.clients.base import Request
    from cai.clients.scripted import ScriptedClient, made_up
    from cai.files.library import shipped_root
    from cai.run.watch import Silent
    from cai.stages.base import Artifact, Context
    from cai.stages.respond import RespondSpec, run

    def reply(request: Request) -> str:
        if not mark.exists():
            mark.write_text(str(time.time()))
        return made_up(request.prompt, request.seed)

    class Engine:
        flows = True

        def client(self, model: Path) -> ScriptedClient:
            return ScriptedClient(reply, record=False)

    template = (shipped_root() / "prompt_templates" / "chatml.jinja").read_text(encoding="utf-8")
    chat = ChatTemplate.from_text("chatml", template)
    (home / "out").mkdir(exist_ok=True)
    inputs = {
        "model": Artifact("m" * 64, "model", home / "model"),
        "prompts": Artifact("p", "prompts", home / "prompts"),
    }
    spec = RespondSpec(model="model", prompts="prompts")
    progress = Silent().step_started(None, False)  # type: ignore[arg-type]
    where: dict[str, Any] = {"out": home / "out", "work": home / "work", "cache": home / "requests"}
    ctx = Context(
        "respond",
        0,
        inputs,
        engine=Engine(),
        progress=progress,
        template=chat,
        constitution=None,
        texts={},  # type: ignore[arg-type]
        stops=chat.stops,
        key="k" * 64,
        **where,
    )
    outcome = run(spec, ctx)
    (home / "outcome.json").write_text(
        json.dumps({"ledger": outcome.ledger.rows_out, "metrics": dict(outcome.metrics)})
    )


def plain(home: Path, rows: int) -> None:
    """What a script does that keeps everything in lists and writes at its end."""
    from cai.clients.scripted import made_up

    asked = [json.loads(line) for line in (home / "prompts" / "rows.jsonl").open(encoding="utf-8")][:rows]
    answers = [{**row, "answer": made_up(row["messages"][0]["content"], 0)} for row in asked]
    with (home / "plain.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in answers)


def resident(pid: int) -> float:
    """Resident memory of a process in MB; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(found[0]) / 1024 if found else 0.0


def lines(path: Path) -> int:
    """Finished rows so far, about: the journal's size through the size of its first line."""
    try:
        with path.open("rb") as file:
            first = len(file.readline())
            return path.stat().st_size // first if first else 0
    except OSError:
        return 0


def watched(argv: list[str], home: Path, kill_at: int | None, said: str) -> tuple[float, float, list[tuple[int, int]]]:
    """Run a process to its end (or until so many rows are done): seconds, most MB, (rows done, MB) over time."""
    began, most, track = time.time(), 0.0, list[tuple[int, int]]()
    journal = home / "work" / "journal.jsonl"
    with subprocess.Popen(argv) as process:
        told = 0.0
        while process.poll() is None:
            now = resident(process.pid)
            most = max(most, now)
            if time.time() - told > 5:
                told = time.time()
                track.append((lines(journal), round(now)))
                print(f"{said}: {track[-1][0]:>9} rows, {now:6.0f} MB, {time.time() - began:6.1f} s", flush=True)
            if kill_at is not None and lines(journal) >= kill_at:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.05)
    if kill_at is None and process.returncode:
        sys.exit(f"{said} failed with code {process.returncode}")
    return time.time() - began, most, track


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--plain-rows", type=int, default=50_000)
    parser.add_argument("--home", type=Path, help="folder for the files (2 GB for a million rows)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.home, Path(os.environ["MARK"]))
        return
    if args.plain:
        plain(args.home, args.plain_rows)
        return
    home = Path(tempfile.mkdtemp(prefix="million_rows-", dir=args.home))
    try:
        print(json.dumps(measure(home, args.rows, args.plain_rows)))
    finally:
        shutil.rmtree(home)


def measure(home: Path, rows: int, plain_rows: int) -> dict[str, Any]:
    """Both processes, the plain script, and the figures."""
    write_prompts(home / "prompts" / "rows.jsonl", rows)
    me = [sys.executable, "-m", "benchmarks.million_rows", "--home", str(home), "--plain-rows", str(plain_rows)]
    floor = watched([sys.executable, "-c", "import cai.stages, time; time.sleep(0.5)"], home, None, "imports")[1]
    by_hand = watched([*me, "--plain"], home, None, "plain")[1]
    os.environ["MARK"] = str(home / "first")
    first, most_1, track_1 = watched([*me, "--work"], home, rows // 2, "first")
    os.environ["MARK"] = str(home / "second")
    began = time.time()
    second, most_2, track_2 = watched([*me, "--work"], home, None, "second")
    outcome = json.loads((home / "outcome.json").read_text(encoding="utf-8"))
    written = sum(1 for _ in (home / "out" / "rows.jsonl").open("rb"))
    assert written == rows == outcome["ledger"], (written, outcome)
    usage = FlowUsage.from_metrics(outcome["metrics"])
    growth, plain_growth = (max(most_1, most_2) - floor) / rows, (by_hand - floor) / plain_rows
    return {
        "benchmark": "million_rows",
        "ratio": round(plain_growth / growth, 2),
        "what": "memory per row of a plain script / ours",
        "rows": rows,
        "most_mb": round(max(most_1, most_2)),
        "at_most_mb": 500,
        "resume_s": round(float((home / "second").read_text()) - began, 2),
        "at_most_resume_s": 10,
        "rows_done_before": usage.rows_done_before,
        "asked_again": usage.calls + usage.rows_done_before + usage.from_cache - rows,
        "rows_per_s": round(rows / (first + second)),
        "memory_over_time": [*track_1, *track_2][:: max(1, (len(track_1) + len(track_2)) // 12)],
    }


if __name__ == "__main__":
    main()
