"""Preference labels of two judges on the same pairs: which flipped, and how many pairs one side alone has.

Rows are streamed and of each only a digest of its two texts and its label is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cai.data.rows import ROW_TYPES, from_json
from cai.identity import parse_json
from cai.plan import Step
from cai.review.changes import Paired
from cai.run.finished import Finished
from cai.stages.judge.labels import as_candidates

LABELS = ("A", "tie", "B")
Matrix = Mapping[str, Mapping[str, int]]
"""Label before -> label after -> pairs."""


@dataclass(frozen=True, slots=True)
class Flips:
    """A judge's labels before and after. A is the first of a pair's two answers, B the second.

    ``same`` counts pairs of the very same answers, ``rewritten`` pairs of the same prompt and places whose answers were
    written anew. ``shift`` is the mean change of p(A) over ``same``, without sign; None where there is no such pair.
    """

    step: str
    only_before: int
    only_after: int
    same: Matrix
    rewritten: Matrix
    shift: float | None

    @property
    def pairs(self) -> int:
        """Pairs of the same answers."""
        return _count(self.same)

    @property
    def changed(self) -> int:
        """Of these, pairs with another label."""
        return self.pairs - sum(self.same[label][label] for label in LABELS)

    @property
    def flipped(self) -> int:
        """Of these, pairs where the other answer is preferred now."""
        return self.same["A"]["B"] + self.same["B"]["A"]

    @property
    def still(self) -> bool:
        """Whether both sides have the same pairs with the same answers and the same labels."""
        return not (self.changed or self.written_anew or self.only_before or self.only_after)

    @property
    def written_anew(self) -> int:
        """Pairs whose answers are others now."""
        return _count(self.rewritten)


def _count(matrix: Matrix) -> int:
    return sum(sum(row.values()) for row in matrix.values())


def flips(match: Paired, old: Finished, new: Finished) -> tuple[Flips, ...]:
    """One for every judge that both runs have finished, in the plan's order."""
    judge_flips = []
    for before, after in match.both:
        if after.kind == "judge" and before.name in old.artifacts and after.name in new.artifacts:
            judge_flips.append(_flips(after.name, _labels(before, old), _labels(after, new)))
    return tuple(judge_flips)


_Label = tuple[bytes, float]
"""(digest of both texts, p that A is better)."""


def _flips(step: str, before: Mapping[str, _Label], after: Mapping[str, _Label]) -> Flips:
    unchanged, anew = ({label: dict.fromkeys(LABELS, 0) for label in LABELS} for _ in range(2))
    shift = 0.0
    for name, (texts, p) in after.items():
        if name in before:
            was, q = before[name]
            (unchanged if was == texts else anew)[_label(q)][_label(p)] += 1
            shift += abs(p - q) if was == texts else 0.0
    both = len(before.keys() & after.keys())
    same = _count(unchanged)
    return Flips(step, len(before) - both, len(after) - both, unchanged, anew, shift / same if same else None)


def _label(p: float) -> str:
    return "tie" if p == 0.5 else "A" if p > 0.5 else "B"


def _labels(step: Step, run: Finished) -> dict[str, _Label]:
    first = _first_answers(step, run)
    labels = {}
    for row in _rows(run.artifacts[step.name].path):
        chosen, rejected = str(row["chosen"]), str(row["rejected"])
        name, _, places = str(row["id"]).rpartition("/")
        first_answer = first.get(name, {}).get(places.partition("-")[0])
        # Without the candidates: by the texts themselves, so that both sides have the same order.
        turned = first_answer != _digest(chosen) if first_answer is not None else chosen > rejected
        p = float(row["p_chosen"])
        a, b = (rejected, chosen) if turned else (chosen, rejected)
        labels[str(row["id"])] = (_digest(f"{_digest(a).hex()}{_digest(b).hex()}"), 1 - p if turned else p)
    return labels


def _first_answers(step: Step, run: Finished) -> dict[str, dict[str, bytes]]:
    """Digests of a row's answers by their places, as the judge was given them."""
    source = step.source("candidates")
    artifact = run.artifacts.get(source) if source is not None else None
    if artifact is None or artifact.makes not in (*ROW_TYPES, "responses", "revisions"):
        return {}
    kind = ROW_TYPES.get(artifact.makes, ROW_TYPES["conversations"])
    first_answers = {}
    for row in _rows(artifact.path):
        candidates = as_candidates(from_json(kind, row), step.seed)
        if not isinstance(candidates, str):
            first_answers[candidates.id] = {str(i): _digest(answer) for i, answer in enumerate(candidates.answers)}
    return first_answers


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    whole = folder / "rows.jsonl"
    for path in [whole] if whole.is_file() else sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            yield from (parse_json(line) for line in file if line.strip())
