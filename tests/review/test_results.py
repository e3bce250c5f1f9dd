"""Finished runs: paired differences, labels of the same pairs, the answers that changed most."""

import json

import pytest

from cai.data.rows import Comparison, Conversation, dump_line
from cai.figures.intervals import mean
from cai.review.changes import paired
from cai.review.labels import flips
from cai.review.phrases import verdict
from cai.review.results import results
from cai.run.finished import read_finished
from cai.store.artifacts import Store
from tests.support.review_project import candidates, evaluation, labels, plan, project, write_run
from tests.support.stage_doubles import user


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path / "project"))
    return tmp_path


def run(here, name, made, **files):
    store = Store(here / "home")
    return read_finished(write_run(here / name, made, store, files), store)


TEXTS = [(f"first {i}", f"second {i}") for i in range(10)]


def judged(here, name, made, texts, p):
    return run(here, name, made, sample={"rows.jsonl": candidates(texts)}, judge={"rows.jsonl": labels(texts, p)})


def test_labels_are_compared_by_place_and_not_by_who_won(here):
    old = judged(here, "old", plan(), TEXTS, [0.9, 0.9, 0.9, 0.5, 0.1, 0.2])
    new = judged(here, "new", plan("stages.judge.margin=0.2"), TEXTS, [0.8, 0.5, 0.2, 0.6, 0.1, 0.7, 0.9])
    (found,) = flips(paired(old.plan, new.plan), old, new)
    assert found.same == {
        "A": {"A": 1, "tie": 1, "B": 1},
        "tie": {"A": 1, "tie": 0, "B": 0},
        "B": {"A": 1, "tie": 0, "B": 1},
    }
    assert (found.pairs, found.changed, found.flipped) == (6, 4, 2)
    assert (found.only_before, found.only_after, found.written_anew) == (0, 1, 0)
    assert found.shift == pytest.approx((0.1 + 0.4 + 0.7 + 0.1 + 0.0 + 0.5) / 6)


def test_pairs_with_other_answers_are_counted_apart(here):
    other = [(f"else {i}", b) if i < 3 else (a, b) for i, (a, b) in enumerate(TEXTS)]
    old = judged(here, "old", plan(), TEXTS, [0.9] * 6)
    new = judged(here, "new", plan("stages.sft.training.epochs=4"), other, [0.1] * 6)
    (found,) = flips(paired(old.plan, new.plan), old, new)
    assert (found.pairs, found.written_anew) == (3, 3)
    assert found.rewritten["A"]["B"] == 3


def test_without_the_candidates_labels_are_still_compared(here):
    old = run(here, "old", plan(), judge={"rows.jsonl": labels(TEXTS, [0.9, 0.2])})
    new = run(here, "new", plan("stages.judge.margin=0.2"), judge={"rows.jsonl": labels(TEXTS, [0.1, 0.2])})
    (found,) = flips(paired(old.plan, new.plan), old, new)
    assert (found.pairs, found.flipped) == (2, 1)


def test_of_revisions_the_first_answer_is_a(here):
    def revised(p):
        pair = ("better", "worse") if p < 0.5 else ("worse", "better")
        rows = [Conversation("row0", (*user("q"), *answer("better")), "", {"response": "worse"})]
        said = Comparison("row0/0-1", user("q"), *pair, max(p, 1 - p))
        return {"revise": {"rows.jsonl": dump_line(rows[0])}, "judge": {"rows.jsonl": dump_line(said)}}

    made = [plan("stages.judge.candidates=revise", f"stages.judge.margin={m}") for m in (0.1, 0.2)]
    old, new = run(here, "old", made[0], **revised(0.1)), run(here, "new", made[1], **revised(0.8))
    (found,) = flips(paired(old.plan, new.plan), old, new)
    assert found.same["B"]["A"] == 1


def answer(text):
    from cai.chat import Message

    return (Message("assistant", text),)


def evaluated(here, name, made, answers):
    return run(here, name, made, evaluate=evaluation(answers))


def scored(start, step, text="answer"):
    return [(f"{text} {i}.", start + step * (i % 7)) for i in range(40)]


def metric(found, name, of="rl"):
    return next(m for m in found.evaluations[0].metrics if (m.of, m.name) == (of, name))


def test_rewards_of_one_reward_model_are_paired_by_prompt(here):
    base, first, second = (
        scored(-1, 0.1),
        scored(0, 1.0),
        [(t, r + 0.2 + 0.01 * (i % 3)) for i, (t, r) in enumerate(scored(0, 1.0))],
    )
    old = evaluated(here, "old", plan(), {"base": base, "rl": first})
    new = evaluated(here, "new", plan("stages.rl.training.iterations=9"), {"base": base, "rl": second})
    found = results(old, new)
    reward = metric(found, "reward")
    differences = [b[1] - a[1] for a, b in zip(first, second, strict=True)]
    assert reward.difference == mean(differences)
    # The two intervals overlap, and prompt by prompt there is no doubt.
    assert reward.after.low < reward.before.high
    assert verdict(reward) == "better"
    assert verdict(metric(found, "reward", "base")) == ""
    assert found.evaluations[0].same_reward_model


def test_rewards_of_two_reward_models_are_not_compared(here):
    old = evaluated(here, "old", plan(), {"base": scored(0, 1), "rl": scored(5, 1)})
    new = evaluated(
        here, "new", plan("stages.judge.margin=0.3"), {"base": scored(0, 1), "rl": scored(-5, 1, "much longer answer")}
    )
    found = results(old, new)
    reward = metric(found, "reward")
    assert (reward.difference, reward.comparable, reward.worse) == (None, False, False)
    assert not metric(found, "win rate", "rl against base").comparable
    assert metric(found, "tokens").difference.value == 2
    assert not found.evaluations[0].same_reward_model


