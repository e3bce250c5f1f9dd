import json
from pathlib import Path

import pytest

from cai.constitution import (
    READERS,
    Constitution,
    Principle,
    dump_yaml,
    import_files,
    load_constitution,
    read_few_shots,
)
from cai.constitution.requests import clean
from cai.errors import SpecError

CRITIQUES = {
    "harmful0": {
        "prompt": ["\n\nCritiqueRequest: Where is the reply rude?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Make the reply polite.\n\nRevision:",
    },
    "harmful1": {
        "prompt": ["\n\nCritiqueRequest: Where is the reply unsafe?\n\nCritique:"],
        "edit_request": ["\n\nRevisionRequest: Make the reply safe.\n\nRevision:"],
    },
}
COMPARISONS = ["\nPlease choose the politer reply. Options:", "\nWhich of these replies is safer? Options:"]
MESSAGES = [
    {"role": role, "content": text}
    for role, text in zip(
        ("user", "assistant") * 3,
        (
            "How do I get rich?",
            "Rob a bank.",
            "What is wrong?",
            "It is a crime.",
            "Rewrite it.",
            "Save a little a month.",
        ),
        strict=True,
    )
]
TRANSCRIPT = (
    "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: How do I get rich?\n\nAssistant: Rob a bank."
    "\n\nCritiqueRequest: What is wrong?\n\nCritique: It is a crime."
    "\n\nRevisionRequest: Rewrite it.\n\nRevision: Save a little a month.\n\nHuman:"
)


def write(path: Path, data: object) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_critique_and_revision_files_lose_their_wrappers(tmp_path: Path) -> None:
    found = import_files([write(tmp_path / "c.json", CRITIQUES)], "mine")
    assert [(p.id, p.critique, p.revision) for p in found.principles] == [
        ("harmful0", "Where is the reply rude?", "Make the reply polite."),
        ("harmful1", "Where is the reply unsafe?", "Make the reply safe."),
    ]


def test_several_phrasings_become_several_principles(tmp_path: Path) -> None:
    data = {"a": {"prompt": ["Rude?", "Impolite?"], "edit_request": ["Be polite."]}}
    found = import_files([write(tmp_path / "c.json", data)], "mine").principles
    assert [(p.id, p.critique, p.revision) for p in found] == [
        ("a-1", "Rude?", "Be polite."),
        ("a-2", "Impolite?", "Be polite."),
    ]


def test_comparisons_become_principles_of_their_own(tmp_path: Path) -> None:
    found = import_files([write(tmp_path / "p.json", COMPARISONS)], "mine").principles
    assert [(p.id, p.comparison) for p in found] == [
        ("comparison-1", "Please choose the politer reply."),
        ("comparison-2", "Which of these replies is safer?"),
    ]


@pytest.mark.parametrize("turned", [False, True])
def test_two_files_of_the_same_length_are_paired_by_position(tmp_path: Path, turned: bool) -> None:
    paths = [write(tmp_path / "c.json", CRITIQUES), write(tmp_path / "p.json", COMPARISONS)]
    found = import_files(paths[::-1] if turned else paths, "mine").principles
    assert [(p.id, p.comparison) for p in found] == [
        ("harmful0", "Please choose the politer reply."),
        ("harmful1", "Which of these replies is safer?"),
    ]


def test_two_files_of_other_lengths_are_put_one_after_the_other(tmp_path: Path) -> None:
    paths = [write(tmp_path / "c.json", CRITIQUES), write(tmp_path / "p.json", COMPARISONS[:1])]
    found = import_files(paths, "mine").principles
    assert [p.id for p in found] == ["harmful0", "harmful1", "comparison-3"]
    assert not found[0].comparison


@pytest.mark.parametrize(
    "data",
    [
        [{"name": "Be Polite", "critique_request": "Rude?", "revision_request": "Be polite."}],
        {"constitutions": [{"name": "Be Polite", "critic": "Rude?", "revision": "Be polite."}]},
        {"Be Polite": {"critique": "Rude?", "revision": "Be polite."}},
    ],
)
def test_records_under_other_names_are_read(tmp_path: Path, data: object) -> None:
    (p,) = import_files([write(tmp_path / "c.json", data)], "mine").principles
    assert (p.id, p.critique, p.revision) == ("be-polite", "Rude?", "Be polite.")


MARKDOWN = """# My rules

Some prose about them.

## Tone and style
- **Be calm.** Do not raise
  your voice.
* Say {what} you mean
### Length
1. Be brief
2) Be brief

## Facts
```
- not a rule
```
3. Never invent $sources
"""


def test_markdown_bullets_are_principles_and_headings_are_tags(tmp_path: Path) -> None:
    found = import_files([write(tmp_path / "rules.md", MARKDOWN)], "mine").principles
    assert [(p.id, p.tags) for p in found] == [
        ("be-calm", ("tone-and-style",)),
        ("say-what-you-mean", ("tone-and-style",)),
        ("be-brief", ("tone-and-style", "length")),
        ("be-brief-2", ("tone-and-style", "length")),
        ("never-invent-sources", ("facts",)),
    ]
    assert found[0].rationale == "Be calm. Do not raise your voice."
    assert all("Never invent $sources." in getattr(found[4], f) for f in ("critique", "revision", "comparison"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", ["Be calm", "Be brief"]),
        ("a.txt", "Be calm\n\nBe brief\n"),
        ("a.yaml", "- Be calm\n- Be brief\n"),
        ("a.yaml", "principles:\n  - Be calm\n  - Be brief\n"),
        ("a.jsonl", '"Be calm"\n"Be brief"\n'),
        ("a.json", [{"principle": "Be calm"}, {"principle": "Be brief"}]),
    ],
)
def test_plain_principles_get_all_three_requests(tmp_path: Path, name: str, data: object) -> None:
    found = import_files([write(tmp_path / name, data)], "mine").principles
    assert [p.id for p in found] == ["be-calm", "be-brief"]
    assert all("Be calm." in getattr(found[0], f) for f in ("critique", "revision", "comparison"))


def test_our_own_yaml_keeps_everything_and_takes_the_new_name(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "licence: MIT\nprinciples:\n  - {id: a, critique: x, weight: 2}\n")
    found = import_files([write(tmp_path / "own.yaml", "extends: base\npreamble: Read.\n")], "mine")
    assert (found.name, found.preamble, found.licence, found.principles[0].weight) == ("mine", "Read.", "MIT", 2.0)


def test_our_own_json_is_read(tmp_path: Path) -> None:
    constitution = Constitution(name="mine", preamble="p", principles=(Principle(id="a", comparison="b?"),))
    assert import_files([write(tmp_path / "own.json", constitution.to_json())], "mine") == constitution


@pytest.mark.parametrize("data", [{"samples": [MESSAGES]}, [MESSAGES], [TRANSCRIPT], TRANSCRIPT])
def test_few_shots_are_no_constitution_and_the_error_says_so(tmp_path: Path, data: object) -> None:
    with pytest.raises(SpecError, match="holds few-shot examples, not principles"):
        import_files([write(tmp_path / "f.txt", data)], "mine")


def test_examples_of_comparisons_are_named_as_such(tmp_path: Path) -> None:
    path = write(tmp_path / "f.json", [{"prompt": "?", "corrects": ["a"], "incorrects": ["b"]}])
    with pytest.raises(SpecError, match="examples that compare two answers, not principles"):
        import_files([path], "mine")
    with pytest.raises(SpecError, match="compare two answers"):
        read_few_shots(path)


@pytest.mark.parametrize(
    "data", [{"samples": [MESSAGES]}, [MESSAGES], [[{"role": "system", "content": "s"}, *MESSAGES]]]
)
def test_few_shots_of_six_messages_become_rows(tmp_path: Path, data: object) -> None:
    assert read_few_shots(write(tmp_path / "f.json", data)) == [
        {
            "prompt": "How do I get rich?",
            "response": "Rob a bank.",
            "critique_request": "What is wrong?",
            "critique": "It is a crime.",
            "revision_request": "Rewrite it.",
            "revision": "Save a little a month.",
        }
    ]


def test_few_shots_from_transcripts_keep_earlier_turns_in_the_prompt(tmp_path: Path) -> None:
    rows = read_few_shots(
        write(tmp_path / "f.json", [TRANSCRIPT, TRANSCRIPT + " Hi\n\nAssistant: Yes." + TRANSCRIPT[38:]])
    )
    assert len(rows) == 3
    assert rows[0]["prompt"] == "Human: Hello\n\nAssistant: Hi.\n\nHuman: How do I get rich?"
    assert rows[0]["response"] == "Rob a bank."
    assert rows[2]["revision"] == "Save a little a month."
    assert read_few_shots(write(tmp_path / "again.json", rows)) == rows


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"samples": [MESSAGES[:4]]}, r"samples\[0\]: has 4 messages"),
        ({"samples": []}, "holds no few-shot example"),
        ({"samples": [MESSAGES, 3, MESSAGES[:2]]}, r"samples\[1\]: is no few-shot example(.|\n)*samples\[2\]"),
        ([[{"role": "user", "content": 3}, *MESSAGES[1:]]], "prompt: must be text"),
        (["\n\nHuman: a\n\nAssistant: b\n\nCritiqueRequest: c\n\nCritique: d"], "lacks revisionrequest, revision"),
        (["\n\nHuman: a\n\nAssistant: b\n\nCritique: d\n\nRevision: e"], "lacks critiquerequest, revisionrequest"),
        (["\n\nCritiqueRequest: a\n\nCritique: b\n\nRevisionRequest: c\n\nRevision: d"], "must follow a Human"),
        (["\n\nHuman: only"], "has no Revision"),
        (CRITIQUES, "is no few-shot example"),
    ],
)
def test_broken_few_shots_say_what_is_missing(tmp_path: Path, data: object, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        read_few_shots(write(tmp_path / "f.json", data))


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("deep.json", b"[" * 200_000),
        ("deep.yaml", b"[" * 20_000),
        ("deep.txt", b"[" * 200_000),
        ("binary.json", bytes(range(256))),
        ("nul.md", b"a\0b"),
        ("long.md", b"- " + b"word " * 20_000),
        ("empty.md", b" \n"),
        ("empty.yaml", b"# nothing\n"),
        ("empty.json", b"{}"),
        ("number.json", b"3"),
        ("numbers.json", b"[1, 2]"),
        ("mixed.json", b'["a rule", 3]'),
        ("types.json", b'{"a": {"prompt": 3, "edit_request": "x"}}'),
        ("twice.json", b'{"a": {"edit_request": "x"}, "a": {"edit_request": "y"}}'),
        ("surrogate.json", b'["\\ud800 be kind"]'),
        ("data.jsonl", b'{"prompt": "hi", "response": "ho"}\n'),
        ("headings.md", b"# Only\n## Headings\n"),
        ("own.json", b'{"principles": 3}'),
        ("own.yaml", b"principles: {a: 1}\n"),
        ("extends.json", b'{"extends": "x"}'),
        ("blank.json", b'["", " "]'),
        ("object.yaml", b"!!python/object/apply:os.system ['true']\n"),
        ("missing.json", None),
    ],
)
def test_hostile_and_wrong_files_give_a_spec_error(tmp_path: Path, name: str, raw: bytes | None) -> None:
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(SpecError, match="mine|" + name.partition(".")[0]):
        import_files([tmp_path / name], "mine")


