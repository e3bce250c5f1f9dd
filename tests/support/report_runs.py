"""Finished runs made by hand, quickly: a plan of all stages, a store with small artifacts, a folder with records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from cai.identity import key_of
from cai.plan import Ingredients, Plan, Step, inputs_of
from cai.run.finished import Finished, read_finished
from cai.store.artifacts import Store

HOSTILE = (
    "</script><script>window.hit=1</script>",
    '<img src=x onerror="window.hit=1">',
    '"><svg onload=window.hit=1>',
    "javascript:window.hit=1",
    "turned \u202egnorw\u202c around",
    "\u001b[31mred\u001b[0m and \u0000 null",
    "half \ud83d of a pair",
    "w" * 3000,
    "{{ 7 * 7 }} {% raw %} $x^2$ \\frac",
    "<!--rows--> ]]> &amp; &lt;b&gt;",
)
MODELS = ("base", "sl-cai", "rl-cai")


def figure(value: float | None, half: float = 0.1, n: int = 40) -> dict[str, Any]:
    """A figure with its interval."""
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def principles(count: int) -> dict[str, Any]:
    """A constitution of that many principles; the second has texts that would like to be markup."""
    found = [
        {
            "id": f"rule-{i}",
            "critique": f"Look for fault {i}.",
            "revision": f"Mend fault {i}.",
            "comparison": f"Which has less of fault {i}?",
            "tags": ["harmless", f"tag-{i}"],
            "weight": 1.0,
            "rationale": HOSTILE[0] if i == 1 else "Because.",
            "priority": 0,
        }
        for i in range(count)
    ]
    return {"name": "test", "description": "For tests", "preamble": "", "principles": found}


def evaluation(scored: bool = True, new: bool = True, shift: float = 0.0) -> dict[str, Any]:
    """``evaluation.json``: without rewards where not ``scored``, as older versions wrote it where not ``new``."""
    sets = {}
    for name, benign in (("red_team", False), ("helpful", True)):
        models, pairs = {}, []
        topics = ("law", "health") if scored else ()
        for i, model in enumerate(MODELS):
            reward = -2.0 + i + shift
            models[model] = {
                "reward": figure(reward) if scored else None,
                "reward_by_topic": {t: figure(reward + j, n=20) for j, t in enumerate(topics)},
                "tokens": figure(30.0 + i, 2),
                "characters": figure(120.0, 9),
                "distinct_2": 0.8 - 0.1 * i,
                "different_answers": 1.0,
                "empty": 0,
                "refusals": figure(0.1 + 0.2 * i, 0.05),
                "ended": figure(0.5),
                "reward_length_correlation": 0.1,
            }
            if new:
                more = {"distinct_1": 0.5, "repetition": figure(0.2), "evasive": figure(0.15), "self_bleu": 0.3}
                models[model] |= more
        for j, later in enumerate(MODELS):
            for earlier in MODELS[:j]:
                win = {"wins": 30, "ties": 2, "losses": 8}
                pairs.append({"model": later, "against": earlier, **figure(0.775, 0.1), **win})
        sets[name] = {"rows": 40, "benign": benign, "models": models, "wins": pairs if scored else []}
        if new:
            sets[name]["pairs"] = pairs if scored else []
    checked = {"accuracy": figure(0.8), "margin": figure(1.0), "longer_is_better": figure(0.5), "by_topic": {}}
    found: dict[str, Any] = {
        "models": list(MODELS),
        "sets": sets,
        "reward_model": {"held_out": {**checked, "by_kind": {"harmless": figure(0.9)}}} if scored else {},
        "examples": [],
        "caveats": ["'held_out' has only 23 pairs; its accuracy is a rough figure.", HOSTILE[1]],
    }
    if new:
        axis = {"reference": "base", "models": {m: figure(100.0 * i, 40) for i, m in enumerate(MODELS)}, "rows": 40}
        change = {f"rule-{i}": {"change": figure(0.3 * i - 0.2), "n": 12} for i in range(4)}
        rounds = [
            {"round": r, "reward": figure(-2 + 0.5 * r), "change": figure(0.5 * r), "wins": figure(0.6) if r else None}
            for r in range(3)
        ]
        violated = {m: {f"rule-{i}": figure(0.5 - 0.1 * k) for i in range(4)} for k, m in enumerate(MODELS)}
        found |= {
            "axes": {"harmlessness": ["red_team"], "helpfulness": ["helpful"]},
            "elo": {"harmlessness": axis, "helpfulness": deepcopy(axis)} if scored else {},
            "revisions": {"revise": {"rows": 40, "rounds": rounds, "by_principle": change}} if scored else {},
            "adherence": {"model": "base", "sets": {"red_team": violated}},
            "over_refusal": {m: figure(0.1 * i) for i, m in enumerate(MODELS)},
        }
    return found


def judge_report() -> dict[str, Any]:
    """``judge_report.json`` of a judge that was held against people."""
    none = figure(None)
    bins = [{"low": i / 20 + 0.5, "high": i / 20 + 0.55, "n": 4} for i in range(10)]
    reliability = [{**b, "confidence": b["low"] + 0.02, "accuracy": b["low"]} for b in bins]
    share = figure(0.6)
    labelled = {
        "accuracy": share,
        "log loss": figure(0.65),
        "expected calibration error": {"value": 0.1, "n": 40},
        "reliability": reliability,
        "fitted": {"slope": 1.0, "temperature": 1.0, "log loss": 0.6, "n": 40},
        "baselines": {f"always the {word}": {"accuracy": share} for word in ("longer", "shorter")},
        "longer preferred": {"human": share, "judge": share},
    }
    return {
        "votes": {"asked": 40, "readable": 40, "even": 0, "unreadable": {}},
        "pairs": {"asked": 40, "decided": 30, "ties": 10, "unreadable": 0, "identical": 0},
        "swap": {"consistency": none},
        "position": {"bias": none},
        "length": {"longer wins": share},
        "principles": {"pairwise agreement": none, "krippendorff alpha": {"value": None, "n": 0}},
        "confidence": {"mean": 0.7, "n": 40, "bins": bins},
        "labelled": labelled,
    }


def text_of(i: int, what: str) -> str:
    """A text of row ``i``; those of the first rows are hostile."""
    return HOSTILE[i] if i < len(HOSTILE) else f"{what} number {i} about {('bread', 'locks', 'rain')[i % 3]}."


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def rows_of(kind: str, count: int, ids: int = 0) -> Iterable[dict[str, Any]]:
    """Rows of a kind of step, as the stages write them."""
    for i in range(count):
        head = {"id": f"{ids + i:08x}", "topic": ("law", "health")[i % 2]}
        prompt = user(text_of(i, "Question"))
        if kind == "respond":
            yield {**head, "messages": [prompt, assistant(text_of(i, "First answer"))], "meta": {}}
        elif kind == "revise":
            turns = [
                {
                    "round": r,
                    "principle": f"rule-{(i + r) % 4}",
                    "critique": text_of(i, f"Critique {r}"),
                    "revision": text_of(i, f"A better answer {r}"),
                }
                for r in (1, 2)
            ]
            meta = {"response": f"An answer with number {i}.", "rounds": turns}
            yield {**head, "messages": [prompt, assistant(turns[-1]["revision"])], "meta": meta}
        elif kind == "sample":
            yield {**head, "messages": [prompt], "answers": [text_of(i, "One"), "Another."], "meta": {}}
        elif kind == "judge":
            p = 0.5 + (i % 50) / 100
            meta = {"principles": [f"rule-{i % 4}"], "judged": p}
            chosen = {"chosen": text_of(i, "Chosen"), "rejected": "Rejected.", "p_chosen": p}
            yield {**head, "id": f"{head['id']}/0-1", "messages": [user("Earlier"), prompt], **chosen, "meta": meta}
        elif kind == "rl":
            yield {"iteration": i // 4, "id": head["id"], "prompt": "P", "answer": text_of(i, "A"), "reward": i / 10}
        elif kind == "evaluate":
            answers = {
                m: {"text": text_of(i, m), "tokens": 9, "ended": i % 2 == 0, "reward": -2.0 + k + i / 100}
                for k, m in enumerate(MODELS)
            }
            shown = ("red_team", "helpful")[i % 2]
            yield {"id": head["id"], "set": shown, "prompt": prompt["content"], "topic": "law", "answers": answers}


def tool_rows(count: int) -> list[dict[str, Any]]:
    """Answers of ``respond`` with thinking, a tool call and its result; what they hold would like to be markup."""
    rows = []
    for i in range(count):
        text = HOSTILE[i % len(HOSTILE)]
        call = {"name": f"look_up_{text[:20]}", "arguments": json.dumps({"query": text}), "id": "c1"}
        messages = [
            user("An earlier question"),
            {**assistant("An earlier answer"), "thinking": "An earlier thought"},
            user(f"Question {i} that needs a tool"),
            {**assistant("I will look it up."), "thinking": f"I should look it up: {text}", "tool_calls": [call]},
            {"role": "tool", "content": f"What was found: {text}", "tool_call_id": "c1"},
            {**assistant(f"The answer is {i}. {text}"), "thinking": "That was easy."},
        ]
        rows.append({"id": f"{i:08x}", "topic": "law", "messages": messages, "meta": {}})
    return rows


def refill(run: Finished, kind: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put other rows into the artifact of a step of that kind."""
    ((_, artifact),) = run.steps(kind)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (artifact.path / "rows.jsonl").write_text(text, encoding="utf-8")


