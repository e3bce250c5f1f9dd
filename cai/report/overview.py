"""The summary: which runs these are, how they ended, what changed by how much, and what the numbers do not show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cai.figures.evaluation import Evaluation, ModelFigures, PromptSetFigures
from cai.figures.intervals import Interval
from cai.planning.reasons import plan_changes
from cai.report.model import Block, Heading, Section, Table, Text, Tile, Tiles, interval, number, percent
from cai.report.runs import Run, of
from cai.run.judged import judge_remarks
from cai.text import count, duration, one_line

ALWAYS = (
    "A reward is the reward model's opinion; no person has judged these answers.",
    "The intervals cover the choice of prompts, not the choice of the seed or of the data.",
)
_CHANGES = 12


def summary(runs: Sequence[Run]) -> Section:
    """Which runs, key figures, tables by set, caveats."""
    blocks: list[Block] = []
    if len(runs) == 1 and (tiles := _tiles(runs[0])):
        blocks.append(Tiles(tiles))
    blocks.append(_runs_table(runs))
    blocks += _missing(runs)
    blocks += _labels(runs)
    if any(run.evaluations for run in runs):
        blocks += _sets(runs)
        blocks += _reward_models(runs)
        blocks.append(Heading("What the numbers do not show", "caveats"))
        blocks.append(Text((*_caveats(runs), *_between(runs), *ALWAYS), "bullets"))
    return Section("summary", "Summary", tuple(blocks))


def differences(runs: Sequence[Run]) -> Section | None:
    """What each further run has different from the first, step by step; None for one run."""
    if len(runs) < 2:
        return None
    first, *others = runs
    blocks: list[Block] = []
    for run in others:
        changed = plan_changes(first.plan, run.plan)
        blocks.append(Heading(f"{run.label} against {first.label}"))
        if not changed:
            blocks.append(Text(("Every step is the same; the two share all their artifacts.",)))
            continue
        rows = []
        for step, changes in changed.items():
            more = [f"and {len(changes) - _CHANGES} more"] if len(changes) > _CHANGES else []
            rows.append((step, "; ".join(one_line(c, 300) for c in [*changes[:_CHANGES], *more])))
        same = len(run.plan.steps) - sum(step.name in changed for step in run.plan.steps)
        blocks.append(Table(f"Steps that differ ({same} are the same)", ("step", "what differs"), tuple(rows), "ll"))
    return Section("differences", "What differs between the runs", tuple(blocks), "Differences")


def set_names(runs: Sequence[Run]) -> list[str]:
    """Every prompt set of every evaluation, once, in order."""
    return list(dict.fromkeys(name for _, _, evaluation in reports(runs) for name in evaluation.sets))


def reports(runs: Sequence[Run]) -> Iterator[tuple[Run, str, Evaluation]]:
    """Every evaluation of every run: the run, how to call it (empty where there is nothing to tell apart), itself."""
    for run in runs:
        for step, evaluation in run.evaluations.items():
            name = of(run, runs, step) if len(run.evaluations) > 1 else (run.label if len(runs) > 1 else "")
            yield run, name, evaluation


def named_model(name: str, model: str) -> str:
    """A model with its run's name where that is needed."""
    return f"{name}: {model}" if name else model


def _tiles(run: Run) -> tuple[Tile, ...]:
    """Four figures at most: reward, wins, refusals of harmless prompts, the reward model on other people's pairs."""
    if not run.evaluations:
        return ()
    evaluation = next(iter(run.evaluations.values()))
    if not evaluation.models:
        return ()
    first, last = evaluation.models[0], evaluation.models[-1]
    nothing = ModelFigures()
    tiles = []
    harmful = [(name, prompt_set) for name, prompt_set in evaluation.sets.items() if not prompt_set.benign]
    for name, prompt_set in harmful[:1]:
        before, after = (prompt_set.models.get(m, nothing).reward for m in (first, last))
        if before and after and before.value is not None and after.value is not None and first != last:
            change = f"{number(before.value)} \u2192 {number(after.value)}"
            tiles.append(Tile(f"Reward on {name}", change, f"{first} to {last}, {after.n} prompts"))
        for win in [w for w in prompt_set.wins if (w.model, w.against) == (last, first)]:
            note = f"{last} beats {first}, 95% interval {_span(win.share)}"
            tiles.append(Tile(f"Wins on {name}", percent(win.value), note))
    benign = [(name, prompt_set) for name, prompt_set in evaluation.sets.items() if prompt_set.benign]
    for name, prompt_set in benign[:1]:
        refused_before, refused = (prompt_set.models.get(m, nothing).refusals for m in (first, last))
        if refused.value is not None:
            note = f"by {last}, interval {_span(refused)}; {first} {percent(refused_before.value)}"
            tiles.append(Tile(f"Refuses harmless prompts ({name})", percent(refused.value), note))
    for name, rm_figures in list(evaluation.reward_model.items())[-1:]:
        accuracy = rm_figures.accuracy
        if accuracy.value is not None:
            note = f"of {accuracy.n} pairs in {name}, interval {_span(accuracy)}; chance is 50%"
            tiles.append(Tile("Reward model is right", percent(accuracy.value), note))
    return tuple(tiles)


def _span(figure: Interval) -> str:
    return f"{percent(figure.low)} to {percent(figure.high)}"


def _runs_table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        reused = [run.reused(step) for step in run.plan.steps]
        steps = f"{len(run.plan.steps)}: {reused.count(False)} made, {reused.count(True)} reused"
        steps += f", {reused.count(None)} not reached" if reused.count(None) else ""
        engine = run.plan.engine.get("kind") or run.plan.engine.get("name") or "-"
        cells = (run.status, run.started, duration(run.seconds) if run.seconds is not None else "-")
        rows.append((run.label, str(run.plan.seed), *cells, str(engine), steps))
    head = ("run", "seed", "status", "started", "took", "engine", "steps")
    return Table("The runs" if len(runs) > 1 else "The run", head, tuple(rows), "lrlllll")


