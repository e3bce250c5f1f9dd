"""Locks: small, stable, the same on every machine, and stale when what they lock is."""

from dataclasses import replace
from pathlib import Path

import pytest

from cai.review.compare import compare
from cai.review.lock import lock_data, lock_text, plan_of_lock, read_lock, stale
from tests.support.review_project import edit, plan, project, run_cai

pytestmark = pytest.mark.long  # servers, programs and many small waits

SMALL, HOUSE, LOCK = "experiments/small.yaml", "constitutions/house.yaml", "locks/small.lock.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path / "project"))
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_lock_is_the_same_bytes_each_time_and_not_stale(capsys):
    assert run_cai("lock", "experiment=small") == 0
    first = Path(LOCK).read_bytes()
    assert run_cai("lock", "experiment=small") == 0
    assert Path(LOCK).read_bytes() == first
    assert run_cai("validate", "--locked", "experiment=small") == 0
    assert "locked: small" in capsys.readouterr().out


def test_a_lock_says_what_decides_each_step():
    run_cai("lock", "experiment=small")
    lock, made = read_lock(Path(LOCK)), plan()
    assert [(s["name"], s["kind"], s["version"], s["key"]) for s in lock["steps"]] == [
        (s.name, s.kind, s.ingredients.version, s.key[:16]) for s in made.steps
    ]
    steps = {step["name"]: step for step in lock["steps"]}
    assert steps["sft"]["settings"]["training"]["learning_rate"] == 2e-4  # a default, filled in
    runtime = {"training.val_every": 0, "training.checkpoint_every": 10}
    assert steps["sft"]["runtime"] == {**runtime, "thinking": "drop"}  # at its default it counts for no key
    assert steps["revise"]["texts"]["critique"] == {
        "file": "critique.jinja",
        "sha256": made.step("revise").ingredients.texts["critique"],
    }
    assert lock["data"]["asked"]["sha256"] == made.step("asked.sl").ingredients.data["sha256"]
    assert lock["constitution"]["principles"][0]["critique"] == "Say where the answer helps to break a law."


def test_the_plan_of_a_lock_has_the_ingredients_it_was_made_of():
    made = plan()
    back = plan_of_lock(lock_data(made), "lock")
    for before, after in zip(made.steps, back.steps, strict=True):
        assert after.ingredients.key() == replace(before.ingredients, inputs=None).key()
        assert after.inputs == before.inputs
    assert compare(back, made) == ()


@pytest.mark.parametrize(
    ("path", "pair", "words"),
    [
        (SMALL, ("epochs: 2", "epochs: 3"), "stages.sft.training.epochs: 2 -> 3"),
        (SMALL, ("a small", "a very small"), "description: a small experiment -> a very small experiment"),
        (SMALL, ("seed: 0", "seed: 1"), "seed: 0 -> 1"),
        (SMALL, ("aaaaaaaaaaaa", "bbbbbbbbbbbb"), "models.judging.revision: aaaaaaaaaaaa -> bbbbbbbbbbbb"),
        (
            SMALL,
            ("data: sl_mix, training: {", "data: sl_mix, training: {checkpoint_every: 3, "),
            "checkpoint_every: 10 -> 3",
        ),
        (
            SMALL,
            ("splits: {sl: 0.5, rl: 0.5}", "splits: {rl: 0.5, sl: 0.5}"),
            "data.asked.splits: [sl, rl] -> [rl, sl]",
        ),
        (HOUSE, ("rude", "cruel"), "principle kindness: critique reworded"),
        (HOUSE, ("[harmless]", "[harmful]"), "principle law: tags [harmless] -> [harmful]"),
        ("prompt_templates/critique.jinja", ("Be short", "Be brief"), "critique.jinja rewritten (read by revise"),
        ("prompt_templates/plain.jinja", ("ChatML", "another"), "chat template plain rewritten"),
        ("data/asked.jsonl", ("question 7", "another"), "data.asked: other rows in the files"),
    ],
)
def test_a_lock_is_stale_when_anything_in_it_is_other_and_says_what(capsys, path, pair, words):
    run_cai("lock", "experiment=small")
    edit(path, pair)
    assert run_cai("validate", "--locked", "experiment=small") == 2
    said = capsys.readouterr().err
    assert words in said
    assert "locks/small.lock.yaml: is stale" in said
    assert "run `python -m cai lock experiment=small`" in said
    assert run_cai("lock", "experiment=small") == 0
    assert run_cai("validate", "--locked", "experiment=small") == 0