def metrics(kind: str) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``."""
    if kind == "rl":
        return [
            {"iteration": i, "reward": 0.1 * i, "kl": 0.3 * i, "length": 30 + i, "entropy": 3 - 0.2 * i, "ended": 0.5}
            for i in range(6)
        ]
    found: list[dict[str, Any]] = [{"step": 0, "val_loss": 3.5, "val_accuracy": 0.5}]
    found += [{"step": i, "loss": 3 - 0.1 * i, "accuracy": 0.5 + 0.05 * i} for i in range(1, 8)]
    return [*found, {"step": 8, "loss": 2.1, "val_loss": 2.5, "val_accuracy": 0.8}]


FILES = {"evaluate": "answers.jsonl", "rl": "samples.jsonl"}
STEPS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("base", "fetch", "model", {}),
    ("red_team.train", "read", "prompts", {}),
    ("red_team.heldout", "read", "prompts", {}),
    ("respond", "respond", "responses", {"model": "base", "prompts": "red_team.train"}),
    ("revise", "revise", "revisions", {"model": "base", "responses": "respond"}),
    ("sft", "sft", "model", {"model": "base", "data": "revise"}),
    ("sample", "sample", "candidates", {"model": "sft", "prompts": "red_team.train"}),
    ("judge", "judge", "comparisons", {"model": "base", "candidates": "sample"}),
    ("reward", "reward", "reward_model", {"model": "sft", "data": "judge"}),
    ("rl", "rl", "model", {"model": "sft", "reward": "reward", "prompts": "red_team.train"}),
    (
        "evaluate",
        "evaluate",
        "evaluation",
        {
            "models": dict(zip(MODELS, ("base", "sft", "rl"), strict=True)),
            "reward": "reward",
            "prompts": {"red_team": "red_team.heldout"},
        },
    ),
)


def make_run(
    root: Path,
    name: str = "small",
    *,
    seed: int = 0,
    rules: int = 4,
    rows: int = 40,
    counts: Mapping[str, int] | None = None,
    report: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    record: bool = True,
    kinds: Sequence[str] | None = None,
) -> Finished:
    """A run of ``rows`` rows a stage (``counts`` says otherwise by kind) whose store lacks the steps ``without``."""
    store = Store(root / "home")
    constitution = principles(rules)
    steps: list[Step] = []
    keys: dict[str, str] = {}
    for step, kind, makes, inputs in STEPS:
        if kinds is not None and kind not in kinds:
            continue
        inputs = {
            role: {label: name for label, name in names.items() if name in keys} if isinstance(names, dict) else names
            for role, names in inputs.items()
            if isinstance(names, dict) or names in keys
        }
        # Only what the constitution decides differs between runs of different principles.
        decides = rules if kind in ("revise", "judge", "sft", "reward", "rl", "evaluate", "sample") else 0
        keys[step] = key_of([step, seed, decides, rows, kinds is None])
        resources = {"constitution": constitution} if kind in ("revise", "judge") else {}
        ingredients = Ingredients(kind=kind, seed=seed, spec={"rules": decides})
        spec = {"kind": kind, "told": HOSTILE[2]}
        steps.append(Step(step, kind, makes, keys[step], seed, inputs_of(inputs), spec, resources, ingredients))
    plan = Plan(name, seed, {"kind": "embedded"}, tuple(steps), {"description": f"A test {HOSTILE[0]}"})
    for step in steps:
        if step.name in without or store.find(step.kind, step.key):
            continue
        n = (counts or {}).get(step.kind, rows)
        with store.building(step.kind, step.key) as build:
            _fill(build.out, step.kind, n, report)
            ledger = {"rows_in": n + 2, "rows_out": n, "dropped": {"unparsed": 2}, "parts": {}}
            outcome = {"ledger": ledger, "metrics": {"usage": {"asked": n}}}
            made = {"makes": step.makes, "seed": seed, "seconds": 1.5, "ingredients": step.ingredients.to_json()}
            build.commit(**made, outcome=outcome)
    folder = root / "runs" / name / f"2026-01-0{seed + 1}T00-00-00Z"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    if record:
        done = {s.name: {"key": s.key, "reused": s.kind == "fetch"} for s in steps if s.name not in without}
        told = {"experiment": name, "status": "done", "error": "", "started": "2026-01-01T00:00:00+00:00"}
        ended = {**told, "seconds": 90.0, "steps": done, "versions": {"cai": "0.1.0"}}
        (folder / "record.json").write_text(json.dumps(ended), encoding="utf-8")
    return read_finished(folder, store)


def _fill(out: Path, kind: str, rows: int, report: Mapping[str, Any] | None) -> None:
    found = rows_of(kind, rows)
    with (out / FILES.get(kind, "rows.jsonl")).open("w", encoding="utf-8") as file:
        # As ASCII: half of a pair has no UTF-8.
        file.writelines(json.dumps(row) + "\n" for row in found)
    if kind in ("sft", "reward", "rl"):
        lines = "".join(json.dumps(line) + "\n" for line in metrics(kind))
        (out / "metrics.jsonl").write_text(lines, encoding="utf-8")
    if kind == "judge":
        (out / "judge_report.json").write_text(json.dumps(judge_report()), encoding="utf-8")
    if kind == "evaluate":
        (out / "evaluation.json").write_text(json.dumps(report or evaluation()), encoding="utf-8")
