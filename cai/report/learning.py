"""Figures of what was made on the way: revisions and principles, judges against people, training curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cai.engines.methods import METHODS
from cai.engines.methods.base import Method
from cai.errors import SpecError
from cai.figures.judge_report import JUDGE_REPORT, JudgeReport, read_judge_report
from cai.report.measures import SHOWN, axes_of, on_axis
from cai.report.model import (
    Block,
    Figure,
    Panel,
    Point,
    Section,
    Series,
    Table,
    Text,
    interval,
    number,
    numbers_table,
    percent,
    point,
)
from cai.report.overview import named_model, reports, reward_model
from cai.report.runs import Run, of

MOST_POINTS = 400


def learning(runs: Sequence[Run]) -> Section:
    """Revisions, number of principles, training curves."""
    blocks: list[Block] = [*_rounds(runs), *_by_principle(runs), *_principles(runs)]
    # What is shown first is where a model followed a reward: there training can go wrong unseen.
    for method in sorted(METHODS.values(), key=lambda method: not method.samples):
        blocks += _trained(method, runs)
    if not blocks:
        blocks.append(Text(("No step of these runs has left revisions' rewards or training curves.",), "missing"))
    return Section("training", "Revisions and training", tuple(blocks), "Training")


def judges(runs: Sequence[Run]) -> Section | None:
    """Every judge: its report as a table, and how sure it was against how right; None without judges."""
    from cai.stages.judge.report import summary_rows

    blocks: list[Block] = []
    named_reports: list[tuple[str, JudgeReport]] = []
    for run in runs:
        for step, artifact in run.finished.steps("judge"):
            path = artifact.path / JUDGE_REPORT
            if not path.is_file():
                continue
            try:
                named_reports.append((of(run, runs, step.name), read_judge_report(path)))
            except SpecError as error:
                blocks.append(Text((str(error),), "missing"))
    blocks += _calibration(named_reports)
    blocks += _confidence(named_reports)
    for name, report in named_reports:
        rows = tuple(tuple(row) for row in summary_rows(report))
        blocks.append(Table(name, ("figure", "value", "what it means"), rows, "lll"))
    return Section("judges", "How the judges judged", tuple(blocks), "Judges") if blocks else None


def _rounds(runs: Sequence[Run]) -> Iterator[Block]:
    rewards: list[Series] = []
    wins: list[Series] = []
    rows: list[tuple[str, ...]] = []
    for _, who, evaluation in reports(runs):
        for label, revised in evaluation.revisions.items():
            name, style = named_model(who, label), len(rewards)
            points = tuple(p for turn in revised.rounds for p in point(float(turn.round), turn.reward))
            better = tuple(p for turn in revised.rounds for p in point(float(turn.round), turn.share_won))
            if points:
                rewards.append(Series(name, points, style))
            if better:
                wins.append(Series(name, better, style))
            rows += [
                (name, str(turn.round), interval(turn.reward), interval(turn.change), interval(turn.share_won, True))
                for turn in revised.rounds
            ]
    if rewards:
        panels = [Panel("lines", tuple(rewards), "round of revision", "mean reward", "Reward", whole_x=True)]
        if wins:
            panels.append(
                Panel("lines", tuple(wins), "round", "", "Better than the round before", True, 0.5, whole_x=True)
            )
        yield Figure(
            "rounds",
            "Reward by round of revision",
            "The reward model's mean reward of the text after each round; round 0 is the first answer. "
            + "; ".join(f"{s.label}: " + ", ".join(number(p.y) for p in s.points) for s in rewards)
            + ".",
            tuple(panels),
            numbers_table(("revisions", "round", "reward", "change", "better than before"), rows),
            "The reward model learnt from such revisions where they are among its pairs.",
        )


def _by_principle(runs: Sequence[Run]) -> Iterator[Block]:
    series: list[Series] = []
    rows: list[tuple[str, ...]] = []
    for _, who, evaluation in reports(runs):
        for label, revised in evaluation.revisions.items():
            by = {principle: effect.change for principle, effect in revised.by_principle.items()}
            top_principles = sorted(by, key=lambda p: -(by[p].value or 0))[:SHOWN]
            points = tuple(q for p in top_principles for q in point(p, by[p]))
            if points:
                series.append(Series(named_model(who, label), points, len(series)))
            rows += [(named_model(who, label), p, interval(change), str(change.n)) for p, change in by.items()]
    if series:
        yield Figure(
            "change-by-principle",
            "What each principle's revisions changed",
            "The mean change of reward from before a revision to after it, by the principle that asked for it, with "
            "95% intervals; right of the line at 0 is better. " + "; ".join(" ".join(r[1:3]) for r in rows[:12]) + ".",
            (Panel("dots", tuple(series), "change of reward", level=0.0),),
            numbers_table(("revisions", "principle", "change", "n"), rows),
        )


def active_principles(run: Run) -> int:
    """How many principles could be drawn: the most of any stage's constitution."""
    constitutions = [step.resources.get("constitution") or {} for step in run.plan.steps]
    return max((sum(p.get("weight", 1) > 0 for p in c.get("principles", ())) for c in constitutions), default=0)


