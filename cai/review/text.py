"""A review in the terminal: with colours where there are any, else with {+marks+} [-of its own-]; at any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cai.review.changes import Change, TextChange
from cai.review.gates import GateVerdict
from cai.review.labels import Flips
from cai.review.phrases import (
    NO_RESULT,
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
from cai.review.words import ADDED, GAP, REMOVED, SAME
from cai.text import one_line, plain

_STYLES = {REMOVED: "red strike", ADDED: "green", SAME: "", GAP: "dim cyan"}
_LINES = {REMOVED: ("-", "red"), ADDED: ("+", "green"), SAME: (" ", "dim")}
_MARKED = {REMOVED: ("[-", "-]"), ADDED: ("{+", "+}")}
_VERDICTS = {"worse": "red", "better": "green", "clear": "cyan", "other scale": "dim"}
_CHARACTERS, _ANSWER, _DIFF_LINES = 3000, 500, 120


class ReviewText:
    """Something that rich prints: one review, or with ``since`` of every experiment that differs."""

    def __init__(
        self, reviews: Sequence[Review], verdicts: Sequence[Sequence[GateVerdict]], since: str | None = None
    ) -> None:
        self._reviews = reviews
        self._verdicts = verdicts
        self._since = since

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colours = console.color_system is not None and not console.no_color
        if self._since is not None:
            count, since = len(self._reviews), one_line(self._since)
            differ = f"{plural(count, 'experiment')} {'differ' if count != 1 else 'differs'} from {since}"
            yield Text(differ if count else f"no experiment differs from {since}", style="bold")
        for place, (review, gate_verdicts) in enumerate(zip(self._reviews, self._verdicts, strict=True)):
            if place or self._since is not None:
                yield Text()
            yield from _review(review, gate_verdicts, colours)


def _review(review: Review, gate_verdicts: Sequence[GateVerdict], colours: bool) -> Iterator[RenderableType]:
    yield Text(one_line(headline(review)), style="bold")
    for side, (label, kind) in (("before", review.before), ("after ", review.after)):
        yield Text(f"  {side}  {one_line(label)} ({kind})", style="dim", overflow="fold")
    for problem in review.problems:
        yield Padding(Text(plain(problem), style="red", overflow="fold"), (0, 0, 0, 2), expand=False)
    for title, changes in by_section(review).items():
        yield Text()
        yield Text(title, style="bold")
        for change in changes:
            yield from _change(change, colours, "dim" if title == NO_RESULT else "")
    if review.effects and not review.same:
        yield from _steps(review)
    if review.results is not None:
        yield from _results(review.results)
    for verdict_ in gate_verdicts:
        if verdict_.failed:
            yield Text()
            yield Text(
                f"held back by {verdict_.gate}: {one_line(verdict_.why, 400)}", style="bold red", overflow="fold"
            )


def _change(change: Change, colours: bool, style: str) -> Iterator[RenderableType]:
    yield Padding(Text(one_line(change.words, 600), style=style, overflow="fold"), (0, 0, 0, 2), expand=False)
    for text in change.texts:
        yield from _text(text, colours)


def _text(text: TextChange, colours: bool) -> Iterator[RenderableType]:
    if not text.pieces:
        yield Padding(Text(f"{text.field}: only the digests are known here", style="dim"), (0, 0, 0, 4), expand=False)
    elif text.how == "words":
        styled = Text(f"{text.field}: ", overflow="fold")
        for place, (kind, words) in enumerate(trimmed(text.pieces, _CHARACTERS)):
            styled.append(" " if place else "")
            before, after = ("", "") if colours else _MARKED.get(kind, ("", ""))
            styled.append(f"{before}{one_line(words, _CHARACTERS)}{after}", style=_STYLES[kind])
        yield Padding(styled, (0, 0, 0, 4), expand=False)
    else:
        for kind, line in text.pieces[:_DIFF_LINES]:
            mark, style = _LINES.get(kind, ("@@ ", _STYLES[GAP]))
            yield Padding(Text(f"{mark}{plain(line)}", style=style, overflow="fold"), (0, 0, 0, 4), expand=False)
        if len(text.pieces) > _DIFF_LINES:
            yield Padding(
                Text(f"and {len(text.pieces) - _DIFF_LINES} more lines", style="dim"), (0, 0, 0, 4), expand=False
            )


def _steps(review: Review) -> Iterator[RenderableType]:
    run = [effect for effect in review.effects if effect.action in ("rerun", "new")]
    yield Text()
    yield Text("What runs again", style="bold")
    if run:
        table = _table(("step", "left"), ("rows", "right"), ("calls", "right"), ("time", "right"), ("why", "left"))
        for effect in run:
            rows, calls, _, time = step_cost(effect.estimate)
            why = one_line(effect.why or "new", 300)
            table.add_row(Text(one_line(effect.name, 26)), Text(rows), Text(calls), Text(time), Text(why, style="dim"))
        yield Padding(table, (0, 0, 0, 2), expand=False)
    reused_steps, gone = untouched(review), [e.name for e in review.effects if e.action == "removed"]
    if gone:
        yield _indented(f"no longer made: {', '.join(gone)}", "dim")
    if reused_steps:
        yield _indented(f"{plural(len(reused_steps), 'step')} untouched: {', '.join(reused_steps)}", "dim")
    if not again(review):
        yield _indented("nothing: every step keeps its key", "bold")
        return
    yield _indented(cost_words(review.totals), "bold")
    if stored := review.totals["stored"]:
        yield _indented(f"{stored} of these already in this store")


def _indented(text: str, style: str = "") -> Padding:
    return Padding(Text(one_line(text, 2000), style=style, overflow="fold"), (0, 0, 0, 2), expand=False)


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, side in columns:
        table.add_column(Text(name), justify="right" if side == "right" else "left", overflow="fold")
    return table


def _results(results: Results) -> Iterator[RenderableType]:
    yield Text()
    yield Text("What came of it", style="bold")
    for note in result_notes(results):
        yield _indented(note)
    for evaluation in results.evaluations:
        changed = moved(evaluation.metrics)
        names = (evaluation.step, "before", "after", "difference", "")
        table = _table(*((name, "left") for name in names))
        for metric in changed:
            *cells, verdict_word = metric_row(metric)
            table.add_row(
                *(Text(one_line(cell)) for cell in cells), Text(verdict_word, style=_VERDICTS.get(verdict_word, ""))
            )
        if changed:
            yield Padding(table, (0, 0, 0, 2), expand=False)
        clear = sum(verdict(m) in ("worse", "better", "clear") for m in changed)
        same = len(evaluation.metrics) - len(changed)
        yield _indented(f"{clear} moved beyond doubt, {same} not at all", "dim")
    for flips in results.flips:
        yield from _flips(flips)
    for evaluation in results.evaluations:
        if evaluation.samples:
            yield Text()
            yield Text("The answers that changed most", style="bold")
            yield from (_sample(sample) for sample in evaluation.samples)


def _flips(flips: Flips) -> Iterator[RenderableType]:
    yield Text()
    yield Text(f"Labels of {one_line(flips.step)}", style="bold")
    for sentence in flip_words(flips):
        yield _indented(sentence)
    for rewritten, title in ((False, "the same answers"), (True, "answers written anew")):
        if not flips.still and (flips.written_anew if rewritten else flips.pairs):
            head, *rows = matrix_rows(flips, rewritten)
            table = _table((head[0], "left"), *((label, "right") for label in head[1:]))
            for row in rows:
                table.add_row(*map(Text, row))
            yield Padding(Text(f"pairs of {title}", style="dim"), (0, 0, 0, 2), expand=False)
            yield Padding(table, (0, 0, 0, 2), expand=False)


def _sample(sample: AnswerPair) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0), expand=True, header_style="dim")
    table.title = Text(f"{sample.group}, {sample.model}: {one_line(sample.prompt, 300)}", style="cyan")
    table.title_justify = "left"
    for side, reward in zip(("before", "after"), sample.rewards, strict=True):
        head = side if reward is None else f"{side}, reward {number(reward)}"
        table.add_column(Text(head), ratio=1, overflow="fold")
    table.add_row(*(Text(one_line(text, _ANSWER) or "(empty)") for text in (sample.before, sample.after)))
    return Padding(table, (0, 0, 0, 2))
