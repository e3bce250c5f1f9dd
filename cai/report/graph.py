"""The plan as a graph: steps in layers from top to bottom, each as low as what reads it allows, edges in between.

Layers by longest path, order within a layer by barycentres, both textbook steps of K. Sugiyama, S. Tagawa and M. Toda,
"Methods for visual understanding of hierarchical system structures", 1981. Long edges pass through places of their own
in the layers between, so that they do not run through boxes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from cai.engines.methods import METHODS
from cai.plan import Plan, Step
from cai.report.model import Block, Detail, Edge, Graph, Heading, Node, Section, Table
from cai.report.runs import Run, slug
from cai.text import count, duration

WIDTH, HEIGHT = 146.0, 56.0
GAP_X, GAP_Y, VIA, MARGIN = 14.0, 40.0, 4.0, 8.0
SWEEPS, PULLS = 12, 40
NAME = 16
CODE_LIMIT = 20_000
GROUPS = {
    "read": "data",
    "fetch": "model",
    "snapshot": "model",
    "mix": "data",
    "decontaminate": "data",
    **{method.stage: "train" for method in METHODS.values()},
}
"""How a step's box is marked; kinds that are not named here make rows with a model."""

Place = tuple[str, int]
"""A step, or what stands for an edge on its way: its name and a number (0 for the step itself)."""


def plans(runs: Sequence[Run]) -> Section:
    """The plan of each run as a graph, and all its steps as a table."""
    blocks: list[Block] = []
    for number, run in enumerate(runs):
        if len(runs) > 1:
            blocks.append(Heading(run.label))
        blocks.append(graph_of(run, f"plan-{number}"))
        blocks.append(_table(run))
    return Section("plan", "The plan as a graph" if len(runs) == 1 else "The plans as graphs", tuple(blocks), "Plan")


def graph_of(run: Run, id: str) -> Graph:
    """A run's plan, laid out."""
    layers, links = ordered(run.plan)
    corners, width = _places(layers, links)
    depth = {step: y for y, layer in enumerate(layers) for step, via in layer if via == 0}
    nodes = tuple(_node(run, step, id, corners[step.name, 0]) for step in run.plan.steps)
    edges = tuple(
        Edge(f"{id}-{slug(source)}", f"{id}-{slug(step.name)}", _path(source, step.name, depth, corners))
        for step in run.plan.steps
        for source in step.needs()
        if source in depth
    )
    height = len(layers) * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    return Graph(id, f"The plan of {run.label}", nodes, edges, width, height)


def layered(plan: Plan) -> dict[str, int]:
    """The layer of each step: below all that it reads, and as near as possible to what reads it."""
    depth: dict[str, int] = {}
    for step in plan.steps:
        depth[step.name] = max((depth[name] + 1 for name in step.needs() if name in depth), default=0)
    readers: dict[str, list[str]] = defaultdict(list)
    for step in plan.steps:
        for name in step.needs():
            readers[name].append(step.name)
    for step in reversed(plan.steps):
        if readers[step.name]:
            depth[step.name] = min(depth[name] for name in readers[step.name]) - 1
    return depth


