"""The end of a run as a person understands it: what changed, by how much, what that does not show, and what is where.

Everything is built as plain blocks from ``evaluation.json`` first; the terminal and ``summary.md`` are two renderings
of the same blocks, so they cannot disagree.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cai.engines.methods import method_of
from cai.figures.evaluation import (
    EVALUATION,
    AdherenceFigures,
    Evaluation,
    ExampleAnswers,
    ModelFigures,
    ModelWins,
    PromptSetFigures,
    RevisionFigures,
    RewardModelFigures,
    read_evaluation,
)
from cai.figures.intervals import Interval
from cai.files.durable import write_durably
from cai.plan import Plan
from cai.run.judged import judge_remarks
from cai.run.submitted import launcher_of
from cai.terminal.accounts import FinishedArtifact, judge_tables, ledger_rows, usage_rows
from cai.terminal.output import make_console
from cai.terminal.plan_view import escape_markdown
from cai.terminal.shell_text import comment, folded, shell_word
from cai.text import duration, one_line, plain

if TYPE_CHECKING:
    from cai.run.results import RunResult

QUESTION = "How can I hack into my neighbour's Wifi?"
_DATA = ("prompts", "conversations", "candidates", "comparisons")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the summary: a heading, a paragraph, bullets, commands, or a table whose first row is the head."""

    kind: Literal["heading", "text", "bullets", "commands", "table", "quote"]
    lines: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    label: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """What ``render`` and ``markdown`` show. ``where`` is the run's folder."""

    where: Path
    blocks: tuple[Block, ...]


def summarize(
    plan: Plan,
    where: Path,
    artifacts: Mapping[str, FinishedArtifact],
    *,
    seconds: float | None = None,
    examples: int = 3,
) -> Summary:
    """The summary of a finished run; ``artifacts`` are by step name, ``seconds`` is wall time.

    Raises:
        SpecError: when an evaluation or a judge's report cannot be read.
    """
    blocks: list[Block] = []
    for step in plan.steps:
        if artifacts[step.name].makes == "evaluation":
            blocks += _evaluation(read_evaluation(artifacts[step.name].path / EVALUATION), examples)
    if not blocks:
        blocks.append(Block("text", ("This experiment has no stage of kind 'evaluate', so nothing was measured.",)))
    if remarks := judge_remarks(plan, artifacts):
        blocks[:0] = [Block("heading", ("What the labels rest on",)), Block("bullets", tuple(remarks))]
    blocks += _judges(plan, artifacts)
    blocks += _ledger(plan, artifacts)
    blocks += _places(plan, where, artifacts, seconds)
    return Summary(where, tuple(blocks))


def render(summary: Summary) -> RenderableType:
    """The summary for the terminal; readable from 60 columns on."""
    return Group(*chain.from_iterable(_terminal(block) for block in summary.blocks))


def markdown(summary: Summary, title: str = "Summary") -> str:
    """The summary as Markdown."""
    return "\n".join([f"# {escape_markdown(title)}", "", *chain.from_iterable(map(_lines, summary.blocks))]) + "\n"


def write_markdown(summary: Summary, title: str = "Summary") -> Path:
    """Write ``summary.md`` into the run's folder; returns its path."""
    path = summary.where / "summary.md"
    write_durably(path, markdown(summary, title))
    return path


def print_summary(result: RunResult, console: Console | None = None) -> None:
    """Print the summary of a run that has just finished, and write ``summary.md`` into its folder."""
    artifacts = {step.step.name: step.artifact for step in result.steps}
    summary = summarize(result.plan, result.run_dir, artifacts, seconds=result.seconds)
    path = write_markdown(summary, f"Summary of {result.plan.experiment}, seed {result.plan.seed}")
    console = console or make_console()
    console.print(render(summary), crop=False)  # a command's longest word may be longer than a line
    console.print(Text(f"\nThis summary is kept in {plain(_short(str(path)))}", style="dim"))


def interval(figure: Interval | None, share: bool = False, digits: int = 2) -> str:
    """A figure with its 95 % interval: ``0.42 [0.31, 0.53]``, ``82% [71%, 90%]``; ``-`` when there is none."""
    if figure is None or figure.value is None:
        return "-"
    form = "{:.0%}" if share else f"{{:.{digits}f}}"
    text = form.format(figure.value)
    if figure.low is not None and figure.high is not None:
        text += f" [{form.format(figure.low)}, {form.format(figure.high)}]"
    return text


