"""Saturation: the stages against a client that knows the servers' places and every latency beforehand.

    python -m benchmarks.saturation [--quick] [--only NAME ...]

The same draws of latencies and failures are given to a simulated client that knows them (benchmarks/ideal.py: every
place taken as long as there is a call, retries at once) and, by a server in another process
(benchmarks/slow_server.py), to our stages. The ratio is its seconds over ours, from the stage's start to its end.

1. ``stated``: 1,000, 2,000 and 20,000 calls on 64 and on 256 places, the limit stated: at least 0.97.
2. ``unknown``: the same, nothing stated and nothing remembered; beyond its places the server refuses: at least 0.90.
   ``queues``: the same with a server that lets calls wait instead.
3. ``steps``: four steps of 600 rows, one after the other, nothing stated; what the first finds out the others remember:
   at least 0.95 of the ideal with a barrier between steps.
4. ``dying``: one of two servers dies and returns: at least 0.92 of the ideal that knows when.
5. ``others``: 1,000 rows with data-designer on the same server, by the time between the server's first call and its
   last answer: we are to be ahead. Its Python is that of ``DATA_DESIGNER_PYTHON``, or this one if it is installed here.

Beside each ratio stands one against the order that starts the longest calls first, which needs the latencies. Exit 1
when a goal is missed. The latencies are such that neither side is short of processor time: 0.5 s on 64 places and 2 s
on 256, on average: to open 256 connections takes both sides about 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ideal import Draws, Places, ideal_seconds
from benchmarks.stage_rows import ask, context, process, revise

LATENCY = {64: 0.5, 256: 2.0}
"""Mean seconds of a call, by the places of the server."""
SPREAD, FAILURES = 0.4, 0.02
CALLS = (1000, 2000, 20000)
STEP_ROWS = 600
DYING_CALLS, DYING_PLACES, AWAY = 4000, 32, (8.0, 16.0)
OTHERS_ROWS, OTHERS_PLACES = 1000, 64


@dataclass
class Outcome:
    """One measurement: the ratio to the ideal, the least that it is to be, and what else was seen."""

    name: str
    ratio: float
    goal: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def missed(self) -> bool:
        """Whether the goal is missed, at the digits that are shown."""
        return round(self.ratio, 3) < self.goal

    def line(self) -> str:
        """For a person."""
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{self.name:<28} {self.ratio:.3f} (goal {self.goal}{', MISSED' if self.missed else ''})  {facts}"


class Notes:
    """A step's progress that keeps how the limit went."""

    def __init__(self) -> None:
        self.limits: list[Any] = []
        self.taken_over = 0

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """Nothing."""

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """Nothing."""

    def note(self, event: str, **fields: Any) -> None:
        """Keep what the pool tells."""
        if event == "limit.moved":
            self.limits += [fields["to"]] if fields["from"] is not None else [fields["to"], fields["reason"]]
        elif event == "calls.taken_over":
            self.taken_over += fields["calls"]


@contextmanager
def slow_server(
    latency: float, places: int, queue: int, seed: int, away: tuple[float, float] | None = None
) -> Iterator[str]:
    """A server with set draws; its address without ``/v1``."""
    argv = ["benchmarks.slow_server", "0", "--latency", str(latency), "--spread", str(SPREAD)]
    argv += ["--failures", str(FAILURES), "--capacity", str(places), "--queue", str(queue), "--seed", str(seed)]
    argv += ["--away", *map(str, away)] if away else []
    with process(argv) as port:
        yield f"http://127.0.0.1:{port}"


def respond(ctx: Any) -> Any:
    """The stage with one call a row."""
    from cai.stages.respond import RespondSpec, run

    return run(RespondSpec(model="model", prompts="rows", sampling={"max_tokens": 64}), ctx)  # type: ignore[arg-type]


def rows_of(first: int, count: int, turns: int = 1) -> list[tuple[str, ...]]:
    """The calls of rows, as the server names them."""
    return [tuple(f"{n}.{turn}" for turn in range(turns)) for n in range(first, first + count)]


def timed(stage: Callable[[Any], Any], ctx: Any, rows: int) -> float:
    """Seconds of a stage."""
    began = time.perf_counter()
    outcome = stage(ctx)
    seconds = time.perf_counter() - began
    assert outcome.ledger.rows_out == rows, outcome
    return seconds