def ordered(plan: Plan) -> tuple[list[list[Place]], list[tuple[Place, Place]]]:
    """The layers from the top, each in the order in which its boxes stand, with places for edges that pass.

    And the edges from place to place, each between neighbouring layers.
    """
    depth = layered(plan)
    layers: list[list[Place]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    above: dict[Place, list[Place]] = defaultdict(list)
    below: dict[Place, list[Place]] = defaultdict(list)
    for step in plan.steps:
        layers[depth[step.name]].append((step.name, 0))
    for step in plan.steps:
        for source in step.needs():
            if source not in depth:
                continue
            chain: list[Place] = [(source, 0)]
            for layer in range(depth[source] + 1, depth[step.name]):
                # All edges of one source share a place in a layer: they run together as long as they can.
                place = (source, layer)
                if place not in layers[layer]:
                    layers[layer].append(place)
                chain.append(place)
            chain.append((step.name, 0))
            for upper, lower in pairwise(chain):
                if lower not in below[upper]:
                    below[upper].append(lower)
                    above[lower].append(upper)
    best, fewest = [list(layer) for layer in layers], _crossings(layers, below)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        beside = above if down else below
        for number in range(len(layers)) if down else reversed(range(len(layers))):
            ranks = {p: i for layer in layers for i, p in enumerate(layer)}
            old_ranks = {p: i for i, p in enumerate(layers[number])}
            layers[number].sort(key=lambda p: (_mean([ranks[q] for q in beside[p]], old_ranks[p]), old_ranks[p]))
        if (crossings := _crossings(layers, below)) < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    return best, [(upper, lower) for upper, lowers in below.items() for lower in lowers]


def _mean(values: Sequence[int], otherwise: int) -> float:
    return sum(values) / len(values) if values else float(otherwise)


def _crossings(layers: Sequence[Sequence[Place]], below: Mapping[Place, Sequence[Place]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        rank = {p: i for i, p in enumerate(lower)}
        ends = [rank[q] for p in upper for q in sorted(below.get(p, ()), key=rank.__getitem__)]
        total += sum(ends[i] > ends[j] for i in range(len(ends)) for j in range(i + 1, len(ends)))
    return total


def _places(
    layers: Sequence[Sequence[Place]], links: Sequence[tuple[Place, Place]]
) -> tuple[dict[Place, tuple[float, float]], float]:
    """The upper left corner of each place, as near to its neighbours as order allows; and the width of all."""
    beside: dict[Place, list[Place]] = defaultdict(list)
    for upper, lower in links:
        beside[upper].append(lower)
        beside[lower].append(upper)
    middle: dict[Place, float] = {}
    for layer in layers:
        spread = _offsets(layer)
        for place, offset in zip(layer, spread, strict=True):
            middle[place] = offset - (spread[0] + spread[-1]) / 2
    for pull in range(PULLS):
        for layer in layers if pull % 2 == 0 else reversed(layers):
            offsets = _offsets(layer)
            targets = []
            for place, offset in zip(layer, offsets, strict=True):
                # Edges that pass hold on to their line: a bend costs more than a box beside its best place.
                near = [(middle[q], 8.0 if place[1] and q[1] else 1.0) for q in beside[place]] or [(middle[place], 1.0)]
                weight = sum(w for _, w in near)
                targets.append((sum(x * w for x, w in near) / weight - offset, weight))
            for place, offset, moved in zip(layer, offsets, _rising(targets), strict=True):
                middle[place] = offset + moved
    left_edge = min((middle[p] - _width(p) / 2 for p in middle), default=0.0)
    right_edge = max((middle[p] + _width(p) / 2 for p in middle), default=0.0)
    corners = {
        place: (middle[place] - _width(place) / 2 - left_edge + MARGIN, MARGIN + number * (HEIGHT + GAP_Y))
        for number, layer in enumerate(layers)
        for place in layer
    }
    return corners, right_edge - left_edge + 2 * MARGIN


def _width(place: Place) -> float:
    return WIDTH if place[1] == 0 else VIA


def _offsets(layer: Sequence[Place]) -> list[float]:
    """How far the middle of each place is from the first one's when they stand as close as they may."""
    offsets = [0.0]
    for first, second in pairwise(layer):
        offsets.append(offsets[-1] + (_width(first) + _width(second)) / 2 + GAP_X)
    return offsets[: len(layer)]


def _rising(targets: Sequence[tuple[float, float]]) -> list[float]:
    """The values nearest to those wanted (value, weight) that never fall: pooling of neighbours that disagree."""
    pools: list[list[float]] = []
    for value, weight in targets:
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            value, weight, n = pools.pop()
            before = pools[-1]
            before[0] = (before[0] * before[1] + value * weight) / (before[1] + weight)
            before[1], before[2] = before[1] + weight, before[2] + n
    return [value for value, _, n in pools for _ in range(int(n))]


def _path(source: str, target: str, depth: Mapping[str, int], corners: Mapping[Place, tuple[float, float]]) -> str:
    """Curves from box to box, straight through the places between."""
    x, y = corners[source, 0]
    parts = [f"M{x + WIDTH / 2:.1f} {y + HEIGHT:.1f}"]
    x, y = x + WIDTH / 2, y + HEIGHT
    for layer in range(depth[source] + 1, depth[target] + 1):
        last = layer == depth[target]
        px, py = corners[target, 0] if last else corners[source, layer]
        nx = px + (WIDTH if last else VIA) / 2
        middle = (y + py) / 2
        parts.append(f"C{x:.1f} {middle:.1f} {nx:.1f} {middle:.1f} {nx:.1f} {py - (3 if last else 0):.1f}")
        if not last:
            parts.append(f"V{py + HEIGHT:.1f}")
        x, y = nx, py + HEIGHT
    return "".join(parts)


def _node(run: Run, step: Step, graph: str, corner: tuple[float, float]) -> Node:
    facts = step_facts(run, step)
    # The end of a name often tells more than its middle.
    name = step.name if len(step.name) <= NAME else f"{step.name[: NAME // 2]}\u2026{step.name[1 - NAME // 2 :]}"
    about = [facts["rows"] + " rows" if facts["rows"] != "-" else step.makes.replace("_", " "), facts["time"]]
    line = ", ".join(part for part in about if part not in ("-", "0.0 s"))
    aria_label = f"{step.name}, {step.kind}, {line}, {facts['state']}"
    lines = tuple(part for part in (name, step.kind if step.kind != step.name else "", line) if part)
    group = GROUPS.get(step.kind, "evaluate" if step.kind == "evaluate" else "rows")
    return Node(
        f"{graph}-{slug(step.name)}",
        step.name,
        step.kind,
        f"{group} {facts['state'].replace(' ', '-')}",
        lines,
        *corner,
        WIDTH,
        HEIGHT,
        aria_label,
        _details(run, step, facts),
    )


def step_facts(run: Run, step: Step) -> dict[str, str]:
    """Rows out, seconds (of when it was made), and what became of it: made, reused, missing."""
    artifact = run.artifacts.get(step.name)
    ledger = artifact.record.get("outcome", {}).get("ledger", {}) if artifact else {}
    rows = ledger.get("rows_out") or None
    seconds = artifact.record.get("seconds") if artifact else None
    reused = run.reused(step)
    state = "missing" if artifact is None else "reused" if reused else "made" if reused is False else "in the store"
    return {
        "rows": "-" if rows is None else count(rows),
        "time": "-" if seconds is None else duration(seconds),
        "state": state,
    }


def _details(run: Run, step: Step, facts: Mapping[str, str]) -> tuple[Detail, ...]:
    artifact = run.artifacts.get(step.name)
    why = {
        "made": "made in this run",
        "reused": "the store had an artifact of this key",
        "missing": "not made yet, or removed from the store since",
        "in the store": "the store has it; the run has no record of its own",
    }[facts["state"]]
    details = [
        Detail("what it is", f"{step.kind}, makes {step.makes.replace('_', ' ')}"),
        Detail("state", why),
        Detail("time", facts["time"]),
        Detail("reads", ", ".join(step.needs()) or "nothing"),
        Detail("key", step.key),
    ]
    if changes := run.changes.get(step.name):
        change_list = "; ".join([*changes[:8], *([f"and {len(changes) - 8} more"] if len(changes) > 8 else [])])
        details.append(Detail(f"since {run.follows}", change_list))
    elif run.follows:
        details.append(Detail(f"since {run.follows}", "nothing that counts has changed"))
    details += [Detail("note", note) for note in step.notes]
    if artifact:
        ledger = artifact.record.get("outcome", {}).get("ledger", {})
        dropped = ", ".join(f"{reason} {count(n)}" for reason, n in ledger.get("dropped", {}).items()) or "none"
        if ledger.get("rows_in"):
            details.append(Detail("rows in", count(ledger["rows_in"])))
            details.append(Detail("rows out", count(ledger.get("rows_out", 0))))
            details.append(Detail("dropped", dropped))
        if metrics := artifact.record.get("outcome", {}).get("metrics"):
            details.append(Detail("metrics", _json(metrics), True))
    details.append(Detail("spec", _json(step.spec), True))
    details.append(Detail("ingredients of the key", _json(step.ingredients.to_json()), True))
    return tuple(details)


def _json(value: Any) -> str:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return text if len(text) <= CODE_LIMIT else f"{text[:CODE_LIMIT]}\n... {len(text) - CODE_LIMIT:,} characters more"


def _table(run: Run) -> Table:
    rows = []
    for step in run.plan.steps:
        facts = step_facts(run, step)
        rows.append(
            (step.name, step.kind, facts["rows"], facts["time"], facts["state"], ", ".join(step.needs()) or "-")
        )
    head = ("step", "kind", "rows", "time", "state", "reads")
    return Table(f"The {len(rows)} steps as a table", head, tuple(rows), "llrrll", folded=True)
