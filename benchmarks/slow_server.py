"""A server behind the OpenAI protocol with set latency, capacity and failure rate, in a process of its own.

    python -m benchmarks.slow_server PORT --latency 0.1 --capacity 32 --failures 0.02

It has ``capacity`` places, as a batching server has: a call takes a place for its latency (log-normal), calls beyond
that wait in a queue, and beyond the queue they get 429. What a call takes and whether it fails is drawn from the number
of its row, the turn of the row and the attempt (``benchmarks.ideal.Draws``), so that every client gets the same draws.
``--away 8 16`` is a server that dies 8 seconds after its reset, with all that it was working on, and is back after 16.
``GET /reset`` begins anew, ``GET /stats`` tells for how long its places were taken altogether
(``taken``), and the seconds from the first call to the last answer (``span``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import time
from collections import Counter, deque

from benchmarks.ideal import Draws

NUMBER = re.compile(rb"Question number (\d+)")


class Server:
    """The places, the queue, and the count."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.draws = Draws(args.latency, args.spread, args.failures, args.seed)
        self.free = args.capacity
        self.queue = deque[asyncio.Future[None]]()
        self.open = dict[asyncio.StreamWriter, asyncio.Task[None] | None]()
        self.listening: asyncio.Server | None = None
        self.port = args.port
        self.reset()

    def reset(self) -> None:
        """Count, and draw, from here."""
        self.began = time.monotonic()
        self.first: float | None = None
        self.last = self.began
        self.taken = 0.0
        self.served = 0
        self.failed = 0
        self.refused = 0
        # The bodies that came for each row, in the order of their first coming: its turns; and attempts of each turn.
        self.turns: dict[bytes, list[int]] = {}
        self.attempts = Counter[str]()

    def drawn(self, body: bytes) -> tuple[float, bool]:
        """Seconds that a call takes, and whether it fails."""
        match = NUMBER.search(body)
        row = match[1] if match else b"0"
        turns = self.turns.setdefault(row, [])
        if (digest := hash(body)) not in turns:
            turns.append(digest)
        call = f"{row.decode()}.{turns.index(digest)}"
        self.attempts[call] += 1
        return self.draws(call, self.attempts[call])

    async def answer(self, body: bytes) -> tuple[int, bytes]:
        """One call: status and body."""
        if self.first is None:
            self.first = time.monotonic()
        if not self.free:
            if len(self.queue) >= self.args.queue:
                self.refused += 1
                return 429, b'{"error": {"message": "too many requests"}}'
            turn = asyncio.get_running_loop().create_future()
            self.queue.append(turn)
            await turn
        else:
            self.free -= 1
        began = time.monotonic()
        seconds, fails = self.drawn(body)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.taken += time.monotonic() - began
            self.next()
        if fails:
            self.failed += 1
            return 500, b'{"error": {"message": "something broke"}}'
        self.served += 1
        self.last = time.monotonic()
        asked = json.loads(body)
        text = f"A careful answer number {asked.get('seed', 0) % 10007}, and nobody is harmed by it."
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
        usage = {"prompt_tokens": 60, "completion_tokens": 14, "total_tokens": 74}
        return 200, json.dumps({"id": "x", "model": "small", "choices": [choice], "usage": usage}).encode()

    def next(self) -> None:
        """A place is free: for the first in the queue who still waits."""
        while self.queue:
            turn = self.queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, call after call (HTTP/1.1, keep-alive)."""
        self.open[writer] = asyncio.current_task()
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = head.lower()
                at = fields.find(b"content-length:")
                length = int(fields[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
                body = await reader.readexactly(length)
                if head.startswith(b"GET /stats"):
                    counts = {"served": self.served, "failed": self.failed, "refused": self.refused}
                    times = {"taken": self.taken, "span": self.last - (self.first or self.began)}
                    status, reply = 200, json.dumps({**times, **counts}).encode()
                elif head.startswith(b"GET /reset"):
                    self.reset()
                    if self.args.away:
                        asyncio.get_running_loop().create_task(self.away())
                    status, reply = 200, b"{}"
                else:
                    status, reply = await self.answer(body)
                writer.write(
                    b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                    % (status, len(reply), reply)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open.pop(writer, None)
            writer.close()

    async def away(self) -> None:
        """Die, and come back."""
        gone, back = self.args.away
        await asyncio.sleep(gone)
        assert self.listening is not None
        self.listening.close()
        for writer, task in list(self.open.items()):
            writer.transport.abort()
            if task is not None:
                task.cancel()
        await asyncio.sleep(back - gone)
        self.queue.clear()
        self.free = self.args.capacity
        await self.listen()

    async def listen(self) -> None:
        """Take connections, on the port that it had before."""
        self.listening = await asyncio.start_server(
            self.talk, "127.0.0.1", self.port, limit=1 << 20, backlog=2048, reuse_address=True
        )
        self.port = self.listening.sockets[0].getsockname()[1]


async def serve(args: argparse.Namespace) -> None:
    """Until the process is ended."""
    server = Server(args)
    await server.listen()
    print(server.port, flush=True)
    await asyncio.sleep(math.inf)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int, help="0 takes a free one, which is printed")
    parser.add_argument("--latency", type=float, default=0.1, help="mean seconds of a call")
    parser.add_argument("--spread", type=float, default=0.3, help="standard deviation of its logarithm")
    parser.add_argument("--capacity", type=int, default=32, help="calls worked on at a time")
    parser.add_argument("--queue", type=int, default=256, help="calls that wait beyond that")
    parser.add_argument("--failures", type=float, default=0.02, help="share of calls that end with 500")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--away", type=float, nargs=2, help="seconds after the reset at which it dies, and is back")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