def _evaluation(evaluation: Evaluation, examples: int) -> Iterator[Block]:
    models = evaluation.models
    yield Block("heading", ("What changed",))
    for name, prompt_set in evaluation.sets.items():
        yield from _set(name, prompt_set, models)
    yield from _ratings(evaluation)
    yield from _revisions(evaluation.revisions)
    if evaluation.adherence:
        yield from _adherence(evaluation.adherence, models)
    yield from _reward_model(evaluation.reward_model)
    yield from _answers(evaluation.examples, models[0], models[-1], examples)
    yield Block("heading", ("What the numbers do not show",))
    always = [
        "A reward is the reward model's opinion; no person has judged these answers.",
        "The intervals cover the choice of prompts, not the choice of the seed or of the data.",
    ]
    yield Block("bullets", (*evaluation.caveats, *always))


def _set(name: str, prompt_set: PromptSetFigures, models: Sequence[str]) -> Iterator[Block]:
    kind = "harmless prompts, on which a refusal is a fault" if prompt_set.benign else "prompts"
    yield Block("text", (f"On '{name}' ({prompt_set.rows} {kind}), mean and 95% interval:",))
    rows = [("model", "reward", "refuses", "tokens", "variety")]
    for model in models:
        figures = prompt_set.models[model]
        variety, tokens = figures.distinct_2, figures.tokens.value
        rows.append(
            (
                model,
                interval(figures.reward),
                interval(figures.refusals, share=True),
                "-" if tokens is None else f"{tokens:.0f}",
                "-" if variety is None else f"{variety:.2f}",
            )
        )
    yield Block("table", rows=tuple(rows))
    bullets = [line for line in (_change(prompt_set.models, models), *map(_win, prompt_set.wins)) if line]
    if bullets:
        yield Block("bullets", tuple(bullets))


def _change(figures: Mapping[str, ModelFigures], models: Sequence[str]) -> str:
    """From the first model to the last, in a sentence; empty where no rewards were given."""
    before, after = figures[models[0]].reward, figures[models[-1]].reward
    if len(models) < 2 or not before or not after or before.value is None or after.value is None:
        return ""
    change = after.value - before.value
    word = "rises" if change > 0 else "falls" if change < 0 else "changes"
    sentence = f"From '{models[0]}' to '{models[-1]}' the reward {word} by {abs(change):.2f}"
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return f"{sentence}; there are too few prompts for intervals."
    apart = before.high < after.low or after.high < before.low
    return f"{sentence}; the intervals {'do not overlap' if apart else 'overlap, so this may be chance'}."


def _win(win: ModelWins) -> str:
    if win.value is None:
        return ""
    beats = f"'{win.model}' beats '{win.against}' on {interval(win.share, share=True)} of the prompts"
    return f"{beats} ({win.wins} won, {win.ties} tied, {win.losses} lost)."


def _reward_model(sets: Mapping[str, RewardModelFigures]) -> Iterator[Block]:
    if not sets:
        return
    yield Block("text", ("How often the reward model prefers the better answer of a pair (chance is 50%):",))
    rows = [("pairs", "right", "number")]
    rows += [(name, interval(figures.accuracy, share=True), str(figures.accuracy.n)) for name, figures in sets.items()]
    yield Block("table", rows=tuple(rows))


def _ratings(evaluation: Evaluation) -> Iterator[Block]:
    """Elo by axis and refusals of safe requests, a line for each model; older evaluations have neither."""
    models, elo, refused = evaluation.models, evaluation.elo, evaluation.over_refusal
    columns = [[axis, *(interval(rated.models.get(m), digits=0) for m in models)] for axis, rated in elo.items()]
    if refused:
        columns.append(["refuses safe requests", *(interval(refused.get(m), share=True) for m in models)])
    if not columns:
        return
    caption = f"Elo from the rewards on each axis, '{models[0]}' at 0" if elo else ""
    caption += ", and " if elo and refused else ""
    caption += "how often safe requests are declined, all sets together" if refused else ""
    yield Block("text", (f"{caption[0].upper()}{caption[1:]}:",))
    yield Block("table", rows=tuple(zip(["model", *models], *columns, strict=True)))


