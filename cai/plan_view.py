"""The plan as a person reads it: what is reused, what runs and why, and what it will cost.

Text for the terminal, a Markdown table for pull requests, JSON for programs. What cannot be known before is ``?``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from cai.launchers.base import Command
from cai.plan import Plan, Step
from cai.terminal import count, duration, make_console, one_line, plain

Format = Literal["text", "md", "json"]
COSTS = ("rows", "calls", "prompt_tokens", "tokens", "seconds")
_HEADS = ("rows", "calls", "read", "written", "time")
_STYLES = {"reuse": "dim", "run": "green", "resume": "yellow"}


Commands = Mapping[str, Sequence[Command]]
"""The processes of each step, by its name; steps without any need no entry."""


def plan_data(plan: Plan, statuses: Sequence[Any], commands: Commands | None = None) -> dict[str, Any]:
    """The plan with what would happen to each step, as plain data; its keys are stable.

    ``commands`` of a step are a list of ``{role, argv, env, cwd, background, ready, ...}`` (cai.launchers.base).
    """
    by_name = {status.step.name: status for status in statuses}
    steps = [
        {**_step_data(step, by_name[step.name]), "commands": [c.data() for c in (commands or {}).get(step.name, ())]}
        for step in plan.steps
    ]
    at_work = [step for step in steps if step["action"] != "reuse"]
    actions = [step["action"] for step in steps]
    totals: dict[str, Any] = {action: actions.count(action) for action in dict.fromkeys([*_STYLES, *actions])}
    for cost in COSTS[1:]:
        known = [step["estimate"][cost] for step in at_work]
        totals[cost] = None if None in known else sum(known)
    return {
        "format": 1,
        "experiment": plan.experiment,
        "seed": plan.seed,
        "engine": plan.engine,
        "steps": steps,
        "totals": totals,
    }


def _step_data(step: Step, status: Any) -> dict[str, Any]:
    return {
        "name": step.name,
        "kind": step.kind,
        "makes": step.makes,
        "key": step.key,
        "action": str(getattr(status.action, "value", status.action)),
        "reason": status.reason,
        "estimate": {cost: step.estimate.get(cost) for cost in COSTS},
        "notes": [*step.notes, *([f"in {shards} shards"] if (shards := step.spec.get("shards", 1)) > 1 else [])],
    }


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
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    return _markdown(data) if format == "md" else _PlanText(data)


def print_plan(
    plan: Plan,
    statuses: Sequence[Any],
    format: Format = "text",
    console: Console | None = None,
    commands: Commands | None = None,
) -> None:
    """Print the plan to standard output."""
    console = console or make_console()
    if format == "text":
        console.print(render_plan(plan, statuses, "text", commands))
    else:
        console.out(render_plan(plan, statuses, format, commands), end="", highlight=False)


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


def _costs(step: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    cost = step["estimate"]
    if step["action"] == "reuse":
        return count(cost["rows"]), "-", "-", "-", "-"
    return (
        count(cost["rows"]),
        count(cost["calls"]),
        short(cost["prompt_tokens"]),
        short(cost["tokens"]),
        _about(cost["seconds"]),
    )


def engine_line(engine: Mapping[str, Any]) -> str:
    """The engine in one line: its name, then what it is made of."""
    # What will be used here tells more than what was asked for (``auto``).
    told = engine.get("uses") or engine
    flat = [
        f"{k} {v}"
        for k, v in told.items()
        if k not in ("name", "kind") and isinstance(v, str | int | float) and v != ""
    ]
    name = engine.get("name") or engine.get("kind") or "engine"
    return one_line(f"{name}{': ' if flat else ''}{', '.join(flat)}", 300)


def _totals(totals: Mapping[str, Any]) -> str:
    what = ", ".join(f"{n} {action}" for action, n in totals.items() if action not in COSTS and n)
    if not any(totals[action] for action in totals if action not in (*COSTS, "reuse")):
        return f"{what}; nothing to do"
    tokens = f"{short(totals['prompt_tokens'])} tokens read, {short(totals['tokens'])} written"
    return f"{what}; about {count(totals['calls'])} calls, {tokens}, time {_about(totals['seconds'])}"


class _PlanText:
    """The plan for a terminal of any width: a line of numbers for each step, and under it why, where that is news."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        data = self._data
        yield Text(f"{plain(data['experiment'])}, seed {data['seed']}", style="bold")
        yield Text(f"engine {engine_line(data['engine'])}")
        yield Text()
        # The costs that matter least go first where the terminal is narrow.
        for shown in ((0, 1, 2, 3, 4), (0, 1, 4), (4,)):
            lines = self._lines(shown)
            if len(lines[0]) <= options.max_width:
                break
        yield Text(lines[0], style="bold", no_wrap=True, overflow="ellipsis")
        before = ""
        for step, line in zip(data["steps"], lines[1:], strict=True):
            yield Text(line, style=_STYLES.get(step["action"], ""), no_wrap=True, overflow="ellipsis")
            reason = "" if step["reason"] == before else one_line(step["reason"], 400)
            before = step["reason"]
            for remark in [reason, *(one_line(note, 400) for note in step["notes"])]:
                if remark:
                    yield Padding(Text(remark, style="dim", overflow="fold"), (0, 0, 0, 4))
            for head, shell in shown_commands(step["commands"], max(options.max_width - 6, 60)):
                yield Text(f"    {head}", style="cyan", no_wrap=True, overflow="ellipsis")
                # Lines of a shell: never wrapped by the terminal's width, so that they can be copied.
                for line in shell:
                    yield Text(f"      {line}", no_wrap=True, overflow="ignore", style="dim")
        yield Text()
        yield Text(_totals(data["totals"]), style="bold")

    def _lines(self, shown: Sequence[int]) -> list[str]:
        rows = [("step", "does", *(_HEADS[i] for i in shown))]
        for step in self._data["steps"]:
            name = step["name"] if step["name"] == step["kind"] else f"{step['name']} ({step['kind']})"
            costs = _costs(step)
            rows.append((one_line(name, 26), one_line(step["action"], 8), *(costs[i] for i in shown)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        pads = [str.ljust, str.ljust, *[str.rjust] * len(shown)]
        return ["  ".join(pad(c, w) for pad, c, w in zip(pads, row, widths, strict=True)) for row in rows]


def command_head(command: Mapping[str, Any]) -> str:
    """What a command is for, in one line."""
    about = [command["role"]]
    if command["background"]:
        about.append(
            "in the background" + (f", up when port {command['ready']['port']} opens" if command["ready"] else "")
        )
    needs = command["resources"]
    if needs["nodes"]:
        about.append(f"{needs['nodes']} node{'s' * (needs['nodes'] > 1)} x {needs['gpus_per_node']} GPUs")
    return ", ".join(about)


def shown_commands(commands: Sequence[Mapping[str, Any]], width: int) -> list[tuple[str, list[str]]]:
    """Heads and shell lines; servers that differ from the first in port and GPU alone are one line (JSON has all)."""
    shown: list[tuple[str, list[str]]] = []
    for command in commands:
        first = [c for c in commands if c["turn"] == command["turn"] and c["role"] == "server"]
        if first and command["role"].startswith("server-"):
            if command["role"] == "server-1":
                others = [c for c in commands if c["turn"] == command["turn"] and c["role"].startswith("server-")]
                ports = [c["ready"]["port"] for c in others]
                shown.append((f"and {len(others)} more of it, on ports {ports[0]} to {ports[-1]}", []))
            continue
        shown.append((command_head(command), command_lines(command, width)))
    return shown


def command_lines(command: Mapping[str, Any], width: int) -> list[str]:
    """A command as a shell reads it, on lines of about ``width`` characters; a word is never cut."""
    words = [f"{name}={shlex.quote(value)}" for name, value in command["env"].items()]
    words += [plain(shlex.quote(word)) for word in command["argv"]]
    lines, line = [], words[0]
    for word in words[1:]:
        if len(line) + len(word) + 3 > width:
            lines.append(f"{line} \\")
            line = f"  {word}"
        else:
            line = f"{line} {word}"
    return [*lines, line]


def escape_markdown(text: str) -> str:
    """Text on one line that Markdown shows as it is, also inside a table."""
    return "".join(f"\\{c}" if c in "\\`*[]<>|~#" else c for c in one_line(text, 1000))


def _markdown(data: Mapping[str, Any]) -> str:
    lines = [
        f"### Plan of {escape_markdown(data['experiment'])}, seed {data['seed']}",
        "",
        f"Engine {escape_markdown(engine_line(data['engine']))}.",
        "",
        "| step | kind | action | why | rows | calls | tokens read | tokens written | time |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for step in data["steps"]:
        words = [escape_markdown(step[name]) for name in ("name", "kind", "action", "reason")]
        lines.append(f"| {' | '.join((*words, *_costs(step)))} |")
    lines += ["", f"{_totals(data['totals'])}."]
    noted = [(step["name"], note) for step in data["steps"] for note in step["notes"]]
    lines += [""] * bool(noted) + [f"- {escape_markdown(name)}: {escape_markdown(note)}" for name, note in noted]
    for step in data["steps"]:
        if step["commands"]:
            lines += ["", f"<details><summary>Commands of {escape_markdown(step['name'])}</summary>", "", "```bash"]
            for head, shell in shown_commands(step["commands"], 110):
                lines += [f"# {head}", *shell]
            lines += ["```", "", "</details>"]
    return "\n".join(lines) + "\n"