def test_every_bad_file_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        import_files(
            [tmp_path / "one.json", write(tmp_path / "two.json", "3"), write(tmp_path / "ok.md", "- fine")], "mine"
        )
    assert len(caught.value.problems) == 2


def test_no_file_at_all_is_an_error() -> None:
    with pytest.raises(SpecError, match="no principle found"):
        import_files([], "mine")


@pytest.mark.parametrize("text", ["Critique: Options:", "Options: " * 5000, "CritiqueRequest:"])
def test_cleaning_ends_on_any_text(text: str) -> None:
    assert len(clean(text)) < len(text)


def test_dumped_yaml_reads_back_to_the_same_constitution(tmp_path: Path) -> None:
    odd = "no: yes - 'a' \"b\" # c\n  indented\n\nline {x} & *y é 🙂 \u2028 1e-6"
    principles = tuple(
        Principle(
            id=f"p{n}", critique=text, revision="long words " * 40, tags=("no", "1e-6", "x"), weight=0.1, priority=n
        )
        for n, text in enumerate((odd, "no", "1e-6", "2026-01-01", "null", "- item", "a: b", "x\ty", "~"))
    )
    constitution = Constitution(name="true", description=odd, licence="3", principles=principles)
    path = write(tmp_path / "x.yaml", dump_yaml(constitution, "a.json --out x.yaml\nevil: true"))
    assert load_constitution(path) == constitution
    head = path.read_text().splitlines()
    assert head[:2] == [
        "# yaml-language-server: $schema=../docs/schema/constitution.schema.json",
        "# Made with: python -m cai import a.json --out x.yaml evil: true",
    ]


def test_an_import_written_out_and_imported_again_is_the_same(tmp_path: Path) -> None:
    first = import_files([write(tmp_path / "rules.md", MARKDOWN)], "mine")
    assert import_files([write(tmp_path / "mine.yaml", dump_yaml(first))], "mine") == first


def test_every_shape_has_a_reader() -> None:
    assert {"ours", "few_shots", "critique_revision", "comparisons", "plain", "markdown"} <= READERS.keys()
