"""What ``scoring_precision: bfloat16`` changes of a judge's labels, and how much quicker it is: one model, one run.

SmolLM2-135M-Instruct judges the same pairs (the quickstart's, or a file of ``{chosen, rejected}`` as in hh-rlhf) by
``contrast`` with the shipped exemplars and by ``logprob`` with option letters in both orders, once in float32 and once
in bfloat16. Both are warmed up; each chunk of rows is scored by both in turn. ``flips`` are pairs whose better answer
is another one, ``change of p`` is the mean of the absolute differences, ``ratio`` the seconds of float32 over those of
bfloat16. The last line is one JSON object.

    python -m benchmarks.scoring_precision [FILE] [--rows 200] [--scoring contrast] [--model FOLDER] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.generation import SHA256, SOURCE, _Silent
from cai.chat import ChatTemplate, PromptTemplate, read_text
from cai.clients.base import OptionScores, OptionsRequest, Score, ScoreRequest
from cai.clients.prompting import Asking, read_records
from cai.commands.common import named_constitution
from cai.data.rows import Candidates, Comparison
from cai.data.source import DataSource, part_rows
from cai.engines.base import ModelSource
from cai.engines.embedded.scoring import TorchScorer
from cai.engines.embedded.settings import EmbeddedSettings, ScoringPrecision
from cai.files.library import Library
from cai.judging.pairs import by_pair, different, first_shown
from cai.judging.scorings import EXEMPLAR_FIELDS, EXEMPLARS, Judge, Scorer, contrast, logprob, questions
from cai.judging.settings import Pairs, Principles
from cai.stages.judge.labels import as_candidates

SHIPPED = ("shipped:quickstart/harmless_seed_comparisons.jsonl", "shipped:quickstart/helpful_comparisons.jsonl")
CHUNK = 32
"""Rows that are scored together, as in a stage."""
SCORINGS = ("contrast", "logprob")
PRECISIONS = (ScoringPrecision.FLOAT32, ScoringPrecision.BFLOAT16)


def pairs_of(file: Path | None, count: int) -> list[Candidates]:
    """The first pairs of a file, or the quickstart's; their answers in an order drawn for each."""
    if file is None:
        source = DataSource(path=SHIPPED, makes="comparisons")
    else:
        source = DataSource(path=str(file.resolve()), reader="hh_rlhf", makes="comparisons")
    parts = part_rows(source, "all", Counter(), Library.here().data_roots)
    rows = (row for row in parts if isinstance(row, Comparison))
    candidates = (as_candidates(row, 0) for row in islice(rows, count))
    return [row for row in candidates if isinstance(row, Candidates)]


def judges(library: Library) -> dict[str, tuple[Scorer, bool]]:
    """Each scoring, and whether it reads a principle."""

    def asking(name: str, chat: ChatTemplate | None) -> Asking:
        text = read_text(library.find("prompt_templates", name))
        return Asking(PromptTemplate.from_text(name, text, name), chat, ())

    chatml = ChatTemplate.from_text("chatml", read_text(library.find("prompt_templates", "chatml")), "chatml")
    shots = read_records(
        read_text(library.find("prompt_templates", "few_shots/judge.yaml")), "judge.yaml", "exemplars", EXEMPLAR_FIELDS
    )
    by_exemplars = Judge(asking("judge_contrast", None), 0, temperature=0.1, exemplars=tuple(shots[:6]))
    return {
        "contrast": (contrast(by_exemplars), False),
        "logprob": (logprob(Judge(asking("comparison", chatml), 0)), True),
    }


