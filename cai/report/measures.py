"""The paper's figures, drawn from evaluations: harmlessness against helpfulness, wins, refusals, adherence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cai.figures.evaluation import Evaluation, ModelFigures
from cai.figures.intervals import Interval
from cai.report.model import (
    Block,
    Figure,
    Panel,
    Point,
    Section,
    Series,
    Text,
    interval,
    number,
    numbers_table,
    point,
)
from cai.report.overview import named_model, reports, set_names
from cai.report.runs import Run

AXES = ("helpfulness", "harmlessness")
SHOWN = 24
"""Principles or topics in one panel, those with the most rows; the table has all."""


def measured(runs: Sequence[Run]) -> Section:
    """All that the evaluations tell, as figures."""
    blocks: list[Block] = []
    if any(run.evaluations for run in runs):
        blocks += _frontier(runs)
        blocks += _matrices(runs)
        blocks += _refusals(runs)
        blocks += _adherence(runs)
        blocks += _topics(runs)
        blocks += _accuracy(runs)
    if not blocks:
        blocks.append(Text(("There is no evaluation to draw from.",), "missing"))
    return Section("evaluation", "What the evaluation shows", tuple(blocks), "Evaluation")


def axes_of(evaluation: Evaluation) -> dict[str, list[str]]:
    """The prompt sets of each axis; of an older evaluation, harmless prompts measure helpfulness and others not."""
    sets = evaluation.sets
    if evaluation.axes:
        return {axis: [name for name in evaluation.axes.get(axis, ()) if name in sets] for axis in AXES}
    return {
        "helpfulness": [name for name, prompt_set in sets.items() if prompt_set.benign],
        "harmlessness": [name for name, prompt_set in sets.items() if not prompt_set.benign],
    }


def on_axis(evaluation: Evaluation, axis: str, model: str, elo: bool) -> Interval | None:
    """A model's Elo, or its mean reward, on one axis; over several sets the mean has no interval."""
    if elo:
        return evaluation.elo[axis].models.get(model) if axis in evaluation.elo else None
    measured = [evaluation.sets[name].models.get(model) for name in axes_of(evaluation).get(axis, ())]
    rewards = [figures.reward for figures in measured if figures is not None and figures.reward is not None]
    means = [(reward.value, reward.n) for reward in rewards if reward.value is not None]
    if len(means) < 2:
        return next((reward for reward in rewards if reward.value is not None), None)
    n = sum(rows for _, rows in means)
    return Interval(sum(mean * rows for mean, rows in means) / n, n=n)


def _frontier(runs: Sequence[Run]) -> Iterator[Block]:
    evaluations = list(reports(runs))
    elo = bool(evaluations) and all(evaluation.elo for _, _, evaluation in evaluations)
    measure = "Elo" if elo else "mean reward"
    series, rows = [], []
    for style, (_, who, evaluation) in enumerate(evaluations):
        points = []
        for model in evaluation.models:
            x, y = (on_axis(evaluation, axis, model, elo) for axis in AXES)
            places = 0 if elo else 2
            rows.append((named_model(who, model), interval(x, places=places), interval(y, places=places)))
            if x and y and x.value is not None and y.value is not None:
                points.append(Point(x.value, y.value, y.low, y.high, x.low, x.high, label=model))
        if points:
            series.append(Series(who, tuple(points), style))
    if series:
        panel = Panel("path", tuple(series), f"helpfulness ({measure})", f"harmlessness ({measure})")
        note = (
            "Elo of a Bradley-Terry fit on all pairs of models, the first model at 0; bars are 95% intervals."
            if elo
            else "These evaluations have no Elo, so the mean reward is drawn; bars are 95% intervals."
        )
        yield Figure(
            "frontier",
            "Harmlessness against helpfulness",
            f"Each model by its {measure} on harmless prompts (to the right: more helpful) and on the others (up: more "
            f"harmless). Arrows lead from each model to the next: {_paths_text(series, 0 if elo else 2)}.",
            (panel,),
            numbers_table(("model", f"helpfulness, {measure}", f"harmlessness, {measure}"), rows),
            note,
        )
    others = [axis for _, _, evaluation in evaluations for axis in evaluation.elo if axis not in AXES]
    yield from _axes(evaluations, elo, measure, list(dict.fromkeys(others if series else [*AXES, *others])))


