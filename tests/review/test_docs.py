"""docs/review.md: its examples are outputs, and its words are the program's."""

import re

from cai.files.library import shipped_root
from cai.review.gates import LIMITED, PLAIN, gates

ROOT = shipped_root()
TEXT = (ROOT / "docs" / "review.md").read_text(encoding="utf-8")


def test_the_examples_are_outputs():
    found = re.findall(r"<!-- from (\S+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL)
    assert len(found) >= 4
    for path, example in found:
        assert example in (ROOT / path).read_text(encoding="utf-8"), path


def test_every_gate_is_explained_and_every_explained_gate_is_one():
    table = TEXT[TEXT.index("| gate |") : TEXT.index("A gate that cannot")]
    told = [
        word for cell in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for word in re.findall(r"`([^`]+)`", cell)
    ]
    words = [word.replace(">N", ">1") for word in told]
    assert {gate.word for gate in gates(",".join(words))} == {*PLAIN, *LIMITED}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
