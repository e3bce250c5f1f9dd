"""A small quick server for the tests of API clients: asyncio in a thread, with faults as a real server has them."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from cai.clients import endpoints
from cai.clients.openai_api import OpenAiClient
from cai.clients.settings import ApiLimits


@dataclass
class Say:
    """What the server does with one request.

    ``how``: ``whole`` answers, ``reset`` tears the connection, ``half`` sends half of what it promised and closes,
    ``drip`` sends a byte now and then, ``hang`` says nothing, ``noise`` sends what is no HTTP.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    how: str = "whole"


def answer(text: str) -> Say:
    """A proper answer for either endpoint."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
    return Say({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


def asked_for(body: dict[str, Any]) -> str:
    """The text of the last turn, or the prompt."""
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


Reaction = Callable[[str, dict[str, Any]], Say]


class ApiServer:
    """An HTTP server in one thread. ``places``: requests beyond them wait, as they do in a batch that is full."""

    def __init__(self, react: Reaction, places: int | None = None, port: int = 0) -> None:
        self.react, self.asked, self.times = react, list[tuple[str, dict[str, Any]]](), list[float]()
        self.in_flight = self.most = self.answered = 0
        self._places = places
        self._listening = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port = int(self._listening.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        self._batch = asyncio.Semaphore(self._places) if self._places else None
        self._tasks = set[asyncio.Task[None]]()
        server = await asyncio.start_server(self._connected, sock=self._listening)
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the server is closed
        finally:
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = next(line for line in head.split("\r\n") if line.lower().startswith("content-length:"))
        body = json.loads(await reader.readexactly(int(length.partition(":")[2])))
        path = head.split(" ", 2)[1]
        self.asked.append((path, body))
        self.times.append(time.monotonic())
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            say = self.react(path, body)
            if say.how == "hang":
                await asyncio.sleep(3600)
            if say.delay and self._batch is not None:
                async with self._batch:
                    await asyncio.sleep(say.delay)
            elif say.delay:
                await asyncio.sleep(say.delay)
        finally:
            self.in_flight -= 1
        self.answered += say.status == 200 and say.how == "whole"
        return await self._send(say, writer)

    async def _send(self, say: Say, writer: asyncio.StreamWriter) -> bool:
        payload = say.body if isinstance(say.body, bytes) else json.dumps(say.body).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in say.headers.items())
        whole = f"HTTP/1.1 {say.status} Said\r\nContent-Length: {len(payload)}\r\n{more}\r\n".encode() + payload
        if say.how == "reset":
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        if say.how == "noise":
            writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        elif say.how == "half":
            writer.write(whole[: len(whole) - len(payload) // 2])
        elif say.how == "drip":
            for byte in whole:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
        else:
            writer.write(whole)
        await writer.drain()
        if say.how in ("noise", "half"):
            writer.close()
            await writer.wait_closed()
            return False
        return True

    def close(self) -> None:
        """Stop; connections are torn."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


Start = Callable[..., ApiServer]


def started_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A fixture: start servers; all are stopped at the end. Waiting between attempts is made short."""
    monkeypatch.setattr(endpoints, "BACKOFF", 0.02)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[ApiServer] = []

    def start(react: Reaction, *args: Any) -> ApiServer:
        servers.append(ApiServer(react, *args))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def client_of(*servers: ApiServer, **limits: Any) -> OpenAiClient:
    """A client of these servers, asked without a key."""
    urls = [server.url for server in servers]
    return OpenAiClient(urls[0], "m", "", replicas=urls[1:], limits=ApiLimits(**limits))