def _axes(
    evaluations: Sequence[tuple[Run, str, Evaluation]], elo: bool, measure: str, axes: Sequence[str]
) -> Iterator[Block]:
    """The models on one axis after the other: on all that the experiment names, where the usual two are not there."""
    panels, rows = [], []
    for axis in axes:
        points = tuple(
            p
            for _, who, evaluation in evaluations
            for model in evaluation.models
            for p in point(named_model(who, model), on_axis(evaluation, axis, model, elo))
        )
        if points:
            panels.append(Panel("dots", (Series("", points),), measure, title=axis))
            rows += [(axis, str(p.x), _point_text(p, False)) for p in points]
    if panels:
        yield Figure(
            "axes",
            f"The models by {measure}",
            f"Each model by its {measure} on one axis after the other, with 95% intervals. {_list(rows)}",
            tuple(panels),
            numbers_table(("axis", "model", measure), rows),
        )


def _paths_text(series: Sequence[Series], places: int) -> str:
    return "; ".join(
        f"{path.label + ': ' if path.label else ''}"
        + ", ".join(f"{p.label} at {number(float(p.x), places)} and {number(p.y, places)}" for p in path.points)
        for path in series
    )


def _matrices(runs: Sequence[Run]) -> Iterator[Block]:
    for place, (_, who, evaluation) in enumerate(reports(runs)):
        panels, rows = [], []
        for name, prompt_set in evaluation.sets.items():
            points: list[tuple[str, str, float]] = []
            for win in prompt_set.comparisons:
                if win.value is None:
                    continue
                points += [(win.model, win.against, win.value), (win.against, win.model, 1 - win.value)]
                counts = f"{win.wins} / {win.ties} / {win.losses}"
                rows.append((name, win.model, win.against, interval(win.share, True), counts))
            if points:
                order = {model: i for i, model in enumerate(evaluation.models)}
                points.sort(key=lambda p: (order.get(p[0], 0), order.get(p[1], 0)))
                cells = tuple(Point(against, value, label=model) for model, against, value in points)
                panels.append(Panel("matrix", (Series(name, cells),), "against", "", name, percent=True))
        if panels:
            summary = "; ".join(f"on {row[0]} {row[1]} beats {row[2]} in {row[3]}" for row in rows)
            yield Figure(
                f"wins-{place}",
                f"How often one model beats another{f' ({who})' if who else ''}",
                f"Each row is a model, each column its opponent, each cell the share of prompts on which the row's "
                f"answer has the higher reward: {summary}.",
                tuple(panels),
                numbers_table(("set", "model", "against", "wins", "won / tied / lost"), rows),
            )


_DECLINING: tuple[tuple[str, Callable[[ModelFigures], Interval]], ...] = (
    ("refuses", lambda figures: figures.refusals),
    ("evades", lambda figures: figures.evasive),
)


def _refusals(runs: Sequence[Run]) -> Iterator[Block]:
    panels, rows = [], []
    evaluations = list(reports(runs))
    refused = [_points(who, evaluation, evaluation.over_refusal.get) for _, who, evaluation in evaluations]
    together = [Series("refuses", points, 0) for points in refused if points]
    if together:
        panels.append(Panel("dots", (_joined(together),), "refused", title="Over-refusal, harmless sets", percent=True))
    for name in set_names(runs):
        parts = []
        for style, (label, share_of) in enumerate(_DECLINING):
            points: tuple[Point, ...] = ()
            for _, who, evaluation in evaluations:
                if name in evaluation.sets:
                    shares = {model: share_of(figures) for model, figures in evaluation.sets[name].models.items()}
                    points += _points(who, evaluation, shares.get)
            if points:
                parts.append(Series(label, points, style))
                rows += [(name, label, str(p.x), _point_text(p)) for p in points]
        if parts:
            benign = any(name in evaluation.sets and evaluation.sets[name].benign for _, _, evaluation in evaluations)
            title = f"{name} (harmless)" if benign else name
            panels.append(Panel("dots", tuple(parts), "share of the answers", title=title, percent=True))
    for s in together:
        rows += [("all harmless sets", "refuses", str(p.x), _point_text(p)) for p in s.points]
    if panels:
        yield Figure(
            "refusals",
            "Refusals and over-refusal",
            "The share of answers that refuse, and that evade where that was measured, for each model and prompt set "
            "with 95% intervals. On harmless sets a refusal is a fault. " + _list(rows),
            tuple(panels),
            numbers_table(("set", "what", "model", "share"), rows),
        )