def _revisions(revisions: Mapping[str, RevisionFigures]) -> Iterator[Block]:
    for label, revised in revisions.items():
        yield Block("text", (f"Reward by revision in '{label}' ({revised.rows} answers):",))
        rows: list[tuple[str, ...]] = [
            ("round", "reward", "change since the first answer", "better than the round before")
        ]
        for revision_round in revised.rounds:
            change = revision_round.change if revision_round.round else None
            won = interval(revision_round.share_won, share=True)
            rows.append((str(revision_round.round), interval(revision_round.reward), interval(change), won))
        yield Block("table", rows=tuple(rows))
        if len(revised.by_principle) > 1:
            by = sorted(revised.by_principle.items(), key=lambda item: -(item[1].change.value or 0))
            drawn = [("principle", "change by its rounds", "rounds")]
            drawn += [(name, interval(effect.change), str(effect.n)) for name, effect in by]
            yield Block("table", rows=tuple(drawn))


def _adherence(adherence: AdherenceFigures, models: Sequence[str]) -> Iterator[Block]:
    for name, by_model in adherence.sets.items():
        yield Block("text", (f"Answers on '{name}' that violate a principle, as '{adherence.model}' judges:",))
        rows: list[tuple[str, ...]] = [("principle", *models)]
        for principle in by_model[models[0]]:
            rows.append((principle, *(interval(by_model[model][principle], share=True) for model in models)))
        yield Block("table", rows=tuple(rows))


def _answers(examples: Sequence[ExampleAnswers], first: str, last: str, limit: int) -> Iterator[Block]:
    """A few answers before and after, one of each set in turn; drawn by chance when they were evaluated."""
    by_set: dict[str, list[ExampleAnswers]] = {}
    for example in examples:
        by_set.setdefault(example.set, []).append(example)
    chosen = [e for turn in zip_longest(*by_set.values()) for e in turn if e is not None][:limit]
    if not chosen:
        return
    yield Block("heading", ("Answers before and after (drawn by chance, not picked)",))
    for example in chosen:
        yield Block("text", (one_line(example.prompt, 300),), label=example.set)
        for model in dict.fromkeys((first, last)):
            reward = example.rewards[model]
            label = model if reward is None else f"{model}, reward {reward:.2f}"
            yield Block("quote", (one_line(example.answers[model], 400) or "(empty)",), label=label)


def _judges(plan: Plan, artifacts: Mapping[str, FinishedArtifact]) -> Iterator[Block]:
    tables = list(judge_tables(plan, artifacts))
    if tables:
        yield Block("heading", ("How the judges judged",))
    for name, rows in tables:
        yield Block("text", (f"'{name}', with 95% intervals (docs/judge.md says what each figure shows):",))
        yield Block("table", rows=rows)


def _ledger(plan: Plan, artifacts: Mapping[str, FinishedArtifact]) -> Iterator[Block]:
    rows = ledger_rows(plan, artifacts)
    if len(rows) > 1:
        yield Block("heading", ("Every row accounted for",))
        yield Block("table", rows=rows)
    usage = usage_rows(plan, artifacts)
    if len(usage) > 1:
        yield Block("text", ("What was asked of the models (of a reused stage: when it was made):",))
        yield Block("table", rows=usage)


def _places(
    plan: Plan, where: Path, artifacts: Mapping[str, FinishedArtifact], seconds: float | None
) -> Iterator[Block]:
    yield Block("heading", ("Where everything lies",))
    rows = [(name, str(artifacts[step].path)) for name, step in plan.outputs.items() if step in artifacts]
    listed = {path for _, path in rows}
    for step in plan.steps:
        if method_of(step.kind) is not None:
            for name in step.needs():
                path = str(artifacts[name].path)
                if artifacts[name].makes in _DATA and path not in listed:
                    listed.add(path)
                    rows.append((f"{artifacts[name].makes} of {step.name}", path))
    rows += [("plan", str(where / "plan.json")), ("what happened", str(where / "events.jsonl"))]
    yield Block("bullets", tuple(f"{name}: {_short(path)}" for name, path in rows))
    if seconds is not None:
        yield Block("text", (f"The run took {duration(seconds)}.",))
    yield Block("heading", ("Next",))
    yield Block("commands", tuple(_next_commands(plan, where, artifacts)))


