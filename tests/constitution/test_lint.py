import time
from pathlib import Path

import pytest

from cai.constitution import TEXTS, Constitution, Level, Principle, dump_yaml, lint, load_constitution
from cai.files.yaml_lines import load
from tests.support.paths import ROOT

FOLDER = ROOT / "constitutions"
SHIPPED = sorted(FOLDER.glob("*.yaml"))


def found(*principles: Principle, needs: tuple[str, ...] = (), preamble: str = "") -> list[tuple[str, str, str]]:
    constitution = Constitution(name="c", principles=principles, preamble=preamble)
    return [(f.level.value, f.where, f.message) for f in lint(constitution, needs)]


def whole(name: str = "a", text: str = "Does the reply stay polite?", **more: object) -> Principle:
    return Principle(id=name, critique=text, revision="Write a polite reply.", comparison="Which is politer?", **more)


def test_a_sound_constitution_has_no_findings() -> None:
    assert found(whole(), Principle(id="b", comparison="Which of them has fewer mistakes?")) == []


def test_exact_duplicates_are_errors_whatever_their_case_and_spaces() -> None:
    other = Principle(id="b", **{f: getattr(whole(), f).upper().replace(" ", "\n") for f in TEXTS})
    assert found(whole(), other) == [("error", "c: b", "says the same as 'a'")]


def test_near_duplicates_are_warnings() -> None:
    words = "Explain whether the reply of the assistant is polite towards every person who is mentioned in it, and how"
    ((level, where, what),) = found(Principle(id="a", comparison=words), Principle(id="b", comparison=words + " so?"))
    assert (level, where) == ("warning", "c: b")
    assert what.startswith("is nearly the same as 'a'")


def test_the_wording_that_imports_add_does_not_make_principles_alike() -> None:
    from cai.constitution.requests import requests_for

    assert found(*(Principle(id=r, **requests_for(f"Be {r} to people")) for r in ("kind", "honest"))) == []


def test_a_text_that_a_stage_reads_must_be_there_unless_the_principle_is_never_drawn() -> None:
    p = Principle(id="a", critique="Wrong?", revision="Right it.")
    assert found(p, needs=("critique", "comparison")) == [
        ("error", "c: a.comparison", "is missing, and a stage reads it")
    ]
    assert found(whole("b"), p.model_copy(update={"weight": 0.0}), needs=("comparison",)) == []


def test_a_critique_without_a_revision_is_a_warning() -> None:
    assert found(Principle(id="a", critique="Wrong?")) == [
        ("warning", "c: a.revision", "is missing though there is a critique")
    ]


def test_a_principle_without_texts_is_an_error() -> None:
    assert found(Principle(id="a")) == [("error", "c: a", "has no critique, revision or comparison")]


@pytest.mark.parametrize("variable", ["{{ x }}", "{x}", "${x}", "<NAME>", "%(x)s", "{% if x %}", "[INSERT RULE]"])
def test_unresolved_variables_are_errors(variable: str) -> None:
    ((level, where, what),) = found(Principle(id="a", comparison=f"Which fits {variable} better?"))
    assert (level, where) == ("error", "c: a.comparison")
    assert variable in what


@pytest.mark.parametrize(
    "text", ["Is 1 < 2 and 3 > 2?", "Does it use JSON like {}?", "Is a <b>bold</b> word fine?", "100% sure?"]
)
def test_ordinary_signs_are_no_variables(text: str) -> None:
    assert found(Principle(id="a", comparison=text)) == []


@pytest.mark.parametrize(
    "text", ["CritiqueRequest: Is it rude?", "Is it rude?\n\nCritique:", "Human: x", "Which? Options:"]
)
def test_wrappers_of_transcripts_are_warnings(text: str) -> None:
    ((level, _, what),) = found(Principle(id="a", comparison=text))
    assert level == "warning"
    assert "wrapper" in what


@pytest.mark.parametrize("token", ["<|im_start|>", "<extra_id_1>", "</s>", "[INST]"])
def test_control_tokens_are_errors_in_the_preamble_too(token: str) -> None:
    ((level, where, what),) = found(whole(), preamble=f"Read {token} this")
    assert (level, where) == ("error", "c: preamble")
    assert token in what


def test_weights_that_exclude_everything_are_an_error() -> None:
    assert found(whole(weight=0)) == [("error", "c: weights", "every principle has weight 0, so none can be drawn")]
    assert found() == [("error", "c", "has no principle")]


def test_ids_that_look_alike_are_warnings_and_bad_ones_errors() -> None:
    assert found(whole("no-harm"), Principle(id="noharm", comparison="Which one hurts nobody?")) == [
        ("warning", "c: noharm", "id is easily taken for 'no-harm'")
    ]
    bad = whole().model_copy(update={"id": "Bad Id"})
    assert [f.message for f in lint(Constitution.model_construct(name="c", principles=(bad,)))] == ["is no id"]


def test_errors_come_before_warnings() -> None:
    levels = [
        f.level for f in lint(Constitution(name="c", principles=(Principle(id="a", critique="{x}"), Principle(id="b"))))
    ]
    assert levels == sorted(levels, key=[Level.ERROR, Level.WARNING].index)
    assert set(levels) == {Level.ERROR, Level.WARNING}


def test_two_hundred_principles_are_linted_quickly_and_hostile_text_too() -> None:
    text = "Does answer {0} mention w{0} and v{0}, or does it leave out z{0} when somebody with u{0} reads it in full?"
    many = Constitution(
        name="c",
        principles=tuple(
            Principle(id=f"p{n}", **{f: text.format(n).replace("answer", f + str(n)) for f in TEXTS})
            for n in range(200)
        ),
    )
    best = min(_seconds(many) for _ in range(5))
    assert best < 0.2  # about 0.03 s on a free core; the rest is room for a busy machine
    hostile = Constitution(
        name="c", principles=(Principle(id="a", comparison="x" + "\n" * 200_000 + "{" * 20_000 + "<A" * 20_000),)
    )
    assert _seconds(hostile) < 2


def _seconds(constitution: Constitution) -> float:
    start = time.perf_counter()
    lint(constitution)
    return time.perf_counter() - start


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_constitution_lints_clean_for_every_stage_and_round_trips(path: Path, tmp_path: Path) -> None:
    constitution = load_constitution(path)
    assert lint(constitution, TEXTS) == []
    assert all(p.tags and p.rationale for p in constitution.principles)
    assert constitution.name == path.stem
    assert constitution.source
    assert constitution.licence
    assert path.read_text().startswith("# yaml-language-server: $schema=../docs/schema/constitution.schema.json\n# ")
    copy = tmp_path / path.name
    copy.write_text(dump_yaml(constitution))
    assert load_constitution(copy) == constitution
    assert load(path)[1][""] > 1


def test_the_shipped_set_is_what_the_readme_promises() -> None:
    sizes = {p.stem: len(load_constitution(p).principles) for p in SHIPPED}
    assert sizes == {"general": 1, "harmlessness": 16, "hhh": 12, "quickstart": 4, "short": 3}
    assert all(
        len(t.split(".")) <= 3 for p in load_constitution(FOLDER / "quickstart.yaml").principles for t in [p.critique]
    )