def _list(rows: Sequence[Sequence[str]], limit: int = 12) -> str:
    text = "; ".join(" ".join(row) for row in rows[:limit])
    return f"{text}{'; and more in the table' if len(rows) > limit else ''}."


def _points(who: str, evaluation: Evaluation, figure_of: Callable[[str], Interval | None]) -> tuple[Point, ...]:
    return tuple(p for model in evaluation.models for p in point(named_model(who, model), figure_of(model)))


def _joined(series: Sequence[Series]) -> Series:
    return Series(series[0].label, tuple(p for s in series for p in s.points), series[0].style)


def _point_text(p: Point, share: bool = True) -> str:
    return interval(Interval(p.y, p.low, p.high), share)


def _adherence(runs: Sequence[Run]) -> Iterator[Block]:
    for place, (_, who, evaluation) in enumerate(reports(runs)):
        adherence = evaluation.adherence
        if adherence is None:
            continue
        panels, rows = [], []
        for name, by_model in adherence.sets.items():
            order: dict[str, int] = {}
            for figures in by_model.values():
                for principle, figure in figures.items():
                    order[principle] = max(order.get(principle, 0), figure.n)
            top_principles = sorted(order, key=lambda p: -order[p])[:SHOWN]
            series = tuple(
                Series(model, tuple(q for p in top_principles for q in point(p, by_model[model].get(p))), style)
                for style, model in enumerate(m for m in evaluation.models if m in by_model)
            )
            series = tuple(s for s in series if s.points)
            if series:
                panels.append(Panel("dots", series, "violated", title=name, percent=True))
            rows += [
                (name, principle, model, interval(figure, True), str(figure.n))
                for model, figures in by_model.items()
                for principle, figure in figures.items()
            ]
        if panels:
            yield Figure(
                f"adherence-{place}",
                f"Which principle is violated how often{f' ({who})' if who else ''}",
                f"The share of answers that violate each principle, as {adherence.model} judges, for each "
                "model with 95% intervals; to the left is better. " + _list([row[:4] for row in rows]),
                tuple(panels),
                numbers_table(("set", "principle", "model", "violated", "n"), rows),
                "A model judged these answers, by the same principles that it was trained by.",
            )


def _topics(runs: Sequence[Run]) -> Iterator[Block]:
    for place, (_, who, evaluation) in enumerate(reports(runs)):
        panels, rows = [], []
        for name, prompt_set in evaluation.sets.items():
            topics: dict[str, int] = {}
            for figures in prompt_set.models.values():
                topics |= {topic: reward.n for topic, reward in figures.reward_by_topic.items()}
            top_topics = sorted(sorted(topics, key=lambda t: -topics[t])[:SHOWN])
            series = []
            for style, model in enumerate(evaluation.models):
                by_topic = prompt_set.models.get(model, ModelFigures()).reward_by_topic
                points = tuple(p for topic in top_topics for p in point(topic, by_topic.get(topic)))
                if points:
                    series.append(Series(model, points, style))
                rows += [(name, topic, model, interval(mean), str(mean.n)) for topic, mean in by_topic.items()]
            if series and len(top_topics) > 1:
                panels.append(Panel("dots", tuple(series), "mean reward", title=name))
        if panels:
            yield Figure(
                f"topics-{place}",
                f"Reward by topic{f' ({who})' if who else ''}",
                "The mean reward of each model's answers on each topic of each prompt set, with 95% intervals. "
                + _list([row[:4] for row in rows]),
                tuple(panels),
                numbers_table(("set", "topic", "model", "reward", "n"), rows),
            )


def _accuracy(runs: Sequence[Run]) -> Iterator[Block]:
    rows: list[tuple[str, ...]] = []
    points: tuple[Point, ...] = ()
    for _, who, evaluation in reports(runs):
        for pairs, rm_figures in evaluation.reward_model.items():
            name = named_model(who, pairs)
            for kind, accuracy in {"": rm_figures.accuracy, **rm_figures.by_kind}.items():
                points += point(f"{name}: {kind}" if kind else name, accuracy)
                rows.append((name, kind or "all", interval(accuracy, True), str(accuracy.n)))
    if points:
        yield Figure(
            "accuracy",
            "The reward model on pairs that it has not seen",
            "How often the reward model prefers the better answer of a pair, with 95% intervals; the line at 50% is "
            "chance. " + _list(rows),
            (Panel("dots", (Series("", points),), "right", percent=True, level=0.5),),
            numbers_table(("pairs", "kind", "right", "n"), rows),
        )
