"""What a reviewer is shown, for each kind of change.

CAI_WRITE_GOLDEN=1 pytest tests/review/test_golden.py writes the files anew; read what changed in them.
"""

import io
import json
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from cai.review.data import document as json_document
from cai.review.markdown import document as markdown
from cai.review.review import review
from cai.review.sides import Side
from cai.review.text import ReviewText
from cai.run.finished import read_finished
from cai.store.artifacts import Store
from tests.support.paths import GOLDEN
from tests.support.review_project import candidates, edit, evaluation, labels, plan, project, side, write_run

DIFFS = GOLDEN / "diff"
HOUSE, SMALL = "constitutions/house.yaml", "experiments/small.yaml"

THIRD = """\
  - id: honesty
    critique: Say what in the answer is not true.
    revision: Rewrite the answer so that it is true.
    comparison: Which answer is more honest?
    weight: 2
"""


def reworded():
    edit(
        HOUSE, ("that are rude.", "that are rude or unfair."), ("sounds friendlier to the person", "is kinder to those")
    )


def reweighted():
    edit(HOUSE, ("  - id: kindness\n", "  - id: kindness\n    weight: 3\n"))


def added():
    edit(HOUSE, ("  - id: kindness\n", f"{THIRD}  - id: kindness\n"))


def removed():
    text = Path(HOUSE).read_text()
    Path(HOUSE).write_text(text[: text.index("  - id: kindness")])


def reordered():
    head, rest = Path(HOUSE).read_text().split("principles:\n")
    law, kindness = rest.split("  - id: kindness\n")
    Path(HOUSE).write_text(f"{head}principles:\n  - id: kindness\n{kindness}{law}")


def retagged():
    edit(HOUSE, ("tags: [harmless]", "tags: [harmless, crime]\n    rationale: Crimes hurt people."))


def preamble():
    edit(HOUSE, ("principles:", "preamble: Harm weighs more than rudeness.\nprinciples:"))


def hyperparameter():
    edit(SMALL, ("training: {epochs: 2}", "training: {epochs: 3, learning_rate: 1.0e-4}"))


def template():
    edit(
        "prompt_templates/plain.jinja",
        ("description: ChatML", "description: ChatML with blank lines"),
        ("<|im_end|>\n{% endfor", "<|im_end|>\n\n{% endfor"),
    )


def prompt_text():
    edit("prompt_templates/critique.jinja", ("Use one sentence.", "Use two sentences.\nName the words."))


def data_file():
    with Path("data/asked.jsonl").open("a") as file:
        file.write('{"prompt": "one more", "topic": "t0"}\n{"prompt": "and another", "topic": "t0"}\n')


def data_settings():
    edit(SMALL, ("splits: {sl: 0.5, rl: 0.5}", "splits: {sl: 0.25, rl: 0.75}, split_by: topic"))


def model_revision():
    edit(SMALL, ("aaaaaaaaaaaa", "bbbbbbbbbbbb"))


def stage_added():
    edit(
        SMALL,
        (
            "  reward: {model: sft, data: judge}",
            "  rm_mix: {kind: mix, sources: [{from: judge}]}\n  reward: {model: sft, data: rm_mix}",
        ),
    )


def stage_renamed():
    edit(SMALL, ("  respond: {", "  first: {kind: respond, "), ("responses: respond", "responses: first"))


def seed():
    edit(SMALL, ("seed: 0", "seed: 1"))


def engine():
    edit(SMALL, ("generation_precision: float32", "generation_precision: bfloat16, threads: 2"))


def description_only():
    edit(SMALL, ("a small experiment", "a small experiment, told better"))


def how_it_runs():
    edit(SMALL, ("training: {epochs: 2}", "training: {epochs: 2, checkpoint_every: 5}"))


CASES = (
    reworded,
    reweighted,
    added,
    removed,
    reordered,
    retagged,
    preamble,
    hyperparameter,
    template,
    prompt_text,
    data_file,
    data_settings,
    model_revision,
    stage_added,
    stage_renamed,
    seed,
    engine,
    description_only,
    how_it_runs,
)
NO_RERUN = (retagged, stage_renamed, description_only, how_it_runs)


