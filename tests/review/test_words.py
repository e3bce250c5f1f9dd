"""Word and line diffs, and hostile text inside them: read, and without effect."""

import io
import json

import pytest
from rich.console import Console

from cai.review.changes import Change, TextChange, differing, text_change, value_text
from cai.review.data import document as json_document
from cai.review.markdown import LIMIT
from cai.review.markdown import document as markdown
from cai.review.marks import code, lines, safe, words
from cai.review.phrases import trimmed
from cai.review.review import Review
from cai.review.text import ReviewText
from cai.review.words import ADDED, GAP, REMOVED, SAME, likeness, line_diff, word_diff

SHREDS = [(REMOVED, "one two and three"), (ADDED, "uno dos and tres"), (SAME, "four")]


@pytest.mark.parametrize(
    ("before", "after", "pieces"),
    [
        ("a b c", "a b c", [(SAME, "a b c")]),
        ("a b c", "a x c", [(SAME, "a"), (REMOVED, "b"), (ADDED, "x"), (SAME, "c")]),
        ("", "a b", [(ADDED, "a b")]),
        ("a b", "", [(REMOVED, "a b")]),
        ("a  b\nc", "a b c d", [(SAME, "a b c"), (ADDED, "d")]),
        ("one two and three four", "uno dos and tres four", SHREDS),
    ],
    ids=["same", "one word", "all new", "all gone", "blanks", "a phrase is not shredded"],
)  # fmt: skip
def test_words_are_told_in_reading_order(before, after, pieces):
    assert list(word_diff(before, after)) == pieces


@pytest.mark.parametrize("before", ["", "a", "a b c d e f", "x y a b z"])
@pytest.mark.parametrize("after", ["", "b", "f e d c b a", "a y c d x f", "a b"])
def test_a_word_diff_holds_both_texts_whole(before, after):
    pieces = word_diff(before, after)
    assert " ".join(t for what, t in pieces if what != ADDED).split() == before.split()
    assert " ".join(t for what, t in pieces if what != REMOVED).split() == after.split()


def test_lines_are_told_with_their_context_and_gaps():
    before = "\n".join(f"line {i}" for i in range(30))
    found = line_diff(before, before.replace("line 20", "another"))
    assert found[0] == (GAP, "-19,5 +19,5")
    assert found[1:] == (
        (SAME, "line 18"),
        (SAME, "line 19"),
        (REMOVED, "line 20"),
        (ADDED, "another"),
        (SAME, "line 21"),
        (SAME, "line 22"),
    )
    assert line_diff("a\n", "a") == ((GAP, "only the ends of lines differ"),)


def test_long_unchanged_stretches_are_cut_to_what_stands_beside_a_change():
    text = " ".join(f"w{i}" for i in range(100))
    (_, first), *_ = trimmed(word_diff(text, f"{text} end"), 10_000)
    assert first == "... " + " ".join(f"w{i}" for i in range(88, 100))
    assert sum(len(t) for _, t in trimmed(word_diff("", "x " * 5000), 100)) <= 100


def test_likeness_is_of_words():
    assert likeness("a b c", "a  b c") == 1
    assert likeness("a b", "c d") == 0


def test_values_are_compared_and_shown_as_yaml_has_them():
    assert differing({"a": 1, "b": {"c": True}}, {"a": 1.0, "b": {"c": 1}}) == {"b.c": (True, 1)}
    assert [value_text(v) for v in (None, True, 0.0001, 1e-9, "x", " x", ["a", 1], {"k": False})] == [
        "none", "true", "0.0001", "1e-09", "x", "' x'", "[a, 1]", "{k: false}",
    ]  # fmt: skip


HOSTILE = [
    "<script>alert(1)</script>",
    "</details></details>",
    "[link](http://evil.example) ![pixel](https://evil.example/x.png)",
    "| a | b |\n|---|---|\n# heading\n- list\n1. one\n> quote\n=====",
    "``` \n````\nfence",
    "@everyone look at #12 and GH-13, www.evil.example",
    "**bold** ~~gone~~ _em_ \\ &lt;b&gt; $math$",
    "\x1b[31mred\x1b[0m\x07\u202eback\u2028line\r\nnext",
]