def ideals(rows: Sequence[Sequence[str]], servers: Sequence[Places], draws: Draws) -> tuple[float, float]:
    """Seconds of the client that knows all: in the order of the rows, and with the longest first."""
    return ideal_seconds(rows, servers, draws), ideal_seconds(rows, servers, draws, longest_first=True)


def outcome_of(
    name: str, ours: float, best: tuple[float, float], goal: float, notes: Notes, stats: Mapping[str, Any]
) -> Outcome:
    """The ratio, with what stands beside it."""
    facts: dict[str, Any] = {"ours_s": round(ours, 2), "ideal_s": round(best[0], 2)}
    facts |= {"longest_first": round(best[1] / ours, 3), "refused": stats["refused"]}
    facts |= {"limits": "/".join(map(str, notes.limits[:12]))}
    return Outcome(name, best[0] / ours, goal, facts)


def calls_on(folder: Path, kind: str, calls: int, places: int) -> Outcome:
    """One cell of the goals 1 and 2."""
    draws = Draws(LATENCY[places], SPREAD, FAILURES, seed=calls)
    queue = 4096 if kind == "queues" else 0
    limits = {"limits": {"concurrency": places}} if kind == "stated" else {}
    notes = Notes()
    with slow_server(draws.latency, places, queue, draws.seed) as url, fresh_memory(folder):
        ctx = context(folder, f"{url}/v1", "prompts", calls, server=limits, progress=notes)
        ask(f"{url}/reset")
        ours = timed(respond, ctx, calls)
        stats = ask(f"{url}/stats")
    best = ideals(rows_of(0, calls), [Places(places)], draws)
    return outcome_of(f"{kind} {calls} on {places}", ours, best, 0.97 if kind == "stated" else 0.9, notes, stats)


def four_steps(folder: Path, places: int) -> Outcome:
    """Goal 3: two steps with a call a row and two with two, each with rows of its own."""
    draws = Draws(LATENCY[places], SPREAD, FAILURES, seed=4)
    notes = Notes()
    ours = 0.0
    best = (0.0, 0.0)
    with slow_server(draws.latency, places, 0, draws.seed) as url, fresh_memory(folder):
        ask(f"{url}/reset")
        for step in range(4):
            first, turns = step * STEP_ROWS, 1 + step % 2
            kind = "prompts" if turns == 1 else "responses"
            ctx = context(folder / str(step), f"{url}/v1", kind, STEP_ROWS, first=first, progress=notes)
            ours += timed(respond if turns == 1 else revise, ctx, STEP_ROWS)
            step_best = ideals(rows_of(first, STEP_ROWS, turns), [Places(places)], draws)
            best = (best[0] + step_best[0], best[1] + step_best[1])
        stats = ask(f"{url}/stats")
    return outcome_of(f"steps 4 x {STEP_ROWS} rows on {places}", ours, best, 0.95, notes, stats)


def dying(folder: Path) -> Outcome:
    """Goal 4: one of two servers dies and returns."""
    draws = Draws(0.5, SPREAD, FAILURES, seed=5)
    notes = Notes()
    with ExitStack() as stack:
        stack.enter_context(fresh_memory(folder))
        urls = [
            stack.enter_context(slow_server(draws.latency, DYING_PLACES, 16, draws.seed, away)) for away in (None, AWAY)
        ]
        server = {"limits": {"concurrency": 2 * DYING_PLACES}, "replicas": [f"{urls[1]}/v1"]}
        ctx = context(folder, f"{urls[0]}/v1", "prompts", DYING_CALLS, server=server, progress=notes)
        for url in urls:
            ask(f"{url}/reset")
        ours = timed(respond, ctx, DYING_CALLS)
        refused = sum(ask(f"{url}/stats")["refused"] for url in urls)
    best = ideals(rows_of(0, DYING_CALLS), [Places(DYING_PLACES), Places(DYING_PLACES, AWAY)], draws)
    outcome = outcome_of("dying one of two", ours, best, 0.92, notes, {"refused": refused})
    outcome.facts["taken_over"] = notes.taken_over
    return outcome


