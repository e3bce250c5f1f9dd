"""Talking in the terminal: a conversation, a pipe, single questions, and a real pseudo-terminal."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from io import StringIO

import pytest
from rich.console import Console

from cai.clients.base import Completion, Finish, Request
from cai.errors import SpecError
from cai.terminal.chat import ChatHistory, ask, chat, pieces, stream
from tests.support.chat_models import Echo, echo_model


class Interrupted(Echo):
    """Ctrl-C is pressed in the middle of the first answer."""

    def stream(self, request: Request) -> Generator[str, None, Completion]:
        self.requests.append(request)
        yield "half an "
        if len(self.requests) == 1:
            raise KeyboardInterrupt
        yield "answer"
        return Completion(request.id, "half an answer", 1, 3, Finish.LENGTH)


def piped(lines: str, client: Echo, **fields: object) -> str:
    out = StringIO()
    beside = fields.pop("beside", None)
    chat(echo_model(client, **fields), beside=beside, console=Console(file=out, width=80), source=StringIO(lines))  # type: ignore[arg-type]
    return out.getvalue()


def test_every_line_of_a_pipe_is_a_turn_of_one_conversation() -> None:
    echo = Echo()
    assert piped("hello\n\nagain\n", echo) == "> hello\nheard 1\n> again\nheard 2\n"
    assert echo.requests[1].prompt == "[user]hello[assistant]heard 1[user]again[assistant]"
    assert echo.requests[0].sampling.stop == ("<end>",)
    assert echo.requests[0].seed != echo.requests[1].seed


def test_the_same_seed_gives_the_same_draws() -> None:
    seeds = []
    for seed in (1, 1, 2):
        echo = Echo()
        piped("a\nb\n", echo, seed=seed)
        seeds.append([request.seed for request in echo.requests])
    assert seeds[0] == seeds[1] != seeds[2]


def test_commands_set_forget_and_leave() -> None:
    echo = Echo()
    said = piped("one\n/system be brief\ntwo\n/reset\nthree\n/nonsense\n/quit\nnever\n", echo)
    assert [r.prompt for r in echo.requests] == [
        "[user]one[assistant]",
        "[system]be brief[user]two[assistant]",
        "[system]be brief[user]three[assistant]",
    ]
    assert "/nonsense is no command" in said
    assert "never" not in said


def test_oldest_exchanges_are_forgotten_with_a_note_when_the_context_is_full() -> None:
    echo = Echo()
    said = piped("first\nsecond\nthird\n", echo, context=80, count=len)
    assert echo.requests[1].prompt == "[user]first[assistant]heard 1[user]second[assistant]"
    assert echo.requests[2].prompt == "[user]second[assistant]heard 2[user]third[assistant]"
    assert "the oldest 2 messages no longer fit" in said


def test_a_message_longer_than_the_context_is_refused_and_the_talk_goes_on() -> None:
    said = piped("x" * 100 + "\nok\n", Echo(), context=60, count=len)
    assert "does not fit: tuned reads 60 tokens, 10 of them kept for the answer" in said.replace("\n", " ")
    assert said.endswith("> ok\nheard 1\n")


def test_an_interrupted_answer_is_forgotten_with_its_question() -> None:
    client = Interrupted()
    said = piped("first\nsecond\n", client)
    assert "(stopped; this question and its answer are forgotten)" in said
    assert client.requests[1].prompt == "[user]second[assistant]"
    assert "half an answer\n(cut after 3 tokens)" in said


def test_hostile_answers_are_shown_and_do_nothing() -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07 [bold red]x[/] [link=http://evil]y[/link] \r\x9b31m \u202eabc :smile:"
    said = piped("\x1b[31mhi\n", Echo(hostile))
    assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e"} & set(said)
    assert "[bold red]x[/] [link=http://evil]y[/link]" in said
    assert ":smile:" in said


def test_single_questions_are_separate_and_one_alone_prints_only_the_answer() -> None:
    def asked(questions: list[str], **more: object) -> str:
        out = StringIO()
        ask(echo_model(Echo()), questions, console=Console(file=out, width=80), **more)  # type: ignore[arg-type]
        return out.getvalue()

    assert asked(["hi"]) == "heard 1\n"
    out = StringIO()
    client = Interrupted()
    client.requests.append(Request("0", ""))
    ask(echo_model(client), ["hi"], console=Console(file=out))
    assert out.getvalue() == "half an answer\n"  # a program that reads this wants no remark that it was cut
    assert asked(["hi", "ho"]) == "> hi\nheard 1\n\n> ho\nheard 1\n\n"
    base = echo_model(Echo("from the base"), name="base")
    assert asked(["hi"], beside=base) == "> hi\ntuned:\nheard 1\nbase:\nfrom the base\n\n"


def test_a_question_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(SpecError, match="shorten the message"):
        ask(echo_model(Echo(), context=20), ["x" * 100], console=Console(file=StringIO()))


def test_beside_keeps_its_own_conversation() -> None:
    base = Echo("base says")
    said = piped("a\nb\n", Echo(), beside=echo_model(base, name="base"))
    assert base.requests[1].prompt == "[user]a[assistant]base says[user]b[assistant]"
    assert said.count("base:\nbase says\n") == 2


@pytest.mark.parametrize("text", ["", " ", "one", "  two\n\n words \n", "\tü\u3000x"])
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_a_client_that_cannot_stream_is_cut_into_words() -> None:
    got = []
    answer = stream(Echo("a whole answer"), Request("1", "p"))
    while True:
        try:
            got.append(next(answer))
        except StopIteration as end:
            done = end.value
            break
    assert done.text == "a whole answer"
    assert got == ["a", " whole", " answer"]


def test_a_conversation_alternates_after_a_failed_answer() -> None:
    class Broken(Echo):
        def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
            raise RuntimeError("no memory")

    talk = ChatHistory(echo_model(Broken()))
    talk.say("hello")
    with pytest.raises(RuntimeError):
        list(talk.answer())
    assert talk.turns == []


def test_at_a_terminal_ctrl_c_warns_and_ctrl_d_leaves() -> None:
    program = (
        "import fcntl, sys, termios; sys.path.insert(0, '.')\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from tests.support.chat_models import Echo, echo_model\n"
        "from cai.terminal.chat import chat\n"
        "chat(echo_model(Echo()))\n"
    )
    terminal, other_end = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=other_end, stdout=other_end, stderr=other_end, start_new_session=True
    )
    os.close(other_end)
    shown = ""

    def comes(text: str, seconds: float) -> bool:
        nonlocal shown
        end = time.monotonic() + seconds
        while text not in shown:
            ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return False
            shown += os.read(terminal, 4096).decode()
        shown = shown.partition(text)[2]
        return True

    def typed(keys: bytes, answer: str) -> None:
        # A line editor that is about to take over the terminal may discard what was typed before: type it again.
        for _ in range(10):
            os.write(terminal, keys)
            if comes(answer, 4):
                return
        raise AssertionError(shown)

    try:
        assert comes("Talking to tuned", 20)
        assert comes("you> ", 20)
        typed(b"hello\n", "heard 1")
        assert comes("you> ", 20)
        typed(b"\x03", "/quit leaves")
        assert comes("you> ", 20)
        for _ in range(10):
            os.write(terminal, b"\x04")
            with suppress(subprocess.TimeoutExpired):
                child.wait(4)
                break
    finally:
        os.close(terminal)
        status = child.wait(20)
    assert status == 0
