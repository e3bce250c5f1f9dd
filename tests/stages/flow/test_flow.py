"""Rows flow: no barriers, the same bytes whatever the order and the interruptions, nothing lost or asked twice."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.clients.base import Completion, Finish, Request
from cai.clients.cache import RequestCache, Whereabouts
from cai.clients.calls import call_key, to_plain
from cai.clients.scripted import ScriptedClient, made_up
from cai.data.rows import Conversation, Prompt
from cai.errors import Incomplete, StepFailed
from cai.stages.base import Shard
from cai.stages.flow.base import Flow, ShardDone, Turn
from cai.stages.flow.drive import drive
from cai.stages.flow.entries import Entry
from cai.stages.flow.generation import as_prompt, source_of
from cai.stages.respond import RespondSpec
from cai.stages.respond import run as respond
from tests.support.flows import ROWS, Crash, Flowing, ShuffledServer, chained, flow_context, run_flow
from tests.support.stage_doubles import Memory, artifact, context, user


def test_order_of_arrival_and_room_change_nothing(tmp_path: Path) -> None:
    whole = run_flow(tmp_path / "one", Flowing(ShuffledServer(room=1)))
    for seed in range(4):
        assert run_flow(tmp_path / f"s{seed}", Flowing(ShuffledServer(seed, room=(5, 40, 300, 2000)[seed]))) == whole
    assert len(whole.splitlines()) == len(ROWS)


def test_a_client_of_lists_gives_the_same_rows_in_cohorts(tmp_path: Path) -> None:
    engine = Lists()
    assert run_flow(tmp_path / "lists", engine) == run_flow(tmp_path / "pool", Flowing())
    assert [len(names) for names in engine.lists] == [16, 32, 16] * 18 + [12, 24, 12]


def test_a_row_goes_on_without_waiting_for_the_others(tmp_path: Path) -> None:
    # Row 3's first answer comes when nothing else is left; everything else is finished by then.
    engine = Flowing(ShuffledServer(slow=frozenset({"row0003/0/0"})))
    run_flow(tmp_path, engine)
    at = engine.server.order.index("row0003/0/0")
    assert at >= 4 * (len(ROWS) - 1)
    first_end = engine.server.order.index(next(name for name in engine.server.order if "/2/" in name))
    last_start = max(i for i, name in enumerate(engine.server.order) if "/0/" in name and i != at)
    assert first_end < last_start, "rows end while others have not begun"


def test_rows_that_have_begun_go_first_so_that_few_are_on_their_way(tmp_path: Path) -> None:
    engine = Flowing(ShuffledServer(room=20))
    run_flow(tmp_path, engine)
    begun = ended = most = 0
    for call in engine.server.asked:
        begun += "/0/" in call.id
        ended += "/2/" in call.id
        most = max(most, begun - ended)
    assert most < 80


@pytest.mark.parametrize("cached", [False, True])
def test_killed_after_any_number_of_answers_it_ends_with_the_same_bytes_and_asks_only_what_is_missing(
    tmp_path: Path, cached: bool
) -> None:
    rows = ROWS[:30]
    whole = run_flow(tmp_path / "whole", Flowing(), rows=rows)
    for crash in range(0, 120, 7):
        folder = tmp_path / f"crash{crash}"
        more = {"cache": tmp_path / f"cache{crash}"} if cached else {}
        stopped = Flowing(ShuffledServer(seed=crash, crash_after=crash))
        with pytest.raises(Crash):
            run_flow(folder, stopped, rows=rows, **more)
        again = Flowing(ShuffledServer(seed=crash + 1))
        assert run_flow(folder, again, rows=rows, **more) == whole
        assert len(again.server.asked) == 120 - len(stopped.server.order), "what was answered is not asked again"
        done = Flowing()
        assert run_flow(folder, done, rows=rows, **more) == whole
        assert done.server.opened == 0


@pytest.mark.parametrize("engine", [lambda: Flowing(), lambda: Lists()], ids=["pool", "lists"])
def test_a_flipped_bit_in_the_journal_costs_rows_and_changes_no_byte(
    tmp_path: Path, engine: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    rows = ROWS[:40]
    whole = run_flow(tmp_path / "whole", engine(), rows=rows)
    run_flow(tmp_path / "a", engine(), rows=rows)
    (journal,) = (tmp_path / "a").rglob("journal.jsonl")
    data = journal.read_bytes()
    for at in random.Random(5).sample(range(len(data) * 2 // 3), 12):
        journal.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert run_flow(tmp_path / "a", engine(), rows=rows) == whole
    assert len(list(journal.parent.glob("journal.jsonl.damaged-*"))) == 12
    assert sum("is damaged" in message for message in caplog.messages) == 12


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    whole = run_flow(tmp_path / "whole", Flowing(), rows=ROWS[:40])
    for crash in range(1000):
        engine = Flowing(ShuffledServer(seed=crash, crash_after=random.Random(crash).randint(1, 30)))
        try:
            assert run_flow(tmp_path / "often", engine, rows=ROWS[:40]) == whole
        except Crash:
            continue
        break
    assert crash > 4


def test_a_row_without_an_answer_is_set_aside_and_only_it_is_asked_again(tmp_path: Path) -> None:
    never = frozenset({"row0005/1/1", "row0017/0/0"})
    with pytest.raises(Incomplete, match=r"2 rows got no answer: answers 500 \(2\).*asks only these again") as hit:
        run_flow(tmp_path, Flowing(ShuffledServer(never=never)))
    assert hit.value.exit_code == 3
    again = Flowing()
    assert run_flow(tmp_path, again) == run_flow(tmp_path / "whole", Flowing())
    asked = sorted(call.id for call in again.server.asked)
    assert asked == ["row0005/1/1", "row0005/2/0", *[f"row0017/{t}/{i}" for t, i in ((0, 0), (1, 0), (1, 1), (2, 0))]]


def test_the_same_call_is_asked_once_within_and_across_steps(tmp_path: Path) -> None:
    first = Flowing()
    whole = run_flow(tmp_path / "first", first, same)
    assert len(first.server.asked) == len({call.prompt for call in first.server.asked}) <= 30
    cached = Flowing()
    assert run_flow(tmp_path / "second", cached, same, cache=tmp_path / "cache") == whole
    other = Flowing()
    assert run_flow(tmp_path / "third", other, same, cache=tmp_path / "cache", key="o" * 64) == whole
    assert other.server.opened == 0, "every answer is in the cache, so no model is served"


def test_thirty_rows_with_one_call_are_one_call(tmp_path: Path) -> None:
    engine = Flowing()
    rows = ROWS[::10]
    assert len(run_flow(tmp_path, engine, same, rows, cache=tmp_path / "cache").splitlines()) == 30
    assert len(engine.server.asked) == 1


class Lists(Memory):
    """An engine whose client answers lists, as a function of each request alone."""

    def __init__(self) -> None:
        super().__init__()
        self.lists: list[list[str]] = []

    def client(self, model: Path) -> Any:
        engine = self

        class _Client(ScriptedClient):
            def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
                engine.lists.append([request.id for request in requests])
                for request in requests:
                    yield Completion(request.id, made_up(request.prompt, request.seed), 1, 2, Finish.STOP)

        return _Client()


def same(row: Prompt) -> Turn:
    """Rows 0 and 10, 1 and 11 ... ask the same."""
    (found,) = yield [Request(row.id, f"shared {int(row.id[3:]) % 10}", seed=3)]
    return Entry(row.id, (Conversation(row.id, (*row.messages, *user(found.text))),), calls=1)


def test_a_cohort_waits_for_answers_that_another_process_is_getting(tmp_path: Path) -> None:
    whole = run_flow(tmp_path / "whole", Lists(), same, ROWS[:32])
    ctx = flow_context(tmp_path / "a", Lists(), ROWS[:32], cache=tmp_path / "cache")
    other = RequestCache(tmp_path / "cache" / f"{ctx.scope('model')[:32]}.sqlite", "another step")
    calls = [Request("", f"shared {i}", seed=3) for i in range(10)]
    keys = [call_key(ctx.scope("model"), call) for call in calls]
    assert set(other.look(keys[:4])) == {Whereabouts.OURS}

    def answer_later() -> None:
        time.sleep(0.5)
        other.put([(keys[i], to_plain(Completion("", made_up(f"shared {i}", 3), 1, 2, Finish.STOP))) for i in range(3)])
        other.release(keys[3:4])

    # SQLite objects belong to one thread; this one is only handed over.
    other._db = sqlite3.connect(other.path, isolation_level=None, check_same_thread=False)
    later = threading.Thread(target=answer_later)
    later.start()
    engine = Lists()
    assert run_flow(tmp_path / "a", engine, same, ROWS[:32], cache=tmp_path / "cache") == whole
    later.join()
    other.close()
    asked = [int(name[3:]) % 10 for names in engine.lists for name in names]
    assert not {0, 1, 2} & set(asked), "what the other process answered is not asked here"
    assert 3 in asked, "what it gave up is"


def test_an_interrupted_cohort_is_asked_in_the_same_company(tmp_path: Path) -> None:
    class Stops(Lists):
        def client(self, model: Path) -> Any:
            made = super().client(model)
            whole, engine = made.generate, self

            def generate(requests: Sequence[Request]) -> Iterator[Completion]:
                if len(engine.lists) == 3:
                    raise Crash
                return whole(requests)

            made.generate = generate
            return made

    undisturbed = Lists()
    run_flow(tmp_path / "whole", undisturbed, rows=ROWS[:40], cache=tmp_path / "cache1")
    stopped, again = Stops(), Lists()
    with pytest.raises(Crash):
        run_flow(tmp_path / "a", stopped, rows=ROWS[:40], cache=tmp_path / "cache2")
    run_flow(tmp_path / "a", again, rows=ROWS[:40], cache=tmp_path / "cache2")
    assert stopped.lists + again.lists == undisturbed.lists


def test_lanes_keep_several_cohorts_on_their_way(tmp_path: Path) -> None:
    class Lanes(Lists):
        at_once = most = 0

        def client(self, model: Path) -> Any:
            made, engine = super().client(model), self
            whole, made.lanes = made.generate, 3

            def generate(requests: Sequence[Request]) -> list[Completion]:
                engine.at_once += 1
                engine.most = max(engine.most, engine.at_once)
                time.sleep(0.02)
                found = list(whole(requests))
                engine.at_once -= 1
                return found

            made.generate = generate
            return made

    engine = Lanes()
    assert run_flow(tmp_path / "lanes", engine) == run_flow(tmp_path / "one", Lists())
    assert engine.most == 3
    assert sorted(map(len, engine.lists)) == sorted([16, 32, 16] * 18 + [12, 24, 12])


def drops(rate: float) -> Any:
    def work(row: Prompt) -> Turn:
        yield [Request(row.id, row.id, seed=1)]
        bad = random.Random(row.id).random() < rate
        return Entry(
            row.id, () if bad else (Conversation(row.id, row.messages),), {"garbled": 1} if bad else {}, calls=1
        )

    return work


def test_a_stage_that_drops_too_much_fails_early_and_says_why(tmp_path: Path) -> None:
    many = [Prompt(f"row{i:05}", user(f"Question {i}?")) for i in range(5000)]
    engine = Flowing()
    with pytest.raises(
        StepFailed, match=r"dropped \d+ of the first \d+ rows .*max_drop_rate 50.0% allows: garbled \d+"
    ):
        run_flow(tmp_path, engine, drops(0.9), many)
    assert len(engine.server.asked) < 700, "not after the night"
    # Running again fails at once, without a call; a higher limit goes on.
    again = Flowing()
    with pytest.raises(StepFailed, match="garbled"):
        run_flow(tmp_path, again, drops(0.9), many)
    assert again.server.asked == []


def test_a_share_near_the_limit_is_not_given_up_early(tmp_path: Path) -> None:
    many = [Prompt(f"row{i:05}", user(f"Question {i}?")) for i in range(2000)]
    engine = Flowing()
    run_flow(tmp_path, engine, drops(0.48), many)
    assert len(engine.server.asked) == 2000


def test_repeated_ids_and_limits_are_counted_in_the_order_of_the_input(tmp_path: Path) -> None:
    engine = Flowing()
    inputs = {
        "model": artifact(tmp_path / "m", "model"),
        "prompts": artifact(tmp_path / "p", "prompts", [*ROWS[:5], ROWS[0], *ROWS[5:9], ROWS[8]]),
    }
    spec = RespondSpec(model="m", prompts="p", limit=10)
    outcome = respond(spec, context(tmp_path, engine, inputs))
    assert outcome.ledger.dropped == {"repeated id": 1}
    assert (outcome.ledger.rows_in, outcome.ledger.rows_out) == (10, 9)
    assert outcome.metrics["usage"] == {"asked": 9, "attempts": 9, "most calls at once": 40}


def shard_asked(folder: Path, shard: Shard) -> list[str]:
    """Do a shard's part; what it asked."""
    engine = Flowing()
    ctx = flow_context(folder, engine, shard=shard)
    source = source_of(ctx.input("prompts"), as_prompt)
    with Flow(ctx, "model", source, chained, size=16) as flow, pytest.raises(ShardDone):
        drive(flow)
    return [call.id for call in engine.server.asked]