def _next_commands(plan: Plan, where: Path, artifacts: Mapping[str, FinishedArtifact]) -> Iterator[str]:
    """Commands that do something with this run: to talk, there must be a model that it has made."""
    run = shell_word(_run_word(plan, where))
    if trained_model(plan, artifacts):
        if launcher_of(plan) is not None:
            yield "# a server of the model needs its GPUs: inside an allocation (salloc)"
        yield f"python -m cai chat {run}"
        yield f"python -m cai chat {run} --message {shell_word(QUESTION)}"
        yield f"python -m cai serve {run}"
    yield f"python -m cai report {run}"
    yield f"python -m cai rows {run}"


def trained_model(plan: Plan, artifacts: Mapping[str, FinishedArtifact]) -> str:
    """The step whose model is the run's result; empty where no step trains one, or that step has not ended well.

    A fetched model is what a run starts from. It is no result, though ``chat --step`` reaches it.
    """
    name = plan.outputs.get("model", "")
    return name if name in artifacts and plan.step(name).kind != "fetch" else ""


def _run_word(plan: Plan, where: Path) -> str:
    """What names this run on the command line: the experiment, where its newest run is this one, else the folder."""
    newest = Path("runs") / plan.experiment / "latest"
    return plan.experiment if newest.resolve() == where.resolve() else _from_here(str(where))


def _from_here(path: str) -> str:
    """A path as a command takes it: from here where it lies below, else whole."""
    from_here = os.path.relpath(path)
    return path if from_here.startswith("..") else from_here


def _short(path: str) -> str:
    """A path from here, or from home, where that is shorter."""
    if (from_here := _from_here(path)) != path:
        return from_here
    home = str(Path.home())
    return f"~{path[len(home) :]}" if path.startswith(home + os.sep) else path


class _Commands:
    """Lines of a shell, folded so that they can be pasted whatever the width."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - 2
        for line in self._lines:
            if line.startswith("# "):
                folds = comment(line[2:], width)
            else:
                folds = folded([shell_word(word) for word in shlex.split(line)], width)
            yield from (Text(f"  {fold}", no_wrap=True, overflow="ignore") for fold in folds)


def _terminal(block: Block) -> Iterator[RenderableType]:
    if block.kind == "heading":
        yield Text(f"\n{plain(block.lines[0])}", style="bold")
    elif block.kind == "table":
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for i, name in enumerate(block.rows[0]):
            table.add_column(Text(plain(name)), overflow="fold", justify="left" if i < 2 else "right")
        for row in block.rows[1:]:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        yield Padding(table, (0, 0, 0, 2))
    elif block.kind == "commands":
        yield _Commands(block.lines)
    elif block.kind == "bullets":
        for line in block.lines:
            grid = Table.grid(padding=(0, 1))
            grid.add_row(Text("-"), Text(one_line(line, 1000), overflow="fold"))
            yield Padding(grid, (0, 0, 0, 1))
    elif block.kind == "quote":
        yield Padding(
            Text.assemble((f"{plain(block.label)}: ", "bold"), plain(block.lines[0]), overflow="fold"), (0, 0, 0, 3)
        )
    else:
        label = f"[{block.label}] " if block.label else ""
        yield Text(f"\n {plain(label + block.lines[0])}", overflow="fold")


def _lines(block: Block) -> list[str]:
    """A block as lines of Markdown, an empty one last."""
    safe = [escape_markdown(line) for line in block.lines]
    if block.kind == "heading":
        return [f"## {safe[0]}", ""]
    if block.kind == "table":
        rows = [f"| {' | '.join(map(escape_markdown, row))} |" for row in block.rows]
        return [rows[0], "|" + "---|" * len(block.rows[0]), *rows[1:], ""]
    if block.kind == "commands":
        return ["```sh", *map(plain, block.lines), "```", ""]
    if block.kind == "bullets":
        return [*(f"- {line}" for line in safe), ""]
    if block.kind == "quote":
        return [f"> **{escape_markdown(block.label)}:** {safe[0]}", ""]
    return [f"*{escape_markdown(block.label)}*: {safe[0]}" if block.label else safe[0], ""]
