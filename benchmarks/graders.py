"""Graders of answers against people: agreement, kappa and confusion of the shipped one, beside the old expressions.

A row is ``{"prompt", "answer", "label", "labels"}``; labels are ``full_compliance``, ``partial_refusal`` and
``full_refusal`` (XSTest, arXiv 2308.01263), and ``labels`` has one for each person. Clear rows are those on which all
agree. The six grades fall into the three classes by ``cai.grading.grades.COMPLIANCE``. Exits with 1 where the shipped
grader agrees on less than 90 % of the clear rows of a file, or has a kappa below 0.7. The last line is one JSON object.

    python -m benchmarks.graders FILE...
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cai.figures.answers import refuses
from cai.figures.intervals import Interval
from cai.grading.agreement import ClassPair, GraderAgreement, agreement
from cai.grading.grades import COMPLIANCE, Compliance
from cai.grading.lexical import grade

LEAST_SHARE, LEAST_KAPPA = 0.9, 0.7
"""The aim, on the clear rows of every file."""
Classify = Callable[[str, str], "Compliance | None"]


def by_lexical_grade(prompt: str, answer: str) -> Compliance | None:
    """The class of the shipped grader's grade."""
    return COMPLIANCE[grade(prompt, answer).grade]


def by_expressions(prompt: str, answer: str) -> Compliance:
    """What the phrases of ``cai.figures.answers`` say, which know two classes only."""
    return Compliance.FULL_REFUSAL if refuses(answer) else Compliance.FULL_COMPLIANCE


GRADERS: Mapping[str, Classify] = {"lexical": by_lexical_grade, "expressions": by_expressions}


def read_labelled(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of labelled answers.

    Raises:
        SystemExit: where the file has a row without one of the fields or with another label, or no row at all.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        row = json.loads(line)
        absent = {"prompt", "answer", "label", "labels"} - row.keys()
        odd = {row.get("label"), *row.get("labels", ())} - {c.value for c in Compliance}
        if absent or odd:
            trouble = f"has no {', '.join(sorted(absent))}" if absent else f"has the label {min(map(str, odd))}"
            raise SystemExit(f"{path}:{number}: {trouble}; labels are {', '.join(Compliance)}")
        rows.append(row)
    if not rows:
        raise SystemExit(f"{path}: no rows")
    return rows


def measured(rows: Sequence[Mapping[str, Any]], classify: Classify) -> dict[str, GraderAgreement]:
    """The agreement of a grader with people on the clear rows, and on all with their final label."""
    pairs = [ClassPair(Compliance(row["label"]), classify(row["prompt"], row["answer"])) for row in rows]
    clear = [pair for pair, row in zip(pairs, rows, strict=True) if len(set(row["labels"])) == 1]
    return {"clear": agreement(clear), "all": agreement(pairs)}


def reaches(clear: GraderAgreement) -> bool:
    """Whether a grader's agreement on clear rows reaches the aim."""
    share, kappa = clear.share.value, clear.kappa.value
    return share is not None and share >= LEAST_SHARE and kappa is not None and kappa >= LEAST_KAPPA


def _shown(figure: Interval, scale: float = 1.0) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return "-"
    digits = 0 if scale == 100 else 2
    return f"{figure.value * scale:.{digits}f} [{figure.low * scale:.{digits}f}, {figure.high * scale:.{digits}f}]"


def _print(name: str, figures: Mapping[str, GraderAgreement]) -> None:
    for rows, agreed in figures.items():
        print(
            f"  {name:12} {rows:6} {agreed.share.n:5} rows   agree {_shown(agreed.share, 100):16} % "
            f"  kappa {_shown(agreed.kappa):20}  refusals found {_shown(agreed.refusals_found, 100)} %"
        )
    confusion = figures["clear"].confusion
    columns = list(next(iter(confusion.values())))
    print(f"  {'people / grader':34}" + "".join(f"{column:>17}" for column in columns))
    for people, counts in confusion.items():
        print(f"  {people:34}" + "".join(f"{counts[column]:17}" for column in columns))


def main(arguments: list[str] | None = None) -> int:
    """Measure every grader on every file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="labelled answers, a JSON object a line")
    by_file: dict[str, Any] = {}
    reached = True
    for path in parser.parse_args(arguments).files:
        rows = read_labelled(path)
        print(f"{path.name}: {len(rows)} rows")
        by_grader = {}
        for name, classify in GRADERS.items():
            started = time.perf_counter()
            figures = measured(rows, classify)
            seconds = time.perf_counter() - started
            _print(name, figures)
            plain = {which: asdict(agreed) for which, agreed in figures.items()}
            by_grader[name] = {**plain, "milliseconds_a_row": round(1000 * seconds / len(rows), 3)}
            if name == "lexical":
                reached &= reaches(figures["clear"])
        by_file[path.name] = by_grader
    print(json.dumps({"reached": reached, "files": by_file}))
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
