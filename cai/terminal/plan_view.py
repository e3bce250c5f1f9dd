"""The plan as a person reads it: what is reused, what runs and why, and what it will cost.

Text for the terminal, a Markdown table for pull requests, JSON for programs. What cannot be known before is ``?``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, overload

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from cai.launchers.base import Command
from cai.launchers.settings import is_local
from cai.plan import Plan, Step
from cai.terminal.costs import cost_cell, cost_notes, cost_words, total_cost
from cai.terminal.output import make_console
from cai.terminal.shell_text import LEAST, block
from cai.text import count, duration, json_text, one_line

if TYPE_CHECKING:
    from cai.run.examples import StepExamples

Format = Literal["text", "md", "json"]
COSTS = ("rows", "calls", "prompt_tokens", "tokens", "seconds", "gpu_hours")
_PARTIAL = ("known", "unknown", "cost")
"""Of the totals: sums of what is known, the steps whose costs are not, and money."""
_HEADS = ("rows", "calls", "read", "written", "time", "cost")
_STYLES = {"reuse": "dim", "run": "green", "resume": "yellow"}

BY_HAND = (
    "A command can be pasted by itself. To run whole steps by hand, `plan --script DIR` writes them as scripts, which "
    "prepare the data, wait for servers and take them down."
)


Commands = Mapping[str, Sequence[Command]]
"""The processes of each step, by its name; steps without any need no entry."""


def plan_data(plan: Plan, statuses: Sequence[Any], commands: Commands | None = None) -> dict[str, Any]:
    """The plan with what would happen to each step, as plain data; its keys are stable.

    ``commands`` of a step are a list of ``{role, argv, env, cwd, background, ready, ...}`` (cai.launchers.base).
    ``cost`` is in steps that ask a model behind an API, and in the totals, where one has prices or a budget:
    ``{amounts: {currency: amount}, unknown}``.
    """
    by_name = {status.step.name: status for status in statuses}
    steps = [
        {**_step_data(step, by_name[step.name]), "commands": [c.data() for c in (commands or {}).get(step.name, ())]}
        for step in plan.steps
    ]
    actions = [step["action"] for step in steps]
    totals: dict[str, Any] = {action: actions.count(action) for action in dict.fromkeys([*_STYLES, *actions])}
    totals |= _sums([step for step in steps if step["action"] != "reuse"])
    if any("cost" in step for step in steps):
        totals["cost"] = total_cost(step for step in steps if step["action"] != "reuse")
    return {
        "format": 1,
        "experiment": plan.experiment,
        "seed": plan.seed,
        "engine": plan.engine,
        **({"engines": plan.engines} if plan.engines else {}),
        "steps": steps,
        "totals": totals,
    }


def _sums(at_work: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Costs over the steps at work, None where one is not known; and of times what is ``known``, and of whom not."""
    values = {cost: [step["estimate"][cost] for step in at_work] for cost in COSTS[1:]}
    sums: dict[str, Any] = {cost: None if None in every else sum(every) for cost, every in values.items()}
    known_costs, unknown_costs = {}, {}
    for cost in ("seconds", "gpu_hours"):
        known_costs[cost] = round(sum(value for value in values[cost] if value is not None), 3)
        lacking = (step for step in at_work if step["estimate"][cost] is None)
        unknown_costs[cost] = [step["name"] for step in lacking if cost == "seconds" or step["gpu_time"]]
    if not any(step["gpu_time"] for step in at_work):
        del known_costs["gpu_hours"], unknown_costs["gpu_hours"]
    nodes = [gpu["node_hours"] for step in at_work if (gpu := step["gpu_time"]) and gpu["node_hours"] is not None]
    if nodes:
        known_costs["node_hours"] = round(sum(nodes), 3)
    return {**sums, "known": known_costs, "unknown": unknown_costs}


def _step_data(step: Step, status: Any) -> dict[str, Any]:
    return {
        "name": step.name,
        "kind": step.kind,
        "makes": step.makes,
        "key": step.key,
        "action": str(getattr(status.action, "value", status.action)),
        "reason": status.reason,
        "estimate": step.estimate.costs(),
        "gpu_time": None if step.estimate.gpu_time is None else asdict(step.estimate.gpu_time),
        **({} if step.estimate.cost is None else {"cost": asdict(step.estimate.cost)}),
        "notes": [
            *step.notes,
            *_judge_notes(step),
            *([f"in {shards} shards"] if (shards := step.spec.get("shards", 1)) > 1 else []),
        ],
    }


