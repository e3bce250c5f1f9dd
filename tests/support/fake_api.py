"""A small real server of the OpenAI API whose answers a function makes, its key, and a client that asks it."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cai.chat import Message
from cai.clients.base import Request, Sampling
from cai.clients.openai_api import OpenAiClient
from cai.clients.settings import ApiLimits

KEY = "nvapi-Q2FyZWZ1bCEx/7dk29fhAAlw83hs_0pzm"


@dataclass
class Reply:
    """What the server does with a request; ``half`` sends less than it promises, ``reset`` nothing at all."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    half: bool = False
    reset: bool = False

    def payload(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def says(text: str | None, finish: str = "stop", usage: Any = None, **more: Any) -> Reply:
    """A proper answer for either endpoint."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": finish}
    return Reply({"choices": [choice], "usage": usage or {"prompt_tokens": 7, "completion_tokens": 3}}, **more)


Answer = Callable[[str, dict[str, Any]], Reply]


class FakeServer:
    """A real HTTP server in threads that keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Path and body of every request."""
        self.sent: list[dict[str, str]] = []
        """Their headers."""
        self.peers: set[tuple[str, int]] = set()
        self.in_flight = 0
        self.most = 0
        """The most requests that were in flight at once."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def do_POST(self) -> None:
                fake._handle(self)

            def log_message(self, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            # Python's default of 5 drops connections that come together, and the kernel tries again after seconds.
            request_queue_size = 512

        self._http = Server(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.asked.append((handler.path, body))
            self.sent.append(dict(handler.headers))
            self.peers.add(handler.client_address)
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
        try:
            reply = self.answer(handler.path, body)
            self._over.wait(reply.delay)
        finally:
            with self._lock:
                self.in_flight -= 1
        if reply.reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
            return
        payload = reply.payload()
        try:
            handler.send_response(reply.status)
            for name, value in reply.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(payload)))
            handler.end_headers()
            handler.wfile.write(payload[: len(payload) // 2] if reply.half else payload)
        except OSError:
            handler.close_connection = True  # the client has gone, as it does when it is interrupted
        if reply.half:
            handler.close_connection = True

    def close(self) -> None:
        self._over.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def client_of(server: FakeServer, **limits: Any) -> OpenAiClient:
    """A client of this server that sends the key."""
    return OpenAiClient(server.url, "test/judge", KEY, api_key_env="TEST_KEY", limits=ApiLimits(**limits))


def chat_request(id: str = "r", text: str = "hello", **sampling: Any) -> Request:
    """A request of two turns."""
    turns = (Message("system", "Be kind."), Message("user", text))
    return Request(id, f"<rendered>{text}", Sampling(**sampling), 5, turns)


def ask(client: OpenAiClient, *requests: Request) -> Any:
    """The completions by id, or the one of a single request; the client is closed."""
    try:
        completions = {completion.id: completion for completion in client.generate(requests)}
        return completions if len(requests) > 1 else completions[requests[0].id]
    finally:
        client.close()
