from pathlib import Path

import pytest

from cai.errors import SpecError
from cai.files.yaml_lines import Located, dumps, load, load_mapping, loads, place


def test_every_field_path_has_its_line() -> None:
    data, lines = loads("# comment\na:\n  - b: 1\n    c: >-\n      folded\n      text\n  - d\ne: {f: 2}\n")
    assert data == {"a": [{"b": 1, "c": "folded text"}, "d"], "e": {"f": 2}}
    assert lines == {"": 2, "a": 2, "a[0]": 3, "a[0].b": 3, "a[0].c": 4, "a[1]": 7, "e": 8, "e.f": 8}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("1e-6", 1e-6),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("010", 10),
        ("08", 8),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("'1'", "1"),
    ],
)
def test_scalars_are_read_by_the_core_schema(text: str, value: object) -> None:
    found = loads(f"a: {text}")[0]["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value", ["no", "1e-6", "1:30", "2026-01-01", "~", "", " x", "a: b", "é🙂", "a\nb\n", "0o17", "<<", "="]
)
def test_what_is_dumped_is_read_back_the_same(value: str) -> None:
    assert loads(dumps({"a": value, "b": [value]}))[0] == {"a": value, "b": [value]}


def test_repeated_and_odd_keys_are_all_reported_with_their_lines() -> None:
    with pytest.raises(SpecError) as caught:
        loads("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n4: x\n? [k]\n: y\n", "x.yaml")
    assert [str(p) for p in caught.value.problems] == [
        "x.yaml:4: b.c: key is there twice (first on line 3); keep one",
        "x.yaml:5: a: key is there twice (first on line 1); keep one",
        "x.yaml:6: key 4 is not text; put it in quotes",
        "x.yaml:7: key (a collection) is not text; put it in quotes",
    ]


def test_anchors_and_merges_are_read_and_keep_lines() -> None:
    data, lines = loads("base: &b\n  x: 1\n  y: 2\nuse:\n  <<: *b\n  y: 3\n")
    assert data["use"] == {"x": 1, "y": 3}
    assert (lines["use.x"], lines["use.y"]) == (2, 6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\n", "x.yaml:2: is not valid YAML"),
        ("a: b: c", "x.yaml:1: is not valid YAML"),
        ("a:\n\tb: 1", "x.yaml:2: is not valid YAML"),
        ("a: 1\n---\nb: 2", "is not valid YAML"),
        ("a: !!python/name:os.system x", "x.yaml:1: uses a YAML tag that is not allowed"),
        ("a: !mine x", "uses a YAML tag that is not allowed"),
        ("a: *nowhere", "undefined alias"),
        ("a: &a [*a]", "without bound"),
        ("[" * 10_000, "nests deeper"),
        ("- " * 10_000, "nests deeper"),
        ("a: !!int x", "cannot be read"),
        ("a: \x07", "is not valid YAML"),
    ],
)
def test_what_cannot_be_read_is_a_spec_error(text: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        loads(text, "x.yaml")
    assert says in str(caught.value)


def test_aliases_that_multiply_are_stopped_early() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(SpecError, match="expands without bound"):
        loads("\n".join(rows))


def test_files_that_are_not_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(SpecError, match=r"x\.yaml:2: is not UTF-8"):
        load(path)
    with pytest.raises(SpecError, match=r"shown: cannot be read"):
        load(tmp_path, "shown")
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load(path)[0] == {"a": 1}


def test_a_mapping_knows_its_places_and_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a:\n  - b: 1\n")
    found = load_mapping(path, "x.yaml")
    assert isinstance(found, Located)
    assert found.where("a[0].b") == "x.yaml:2: a[0].b"
    assert found.where("a[0].missing.deep") == "x.yaml:2: a[0].missing.deep"
    assert place("x.yaml", "a", {}) == "x.yaml: a"
    path.write_text("- a\n")
    with pytest.raises(SpecError, match="must be a mapping of fields, and is a list"):
        load_mapping(path)
    path.write_text("")
    with pytest.raises(SpecError, match="is empty"):
        load_mapping(path)