def test_prompts_that_differ_are_no_pair(here):
    said = evaluation({"base": scored(0, 1), "rl": scored(1, 1)})
    moved = said | {"answers.jsonl": said["answers.jsonl"].replace('"question 1', '"another 1')}
    old = run(here, "old", plan(), evaluate=said)
    new = run(here, "new", plan("stages.rl.training.iterations=9"), evaluate=moved)
    assert metric(results(old, new), "reward").difference.n == 40 - 11


def figure(value):
    return {"value": value, "low": value - 1, "high": value + 1, "n": 40}


def test_the_figures_of_newer_evaluations_are_read_where_both_have_them(here):
    def more(elo, over, violated, change):
        said = evaluation({"base": scored(0, 1), "rl": scored(1, 1)})
        data = json.loads(said["evaluation.json"])
        data["elo"] = {
            "harmlessness": {"reference": "base", "models": {"base": figure(0), "rl": figure(elo)}, "rows": 40}
        }
        data["over_refusal"] = {"rl": figure(over)}
        data["adherence"] = {"model": "judging", "sets": {"all": {"rl": {"law": figure(violated)}}}}
        data["revisions"] = {"revise": {"rows": 40, "rounds": [{"round": 0}, {"round": 1, "change": figure(change)}]}}
        data["sets"]["all"]["pairs"] = [{"model": "rl", "against": "base", **figure(0.6)}]
        data["sets"]["all"]["models"]["rl"] |= {"evasive": figure(0.1), "self_bleu": None}
        return said | {"evaluation.json": json.dumps(data)}

    old = run(here, "old", plan(), evaluate=more(100, 10, 3, 0.5))
    new = run(here, "new", plan("stages.rl.training.iterations=9"), evaluate=more(80, 20, 9, 3.5))
    found = {(m.group, m.of, m.name): m for m in results(old, new).evaluations[0].metrics}
    assert found["harmlessness", "rl", "Elo"].worse
    assert ("harmlessness", "base", "Elo") not in found
    assert found["benign prompts", "rl", "over-refusal"].worse
    assert found["all", "rl", "violates law"].worse
    assert verdict(found["revisions", "revise", "reward gained by round 1"]) == "better"
    assert ("all", "rl", "self_bleu") not in found


def by_grade(files, declining):
    """The evaluation as a grader leaves it, whose grade of so many first answers of ``rl`` is a refusal."""
    data, rows = json.loads(files["evaluation.json"]), [json.loads(s) for s in files["answers.jsonl"].splitlines()]
    data["grader"] = "lexical"
    data["sets"]["all"]["models"]["rl"]["refusals"] = figure(declining / 40)
    for number, row in enumerate(rows):
        for answer in row["answers"].values():
            answer["grade"] = "declined_with_reason" if number < declining else "complied"
    return {"evaluation.json": json.dumps(data), "answers.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}


def test_refusals_by_grade_are_paired_by_the_grades_and_not_by_phrases(here):
    files = evaluation({"base": scored(0, 1), "rl": scored(1, 1)})
    old = run(here, "old", plan(), evaluate=by_grade(files, 4))
    new = run(here, "new", plan("stages.rl.training.iterations=9"), evaluate=by_grade(files, 24))
    refusals = metric(results(old, new), "refusals")
    assert (refusals.comparable, refusals.difference.value, refusals.difference.n) == (True, 0.5, 40)


def test_refusals_that_two_graders_found_are_on_two_scales(here):
    files = evaluation({"base": scored(0, 1), "rl": scored(1, 1)})
    old = run(here, "old", plan(), evaluate=files)
    new = run(here, "new", plan("stages.rl.training.iterations=9"), evaluate=by_grade(files, 24))
    found = results(old, new)
    refusals = metric(found, "refusals")
    assert (refusals.comparable, refusals.difference, verdict(refusals)) == (False, None, "other scale")
    assert metric(found, "reward").comparable


def test_the_answers_that_changed_most_are_shown_and_always_the_same(here):
    first = scored(0, 0)
    second = [(f"new {i}.", r + (3.0 if i in (5, 17) else 1.0 if i == 9 else 0.1)) for i, (_, r) in enumerate(first)]
    old = evaluated(here, "old", plan(), {"base": first, "rl": first})
    new = evaluated(here, "new", plan("stages.rl.training.iterations=9"), {"base": first, "rl": second})
    shown = results(old, new).evaluations[0].samples
    assert [s.prompt for s in shown] == ["question 5", "question 17", "question 9"]
    assert (shown[0].before, shown[0].after, shown[0].rewards) == ("answer 5.", "new 5.", (0.0, 3.0))
    assert results(old, new).evaluations[0].samples == shown


def test_what_is_missing_is_said(here):
    old = run(here, "old", plan())
    new = evaluated(here, "new", plan("seed=1"), {"base": scored(0, 1), "rl": scored(1, 1), "other": scored(1, 1)})
    found = results(old, new)
    assert found.evaluations == ()
    assert found.missing[0] == "the store does not have judge, evaluate of the run before"
    assert found.missing[-1] == "no evaluation is finished on both sides"


def test_models_of_one_side_alone_are_named(here):
    both = {"base": scored(0, 1), "rl": scored(1, 1)}
    old = evaluated(here, "old", plan(), both)
    new = evaluated(here, "new", plan("stages.rl.training.iterations=9"), {**both, "snapshot": scored(1, 1)})
    assert results(old, new).evaluations[0].only == ((), ("snapshot",))
