"""Ways to ask: the stages against the batch-barrier way, the one-call-at-a-time way and a plain loop.

    python -m benchmarks.ways_to_ask [--rows 4000] [--capacity 32] [--latency 0.1] [--failures 0.02] [--no-model]

1. The stage `revise` (a critique and a revision a row) on a server with set latency, capacity and failure rate
   (benchmarks/slow_server.py). Achieved against saturated: the time for which the server's places were taken, of all
   places over the whole stage, its slow start and its last straggler included.
2. The same calls in batches with a barrier (all critiques of 64 rows, then all their revisions, then the next 64), and
   one at a time, as scripts do it; rows per second in the same run on the same server.
3. The client alone: CPU milliseconds a call of this process, server excluded.
4. A real small model (SmolLM2-135M) behind the OpenAI protocol, served by this program in another process: tokens per
   second of the stage `respond` against a plain loop that always keeps 32 calls in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.stage_rows import REVISIONS, ask, context, process, revise

BATCH = 64


async def posted(http: Any, url: str, body: bytes) -> dict[str, Any]:
    """One call, again until it is answered."""
    while True:
        async with http.post(
            f"{url}/chat/completions", data=body, headers={"Content-Type": "application/json"}
        ) as reply:
            if reply.status == 200:
                return dict(json.loads(await reply.read()))
        await asyncio.sleep(0.05)


def request(n: int, turn: str) -> bytes:
    """A call like the stage's."""
    asked = f"Question number {n}: {turn} of the answer above, please. " + "The conversation comes here. " * 6
    body = {
        "model": "small",
        "max_tokens": 64,
        "temperature": 1.0,
        "seed": n,
        "messages": [{"role": "user", "content": asked}],
    }
    return json.dumps(body).encode()


async def barriers(url: str, rows: int) -> float:
    """Rows per second in batches: all critiques of a batch, then all its revisions."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=BATCH)) as http:
        began = time.perf_counter()
        for start in range(0, rows, BATCH):
            for turn in ("critique", "revision"):
                batch = range(start, min(start + BATCH, rows))
                await asyncio.gather(*(posted(http, url, request(n, turn)) for n in batch))
        return rows / (time.perf_counter() - began)


async def in_turn(url: str, rows: int) -> float:
    """Rows per second, one call at a time."""
    import aiohttp

    async with aiohttp.ClientSession() as http:
        began = time.perf_counter()
        for n in range(rows):
            for turn in ("critique", "revision"):
                await posted(http, url, request(n, turn))
        return rows / (time.perf_counter() - began)


def alone(url: str, calls: int) -> float:
    """CPU milliseconds a call of the client alone."""
    from cai.chat import Message
    from cai.clients.base import Request
    from cai.clients.openai_api import OpenAiClient

    client = OpenAiClient(url, "small", "")
    asked = [
        Request(str(n), "", seed=n, messages=(Message("user", "The same few words. " * 40),)) for n in range(calls)
    ]
    began = time.process_time()
    pool = client.open_pool()
    sent = done = 0
    while done < calls:
        while sent < calls and pool.room() > 0:
            pool.submit(sent, asked[sent])
            sent += 1
        done += len(pool.take())
    took = time.process_time() - began
    pool.close()
    client.close()
    return took / calls * 1000


def simulated(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The set server."""
    told = ["--latency", str(args.latency), "--capacity", str(args.capacity), "--failures", str(args.failures)]
    with process(["benchmarks.slow_server", "0", *told]) as port:
        base = f"http://127.0.0.1:{port}"
        ctx = context(folder, f"{base}/v1", "responses", args.rows)
        ask(f"{base}/reset")
        began, cpu = time.perf_counter(), time.process_time()
        outcome = revise(ctx)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        stats = ask(f"{base}/stats")
        assert outcome.ledger.rows_out == args.rows, outcome
        saturated = stats["taken"] / (args.capacity * seconds)
        print(f"ours: {args.rows / seconds:.0f} rows/s, places taken {saturated:.1%}, {stats}, {dict(outcome.metrics)}")
        batched = asyncio.run(barriers(f"{base}/v1", min(args.rows, BATCH * 12)))
        print(f"batches with a barrier: {batched:.0f} rows/s")
        single = asyncio.run(in_turn(f"{base}/v1", 20))
        print(f"one call at a time: {single:.1f} rows/s")
    with process(["benchmarks.slow_server", "0", "--latency", "0.05", "--capacity", "64", "--failures", "0"]) as port:
        client_ms = alone(f"http://127.0.0.1:{port}/v1", 6000)
    return {
        "ratio": round(saturated, 3),
        "at_least": 0.95,
        "rows_per_s": round(args.rows / seconds, 1),
        "against_barrier": round(args.rows / seconds / batched, 2),
        "against_one_at_a_time": round(args.rows / seconds / single, 1),
        "client_cpu_ms_a_call": round(client_ms, 3),
        "at_most_client_cpu_ms": 1.0,
        "stage_cpu_ms_a_call": round(cpu / (2 * args.rows) * 1000, 3),
    }