def merged_without_asking(folder: Path) -> bytes:
    """What the step makes of the shards' parts alone."""
    merging = Flowing()
    merged = run_flow(folder, merging)
    assert merging.server.opened == 0
    return merged


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_make_the_bytes_of_one_process(tmp_path: Path, count: int) -> None:
    whole = run_flow(tmp_path / "whole", Flowing())
    asked: list[str] = []
    for index in range(count):
        asked += shard_asked(tmp_path / "shards", Shard(index, count))
    assert len(asked) == len(set(asked)) == 4 * len(ROWS)
    assert merged_without_asking(tmp_path / "shards") == whole


def test_what_a_shard_did_not_finish_the_merging_process_does(tmp_path: Path) -> None:
    whole = run_flow(tmp_path / "whole", Flowing())
    asked = 0
    for index in range(2):
        engine = Flowing(ShuffledServer(crash_after=200 if index else 10**9))
        ctx = flow_context(tmp_path / "shards", engine, shard=Shard(index, 3))
        source = source_of(ctx.input("prompts"), as_prompt)
        with Flow(ctx, "model", source, chained, size=16) as flow, pytest.raises(Crash if index else ShardDone):
            drive(flow)
        asked += len(engine.server.order)
    merging = Flowing()
    assert run_flow(tmp_path / "shards", merging) == whole
    assert asked + len(merging.server.asked) == 4 * len(ROWS)


