"""Near duplicates: runs of eight words, half of the evaluation prompt, and whole texts of shorter ones."""

from __future__ import annotations

import random
import time
import tracemalloc

import pytest

from cai.chat import Message
from cai.data import near
from cai.data.near import NearPrompts, prompt_text, run_digests, words_of
from cai.data.rows import Conversation, Prompt
from cai.errors import SpecError

LONG = "Please tell me in simple words how a clock with two hands and a spring is taken apart at home"


def held(*texts: str) -> NearPrompts:
    prompts = NearPrompts()
    for text in texts:
        prompts.add(text, "set")
    return prompts


def is_like(training: str, *evaluated: str) -> bool:
    return held(*evaluated).like(training) is not None


@pytest.mark.parametrize(
    "training",
    [
        LONG,
        LONG.upper() + "?!",
        f"Hello. {LONG} Thank you, that would help my neighbour a lot.",
        LONG.replace("Please tell me in simple words", "Say"),
        LONG.replace(" at home", " on a Sunday in May, with a spoon"),
        LONG.replace("clock", "ｃｌｏｃｋ"),
    ],
)
def test_what_keeps_more_than_half_of_the_words_is_like_it(training: str) -> None:
    assert is_like(training, LONG)


@pytest.mark.parametrize(
    "training",
    [
        "Please tell me in simple words how a boat is built",
        # Every seventh word is another one: no run of eight is left.
        " ".join("x" if i % 7 == 6 else word for i, word in enumerate(LONG.split())),
        "two hands and a spring is taken apart at home",
        "",
    ],
)
def test_what_keeps_less_is_not(training: str) -> None:
    assert not is_like(training, LONG)


def test_the_share_is_of_the_evaluation_prompt_and_above_a_half() -> None:
    words = [f"w{i}" for i in range(16)]
    assert not is_like(" ".join(words[:8]), " ".join(words))
    assert is_like(" ".join(words[:9]), " ".join(words))
    assert is_like(" ".join([*words[:8], "and", "much", "else", *(f"v{i}" for i in range(90))]), " ".join(words[:8]))


def test_overlapping_runs_count_each_word_once_and_runs_of_two_prompts_are_not_added_up() -> None:
    first, second = (" ".join(f"{letter}{i}" for i in range(40)) for letter in "ab")
    assert not is_like(" ".join(first.split()[:20]), first)
    assert not is_like(" ".join([*first.split()[:20], *second.split()[:20]]), first, second)
    # Two ends of a prompt are added up.
    assert is_like(" ".join([*first.split()[:12], "between", *first.split()[-12:]]), first)


def test_short_prompts_are_alike_only_when_they_are_equal() -> None:
    assert is_like("how do i kill a PYTHON process", "How do I kill a Python process?")
    assert not is_like("How do I kill a Python keeper?", "How do I kill a Python process?")
    assert not is_like("Well then: how do I kill a Python process?", "How do I kill a Python process?")
    assert is_like("?!", "?!")
    assert not is_like("?!", "!?")


def test_characters_are_words_where_words_are_not_parted() -> None:
    assert words_of("時計は2つの針") == ["時", "計", "は", "2", "つ", "の", "針"]
    assert is_like("教えてください。この時計をどうやって分解しますか", "この時計をどうやって分解しますか。")


def test_a_form_that_many_prompts_share_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MOST_SHARED", 3)
    form = "You are asked the following by somebody who wants a short and honest answer in plain words"
    questions = [f"{form}: {' '.join(f'{word}{i}' for i in range(9))}" for word in ("sun", "moon", "star", "rain")]
    prompts = held(*questions)
    assert prompts.like(f"{form}: {' '.join(f'snow{i}' for i in range(9))}") is None
    match = prompts.like(f"{form}: so, {' '.join(f'moon{i}' for i in range(9))}")
    assert match is not None
    assert match.beginning == near.beginning_of(questions[1])
    assert is_like("again " * 90, "again " * 100)
    assert held(questions[0]).like(f"{form}: {' '.join(f'snow{i}' for i in range(9))}") is not None


