"""The request cache: asked once by all who share it, claims that lapse with their owner, never in the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cai.chat import Message, ToolCall
from cai.clients import cache as module
from cai.clients.base import (
    Completion,
    Finish,
    OptionScores,
    OptionsRequest,
    Request,
    Sampling,
    Score,
    ScoreRequest,
)
from cai.clients.cache import RequestCache, Whereabouts
from cai.clients.calls import call_key, from_plain, to_plain

KEYS = [bytes([i]) * 16 for i in range(8)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests" / "model.sqlite"


def test_what_was_put_is_found_by_others_and_after_reopening(path: Path) -> None:
    first = RequestCache(path, "step one")
    assert first.look(KEYS[:2]) == [Whereabouts.OURS, Whereabouts.OURS]
    first.put([(KEYS[0], {"text": "hé \ud83d", "n": 1})])
    assert first.look(KEYS[:1]) == [{"text": "hé \ud83d", "n": 1}]
    first.close()
    again = RequestCache(path, "step two")
    assert again.look(KEYS[:3]) == [{"text": "hé \ud83d", "n": 1}, Whereabouts.OURS, Whereabouts.OURS]
    again.close()


def test_a_claim_of_one_who_lives_is_waited_for_and_one_given_up_is_free(path: Path) -> None:
    one, two = RequestCache(path, "a"), RequestCache(path, "b")
    assert one.look(KEYS[:2]) == [Whereabouts.OURS] * 2
    assert two.look(KEYS[:2]) == [Whereabouts.ELSEWHERE] * 2
    one.put([(KEYS[0], {"n": 1})])
    one.release([KEYS[1]])
    assert two.look(KEYS[:2]) == [{"n": 1}, Whereabouts.OURS]
    assert one.look(KEYS[1:2]) == [Whereabouts.ELSEWHERE]
    two.close()
    assert one.look(KEYS[1:2]) == [Whereabouts.OURS], "closing gives up what is left"
    one.close()


def test_the_first_answer_stays(path: Path) -> None:
    one = RequestCache(path, "a")
    one.put([(KEYS[0], {"n": 1})])
    one.put([(KEYS[0], {"n": 2})])
    assert one.look(KEYS[:1]) == [{"n": 1}]
    one.close()


def test_answers_to_lists_of_the_same_step_do_not_count(path: Path) -> None:
    mine = RequestCache(path, "a", others_only=True)
    mine.put([(KEYS[0], {"n": 1})])
    assert mine.look(KEYS[:1]) == [Whereabouts.OURS]
    mine.close()
    other = RequestCache(path, "b", others_only=True)
    assert other.look(KEYS[:1]) == [{"n": 1}]
    other.close()


def test_a_claim_lapses_when_its_process_is_killed(path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cai.clients.cache import RequestCache\n"
        "cache = RequestCache(Path(sys.argv[1]), 'a'); cache.look([bytes([i]) * 16 for i in range(3)])\n"
        "print('claimed', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "claimed\n"
    cache = RequestCache(path, "b")
    assert cache.look(KEYS[:1]) == [Whereabouts.ELSEWHERE]
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert cache.look(KEYS[:3]) == [Whereabouts.OURS] * 3
    cache.close()


def test_a_claim_of_another_machine_lapses_when_its_beat_stands_still(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module.time, "time", lambda: pytest.fail("no wall clock may count"))
    here = RequestCache(path, "b")
    far = sqlite3.connect(path)
    far.execute("INSERT INTO owners VALUES ('elsewhere 1 2 3', 5)")
    far.execute("INSERT INTO claims VALUES (?, 'elsewhere 1 2 3')", (KEYS[0],))
    far.commit()
    for beat in range(6, 10):
        assert here.look(KEYS[:1]) == [Whereabouts.ELSEWHERE]
        clock[0] += module.LAPSE * 0.9
        far.execute("UPDATE owners SET beat = ?", (beat,))
        far.commit()
    assert here.look(KEYS[:1]) == [Whereabouts.ELSEWHERE]
    clock[0] += module.LAPSE + 1
    assert here.look(KEYS[:1]) == [Whereabouts.OURS]
    far.close()
    here.close()


def test_a_beat_shows_that_we_live(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    cache = RequestCache(path, "a")
    for _ in range(3):
        clock[0] += module.BEAT + 1
        cache.beat()
        cache.beat()
    with sqlite3.connect(path) as look:
        assert look.execute("SELECT beat FROM owners").fetchone() == (3,)
    look.close()
    cache.close()


@pytest.mark.parametrize("damage", ["garbage", "folder", "unwritable"])
def test_a_cache_that_cannot_be_used_is_left_alone(path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    if damage == "garbage":
        path.write_bytes(b"this is no database at all" * 300)
    elif damage == "folder":
        path.mkdir()
    else:
        path.parent.rmdir()
        path.parent.write_text("a file where the folder should be")
    cache = RequestCache(path, "a")
    assert cache.look(KEYS[:2]) == [Whereabouts.OURS] * 2
    cache.put([(KEYS[0], {"n": 1})])
    cache.release(KEYS[1:2])
    cache.beat()
    assert cache.look(KEYS[:1]) == [Whereabouts.OURS]
    cache.close()
    assert caplog.text.count("the request cache cannot be used") == 1


def _ask(path: str, seconds: float, asked: str) -> None:
    """Get answers to 200 keys, asking those that are ours."""
    cache = RequestCache(Path(path), "x")
    keys = [i.to_bytes(16, "big") for i in range(200)]
    todo = list(keys)
    with Path(asked).open("a") as log:
        while todo:
            places = list(zip(todo, cache.look(todo[:17]), strict=False))
            ours = [key for key, place in places if place is Whereabouts.OURS]
            for key in ours:
                log.write(f"{int.from_bytes(key, 'big')}\n")
                log.flush()
            time.sleep(seconds)
            cache.put([(key, {"n": int.from_bytes(key, "big")}) for key in ours])
            done = {key for key, place in places if place is not Whereabouts.ELSEWHERE}
            todo = [key for key in todo if key not in done]
    assert [found["n"] for found in cache.look(keys)] == list(range(200))  # type: ignore[index]
    cache.close()


def test_four_processes_ask_each_call_once(path: Path, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    logs = [tmp_path / f"asked{i}" for i in range(4)]
    workers = [spawn.Process(target=_ask, args=(str(path), 0.004, str(log))) for log in logs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    asked = [int(line) for log in logs for line in log.read_text().split()]
    assert sorted(asked) == list(range(200))


CHAT = (Message("user", "hi"),)
CALLS = (ToolCall("find", '{"q": "é"}', "c1"), ToolCall("stop"))
TRIP = (*CHAT, Message("assistant", "", "hm", CALLS), Message("tool", "here", tool_call_id="c1", name="find"))
OTHER_TRIP = (*CHAT, Message("assistant", "", "hm", CALLS[:1]), TRIP[2])
DRAWN = Sampling(max_tokens=5, temperature=0.7)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (Request("a", "p", DRAWN, 1), Request("b", "p", DRAWN, 1), True),
        (Request("a", "p", DRAWN, 1), Request("a", "p", DRAWN, 2), False),
        (Request("a", "p", Sampling(temperature=0), 1), Request("a", "p", Sampling(temperature=0), 2), True),
        (Request("a", "p", DRAWN, 1), Request("a", "q", DRAWN, 1), False),
        (Request("a", "p", DRAWN, 1), Request("a", "p", Sampling(max_tokens=6, temperature=0.7), 1), False),
        (Request("a", "p", DRAWN, 1, CHAT), Request("a", "q", DRAWN, 1, CHAT), True),
        (Request("a", "p", DRAWN, 1, CHAT), Request("a", "p", DRAWN, 1), False),
        (Request("a", "p", DRAWN, 1, TRIP), Request("a", "q", DRAWN, 1, TRIP), True),
        (Request("a", "p", DRAWN, 1, TRIP), Request("a", "p", DRAWN, 1, OTHER_TRIP), False),
        (Request("a", "p", DRAWN, 1, choices=("A",)), Request("a", "p", DRAWN, 1), False),
        (ScoreRequest("a", "p", "x"), ScoreRequest("b", "p", "x"), True),
        (ScoreRequest("a", "p", "x"), ScoreRequest("a", "px", ""), False),
        (OptionsRequest("a", "p", ("x", "y")), OptionsRequest("a", "p", ("y", "x")), False),
        (OptionsRequest("a", "p", ("x", "y")), ScoreRequest("a", "p", "x"), False),
    ],
)
def test_which_calls_are_the_same(one: object, two: object, same: bool) -> None:
    assert (call_key("m", one) == call_key("m", two)) is same  # type: ignore[arg-type]
    assert call_key("m", one) != call_key("another model", one)  # type: ignore[arg-type]


def test_calls_of_plain_turns_have_the_keys_that_they_always_had() -> None:
    key = call_key("m", Request("a", "p", DRAWN, 1, CHAT))
    assert key.hex() == "28798888ce7b0bc34c7b04bae1878ed3"


def test_results_are_kept_without_their_id() -> None:
    asked = [
        Request("new", "p"),
        Request("new", "p"),
        ScoreRequest("new", "p", "x"),
        OptionsRequest("new", "p", ("x", "y")),
    ]
    results = [
        Completion("old", "text", 3, 4, Finish.LENGTH),
        Completion("old", "", 3, 9, Finish.STOP, "", "hm", 5, CALLS),
        Score("old", -1.25, 2),
        OptionScores("old", (-0.5, None), 3),
    ]
    for call, result in zip(asked, results, strict=True):
        plain = json.loads(json.dumps(to_plain(result)))
        assert "old" not in json.dumps(plain)
        back = from_plain(call, plain)
        assert back == type(result)(**{**{n: getattr(result, n) for n in result.__slots__}, "id": "new"})


def test_answers_kept_by_an_older_program_are_read() -> None:
    plain = {"text": "<think>kept</think> as it is", "prompt_tokens": 3, "tokens": 4, "finish": "stop"}
    assert from_plain(Request("new", "p"), plain) == Completion("new", plain["text"], 3, 4, Finish.STOP)
    assert to_plain(from_plain(Request("new", "p"), plain)) == plain


def test_what_a_broken_cache_of_this_process_claimed_is_free(path: Path) -> None:
    broken = RequestCache(path, "a")
    assert broken.look(KEYS[:1]) == [Whereabouts.OURS]
    broken._give_up(OSError("disk full"))
    next_cell = RequestCache(path, "b")
    assert next_cell.look(KEYS[:1]) == [Whereabouts.OURS]
    next_cell.close()


def test_the_owner_is_this_very_process(path: Path) -> None:
    cache = RequestCache(path, "a")
    with sqlite3.connect(path) as look:
        (owner,) = look.execute("SELECT owner FROM owners").fetchone()
    look.close()
    assert str(os.getpid()) in owner.split(" ")
    cache.close()
