"""Streaming token by token: pieces join to the text, whatever the tokens split."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from cai.clients.base import Completion, Finish
from cai.engines.embedded.streaming import Growing, OnIds, streamed

TEXT = "Grüße 🦊, stop? <e no, <end> never shown"


def decode(ids: Sequence[int]) -> str:
    """One token is one byte, so that tokens split characters and stop strings."""
    return bytes(ids).decode("utf-8", errors="replace")


def work(text: str, stops: Sequence[str], made: list[int]) -> Completion:
    shown = text
    for stop in stops:
        shown = shown.partition(stop)[0]
    return Completion("1", shown, 1, len(made), Finish.STOP)


@pytest.mark.parametrize("stops", [(), ("<end>",), ("never", "<end>"), ("🦊",), ("Grüße",), ("shown!",)])
def test_pieces_join_to_the_finished_text(stops: tuple[str, ...]) -> None:
    def run(told: OnIds) -> Completion:
        made: list[int] = []
        for byte in TEXT.encode():
            made.append(byte)
            told(made)
        return work(TEXT, stops, made)

    growing, pieces = Growing(decode, stops), []
    answer = streamed(run, growing)
    while True:
        try:
            pieces.append(next(answer))
        except StopIteration as end:
            done = end.value
            break
    assert "".join(pieces) == done.text
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) > 5 or len(done.text) < 8


def test_closing_ends_the_work_and_waits_for_it() -> None:
    ended = threading.Event()

    def run(told: OnIds) -> Completion:
        made: list[int] = [65]
        while not told(made):
            made.append(65)
        ended.set()
        return work("A", (), made)

    answer = streamed(run, Growing(decode, ()))
    assert next(answer) == "A"
    answer.close()
    assert ended.is_set()


def test_an_error_of_the_model_reaches_the_reader() -> None:
    def run(told: OnIds) -> Completion:
        told([65])
        raise RuntimeError("no memory")

    answer = streamed(run, Growing(decode, ()))
    assert next(answer) == "A"
    with pytest.raises(RuntimeError, match="no memory"):
        next(answer)