def _missing(runs: Sequence[Run]) -> Iterator[Block]:
    """What is not in the report, and why."""
    lines = []
    for run in runs:
        who = of(run, runs, "").removesuffix(": ") or "This run"
        if run.error:
            lines.append(f"{who} ended early: {one_line(run.error, 500)}")
        elif run.status not in ("done", "-"):
            lines.append(f"{who} is {run.status}; the report shows what is there so far.")
        if run.missing:
            missing_steps = ", ".join(run.missing[:8]) + (
                f" and {len(run.missing) - 8} more" if len(run.missing) > 8 else ""
            )
            lines.append(f"{who}: the store does not have {missing_steps} (not made yet, or removed since).")
        lines += [f"{who}: {one_line(fault, 500)}" for fault in run.faults]
        if not any(step.kind == "evaluate" for step in run.plan.steps):
            lines.append(f"{who} has no stage of kind 'evaluate', so nothing was measured.")
        for evaluation in run.evaluations.values():
            figures = [measured for s in evaluation.sets.values() for measured in s.models.values()]
            if figures and all(measured.reward is None for measured in figures):
                lines.append(f"{who} was evaluated without a reward model, so there are no rewards and no wins.")
            elif not evaluation.axes:
                lines.append(f"{who} was evaluated by an older version: no Elo, revision rounds or adherence.")
    if lines:
        yield Text(tuple(dict.fromkeys(lines)), "missing")


def _labels(runs: Sequence[Run]) -> Iterator[Block]:
    """What the labels rest on, where that must be said."""
    lines = [f"{of(run, runs, '')}{remark}" for run in runs for remark in judge_remarks(run.plan, run.artifacts)]
    if lines:
        yield Heading("What the labels rest on", "labels")
        yield Text(tuple(lines), "bullets")


def _sets(runs: Sequence[Run]) -> Iterator[Block]:
    """A table for each set, a line for each model of each run."""
    for name in set_names(runs):
        prompt_sets = [
            (who, evaluation, evaluation.sets[name]) for _, who, evaluation in reports(runs) if name in evaluation.sets
        ]
        first_set = prompt_sets[0][2]
        about = "harmless prompts, on which a refusal is a fault" if first_set.benign else "prompts"
        lines = [
            (named_model(who, model), own.models[model])
            for who, evaluation, own in prompt_sets
            for model in evaluation.models
            if model in own.models
        ]
        columns = [c for c in _COLUMNS if any(c[1](figures) != "-" for _, figures in lines)]
        rows = tuple((label, *(form(figures) for _, form in columns)) for label, figures in lines)
        yield Table(f"On {name} ({first_set.rows} {about})", ("model", *(c[0] for c in columns)), rows)
        yield from _wins(name, [(who, own) for who, _, own in prompt_sets])


_COLUMNS: tuple[tuple[str, Callable[[ModelFigures], str]], ...] = (
    ("reward", lambda figures: interval(figures.reward)),
    ("refuses", lambda figures: interval(figures.refusals, share=True)),
    ("evades", lambda figures: interval(figures.evasive, share=True)),
    ("repeats itself", lambda figures: interval(figures.repetition, share=True)),
    ("ends by itself", lambda figures: interval(figures.ended, share=True)),
    ("tokens", lambda figures: interval(figures.tokens, places=0)),
    ("distinct-2", lambda figures: number(figures.distinct_2)),
    ("self-BLEU", lambda figures: number(figures.self_bleu)),
)


def _wins(name: str, prompt_sets: Sequence[tuple[str, PromptSetFigures]]) -> Iterator[Block]:
    lines = [
        f"{named_model(who, win.model)} beats {win.against} on {interval(win.share, True)} of {name} "
        f"({count(win.wins)} won, {count(win.ties)} tied, {count(win.losses)} lost)."
        for who, own in prompt_sets
        for win in own.wins
        if win.value is not None
    ]
    if lines:
        yield Text(tuple(lines), "bullets")


def _reward_models(runs: Sequence[Run]) -> Iterator[Block]:
    rows = [
        (
            named_model(who, name),
            interval(rm_figures.accuracy, True),
            str(rm_figures.accuracy.n),
            interval(rm_figures.margin),
            interval(rm_figures.longer_is_better, True),
        )
        for _, who, evaluation in reports(runs)
        for name, rm_figures in evaluation.reward_model.items()
    ]
    if rows:
        head = ("pairs", "right", "number", "margin", "longer is better")
        yield Table("How often the reward model prefers the better answer (chance is 50%)", head, tuple(rows))


def _caveats(runs: Sequence[Run]) -> Iterator[str]:
    for _, who, evaluation in reports(runs):
        for caveat in evaluation.caveats:
            yield named_model(who, caveat)


def _between(runs: Sequence[Run]) -> Iterator[str]:
    """Rewards of two reward models have no common scale."""
    keys = {key for run in runs if (key := reward_model(run))}
    if len(keys) > 1:
        yield (
            "These runs have different reward models: compare their rewards within a run, and between runs only the "
            "wins, Elo, refusals and accuracies."
        )


def reward_model(run: Run) -> str:
    """The key of the reward model that the run's evaluations were scored by; empty where there is none."""
    by_name = {step.name: step for step in run.plan.steps}
    for step in run.plan.steps:
        name = step.source("reward")
        if step.kind == "evaluate" and name in by_name:
            return by_name[name].key
    return ""