def _judge_notes(step: Step) -> list[str]:
    """What a judge's labels will rest on, where that must be said."""
    if step.kind != "judge":
        return []
    if step.spec.get("uncalibrated"):
        return ["uncalibrated: its labels are trained on whatever labelled pairs say of it"]
    return [] if step.spec.get("labelled") else ["not calibrated: held against no labelled pairs (labelled)"]


@overload
def render_plan(
    plan: Plan, statuses: Sequence[Any], format: Literal["md", "json"], commands: Commands | None = None
) -> str: ...
@overload
def render_plan(
    plan: Plan, statuses: Sequence[Any], format: Literal["text"] = "text", commands: Commands | None = None
) -> RenderableType: ...
def render_plan(
    plan: Plan, statuses: Sequence[Any], format: Format = "text", commands: Commands | None = None
) -> str | RenderableType:
    """The plan in one of three formats; ``text`` is something that rich prints, the others are strings."""
    data = plan_data(plan, statuses, commands)
    if format == "json":
        return json_text(data, indent=1) + "\n"
    return _markdown(data) if format == "md" else _PlanText(data)


def print_plan(
    plan: Plan,
    statuses: Sequence[Any],
    *,
    format: Format = "text",
    console: Console | None = None,
    commands: Commands | None = None,
    examples: Sequence[StepExamples] | None = None,
) -> None:
    """Print the plan to standard output, with examples of its prompts where there are any."""
    console = console or make_console()
    if examples is not None and format == "json":
        from cai.terminal.examples_view import examples_data

        data = {**plan_data(plan, statuses, commands), "examples": examples_data(examples)}
        console.out(json_text(data, indent=1), highlight=False)
    elif format == "text":
        console.print(render_plan(plan, statuses, "text", commands), crop=False)
    else:
        console.out(render_plan(plan, statuses, format, commands), end="", highlight=False)
    if examples is not None and format != "json":
        from cai.terminal.examples_view import examples_markdown, examples_text

        console.out((examples_markdown if format == "md" else examples_text)(examples), end="", highlight=False)


def short(number: int | None) -> str:
    """A number in few characters: ``950``, ``12.3k``, ``4.1M``; ``?`` when unknown."""
    if number is None:
        return "?"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(round(number))


def _about(seconds: float | None) -> str:
    return "?" if seconds is None else duration(seconds) if seconds >= 1 else "< 1 s"


