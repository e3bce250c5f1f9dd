"""Callers that mean no good, over real sockets: floods, slow ones, and pages of other sites."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest

from cai.serving import bodies, connections
from tests.serving.test_server import HELLO, StreamingWords, served
from tests.support.chat_models import SeededWords

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def base():
    with served(SeededWords()) as url:
        yield url


def port_of(base):
    return int(base.rpartition(":")[2])


def connect(base):
    return socket.create_connection(("127.0.0.1", port_of(base)), timeout=5)


def closed_after(sock, most):
    """Seconds until the server closed the connection; None when it is open after ``most``."""
    began = time.monotonic()
    sock.settimeout(most)
    try:
        while sock.recv(4096):
            pass
    except TimeoutError:
        return None
    except ConnectionError:
        pass
    return time.monotonic() - began


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]", "["]
)
def test_what_is_addressed_elsewhere_is_refused(base, host):
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/health")):
        answer = httpx.request(method, base + path, headers={"Host": host}, json=HELLO if method == "POST" else None)
        assert answer.status_code in (400, 403)
        if answer.status_code == 403:
            assert answer.json()["error"]["code"] == "unknown_caller"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.0.0.1:8000", "localhost."])
def test_this_machines_names_are_answered(base, host):
    assert httpx.get(f"{base}/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost.evil.example", "file://", ""])
def test_pages_of_other_sites_are_refused(base, origin):
    answer = httpx.post(f"{base}/v1/chat/completions", headers={"Origin": origin}, json=HELLO)
    assert answer.status_code == 403


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8443"])
def test_pages_of_this_machine_are_answered(base, origin):
    assert httpx.post(f"{base}/v1/chat/completions", headers={"Origin": origin}, json=HELLO).status_code == 200


def test_elsewhere_than_loopback_any_name_is_answered_but_no_other_sites_page():
    with served(SeededWords(), local=False) as base:
        assert httpx.get(f"{base}/v1/models", headers={"Host": "models.lan"}).status_code == 200
        same = {"Host": "models.lan:8000", "Origin": "http://models.lan:8000"}
        assert httpx.get(f"{base}/v1/models", headers=same).status_code == 200
        other = {"Host": "models.lan:8000", "Origin": "http://evil.example"}
        assert httpx.get(f"{base}/v1/models", headers=other).status_code == 403


def test_two_hosts_in_one_request_are_refused(base):
    with connect(base) as sock:
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert sock.recv(4096).split()[1] in (b"400", b"403")


def test_connections_are_capped_and_none_is_lost(base, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 20)
    before = descriptors()
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(base)) for _ in range(60)]
        time.sleep(0.3)
        closed = [sock for sock in socks if closed_after(sock, 0.02) is not None]
        assert len(closed) == 40
    time.sleep(0.5)
    assert httpx.get(f"{base}/health").status_code == 200
    time.sleep(0.2)
    assert descriptors() <= before + 2


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_request_that_does_not_come_is_not_waited_for(base, monkeypatch, sent):
    monkeypatch.setattr(connections, "HEADERS_SECONDS", 0.4)
    with connect(base) as sock:
        sock.sendall(sent)
        assert 0.2 < closed_after(sock, 3) < 2.5


def test_a_byte_at_a_time_is_no_request(base, monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_SECONDS", 0.5)
    began = time.monotonic()
    with connect(base) as sock:
        for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 500:
            try:
                sock.sendall(bytes([byte]))
            except ConnectionError:
                break
            time.sleep(0.01)
        else:
            pytest.fail("the connection stayed open")
    assert time.monotonic() - began < 4


def test_the_second_request_of_a_connection_has_its_time_too(base, monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_SECONDS", 0.5)
    with connect(base) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in sock.recv(4096)
        sock.sendall(b"GET ")
        assert closed_after(sock, 3) is not None


def test_a_long_answer_is_not_a_slow_request(monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_SECONDS", 0.2)
    with served(StreamingWords(delay=0.05)) as base:
        body = {**HELLO, "stream": True, "max_tokens": 20}
        with httpx.stream("POST", f"{base}/v1/chat/completions", json=body, timeout=20) as answer:
            assert list(answer.iter_lines())[-2] == "data: [DONE]"


def test_a_body_that_does_not_come_is_told(base, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.3)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(base) as sock:
        sock.sendall(head + b"Content-Length: 1000\r\n\r\n{")
        answer = b"".join(iter(lambda: sock.recv(4096), b""))
        assert answer.split()[1] == b"408"
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


def test_an_answer_that_nobody_reads_is_let_go(monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.3)

    class Endless(StreamingWords):
        def stream(self, request):
            done = self.complete(request)
            try:
                while True:
                    self.sent += 1
                    yield "word " * 4000
            finally:
                self.stopped.set()
            return done

    words = Endless()
    with served(words) as base, connect(base) as sock:
        body = json.dumps({**HELLO, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        sock.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert words.stopped.wait(20)


def test_a_flood_of_broken_requests_is_logged_once(base):
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler = Collect()
    logging.getLogger("uvicorn.error").addHandler(handler)
    try:
        for _ in range(50):
            with connect(base) as sock:
                sock.sendall(b"\x16\x03\x01 not http\r\n\r\n")
                sock.recv(4096)
    finally:
        logging.getLogger("uvicorn.error").removeHandler(handler)
    assert len(lines) <= 1
    assert httpx.get(f"{base}/health").status_code == 200


def test_a_whole_answer_that_nobody_reads_ends_too(monkeypatch):
    """What is made and not sent would keep a connection that is only closed."""
    monkeypatch.setattr(connections, "HEADERS_SECONDS", 0.3)

    class Long(SeededWords):
        def complete(self, request):
            return replace(super().complete(request), text="word " * 4_000_000)

    with served(Long()) as base:
        before = descriptors()
        with connect(base) as sock:
            body = json.dumps(HELLO).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            sock.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            end = time.monotonic() + 20
            while descriptors() <= before + 1:
                assert time.monotonic() < end, "the answer has not begun"
                time.sleep(0.01)
            # The caller's own end stays open; the server's goes.
            while descriptors() > before + 1:
                assert time.monotonic() < end, "the connection stays"
                time.sleep(0.05)