def shown(found, width=80):
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    console.print(ReviewText([found], [()]))
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def held(name, text):
    path = DIFFS / name
    # A stage's bumped VERSION moves every key, and a review is not about that.
    text = re.sub(r"\b[0-9a-f]{64}\b", "KEY", text)
    if os.environ.get("CAI_WRITE_GOLDEN"):
        DIFFS.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def hold_all(name, found):
    held(f"{name}.md", markdown([found], [()]))
    held(f"{name}.txt", shown(found))
    held(f"{name}.json", json_document([found], [()]))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path / "project"))
    return tmp_path


@pytest.mark.parametrize("change", CASES, ids=lambda case: case.__name__)
def test_each_kind_of_change_reads_as_it_did(here, change):
    before = plan()
    change()
    found = review(side(before, "main:small"), side(plan(), "small"), Store(here / "home"))
    hold_all(change.__name__, found)
    reruns = any(effect.action in ("rerun", "new") for effect in found.effects)
    assert reruns == (change not in NO_RERUN)
    assert bool(found.counting) == reruns


def test_nothing_changed_reads_as_it_did(here):
    found = review(side(plan(), "main:small"), side(plan(), "small"), Store(here / "home"))
    assert found.same
    hold_all("nothing", found)


ANSWERS = [(f"good answer {i}.", f"other answer {i}.") for i in range(12)]


def rewards(start, step):
    return [start + step * (i % 5) for i in range(12)]


def finished(here, name, made, store, **files):
    folder = write_run(here / name, made, store, files)
    return Side(f"runs/{name}", "run", made, read_finished(folder, store))


def test_metrics_of_finished_runs_read_as_they_did(here):
    store = Store(here / "home")
    old, new = plan(), plan("stages.rl.training.iterations=9")
    base = [(f"base says {i}", r) for i, r in enumerate(rewards(-2.0, 0.1))]
    first = [(f"the first policy says {i}.", r) for i, r in enumerate(rewards(0.0, 0.2))]
    second = [(f"the second policy says a bit more about {i}", r) for i, r in enumerate(rewards(0.6, 0.25))]
    before = finished(here, "before", old, store, evaluate=evaluation({"base": base, "rl": first}))
    after = finished(here, "after", new, store, evaluate=evaluation({"base": base, "rl": second}))
    hold_all("runs_metrics", review(before, after, store))


def test_flipped_labels_of_finished_runs_read_as_they_did(here):
    store = Store(here / "home")
    old, new = plan(), plan("stages.judge.margin=0.2")
    written = {"rows.jsonl": candidates(ANSWERS)}
    p_before = [0.9, 0.8, 0.7, 0.3, 0.5, 0.5, 0.2, 0.9, 0.6, 0.4, 0.9]
    p_after = [0.9, 0.2, 0.5, 0.3, 0.8, 0.5, 0.9, 0.9, 0.6, 0.4, 0.9, 0.9]
    same = [(f"answer {i}", -0.1 * i) for i in range(12)]
    said = evaluation({"base": same, "rl": [(f"{text}, with more", r + 1) for text, r in same]})
    before = finished(
        here, "before", old, store, sample=written, judge={"rows.jsonl": labels(ANSWERS, p_before)}, evaluate=said
    )
    after = finished(
        here, "after", new, store, sample=written, judge={"rows.jsonl": labels(ANSWERS, p_after)}, evaluate=said
    )
    hold_all("runs_labels", review(before, after, store))


def test_every_golden_file_belongs_to_a_case():
    names = {case.__name__ for case in CASES} | {"nothing", "runs_metrics", "runs_labels"}
    assert {path.name for path in DIFFS.iterdir()} == {f"{n}.{end}" for n in names for end in ("md", "txt", "json")}


def test_the_json_says_which_format_it_has():
    for path in DIFFS.glob("*.json"):
        assert json.loads(path.read_text())["format"] == 1