def test_another_version_of_a_question_is_asked_anew(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run_flow(tmp_path / "a", Flowing(ShuffledServer(crash_after=60)))

    def reworded(row: Prompt) -> Turn:
        turn = chained(row)
        found: Any = None
        while True:
            try:
                calls = next(turn) if found is None else turn.send(found)
            except StopIteration as stopped:
                return stopped.value
            found = yield [replace(call, prompt=f"{call.prompt}!") for call in calls]

    # Rows that were finished stay as they are; rows on their way do not take answers to another question.
    engine = Flowing()
    run_flow(tmp_path / "a", engine, reworded)
    unfinished = {call.id[:7] for call in engine.server.asked}
    assert all(sum(call.id.startswith(row) for call in engine.server.asked) == 4 for row in unfinished)


@pytest.mark.parametrize("before", [None, Shard(0, 5)])
def test_a_shard_takes_over_what_was_done_under_another_division(tmp_path: Path, before: Shard | None) -> None:
    whole = run_flow(tmp_path / "whole", Flowing())
    first = Flowing(ShuffledServer(crash_after=150))
    ctx = flow_context(tmp_path / "a", first, shard=before)
    with Flow(ctx, "model", source_of(ctx.input("prompts"), as_prompt), chained, size=16) as flow, pytest.raises(Crash):
        drive(flow)
    asked = list(first.server.order)
    for index in range(2):
        asked += shard_asked(tmp_path / "a", Shard(index, 2))
    assert len(asked) == len(set(asked)) == 4 * len(ROWS)
    assert merged_without_asking(tmp_path / "a") == whole