class Scoring:
    """One precision: its scorer, and the seconds that it took."""

    def __init__(self, model: Path, precision: ScoringPrecision, threads: int) -> None:
        settings = EmbeddedSettings(scoring_precision=precision, threads=threads)
        self._scorer = TorchScorer(model, settings)
        self.seconds = 0.0

    def probabilities(self, work: Callable[[Candidates], Any], rows: Sequence[Candidates]) -> list[float]:
        """p that the first answer is the better one, of every row."""
        flows = [work(row) for row in rows]
        calls = [next(flow) for flow in flows]
        verdicts: dict[int, Any] = {}
        while len(verdicts) < len(flows):
            waiting = [i for i in range(len(flows)) if i not in verdicts]
            asked = [request for i in waiting for call in calls[i] for request in _requests(call)]
            began = time.perf_counter()
            scores = {score.id: score for score in self._scorer.score(asked)}
            self.seconds += time.perf_counter() - began
            for i in waiting:
                try:
                    calls[i] = flows[i].send([_result(call, scores) for call in calls[i]])
                except StopIteration as done:
                    verdicts[i] = done.value
        return [by_pair(first_shown(verdicts[i].votes), True)[0, 1] for i in range(len(flows))]


def _requests(call: ScoreRequest | OptionsRequest) -> list[ScoreRequest]:
    """What is scored for a call: its continuation, or each of its options."""
    if isinstance(call, ScoreRequest):
        return [call]
    return [ScoreRequest(f"{call.id}#{k}", call.prompt, option) for k, option in enumerate(call.options)]


def _result(call: ScoreRequest | OptionsRequest, scores: dict[str, Score]) -> Score | OptionScores:
    if isinstance(call, ScoreRequest):
        return scores[call.id]
    logprobs = [scores[request.id].logprob for request in _requests(call)]
    return OptionScores(call.id, tuple(logprobs), 0)


def compared(
    model: Path, rows: Sequence[Candidates], names: Sequence[str], threads: int
) -> dict[str, dict[str, float]]:
    """The figures of each of the scorings."""
    library = Library.here()
    constitution = named_constitution(library, "quickstart")
    figures = {}
    for name, (scorer, reads) in judges(library).items():
        if name not in names:
            continue

        def work(row: Candidates, scorer: Scorer = scorer, reads: bool = reads) -> Any:
            asked = questions(constitution, 0, row.id, principles=Principles.ONE, ensemble=1) if reads else EXEMPLARS
            return scorer(row, different(Pairs.ALL, row), asked)

        scorings = {precision: Scoring(model, precision, threads) for precision in PRECISIONS}
        for scoring in scorings.values():
            scoring.probabilities(work, rows[:2])
            scoring.seconds = 0.0
        probabilities: dict[ScoringPrecision, list[float]] = {precision: [] for precision in PRECISIONS}
        for start in range(0, len(rows), CHUNK):
            for precision, scoring in scorings.items():
                probabilities[precision] += scoring.probabilities(work, rows[start : start + CHUNK])
        exact, short = (scorings[precision].seconds for precision in PRECISIONS)
        figures[name] = {
            **_differences(*(probabilities[precision] for precision in PRECISIONS)),
            "seconds float32": round(exact, 2),
            "seconds bfloat16": round(short, 2),
            "ratio": round(exact / short, 2),
        }
    return figures


def _differences(exact: Sequence[float], short: Sequence[float]) -> dict[str, float]:
    changes = [abs(p - q) for p, q in zip(exact, short, strict=True)]
    flips = sum((p > 0.5) != (q > 0.5) for p, q in zip(exact, short, strict=True))
    return {
        "pairs": len(changes),
        "flips": flips,
        "share of flips": round(flips / len(changes), 4),
        "mean change of p": round(sum(changes) / len(changes), 5),
        "largest change of p": round(max(changes), 4),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="comparisons as in hh-rlhf; default: the quickstart's")
    parser.add_argument("--scoring", choices=SCORINGS, action="append", help="one of them alone")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; default: SmolLM2-135M-Instruct, fetched")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args(arguments)
    rows = [row for row in pairs_of(given.file, given.rows) if different(Pairs.ALL, row)]
    with tempfile.TemporaryDirectory(prefix="scoring-precision-") as scratch:
        model = given.model
        if model is None:
            from cai.engines.embedded.model_sources import fetch

            model = Path(scratch) / "model"
            fetch(ModelSource(SOURCE, sha256=SHA256), model, _Silent())
        figures = compared(model, rows, given.scoring or SCORINGS, given.threads)
    for name, measured in figures.items():
        print(name, ", ".join(f"{figure} {value}" for figure, value in measured.items()), file=sys.stderr)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