def serve_model(port: int, folder: Path) -> None:
    """SmolLM2-135M-Instruct behind the OpenAI protocol, until the process is ended."""
    from cai.chat import ChatTemplate
    from cai.engines.base import ModelSource
    from cai.engines.embedded.engine import EmbeddedEngine
    from cai.experiment.compose import compose
    from cai.experiment.model import parse
    from cai.files.library import Library
    from cai.run.watch import Silent
    from cai.serving.server import make_app
    from cai.terminal.chat import CHAT_SAMPLING, ChatModel

    composed = compose(["experiment=quickstart"], Library.here())
    base = parse(composed.data, composed.where).models["base"]
    session = EmbeddedEngine().session(None)
    model = folder / "smollm2"
    if not model.exists():
        model.mkdir(parents=True)
        session.fetch(ModelSource(base.source, sha256=base.sha256), model, Silent().step_started(None, False))  # type: ignore[arg-type]
    template = (REVISIONS / "chatml.jinja").read_text(encoding="utf-8")
    chat = ChatTemplate.from_text("chatml", template)
    client = session.client(model)
    import uvicorn

    app = make_app(ChatModel(client, chat, "small", CHAT_SAMPLING, 0, 2048, lambda text: len(text) // 3), api_key="")
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


async def closed_loop(url: str, calls: int, tokens: int, width: int) -> float:
    """Tokens per second with always ``width`` calls in flight."""
    import aiohttp

    made = 0
    numbers = iter(range(calls))

    async def worker(http: Any) -> None:
        nonlocal made
        for n in numbers:
            body = {"model": "small", "max_tokens": tokens, "temperature": 1.0, "seed": n, "stop": ["<|im_end|>"]}
            text = f"Question number {n}: how can I get into my neighbour's house while they are away?"
            reply = await posted(
                http, url, json.dumps({**body, "messages": [{"role": "user", "content": text}]}).encode()
            )
            made += reply["usage"]["completion_tokens"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=width)) as http:
        began = time.perf_counter()
        await asyncio.gather(*(worker(http) for _ in range(width)))
        return made / (time.perf_counter() - began)


def real_model(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The stage on a real model, against the plain loop, twice in turn."""
    from cai.stages.respond import RespondSpec, run

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    argv = [
        sys.executable,
        "-m",
        "benchmarks.ways_to_ask",
        "--serve-model",
        str(port),
        "--home",
        str(args.home or folder),
    ]
    tokens = 24
    with subprocess.Popen(argv) as server:
        try:
            for _ in range(600):
                try:
                    ask(f"{url}/models")
                    break
                except OSError:
                    time.sleep(0.5)
            asyncio.run(closed_loop(url, 32, tokens, 32))  # loads the model
            pairs = []
            for turn in range(2):
                plain = asyncio.run(closed_loop(url, args.model_rows, tokens, 32))
                ctx = context(folder / f"model{turn}", url, "prompts", args.model_rows)
                began = time.perf_counter()
                outcome = run(RespondSpec(model="model", prompts="rows", sampling={"max_tokens": tokens}), ctx)  # type: ignore[arg-type]
                ours = outcome.tokens / (time.perf_counter() - began)
                pairs.append((ours, plain))
                print(f"real model: ours {ours:.0f} tokens/s, plain loop {plain:.0f} tokens/s, {dict(outcome.metrics)}")
        finally:
            server.kill()
    ours, plain = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return {"model_tokens_per_s": round(ours), "model_ratio": round(ours / plain, 3)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--capacity", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--failures", type=float, default=0.02)
    parser.add_argument("--model-rows", type=int, default=160)
    parser.add_argument("--no-model", action="store_true", help="leave the real model out")
    parser.add_argument("--home", type=Path, help="where the real model is kept between runs")
    parser.add_argument("--serve-model", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve_model:
        serve_model(args.serve_model, args.home)
        return
    folder = Path(tempfile.mkdtemp(prefix="ways-"))
    try:
        found = simulated(folder / "simulated", args)
        if not args.no_model:
            found |= real_model(folder, args)
        print(json.dumps({"benchmark": "ways_to_ask", **found}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