def test_a_missing_lock_is_told_and_all_looks_at_every_one(capsys):
    assert run_cai("validate", "--locked", "experiment=small") == 2
    assert "locks/small.lock.yaml: there is no lock; run" in capsys.readouterr().err
    Path("experiments/second.yaml").write_text("defaults: [small, _self_]\nname: second\n")
    assert run_cai("lock", "--all") == 0
    assert sorted(p.name for p in Path("locks").iterdir()) == ["second.lock.yaml", "small.lock.yaml"]
    capsys.readouterr()
    Path("experiments/second.yaml").unlink()
    assert run_cai("validate", "--locked", "--all") == 2
    assert "no 'second' in experiments/" in capsys.readouterr().err


def test_overrides_are_locked_too(capsys):
    run_cai("lock", "experiment=small", "seed=5", "--out", LOCK)
    assert read_lock(Path(LOCK))["overrides"] == ["experiment=small", "seed=5"]
    assert run_cai("validate", "--locked", "experiment=small") == 0
    edit(SMALL, ("epochs: 2", "epochs: 3"))
    assert run_cai("validate", "--locked", "experiment=small") == 2
    said = capsys.readouterr().err
    assert "seed" not in said.partition("run `")[0]
    assert "lock experiment=small seed=5" in said


def elsewhere(made, **decided):
    """The plan as another machine would make it, where the experiment leaves the machine to decide."""
    keys, steps = {}, []

    def moved(value):
        if isinstance(value, str):
            return keys.get(value, value)
        return [moved(v) for v in value] if isinstance(value, list) else {k: moved(v) for k, v in value.items()}

    for step in made.steps:
        parts = step.ingredients
        if parts.engine is not None:
            parts = replace(parts, engine={**parts.engine, **decided})
        if parts.inputs is not None:
            parts = replace(parts, inputs=moved(parts.inputs))
        keys[step.key] = parts.key()
        steps.append(replace(step, ingredients=parts, key=keys[step.key]))
    return replace(made, steps=tuple(steps))


def test_a_lock_made_on_another_machine_is_not_stale():
    made = plan("engine.generation_precision=auto")
    lock = lock_data(elsewhere(made, generation_precision="another"))
    assert lock["steps"][3]["key"] != lock_data(made)["steps"][3]["key"]
    assert list(stale(lock, made, "lock")) == []
    assert list(stale(lock, plan("engine.generation_precision=auto", "seed=1"), "lock")) == ["seed: 0 -> 1"]


def test_what_the_experiment_decides_itself_must_be_the_same():
    lock = lock_data(elsewhere(plan(), generation_precision="bfloat16"))
    assert list(stale(lock, plan(), "lock")) == [
        "engine.generation_precision: bfloat16 -> float32 (decided by the machine)"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n",
        "format: 2\n",
        "format: 1\nsteps: 3\n",
        "format: 1\nsteps: [3]\nexperiment: x\nseed: 0\nengine: {}\n",
    ],
    ids=["empty", "list", "another format", "no steps", "no engine"],
)
def test_what_is_no_lock_is_wrong_input(capsys, text):
    Path("locks").mkdir()
    Path(LOCK).write_text(text)
    assert run_cai("validate", "--locked", "experiment=small") == 2
    assert run_cai("diff", LOCK, "small") == 2
    assert LOCK in capsys.readouterr().err


def test_the_first_line_stays_a_comment_whatever_the_overrides_hold():
    text = lock_text(lock_data(plan(), ["experiment=small", "description=two\nlines: {}"]))
    assert text.splitlines()[1] == "format: 1"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("description=${oc.env:HOME}", "reads or computes"),
        ("description=a${oc.decode:HOME}", "reads or computes"),
        ("hydra.run.dir=/tmp", "Hydra's own setting"),
        ("+hydra/launcher=joblib", "Hydra's own setting"),
        ("constitution@hydra=house", "Hydra's own setting"),
        ("template=../../elsewhere", "leaves its folder"),
        ("--config-dir=elsewhere", "is an option of the command line"),
    ],
)
def test_a_lock_gives_no_word_that_only_a_person_may_give(capsys, word, reason):
    run_cai("lock", "experiment=small")
    text = Path(LOCK).read_text()
    assert "overrides:" in text
    edit(LOCK, ("  - experiment=small\n", f"  - experiment=small\n  - {word!r}\n"))
    assert run_cai("validate", "--locked", "experiment=small") == 2
    assert reason in capsys.readouterr().err
