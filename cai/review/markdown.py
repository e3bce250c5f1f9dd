"""A review as Markdown for a pull request: what changed on top, what is long folded, never longer than GitHub takes.

The document is a list of whole blocks. Where it would be too long it is written again with shorter texts, and at last
cut between two blocks, so that no fold and no fence is left open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from cai.review.changes import Change
from cai.review.gates import GateVerdict
from cai.review.labels import Flips
from cai.review.marks import code, lines, safe, table, words
from cai.review.phrases import (
    again,
    by_section,
    cost_words,
    flip_words,
    headline,
    matrix_rows,
    metric_row,
    moved,
    number,
    plural,
    result_notes,
    step_cost,
    trimmed,
    untouched,
    verdict,
)
from cai.review.results import AnswerPair, Results
from cai.review.review import Review

LIMIT = 65_000
"""Characters, as UTF-16 counts them: GitHub takes 65,536 in a comment, and its poster adds a line."""


@dataclass(frozen=True, slots=True)
class DetailLevel:
    """How much is shown: characters of a word diff and of an answer, lines of a line diff, rows of a table."""

    characters: int
    lines: int
    rows: int


_DETAILS = (DetailLevel(4000, 300, 200), DetailLevel(800, 40, 60), DetailLevel(200, 8, 25))
_LONG = 400
"""Characters of changed texts from which on a change is folded."""


def document(reviews: Sequence[Review], verdicts: Sequence[Sequence[GateVerdict]], since: str | None = None) -> str:
    """The Markdown of one review, or with ``since`` of every experiment that differs."""
    for detail in _DETAILS:
        blocks = list(_blocks(reviews, verdicts, since, detail))
        if detail is not _DETAILS[0]:
            blocks.insert(1, "_Shortened to what a comment can hold; `python -m cai diff` shows all._")
        if _size(blocks) <= LIMIT:
            return _joined(blocks)
    note = "_Cut here: a comment holds no more. `python -m cai diff` shows all._"
    kept_blocks = blocks[:1]
    for block in blocks[1:]:
        if _size([*kept_blocks, block, note]) <= LIMIT:
            kept_blocks.append(block)
    return _joined([*kept_blocks, note])


def _size(blocks: Sequence[str]) -> int:
    return len(_joined(blocks).encode("utf-16-le")) // 2


def _joined(blocks: Sequence[str]) -> str:
    return "\n\n".join(blocks) + "\n"


def _blocks(
    reviews: Sequence[Review], verdicts: Sequence[Sequence[GateVerdict]], since: str | None, detail: DetailLevel
) -> Iterator[str]:
    if since is not None:
        differ = f"{plural(len(reviews), 'experiment')} {'differ' if len(reviews) != 1 else 'differs'}"
        yield f"## {differ if reviews else 'No experiment differs'} from {code(since)}"
        if len(reviews) > 1:
            yield "\n".join(f"- {safe(headline(review))}" for review in reviews)
    for review, gate_verdicts in zip(reviews, verdicts, strict=True):
        yield f"### {safe(headline(review))}"
        yield f"From {code(review.before[0])} to {code(review.after[0])}."
        if failed := [v for v in gate_verdicts if v.failed]:
            yield "\n".join(f"- **Held back by {code(v.gate)}**: {_with_arrows(v.why)}" for v in failed)
        yield from _review(review, detail)


def _review(review: Review, detail: DetailLevel) -> Iterator[str]:
    if review.problems:
        yield "\n".join(f"- {_with_arrows(problem)}" for problem in review.problems[: detail.rows])
    for title, changes in by_section(review).items():
        yield f"#### {title}"
        yield from _tight([_change(change, detail) for change in changes])
    if review.effects and not review.same:
        yield from _steps(review, detail)
    if review.results is not None:
        yield from _results(review.results, detail)


def _tight(items: Sequence[str]) -> Iterator[str]:
    """Items of one line stand together; one with texts under it is a block of its own, so that it can be left out."""
    for long, grouped in groupby(items, lambda item: "\n" in item):
        group = list(grouped)
        yield from group if long else ["\n".join(group)]


def _with_arrows(text: str) -> str:
    return safe(text.replace(" -> ", " → "))


def _change(change: Change, detail: DetailLevel) -> str:
    bullet = [f"- {_with_arrows(change.words)}"]
    body: list[str] = []
    for text in change.texts:
        if not text.pieces:
            body.append(f"  - {safe(text.field)}: only the digests are known here")
        elif text.how == "words":
            body.append(f"  - {safe(text.field)}: {words(trimmed(text.pieces, detail.characters))}")
        else:
            body += ["", *(f"  {line}" for line in lines(text.pieces, detail.lines))]
    if sum(map(len, body)) > _LONG:
        return "\n".join([*bullet, "", *_folded("the text", _unindented(body), "  ")])
    return "\n".join([*bullet, *body])


def _unindented(body: Sequence[str]) -> list[str]:
    return [line.removeprefix("  ") for line in body]


def _folded(summary: str, body: Sequence[str], indent: str = "") -> list[str]:
    fold_lines = [f"<details><summary>{summary}</summary>", "", *body, "", "</details>"]
    return [f"{indent}{line}" if line else line for line in fold_lines]


def _steps(review: Review, detail: DetailLevel) -> Iterator[str]:
    yield "#### What runs again"
    run = [effect for effect in review.effects if effect.action in ("rerun", "new")]
    gone = [effect.name for effect in review.effects if effect.action == "removed"]
    sentences = []
    if again(review):
        steps = len([e for e in review.effects if e.action != "removed"])
        sentences.append(f"**{again(review)} of {plural(steps, 'step')}**: {safe(cost_words(review.totals))}.")
        if review.totals["stored"]:
            sentences.append(f"{review.totals['stored']} of these already in this store.")
    else:
        sentences.append("Nothing: every step keeps its key.")
    if gone:
        sentences.append(f"No longer made: {safe(', '.join(gone))}.")
    yield " ".join(sentences)
    if run:
        rows = [
            [safe(e.name), _with_arrows(e.why or "new"), *map(safe, step_cost(e.estimate))] for e in run[: detail.rows]
        ]
        table_lines = table(["step", "why", "rows", "calls", "tokens read / written", "time"], rows, right=2)
        more = [] if len(run) <= detail.rows else ["", f"and {len(run) - detail.rows} more"]
        yield "\n".join(_folded("Every step that runs again, and why", [*table_lines, *more]))
    if reused_steps := untouched(review):
        names = ", ".join(reused_steps[: detail.rows]) + (", ..." if len(reused_steps) > detail.rows else "")
        yield "\n".join(_folded(f"{plural(len(reused_steps), 'step')} untouched", [safe(names, 4000)]))


def _results(results: Results, detail: DetailLevel) -> Iterator[str]:
    yield "#### What came of it"
    if notes := result_notes(results):
        yield "\n".join(f"- {safe(note)}" for note in notes)
    for evaluation in results.evaluations:
        changed = moved(evaluation.metrics)
        clear = [m for m in changed if verdict(m) in ("worse", "better", "clear")]
        rest = [m for m in changed if m not in clear]
        head = [safe(evaluation.step), "before", "after", "difference on the same prompts", ""]
        if clear:
            yield "\n".join(table(head, [[safe(cell) for cell in metric_row(m)] for m in clear[: detail.rows]], 1))
        else:
            yield f"No figure of {safe(evaluation.step)} moved beyond doubt."
        if rest:
            table_lines = table(head, [[safe(cell) for cell in metric_row(m)] for m in rest[: detail.rows]], 1)
            same = len(evaluation.metrics) - len(changed)
            more = ["", f"{plural(same, 'figure')} did not move."] if same else []
            yield "\n".join(
                _folded(f"{plural(len(rest), 'figure')} that may have moved by chance", [*table_lines, *more])
            )
    for flips in results.flips:
        yield _flips(flips)
    for evaluation in results.evaluations:
        if evaluation.samples:
            yield "\n".join(_folded("The answers that changed most", _samples(evaluation.samples, detail)))


def _flips(flips: Flips) -> str:
    sentences = "; ".join(flip_words(flips))
    flip_lines = [f"**Labels of {safe(flips.step)}**: {safe(sentences)}."]
    for rewritten, title in ((False, "the same answers"), (True, "answers written anew")):
        if not flips.still and (flips.written_anew if rewritten else flips.pairs):
            head, *rows = matrix_rows(flips, rewritten)
            cells = [[safe(cell) for cell in row] for row in rows]
            flip_lines += ["", f"Pairs of {title}:", "", *table([safe(cell) for cell in head], cells, 1)]
    return "\n".join(flip_lines)


def _samples(samples: Sequence[AnswerPair], detail: DetailLevel) -> list[str]:
    sample_lines: list[str] = []
    limit = min(detail.characters, 600)
    for sample in samples:
        answers = [safe(text, limit) or "(empty)" for text in (sample.before, sample.after)]
        sample_lines += [f"**{safe(sample.group)}**, {safe(sample.model)}: {safe(sample.prompt, limit)}", ""]
        heads = [
            f"{side}{'' if reward is None else f', reward {safe(number(reward))}'}"
            for side, reward in zip(("before", "after"), sample.rewards, strict=True)
        ]
        sample_lines += [*table(heads, [answers]), ""]
    return sample_lines[:-1]