def review_of(text):
    texts = (
        text_change("critique", "before", text),
        text_change("text", "before\nand\n", f"before\n{text}\n", "lines"),
        TextChange("unknown", "lines", ()),
    )
    change = Change("principles", "reworded", text, "before", text, f"principle {text}", True, ("revise",), texts)
    return Review(text, (text, "run"), (text, "run"), (change,), problems=(text,))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_does_nothing_in_markdown(text):
    made = markdown([review_of(text)], [()], since=text)
    outside, fence = [], None
    for line in made.splitlines():
        bare = line.strip()
        if fence is None and bare.startswith("```"):
            fence = bare.removesuffix("diff")
        elif fence is not None:
            fence = None if bare == fence else fence
        else:
            outside.append(line)
    assert fence is None
    told = "\n".join(outside)
    for tag in ("<details><summary>the text</summary>", "</details>"):
        told = told.replace(tag, "", told.count("<details>"))
    plain = unescaped(told)
    assert "<" not in plain
    assert "](" not in plain
    for call in ("@everyone", "#12", "GH-13", "www.evil", "://"):
        assert call not in plain
    assert not any(c in made for c in "\x1b\x07\u202e\u2028\r")


def unescaped(markdown_text):
    """What is left of a Markdown text when escaped signs and code are taken out: what could still have an effect."""
    left, i = [], 0
    while i < len(markdown_text):
        if markdown_text[i] == "\\":
            i += 2
            continue
        if markdown_text[i] == "`":
            run = len(markdown_text[i:]) - len(markdown_text[i:].lstrip("`"))
            end = markdown_text.index("`" * run, i + run)
            i = end + run
            continue
        left.append(markdown_text[i])
        i += 1
    return "".join(left)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("colour", [False, True])
def test_hostile_text_does_nothing_in_a_terminal(text, colour):
    console = Console(file=io.StringIO(), width=60, force_terminal=colour, color_system="standard" if colour else None)
    console.print(ReviewText([review_of(text)], [()], since=text))
    made = console.file.getvalue()
    assert not any(c in made for c in "\x07\u202e\u2028\r")
    if not colour:
        assert "\x1b" not in made
    # The one escape that a text brought is a sign to be read; what colours there are, are ours.
    assert "\x1b[31mred" not in made


def test_colours_take_the_place_of_marks():
    change = Change(
        "principles", "reworded", "x", "a b", "a c", "x reworded", True, (), (text_change("t", "a b", "a c"),)
    )
    found = Review("x", ("a", "run"), ("b", "run"), (change,))
    for colour in (False, True):
        console = Console(
            file=io.StringIO(), width=60, force_terminal=colour, color_system="standard" if colour else None
        )
        console.print(ReviewText([found], [()]))
        made = console.file.getvalue()
        assert ("[-b-] {+c+}" in made) is not colour
        assert ("\x1b[9;31mb\x1b[0m" in made) is colour


def test_the_json_keeps_texts_as_they_are():
    for text in HOSTILE:
        data = json.loads(json_document([review_of(text)], [()]))
        assert data["changes"][0]["after"] == text
        assert data["changes"][0]["texts"][0]["pieces"][0] == ["removed", "before"]


def test_marks_of_a_diff_stand_against_their_words():
    assert words(((SAME, "a"), (REMOVED, "b*"), (ADDED, "(c)"), (SAME, "d"))) == "a ~~b\\*~~ **(c)** d"
    assert code("a`b") == "``a`b``"
    assert code("`") == "`` ` ``"
    assert safe("31.7k") == "31.7k"
    assert lines(((ADDED, "````"),), 5)[0] == "`````diff"


@pytest.mark.parametrize("size", [1000, 100_000])
@pytest.mark.parametrize("since", [None, "main"])
def test_markdown_stays_under_what_a_comment_can_hold(size, since):
    reviews = [review_of(f"{'word <x> ' * (size // 60)} 😀") for _ in range(20 if since else 1)]
    made = markdown(reviews, [()] * len(reviews), since)
    assert len(made.encode("utf-16-le")) // 2 <= LIMIT < 65_536
    assert made.count("<details>") == made.count("</details>")
    assert ("shows all" in made) == (since is not None and size > 1000)