def others_python() -> str | None:
    """The Python that has data-designer."""
    named = os.environ.get("DATA_DESIGNER_PYTHON", "")
    if named:
        return named
    from importlib.util import find_spec

    return sys.executable if find_spec("data_designer") else None


def beside_others(folder: Path) -> Outcome | None:
    """Goal 5: data-designer, then we, with as many calls in flight as there are places."""
    python = others_python()
    if python is None:
        print(
            "others: data-designer is not installed here (set DATA_DESIGNER_PYTHON to a Python that has it); left out"
        )
        return None
    draws = Draws(0.5, SPREAD, FAILURES, seed=6)
    best = ideals(rows_of(0, OTHERS_ROWS), [Places(OTHERS_PLACES)], draws)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = Path(__file__).with_name("with_data_designer.py")
    with slow_server(draws.latency, OTHERS_PLACES, 4096, draws.seed) as url, fresh_memory(folder):
        ask(f"{url}/reset")
        argv = [python, str(script), f"{url}/v1", str(OTHERS_ROWS), str(OTHERS_PLACES), str(folder / "theirs")]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"others: data-designer failed; left out\n{done.stderr[-2000:]}")
            return None
        theirs = json.loads(done.stdout.strip().splitlines()[-1])
        their_stats = ask(f"{url}/stats")
        ask(f"{url}/reset")
        notes = Notes()
        server = {"limits": {"concurrency": OTHERS_PLACES}}
        timed(respond, context(folder, f"{url}/v1", "prompts", OTHERS_ROWS, server=server, progress=notes), OTHERS_ROWS)
        stats = ask(f"{url}/stats")
    their_ratio = best[0] / their_stats["span"]
    outcome = outcome_of(f"others {OTHERS_ROWS} on {OTHERS_PLACES}", stats["span"], best, 0.0, notes, stats)
    # Ahead of it: at the digits that are shown.
    outcome.goal = round(their_ratio + 0.001, 3)
    full = {
        who: round(s["taken"] / (OTHERS_PLACES * s["span"]), 3) for who, s in (("ours", stats), ("theirs", their_stats))
    }
    outcome.facts |= {f"data-designer {theirs['version']}": round(their_ratio, 3), "places taken": full}
    return outcome


@contextmanager
def fresh_memory(folder: Path) -> Iterator[None]:
    """Nothing is remembered from before, and nothing is left behind."""
    before = {name: os.environ.get(name) for name in ("CAI_HOME", "CAI_LIMIT_MEMORY")}
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["CAI_HOME"] = tempfile.mkdtemp(dir=folder)
    os.environ.pop("CAI_LIMIT_MEMORY", None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def measurements(folder: Path, quick: bool) -> Iterator[tuple[str, Callable[[], Outcome | None]]]:
    """What is measured: the name of its goal, and what does it."""
    calls = CALLS[:2] if quick else CALLS
    for kind in ("stated", "unknown") if quick else ("stated", "unknown", "queues"):
        for places in LATENCY:
            for count in calls if kind != "queues" else calls[:2]:
                where = folder / f"{kind}-{count}-{places}"
                yield (
                    kind,
                    lambda where=where, kind=kind, count=count, places=places: calls_on(where, kind, count, places),
                )
    for places in LATENCY:
        yield "steps", lambda places=places: four_steps(folder / f"steps-{places}", places)
    yield "dying", lambda: dying(folder / "dying")
    yield "others", lambda: beside_others(folder / "others")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the 20,000 calls and the server that queues")
    names = ("stated", "unknown", "queues", "steps", "dying", "others")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="the goals to measure")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="saturation-"))
    outcomes: list[Outcome] = []
    try:
        with slow_server(0.05, 64, 256, 0) as url, fresh_memory(folder / "warm"):
            timed(respond, context(folder / "warm", f"{url}/v1", "prompts", 300), 300)
        for goal, measure in measurements(folder, args.quick):
            if goal in args.only and (outcome := measure()) is not None:
                outcomes.append(outcome)
                print(outcome.line(), flush=True)
    finally:
        shutil.rmtree(folder)
    missed = [outcome.name for outcome in outcomes if outcome.missed]
    ratios = {outcome.name: round(outcome.ratio, 3) for outcome in outcomes}
    print(json.dumps({"benchmark": "saturation", "ratios": ratios, "missed": missed}))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