def _principles(runs: Sequence[Run]) -> Iterator[Block]:
    """What a sweep over the number of principles shows; nothing for runs that all have as many."""
    counted = [(active_principles(run), run) for run in runs]
    if len({n for n, _ in counted if n}) < 2:
        return
    same = len({reward_model(run) for run in runs}) == 1
    elo: list[Point] = []
    wins: list[Point] = []
    rewards: list[Point] = []
    rows: list[tuple[str, ...]] = []
    for n, run in sorted(counted, key=lambda item: item[0]):
        for evaluation in run.evaluations.values():
            last, first = evaluation.models[-1], evaluation.models[0]
            rating = on_axis(evaluation, "harmlessness", last, True)
            reward = on_axis(evaluation, "harmlessness", last, False)
            sets = [evaluation.sets[s] for s in axes_of(evaluation)["harmlessness"][:1]]
            compared = (win for s in sets for win in s.comparisons)
            won = next((win.share for win in compared if (win.model, win.against) == (last, first)), None)
            elo += point(float(n), rating)
            wins += point(float(n), won)
            rewards += point(float(n), reward)
            rows.append((str(n), run.label, interval(rating, places=0), interval(won, True), interval(reward)))
    panels = [
        Panel("lines", (Series("", tuple(points)),), "active principles", y, title, share, level, whole_x=True)
        for points, y, title, share, level in (
            (elo, "Elo over the first model", "Harmlessness, Elo", False, None),
            (wins, "", "Wins of the last model over the first", True, 0.5),
            (rewards, "mean reward", "Reward on the red-team prompts", False, None),
        )
        if len(points) > 1 and (same or title != "Reward on the red-team prompts" or not (elo or wins))
    ]
    if panels:
        yield Figure(
            "by-principles",
            "By number of principles",
            "The last model of each run against the number of principles that could be drawn. "
            + "; ".join(f"{r[0]} principles: {r[3] if r[3] != '-' else r[4]}" for r in rows)
            + ".",
            tuple(panels),
            numbers_table(("principles", "run", "harmlessness, Elo", "wins over the first", "reward"), rows),
            ""
            if same
            else "Each run has a reward model of its own, so rewards of different runs are not on one scale.",
        )


def _calibration(judge_reports: Sequence[tuple[str, JudgeReport]]) -> Iterator[Block]:
    series: list[Series] = []
    rows: list[tuple[str, ...]] = []
    for name, report in judge_reports:
        for part, labels in (("labelled", report.labelled), ("given labels", report.given_labels)):
            bins = [
                (b.confidence, b.accuracy, str(b.n))
                for b in (labels.reliability if labels is not None else ())
                if b.n and b.confidence is not None and b.accuracy is not None
            ]
            if bins:
                label = f"{name}, {part}"
                points = tuple(Point(sure, right, label=n) for sure, right, n in bins)
                series.append(Series(label, points, len(series)))
                rows += [(label, number(sure), percent(right), n) for sure, right, n in bins]
    if series:
        panel = Panel("lines", tuple(series), "how sure the judge was", "how often right", "", True, diagonal=True)
        yield Figure(
            "calibration",
            "Judge calibration",
            "How often people agree with the judge, by how sure it was; a judge on the diagonal is as sure as it "
            "should be. " + "; ".join(f"{r[0]}: sure {r[1]}, right {r[2]}, n {r[3]}" for r in rows[:12]) + ".",
            (panel,),
            numbers_table(("judge", "sure", "right", "pairs"), rows),
        )
    elif judge_reports:
        yield Text(("No judge was held against people's labels, so there is no calibration to draw.",), "missing")


