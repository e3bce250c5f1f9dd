"""What a pilot measured, as a person reads it: text, Markdown, or JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from cai.figures.intervals import Interval
from cai.terminal.costs import amount_text
from cai.text import count, json_text, one_line

HEADS = ("step", "model", "rows tried", "calls", "tokens read a call", "written a call", "all rows", "cost of all")


def pilot_data(figures: Iterable[Any], unmeasured: Mapping[str, str], totals: Mapping[str, Interval]) -> dict[str, Any]:
    """A pilot as plain data; its keys are stable. ``figures`` are those of ``cai.run.pilot``."""
    return {
        "format": 1,
        "steps": [asdict(each) for each in figures],
        "unmeasured": dict(unmeasured),
        "totals": {currency: asdict(total) for currency, total in totals.items()},
    }


def pilot_text(data: Mapping[str, Any], format: str) -> str:
    """``pilot_data`` in one of the formats ``text``, ``md`` and ``json``."""
    if format == "json":
        return json_text(data, indent=1) + "\n"
    rows = [HEADS, *(_cells(step) for step in data["steps"])]
    lines = [f"- {line}" if format == "md" else line for line in _remarks(data)]
    if format == "md":
        table = [f"| {' | '.join(row)} |" for row in rows]
        table.insert(1, f"|---|---|{'---:|' * (len(HEADS) - 2)}")
        lines.insert(0, "")
    else:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        pads = [str.ljust, str.ljust, *[str.rjust] * (len(HEADS) - 2)]
        table = ["  ".join(pad(c, w) for pad, c, w in zip(pads, row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*(table if data["steps"] else []), *lines]) + "\n"


def _cells(step: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        one_line(step["step"], 40),
        one_line(step["model"], 40),
        count(step["rows"]),
        count(step["calls"]),
        _between(step["prompt_tokens"], lambda n: f"{n:,.1f}"),
        _between(step["tokens"], lambda n: f"{n:,.1f}"),
        count(step["all_rows"]),
        f"{_between(step['cost'], amount_text)} {step['currency']}".strip() if step["cost"] else "?",
    )


def _between(figure: Mapping[str, Any], words: Any) -> str:
    """A figure with its interval: ``12.3 (11.0 to 13.9)``."""
    if figure["value"] is None:
        return "?"
    value = str(words(figure["value"]))
    if figure["low"] is None or figure["low"] == figure["high"]:
        return value
    return f"{value} ({words(figure['low'])} to {words(figure['high'])})"


def _remarks(data: Mapping[str, Any]) -> list[str]:
    remarks = [f"{s['step']}: cost of '{s['model']}' not known: {s['unknown']}" for s in data["steps"] if s["unknown"]]
    remarks += [f"{name}: not measured: {reason}" for name, reason in data["unmeasured"].items()]
    if not data["steps"]:
        remarks.append("nothing was asked: no step is left that asks a model behind an API and whose inputs are there")
    for currency, total in data["totals"].items():
        without = [*data["unmeasured"], *(s["step"] for s in data["steps"] if s["unknown"])]
        lacking = f", without {', '.join(dict.fromkeys(without))}" if without else ""
        remarks.append(f"all rows cost about {_between(total, amount_text)} {currency}".rstrip() + lacking)
    return [one_line(remark, 600) for remark in remarks]
