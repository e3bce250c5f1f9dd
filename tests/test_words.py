"""The tool that finds names that say nothing: it finds each of its faults, and nothing in the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools import words

EMPTY = """
def found(at, step):
    told = at
    for one in told:
        step.left = one
    return lambda read: read
"""


def test_every_kind_of_binding_is_seen_and_uses_are_not() -> None:
    names = [binding.name for binding in words.bindings(ast.parse(EMPTY))]
    assert sorted(names) == sorted(["found", "at", "step", "told", "one", "left", "read"])
    assert [name for name in names if not words.is_empty(name)] == ["step"]
    assert words.is_empty("_told")
    assert not words.is_empty("told_rows")


def test_several_attributes_in_one_line_hide_their_types() -> None:
    tree = ast.parse("self.a, self.b = 1, 2\na, b = 1, 2\nself.c = self.d = 3\n")
    assert list(words.hidden_types(tree)) == [1]


def test_more_than_four_parameters_are_named() -> None:
    tree = ast.parse(
        "def few(self, a, b, c, d): ...\n"
        "def many(a, b, c, d, e=1): ...\n"
        "def said(a, b, *, c, d, e, f): ...\n"
        "async def also(a, /, b, c, d, e): ...\n"
    )
    assert list(words.crowded(tree)) == [("many", 2, 5), ("also", 4, 5)]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_class_name_stands_once_and_each_fault_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "ROOT", tmp_path)
    first = write(tmp_path, "cai/a.py", "class Same: ...\n")
    second = write(tmp_path, "cai/b.py", "\n\nclass Same: ...\nfound = 1\n")
    assert [str(fault) for fault in words.faults([first, second])] == [
        "cai/a.py:1: class Same stands twice",
        "cai/b.py:3: class Same stands twice",
        "cai/b.py:4: 'found' says nothing",
    ]


def test_a_few_empty_words_among_very_many_names_are_let_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "ROOT", tmp_path)
    many = "".join(f"name_{i} = {i}\n" for i in range(400))
    assert words.faults([write(tmp_path, "cai/a.py", many + "found = 1\ntold = 2\n")]) == []
    assert len(words.faults([write(tmp_path, "cai/a.py", many + "found = 1\ntold = 2\nat = 3\n")])) == 3


def test_the_package_is_clean_and_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert words.main([]) == 0, capsys.readouterr().out