def _costs(step: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    cost = step["estimate"]
    if step["action"] == "reuse":
        return count(cost["rows"]), "-", "-", "-", "-", "-"
    return (
        count(cost["rows"]),
        count(cost["calls"]),
        short(cost["prompt_tokens"]),
        short(cost["tokens"]),
        f"~{_rough(cost['seconds'])}" if is_estimated(step) else _about(cost["seconds"]),
        cost_cell(step),
    )


def is_estimated(step: Mapping[str, Any]) -> bool:
    """Whether a step's time is computed from the peak rates of GPUs, and was not measured."""
    return bool(step["gpu_time"]) and step["gpu_time"]["basis"] == "estimate"


def gpu_words(step: Mapping[str, Any]) -> str:
    """What a step takes of GPUs, in a sentence; empty where it needs none."""
    if not (gpu := step["gpu_time"]):
        return ""
    if not gpu["basis"]:
        return f"GPU-hours not known: {gpu['unknown'] or 'nothing was measured here'}"
    spent = step["estimate"]["gpu_hours"]
    hours = f"{'about ' if spent >= 0.05 else ''}{_hours(spent)} GPU-hours"
    nodes = f" of {gpu['nodes']} node{'s' * (gpu['nodes'] > 1)}" if gpu["node_hours"] is not None else ""
    if nodes:
        hours += f", {_hours(gpu['node_hours'])} node-hours"
    seconds = step["estimate"]["seconds"]
    took = _rough(seconds) if is_estimated(step) else _about(seconds)
    gpu_usage = f"{took} on {gpu['gpus']} GPU{'s' * (gpu['gpus'] > 1)}{nodes}"
    if gpu["basis"] == "measured":
        return f"{hours}: {gpu_usage}, as steps of this kind took here before"
    total = sum(gpu["parts"].values()) or 1.0
    parts = [f"{name} {part / total:.0%}" for name, part in gpu["parts"].items() if part / total >= 0.005]
    shares = f"; {', '.join(parts)}" if len(parts) > 1 else ""
    return f"{hours}: {gpu_usage} (estimate for {gpu['assumes']}{shares})"


def _gpu_notes(step: Mapping[str, Any]) -> list[str]:
    return [words] if step["action"] != "reuse" and (words := gpu_words(step)) else []


def _rough(seconds: float) -> str:
    """A time with the digits that an estimate has: ``20 s``, ``16 min``, ``7.1 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 3570 else f"{_hours(seconds / 3600)} h"


def _hours(hours: float) -> str:
    return "less than 0.1" if hours < 0.05 else f"{hours:.1f}" if hours < 9.95 else f"{hours:,.0f}"


def engine_line(engine: Mapping[str, Any]) -> str:
    """The engine in one line: its name, then what it is made of."""
    # What will be used here tells more than what was asked for (``auto``).
    settings = engine.get("uses") or engine
    flat = [
        f"{k} {v}"
        for k, v in settings.items()
        if k not in ("name", "kind") and isinstance(v, str | int | float) and v != ""
    ]
    name = engine.get("name") or engine.get("kind") or "engine"
    return one_line(f"{name}{': ' if flat else ''}{', '.join(flat)}", 300)


def _totals(totals: Mapping[str, Any]) -> str:
    actions = {name: n for name, n in totals.items() if name not in (*COSTS, *_PARTIAL)}
    action_counts = ", ".join(f"{n} {action}" for action, n in actions.items() if n)
    if not any(n for action, n in actions.items() if action != "reuse"):
        return f"{action_counts}; nothing to do"
    tokens = f"{short(totals['prompt_tokens'])} tokens read, {short(totals['tokens'])} written"
    return f"{action_counts}; about {count(totals['calls'])} calls, {tokens}, {_times(totals)}{cost_words(totals)}"


def _times(totals: Mapping[str, Any]) -> str:
    """Time, and GPU-hours where there are any: ``time at least 3 h 20 min, 12 GPU-hours (not known of base)``."""
    known_costs, unknown_costs = totals["known"], totals["unknown"]
    lacking = list(dict.fromkeys(name for names in unknown_costs.values() for name in names))
    if lacking and not known_costs["seconds"]:
        return "time ?"
    time = _rough(known_costs["seconds"]) if "gpu_hours" in known_costs else _about(known_costs["seconds"])
    words = [f"time {'at least ' if lacking else ''}{time}"]
    words += [
        f"{_hours(known_costs[name])} {name.replace('_', '-').replace('gpu', 'GPU')}"
        for name in ("gpu_hours", "node_hours")
        if name in known_costs
    ]
    more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
    return ", ".join(words) + (f" (not known of {', '.join(lacking[:4])}{more})" if lacking else "")


def estimate_lines(data: Mapping[str, Any]) -> list[str]:
    """What estimated times were computed from, where the plan shows any: the GPU's rates, then the formula."""
    rates = data["engine"].get("uses", {}).get("gpu_time", {})
    if not rates or not any(is_estimated(step) and step["action"] != "reuse" for step in data["steps"]):
        return []
    return [f"~ is an estimate: {rates['rates']}", *rates["formula"]]


class _PlanText:
    """The plan for a terminal of any width: a line of numbers for each step, then why, notes and commands.

    Print it with ``crop=False``: the lines of a shell are as long as their longest word, and nothing may cut them.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        data, width = self._data, options.max_width

        def paragraph(text: str, indent: int = 0, style: str = "dim") -> Iterator[Text]:
            for line in Text(text).wrap(console, max(width - indent, LEAST), overflow="fold"):
                yield Text(f"{' ' * indent}{line.plain.rstrip()}", style=style)

        def details(step: Mapping[str, Any], before: Mapping[str, Any] | None) -> Iterator[Text]:
            for remark in _remarks(step, before):
                yield from paragraph(one_line(remark, 1000), 4)
            for line in block(_shown_commands(step), width - 4, is_local(data["engine"])):
                style = "cyan" if line.startswith("# ") else ""
                yield Text(f"    {line}", style=style, no_wrap=True, overflow="ignore")

        yield from paragraph(f"{one_line(data['experiment'])}, seed {data['seed']}", style="bold")
        yield from paragraph(f"engine {engine_line(data['engine'])}", style="")
        for name, engine in data.get("engines", {}).items():
            yield from paragraph(f"engine {one_line(name)}, {engine_line(engine)}", style="")
        yield Text()
        # The costs that matter least go first where the terminal is narrow.
        money = (5,) * ("cost" in data["totals"])
        for cost_columns in ((0, 1, 2, 3, 4), (0, 1, 4), (4,)):
            lines = self._lines((*cost_columns, *money))
            if len(lines[0]) <= width:
                break
        yield Text(lines[0], style="bold", no_wrap=True, overflow="ellipsis")
        steps = data["steps"]
        below = [list(details(step, before)) for step, before in zip(steps, [None, *steps], strict=False)]
        # With commands the numbers of all steps come first: on one screen, and not between hundreds of lines.
        apart = any(_shown_commands(step) for step in steps)
        for step, line, more in zip(steps, lines[1:], below, strict=True):
            yield Text(line, style=_STYLES.get(step["action"], ""), no_wrap=True, overflow="ellipsis")
            yield from () if apart else more
        for step, more in zip(steps, below, strict=True):
            if apart and more:
                yield Text()
                yield from paragraph(_label(step), style=f"bold {_STYLES.get(step['action'], '')}".strip())
                yield from more
        if apart:
            yield Text()
            yield from paragraph(BY_HAND)
        yield Text()
        yield from paragraph(_totals(data["totals"]), style="bold")
        for i, line in enumerate(estimate_lines(data)):
            yield from paragraph(line, 2 if i else 0)

    def _lines(self, cost_columns: Sequence[int]) -> list[str]:
        rows = [("step", "does", *(_HEADS[i] for i in cost_columns))]
        for step in self._data["steps"]:
            costs = _costs(step)
            rows.append((one_line(_label(step), 26), one_line(step["action"], 8), *(costs[i] for i in cost_columns)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        pads = [str.ljust, str.ljust, *[str.rjust] * len(cost_columns)]
        return ["  ".join(pad(c, w) for pad, c, w in zip(pads, row, widths, strict=True)) for row in rows]


def _label(step: Mapping[str, Any]) -> str:
    return one_line(step["name"] if step["name"] == step["kind"] else f"{step['name']} ({step['kind']})")


def _remarks(step: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[str]:
    """Why a step runs, where that is not what was said of the step before, what it takes of GPUs, and its notes."""
    reason = [step["reason"]] if before is None or before["reason"] != step["reason"] else []
    return [remark for remark in (*reason, *_gpu_notes(step), *cost_notes(step), *step["notes"]) if remark]


def _shown_commands(step: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The commands that a person is shown: of a step that is in the store, none will be started."""
    return step["commands"] if step["action"] != "reuse" else ()


def escape_markdown(text: str) -> str:
    """Text on one line that Markdown shows as it is, also inside a table."""
    return "".join(f"\\{c}" if c in "\\`*[]<>|~#" else c for c in one_line(text, 1000))


def _markdown(data: Mapping[str, Any]) -> str:
    money = "cost" in data["totals"]
    lines = [
        f"### Plan of {escape_markdown(data['experiment'])}, seed {data['seed']}",
        "",
        f"Engine {escape_markdown(engine_line(data['engine']))}.",
        *(
            f"Engine {escape_markdown(name)}: {escape_markdown(engine_line(engine))}."
            for name, engine in data.get("engines", {}).items()
        ),
        "",
        f"| step | kind | action | why | rows | calls | tokens read | tokens written | time |{' cost |' * money}",
        f"|---|---|---|---|---:|---:|---:|---:|---:|{'---:|' * money}",
    ]
    for step in data["steps"]:
        words = [escape_markdown(step[name]) for name in ("name", "kind", "action", "reason")]
        figures = _costs(step) if money else _costs(step)[:-1]
        lines.append(f"| {' | '.join((*words, *map(escape_markdown, figures)))} |")
    lines += ["", f"{escape_markdown(_totals(data['totals']))}."]
    if assumed := estimate_lines(data):
        lines += ["", *(f"{escape_markdown(line)}.  " for line in assumed)]
    noted = [
        (step["name"], note)
        for step in data["steps"]
        for note in (*_gpu_notes(step), *cost_notes(step), *step["notes"])
    ]
    lines += [""] * bool(noted) + [f"- {escape_markdown(name)}: {escape_markdown(note)}" for name, note in noted]
    for step in data["steps"]:
        if shell := block(_shown_commands(step), 110, is_local(data["engine"])):
            lines += ["", f"<details><summary>Commands of {escape_markdown(step['name'])}</summary>", ""]
            lines += ["```bash", *shell, "```", "", "</details>"]
    return "\n".join(lines) + "\n"