def _confidence(judge_reports: Sequence[tuple[str, JudgeReport]]) -> Iterator[Block]:
    series: list[Series] = []
    rows: list[tuple[str, ...]] = []
    for name, report in judge_reports:
        bins, n = report.confidence.bins, report.confidence.n
        if n:
            points = tuple(Point((b.low + b.high) / 2, b.n / n) for b in bins)
            series.append(Series(name, points, len(series)))
            rows += [(name, f"{b.low:.2f} to {b.high:.2f}", str(b.n)) for b in bins]
    if series:
        yield Figure(
            "confidence",
            "How sure the judges were",
            "The share of pairs by the probability of the preferred answer; 0.5 is a tie. "
            + "; ".join(f"{name}: on average {number(report.confidence.mean)}" for name, report in judge_reports)
            + ".",
            (
                Panel(
                    "lines", tuple(series), "probability of the preferred answer", "share of the pairs", "", True, 0.0
                ),
            ),
            numbers_table(("judge", "probability", "pairs"), rows),
        )


def thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    """At most ``MOST_POINTS`` points, evenly chosen, the last one among them."""
    step = -(-len(points) // MOST_POINTS) if points else 1
    thinned_points = list(points[::step])
    if points and thinned_points[-1] is not points[-1]:
        thinned_points.append(points[-1])
    return tuple(thinned_points)


def _curve(lines: Sequence[Mapping[str, Any]], x: str, y: str) -> tuple[Point, ...]:
    points = [
        Point(float(line[x]), float(line[y]))
        for line in lines
        if isinstance(line.get(x), int | float) and isinstance(line.get(y), int | float)
    ]
    return thinned(points)


def _trained(method: Method[Any, Any], runs: Sequence[Run]) -> Iterator[Block]:
    """The curves of all steps that trained by a method."""
    plot = method.plot
    every = [(of(run, runs, s.name), run.metrics(s.name)) for run in runs for s, _ in run.finished.steps(method.stage)]
    steps = [(name, lines) for name, lines in every if lines]
    panels: list[Panel] = []
    trends: list[str] = []
    for curve in plot.curves:
        series = tuple(
            Series(f"{name}, {label}" if label else name, points, len(curve.fields) * number_of_step + offset)
            for offset, (field, label) in enumerate(curve.fields.items())
            for number_of_step, (name, lines) in enumerate(steps)
            if (points := _curve(lines, plot.axis, field))
        )
        if series:
            panels.append(
                Panel(
                    "lines",
                    series,
                    plot.axis,
                    curve.label,
                    curve.title,
                    curve.share,
                    curve.reference,
                    whole_x=True,
                )
            )
            trends += [
                f"{curve.title} of {s.label} from {number(s.points[0].y)} to {number(s.points[-1].y)}" for s in series
            ]
    if panels:
        rows = [(name, *(_cell(line.get(c)) for c in plot.columns)) for name, lines in steps for line in _some(lines)]
        used = [i for i in range(len(plot.columns) + 1) if any(row[i] != "-" for row in rows)]
        head = ("trained", *plot.columns.values())
        yield Figure(
            method.stage,
            plot.title,
            f"By {plot.axis}: {'; '.join(trends)}.",
            tuple(panels),
            numbers_table([head[i] for i in used], [[row[i] for i in used] for row in rows]),
            plot.remark,
        )
    elif any(step.kind == method.stage for run in runs for step in run.plan.steps):
        reason = f"No step of kind {method.stage} has left a metrics.jsonl, so its curves cannot be drawn."
        yield Text((reason,), "missing")


def _some(lines: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return lines[:: -(-len(lines) // 200)] if lines else lines


def _cell(value: Any) -> str:
    return f"{value:.4g}".replace("-", "\u2212", 1) if isinstance(value, int | float) else "-"