def test_a_match_names_the_set_that_had_the_prompt_first() -> None:
    prompts = NearPrompts()
    prompts.add(LONG, "first")
    prompts.add(LONG.lower(), "second")
    assert len(prompts) == 1
    match = prompts.like(LONG)
    assert match is not None
    assert match.source == "first"
    prompts.add("Another one", "second")
    match = prompts.like("another  one")
    assert match is not None
    assert match.source == "second"


def test_the_prompt_is_what_the_user_said_before_the_last_answer() -> None:
    messages = (
        Message("system", "Be kind."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
    )
    assert prompt_text(Prompt("1", messages)) == "a\nc"
    assert prompt_text(Conversation("1", (*messages, Message("assistant", "d")))) == "a\nc"


def test_too_many_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MOST_PROMPTS", 2)
    with pytest.raises(SpecError, match=r"set: has more than 2 prompts .*; give its data `limit: N`"):
        held("a", "b", "b", "c")


def test_as_a_slow_and_plain_count_says() -> None:
    """Against the rule written out with sets of words, on random texts of few words, so that much is shared."""
    draw = random.Random(7)

    def text() -> list[str]:
        return [draw.choice("abc") for _ in range(draw.randrange(1, 30))]

    alike = 0
    for _ in range(400):
        evaluated, training = text(), text()
        if draw.random() < 0.5 and len(evaluated) > 10:
            training = [*training, *evaluated[draw.randrange(3) : draw.randrange(9, 30)]]
        runs = {tuple(training[i : i + 8]) for i in range(len(training) - 7)}
        matched = {i + n for i in range(len(evaluated) - 7) if tuple(evaluated[i : i + 8]) in runs for n in range(8)}
        expected = evaluated == training or len(matched) > len(evaluated) / 2
        assert is_like(" ".join(training), " ".join(evaluated)) == expected
        alike += expected
    assert 50 < alike < 350


def test_time_grows_with_the_words_and_memory_is_bounded() -> None:
    draw = random.Random(1)
    words = [f"word{i}" for i in range(5_000)]

    def texts(count: int) -> list[str]:
        return [" ".join(draw.choices(words, k=30)) for _ in range(count)]

    def seconds(count: int) -> float:
        evaluated, training = texts(count), texts(count)
        began = time.perf_counter()
        prompts = held(*evaluated)
        assert not any(map(prompts.like, training))
        return time.perf_counter() - began

    seconds(200)
    small, large = min(seconds(1_000) for _ in range(3)), min(seconds(4_000) for _ in range(2))
    assert large < 4 * small * 3
    evaluated = texts(4_000)
    run_digests(words[:9])
    tracemalloc.start()
    prompts = held(*evaluated)
    prompts.like(evaluated[0] + " more")
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert memory / 4_000 < 300 + 30 * 60


@pytest.mark.parametrize("seed", range(6))
def test_few_runs_and_many_are_told_alike(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain Python for what planning sees, numpy for what training sees: the same digests and the same matches."""
    draw = random.Random(seed)
    vocabulary = [f"w{n}" for n in range(12)]  # few words, so that runs are shared often
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(3, 40))) for _ in range(120)]
    asked = [" ".join(text.split()[draw.randint(0, 9) :] + draw.choices(vocabulary, k=5)) for text in texts]
    monkeypatch.setattr(near, "MOST_SHARED", 3)
    found = []
    for few in (10**9, 0):
        monkeypatch.setattr(near, "FEW_RUNS", few)
        monkeypatch.setattr(near, "FEW_WORDS", few)
        prompts = held(*texts)
        found.append([prompts.like(text) for text in asked])
        found.append([run_digests(words_of(text)) for text in texts])
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert 0 < sum(match is not None for match in found[0]) < len(asked)
