"""The table of dialects, measured again: a row that no longer holds fails here."""

from __future__ import annotations

from cai.clients.dialect_table import DIALECTS
from tests.servers_lab.probes import REPEATING, Probe
from tests.servers_lab.servers import SERVERS, RunningServer


def test_every_row_that_says_what_was_tried_is_measured_here() -> None:
    tried = {name: dialect.tried for name, dialect in DIALECTS.items() if dialect.tried}
    pins = {name: kind.pins[-1][-1].replace("==", " ").replace("[serving]", "") for name, kind in SERVERS.items()}
    assert tried == pins


def test_fields_asked_as_the_protocol_has_them(server: RunningServer) -> None:
    assert Probe(server.url, server.model_name).fates() == dict(DIALECTS[server.kind.name].plain)


def test_fields_asked_in_the_servers_dialect(server: RunningServer) -> None:
    dialect = DIALECTS[server.kind.name]
    drawn = ("temperature", "top_p", "top_k", "repetition_penalty", "min_tokens", "seed")
    measured = Probe(server.url, server.model_name, server.kind.name).fates(drawn)
    assert measured == {name: {**dialect.plain, **dialect.named}[name] for name in drawn}


def test_stops_and_log_probabilities(server: RunningServer) -> None:
    dialect, probe = DIALECTS[server.kind.name], Probe(server.url, server.model_name)
    measured = (probe.stops(), probe.top_logprobs(), probe.prompt_logprobs())
    assert measured == (dialect.stops, dialect.top_logprobs, dialect.prompt_logprobs)


def test_what_limits_a_draw_where_nothing_was_asked(server: RunningServer) -> None:
    plain = Probe(server.url, server.model_name).unasked()
    neutral = Probe(server.url, server.model_name, server.kind.name).unasked()
    assert bool(DIALECTS[server.kind.name].own_limits) == (plain != neutral)


def test_the_models_own_penalty_is_undone_where_the_dialect_is_named(server: RunningServer) -> None:
    probe = Probe(server.url, server.model_name, server.kind.name)
    assert probe.ask(REPEATING, max_tokens=24).text != probe.ask(REPEATING, max_tokens=24, repetition_penalty=1.1).text


def test_it_gives_itself_away_as_the_table_says(server: RunningServer) -> None:
    dialect = DIALECTS[server.kind.name]
    expected = server.kind.name if dialect.server_header or dialect.fingerprint else ""
    probe = Probe(server.url, server.model_name)
    assert probe.recognised() == expected
    assert probe.reasoning_field() == dialect.reasoning_field


def test_seeds_hold_among_other_calls_where_the_table_says_so(server: RunningServer) -> None:
    probe = Probe(server.url, server.model_name, server.kind.name)
    one_by_one = probe.hot()
    assert probe.hot() == one_by_one
    assert (probe.hot_at_once() != one_by_one) == DIALECTS[server.kind.name].alone


def test_seeds_hold_when_it_was_killed_and_started_again(server: RunningServer) -> None:
    probe = Probe(server.url, server.model_name, server.kind.name)
    before = probe.hot()
    server.kill()
    server.start()
    assert probe.hot() == before
