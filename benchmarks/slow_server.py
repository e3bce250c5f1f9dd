"""A server behind the OpenAI protocol with set latency, capacity and failure rate, in a process of its own.

    python -m benchmarks.slow_server PORT --latency 0.1 --capacity 32 --failures 0.02

It has ``capacity`` places, as a batching server has: a call takes a place for its latency (drawn anew for each:
log-normal, and now and then a straggler), calls beyond that wait in a queue, and beyond the queue they get 429. ``GET
/stats`` tells how long its places were taken altogether, so that what was achieved can be compared with all places
taken all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from collections import deque


class Server:
    """The places, the queue, and the count."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.draw = args, random.Random(0)
        self.free, self.queue = args.capacity, deque[asyncio.Future[None]]()
        self.reset()

    def reset(self) -> None:
        """Count from here."""
        self.taken, self.served, self.failed, self.refused = 0.0, 0, 0, 0

    def seconds(self) -> float:
        """How long the next call takes."""
        spread = self.args.spread
        took = self.args.latency * math.exp(self.draw.gauss(-spread * spread / 2, spread))
        return took * (8 if self.draw.random() < self.args.stragglers else 1)

    async def answer(self, body: bytes) -> tuple[int, bytes]:
        """One call: status and body."""
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
        await asyncio.sleep(self.seconds())
        self.taken += time.monotonic() - began
        if self.queue:
            self.queue.popleft().set_result(None)
        else:
            self.free += 1
        if self.draw.random() < self.args.failures:
            self.failed += 1
            return 500, b'{"error": {"message": "something broke"}}'
        self.served += 1
        asked = json.loads(body)
        text = f"A careful answer number {asked.get('seed', 0) % 10007}, and nobody is harmed by it."
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
        usage = {"prompt_tokens": 60, "completion_tokens": 14, "total_tokens": 74}
        return 200, json.dumps({"choices": [choice], "usage": usage}).encode()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, call after call (HTTP/1.1, keep-alive)."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = head.lower()
                at = fields.find(b"content-length:")
                length = int(fields[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
                body = await reader.readexactly(length)
                if head.startswith(b"GET /stats"):
                    told = {"taken": self.taken, "served": self.served, "failed": self.failed, "refused": self.refused}
                    status, reply = 200, json.dumps(told).encode()
                elif head.startswith(b"GET /reset"):
                    self.reset()
                    status, reply = 200, b"{}"
                else:
                    status, reply = await self.answer(body)
                writer.write(
                    b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                    % (status, len(reply), reply)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def serve(args: argparse.Namespace) -> None:
    """Until the process is ended."""
    server = Server(args)
    listening = await asyncio.start_server(server.talk, "127.0.0.1", args.port, limit=1 << 20, backlog=2048)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int, help="0 takes a free one, which is printed")
    parser.add_argument("--latency", type=float, default=0.1, help="mean seconds of a call")
    parser.add_argument("--spread", type=float, default=0.3, help="standard deviation of its logarithm")
    parser.add_argument("--stragglers", type=float, default=0.01, help="share of calls that take eight times as long")
    parser.add_argument("--capacity", type=int, default=32, help="calls worked on at a time")
    parser.add_argument("--queue", type=int, default=256, help="calls that wait beyond that")
    parser.add_argument("--failures", type=float, default=0.02, help="share of calls that end with 500")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
