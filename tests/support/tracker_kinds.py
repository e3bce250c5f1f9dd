"""Scripted stages that tell curves and figures, and a program that runs a tracked plan of them in its own process.

``python -m tests.support.tracker_kinds HOME RUN_DIR TRACKING_JSON [DIE_AT]``; with DIE_AT the process kills itself with
SIGKILL when training has told that step. Training keeps a checkpoint at every third step and goes on from the last one.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from cai.plan import Plan
from cai.run.executor import run
from cai.run.results import RunResult
from cai.stages.base import Context, Ledger, Outcome, StageSpec
from cai.store.artifacts import Store
from cai.trackers.watching import tracked
from tests.support.executor_kinds import Kind, no_engine, step

STEPS = 8


class TrainSpec(StageSpec):
    MAKES: ClassVar[str] = "prompts"
    kind: str = "train"
    steps: int = STEPS
    fail_at: int = 0


class EvaluateSpec(StageSpec):
    MAKES: ClassVar[str] = "prompts"
    kind: str = "evaluate"


def row_of(at: int) -> dict[str, Any]:
    return {"iteration": at, "training": True, "reward": at / 2, "kl": at / 10}


def train(spec: TrainSpec, ctx: Context) -> Outcome:
    checkpoint = ctx.work / "at"
    start = int(checkpoint.read_text()) if checkpoint.exists() else 0
    if start:
        ctx.progress.note("rl.resumed", iteration=start)
    for at in range(start + 1, spec.steps + 1):
        ctx.progress.note("rl.iteration", iterations=spec.steps, **row_of(at), tokens_per_s=100.0)
        if at == int(os.environ.get("CAI_TEST_DIE_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        if at == spec.fail_at:
            raise ValueError("the scripted training fails")
        if at % 3 == 0:
            checkpoint.write_text(str(at))
    rows = [row_of(at) for at in range(1, spec.steps + 1)]
    (ctx.out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {"reward": spec.steps / 2, "seconds": {"update": 0.5}, "precision": "float32", "nan": float("nan")}
    return Outcome(Ledger(10, 7, {"prompt too long": 3}), metrics, 5, 600)


def figure(value: float | None, spread: float = 0.1) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {"value": value, "low": value - spread, "high": value + spread, "n": 10}


EVALUATION = {
    "models": ["base", "rl-cai"],
    "sets": {
        "red_team": {
            "rows": 10,
            "models": {
                "base": {"reward": figure(-1.0), "distinct_1": None, "reward_by_topic": {"hate": figure(-2.0)}},
                "rl-cai": {"reward": figure(0.5), "distinct_1": 0.75},
            },
            "wins": [{"model": "rl-cai", "against": "base", **figure(0.8), "wins": 8, "ties": 0, "losses": 2}],
        }
    },
}


def evaluate(spec: EvaluateSpec, ctx: Context) -> Outcome:
    (ctx.out / "evaluation.json").write_text(json.dumps(EVALUATION))
    return Outcome(Ledger(10, 10), {"reward/red_team/base": -1.0, "reward/red_team/rl-cai": 0.5})


KINDS = {"train": Kind(TrainSpec, train), "evaluate": Kind(EvaluateSpec, evaluate)}


def tracked_plan(tracking: dict[str, Any] | None, **spec: Any) -> Plan:
    """``rl`` and ``evaluate``, with what an experiment says of trackers."""
    rl, told = step("rl", "train", **{"steps": STEPS, **spec}), step("evaluate", "evaluate")
    plan = Plan(
        "small", 3, {"kind": "embedded", "uses": {"torch": "2"}, "launcher": {"setup": ["export K=1"]}}, (rl, told)
    )
    return plan if tracking is None else replace(plan, source={"tracking": tracking})


def go(plan: Plan, home: Path, run_dir: Path, said: list[str] | None = None, **more: Any) -> RunResult:
    """Run a plan as the command line does it, with its trackers."""
    with tracked(plan, run_dir, home, (said if said is not None else []).append, **more):
        return run(plan, store=Store(home), run_dir=run_dir, make_engine=no_engine, kinds=KINDS)


def main() -> None:
    home, run_dir, tracking = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    if len(sys.argv) > 4:
        os.environ["CAI_TEST_DIE_AT"] = sys.argv[4]
    said: list[str] = []
    go(tracked_plan(tracking), home, run_dir, said)
    print(json.dumps({"said": said, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))


if __name__ == "__main__":
    main()
