"""What the reviews' tests share: a small project on the disk, its plans, runs of it, a git repository."""

import gc
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from cai.cli import main
from cai.commands.planning import compile_plan
from cai.data.rows import Candidates, Comparison, dump_line
from cai.figures.intervals import mean, share, wins
from cai.files.library import Library, shipped_root
from cai.plan import Plan
from cai.review.sides import Side
from cai.store.artifacts import Store
from tests.support.stage_doubles import CHATML, user

EXPERIMENT = """\
defaults:
  - /constitution: house
  - /template: plain
  - _self_
description: a small experiment
seed: 0
engine: {kind: embedded, generator: transformers, device: cpu, generation_precision: float32}
models:
  base: {source: "pypi:package==1.0/model.gguf", sha256: "%s"}
  judging: {source: "hf:house/judge", revision: aaaaaaaaaaaa}
data:
  asked: {path: data/asked.jsonl, makes: prompts, splits: {sl: 0.5, rl: 0.5}}
stages:
  respond: {model: base, prompts: asked.sl, sampling: {max_tokens: 32}}
  revise: {model: base, responses: respond, n_shots: 0}
  sl_mix: {kind: mix, sources: [{from: revise}]}
  sft: {model: base, data: sl_mix, training: {epochs: 2}}
  sample: {model: sft, prompts: asked.rl, sampling: {max_tokens: 32}}
  judge: {model: judging, candidates: sample, scoring: contrast, margin: 0.1}
  reward: {model: sft, data: judge}
  rl: {model: sft, reward: reward, prompts: asked.rl, training: {iterations: 3}}
  evaluate: {models: {base: base, rl: rl}, reward: reward, prompts: {all: asked.rl}, seen: [all]}
""" % ("0" * 64)

CONSTITUTION = """\
description: two house rules
principles:
  - id: law
    critique: Say where the answer helps to break a law.
    revision: Rewrite the answer so that it breaks no law.
    comparison: Which answer gives less help with a crime?
    tags: [harmless]
  - id: kindness
    critique: Name the words in the answer that are rude.
    revision: Rewrite the answer in warm and simple words.
    comparison: Which answer sounds friendlier to the person who asked?
"""


CRITIQUE = """\
{#---
description: asks for a critique
kind: prompt
format: text
---#}
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}
{{ critique_request }}
Be short.
Use one sentence.
"""


def project(folder: Path) -> Path:
    """A folder with an experiment, a constitution, a chat template, a prompt text and data of its own."""
    for name in ("experiments", "constitutions", "prompt_templates", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "experiments" / "small.yaml").write_text(EXPERIMENT)
    (folder / "constitutions" / "house.yaml").write_text(CONSTITUTION)
    (folder / "prompt_templates" / "plain.jinja").write_text(CHATML)
    (folder / "prompt_templates" / "critique.jinja").write_text(CRITIQUE)
    rows = ({"prompt": f"question {i}", "topic": f"t{i % 4}"} for i in range(40))
    (folder / "data" / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def edit(path: str, *pairs: tuple[str, str]) -> None:
    """Replace texts in a file; each must be there."""
    text = Path(path).read_text()
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    Path(path).write_text(text)


def plan(*overrides: str) -> Plan:
    return compile_plan(["experiment=small", *overrides], Library((Path.cwd(), shipped_root())))


def side(made: Plan, label: str = "small") -> Side:
    return Side(label, "experiment", made)


def run_cai(*args: str) -> int:
    """One command line in this process; returns its exit code."""
    try:
        return main(args)
    finally:
        gc.enable()  # The program switches it off for its start.


def git(folder: Path, *args: str) -> str:
    """Real git, whoever the user is and whatever they have configured."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z"}
    env |= {"GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}
    who = ("-c", "user.name=Reviewer", "-c", "user.email=reviewer@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, *args], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


def repository(folder: Path) -> Path:
    """The project as a repository with one commit on ``main``."""
    project(folder)
    git(folder, "init", "-q")
    commit(folder, "first")
    return folder


def write_run(folder: Path, made: Plan, store: Store, files: Mapping[str, Mapping[str, str]]) -> Path:
    """A run's folder, and artifacts of the steps that ``files`` has: step -> file -> text."""
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(made.to_json())
    for name, texts in files.items():
        step = made.step(name)
        with store.building(step.kind, step.key) as build:
            if build.stored is None:
                for file, text in texts.items():
                    (build.out / file).write_text(text)
                ledger = {"rows_in": 1, "rows_out": 1, "dropped": {}, "parts": {}}
                outcome = {"ledger": ledger, "metrics": {}}
                counted = step.ingredients.to_json()
                build.commit(makes=step.makes, seed=0, seconds=1.0, ingredients=counted, outcome=outcome)
    return folder


def candidates(texts: Iterable[tuple[str, str]]) -> str:
    """``rows.jsonl`` of ``sample``: two answers a prompt."""
    rows = [Candidates(f"row{i}", user(f"question {i}"), pair) for i, pair in enumerate(texts)]
    return "".join(map(dump_line, rows))


def labels(texts: Iterable[tuple[str, str]], p_first: Iterable[float]) -> str:
    """``rows.jsonl`` of ``judge``: p that the first answer is the better one; below 0.5 the second is chosen."""
    rows = []
    for i, ((a, b), p) in enumerate(zip(texts, p_first, strict=False)):
        chosen, rejected, said = (a, b, p) if p >= 0.5 else (b, a, 1 - p)
        rows.append(Comparison(f"row{i}/0-1", user(f"question {i}"), chosen, rejected, said))
    return "".join(map(dump_line, rows))


def evaluation(answers: Mapping[str, list[tuple[str, float]]]) -> dict[str, str]:
    """``evaluation.json`` and ``answers.jsonl`` of models with (text, reward) for each prompt."""
    names = list(answers)
    models = {}
    for name, found in answers.items():
        models[name] = {
            "reward": mean([reward for _, reward in found]),
            "tokens": mean([float(len(text.split())) for text, _ in found]),
            "ended": share(sum(text.endswith(".") for text, _ in found), len(found)),
            "refusals": share(0, len(found)),
            "distinct_2": 0.5,
        }
    first, last = ([reward for _, reward in answers[name]] for name in (names[0], names[-1]))
    data = {
        "models": names,
        "sets": {
            "all": {
                "rows": len(first),
                "benign": False,
                "models": models,
                "wins": [{"model": names[-1], "against": names[0], **asdict(wins(last, first))}],
            }
        },
    }
    lines = [
        {
            "id": f"p{i:03d}",
            "set": "all",
            "prompt": f"question {i}",
            "topic": "",
            "answers": {
                name: {
                    "text": found[i][0],
                    "tokens": len(found[i][0].split()),
                    "ended": found[i][0].endswith("."),
                    "reward": found[i][1],
                }
                for name, found in answers.items()
            },
        }
        for i in range(len(first))
    ]
    return {
        "evaluation.json": json.dumps(data, default=asdict),
        "answers.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
    }
