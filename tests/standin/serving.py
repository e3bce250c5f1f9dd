"""The stand-in's HTTP servers: one request at a time under a lock, as upstream's one GPU model demands."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .launch import Fault, say

Answer = tuple[int, Any]
_FAILED = {"message": "Internal Server Error"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        # Without the reverse look-up of the host's name that HTTPServer does.
        self.socket.setsockopt(1, 2, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.server_address[:2]


def serve(port: int, answer: Callable[[str, str, Any], Answer], fault: Fault) -> None:
    """Serve on all interfaces for ever. ``answer(method, path, data)`` gives (status, JSON); raising is a 500."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            began = time.perf_counter()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault.answer_error():
                return self.reply(500, _FAILED)
            try:
                with lock:
                    status, data = answer(self.command, self.path, self.read(body))
                    if status == 200:
                        fault.tick()
            except Exception:
                traceback.print_exc(file=sys.stderr)
                status, data = 500, _FAILED
            self.reply(status, data)
            say(f"{self.command} {self.path} {status} {time.perf_counter() - began:.2f} s")

        do_GET = do_PUT = do_POST = handle_one  # noqa: N815

        def read(self, body: bytes) -> Any:
            if self.command == "GET":
                return None
            if "json" not in self.headers.get("Content-Type", ""):
                return UnsupportedError()
            try:
                return json.loads(body)
            except ValueError as error:
                return error

        def reply(self, status: int, data: Any) -> None:
            text = (json.dumps(data) + "\n").encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_args: Any) -> None:
            """Said in ``handle_one``."""

    fault.port()
    server = _Server(("0.0.0.0", port), Handler)
    say(f"serving on port {port}")
    server.serve_forever()


class UnsupportedError(ValueError):
    """A body that is not said to be JSON."""
