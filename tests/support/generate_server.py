"""A real HTTP server that behaves like NeMo's ``/generate``, with faults to order and a model that needs no weights."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.nemo_rows import TURN
from tests.support.small_tokenizers import quickstart_lines, quickstart_spm

EOD = "<|endoftext|>"


@dataclass
class Fake:
    """A model with a real tokenizer behind upstream's interface. ``faults`` are taken one for each call, then none."""

    processor: Any
    replies: dict[str, str] = field(default_factory=dict)
    mangle: Callable[[str], str] = str
    faults: deque[str] = field(default_factory=deque)
    always: str = ""
    refuses: str = ""
    """A call with a prompt that holds this text is refused."""
    seconds: float = 0.0
    dies_after: int = 10**9
    calls: list[dict[str, Any]] = field(default_factory=list)
    methods: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    busy: int = 0
    most_busy: int = 0

    def answer(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """Upstream's checks in upstream's order, then its generation."""
        if "sentences" not in asked:
            return 500, {"message": "Internal Server Error"}
        if self.refuses and any(self.refuses in sentence for sentence in asked["sentences"]):
            return 400, "a prompt is refused"
        if len(asked["sentences"]) > 128:
            return 400, "Maximum number of sentences is 128"
        if not isinstance(asked.get("tokens_to_generate", 64), int) or asked.get("tokens_to_generate", 64) < 1:
            return 200, "tokens_to_generate must be an integer greater than 0"
        if not 0 < asked.get("temperature", 1.0) <= 100:
            return 200, "temperature must be a positive number less than or equal to 100.0"
        if not asked.get("repetition_penalty", 1.0) >= 1:
            return 200, "repetition_penalty must be a positive number no less than 1.0"
        if not isinstance(asked.get("end_strings", [EOD]), list):
            return 200, "expect end_strings to be a list of strings"
        return 200, self.generate(asked)

    def generate(self, asked: dict[str, Any]) -> dict[str, Any]:
        sp, sentences = self.processor, asked["sentences"]
        bos = [sp.bos_id()] if asked.get("add_BOS") else []
        heads = [bos + sp.encode(text) for text in sentences]
        longest = max(map(len, heads)) + asked["tokens_to_generate"]
        rows = []
        for n, (text, head) in enumerate(zip(sentences, heads, strict=True)):
            ids, ended = list(head), False
            for token in self.written(text, n, asked):
                if len(ids) >= longest or ended:
                    break
                ids.append(token)
                shown = sp.decode(ids)
                ended = token == sp.eos_id() or any(shown.endswith(s) for s in asked["end_strings"] if s != EOD)
            rows.append((ids, ended))
        width = max(len(ids) for ids, _ in rows)
        filled = [ids + [sp.eos_id()] * (width - len(ids)) for ids, _ in rows]
        tokens = [[sp.id_to_piece(token) for token in ids] for ids in filled]
        offsets = [[0, *itertools.accumulate(len(token) for token in row[:-1])] for row in tokens]
        logprob = [[logprob_of(token) for token in ids[1:]] for ids in filled]
        return {
            "sentences": [self.mangle(sp.decode(ids)) for ids in filled],
            "tokens": tokens,
            "token_ids": filled,
            "offsets": offsets,
            "logprob": logprob if asked.get("compute_logprob") else None,
        }

    def written(self, prompt: str, row: int, asked: dict[str, Any]) -> Iterator[int]:
        """A set reply and the end token, or words without end: drawn from seed and row, unless greedy."""
        sp = self.processor
        reply = next((text for part, text in self.replies.items() if part in prompt), None)
        if reply is not None:
            # As it would be written after the prompt, without a space of its own.
            yield from sp.encode(f"\n{reply}")[2:]
            yield sp.eos_id()
            return
        key = (prompt,) if asked["greedy"] or asked["top_k"] == 1 else (prompt, asked["random_seed"], row)
        drawn = random.Random(repr(key))
        said = quickstart_lines()
        while True:
            yield from sp.encode(drawn.choice(said))


def logprob_of(token: int) -> float:
    return -(1 + token % 13) / 8


class Handler(BaseHTTPRequestHandler):
    fake: Fake

    def do_PUT(self) -> None:
        fake = self.fake
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)
        fake.methods[f"{self.command} {self.path}"] += 1
        with fake.lock:
            fake.busy += 1
            fake.most_busy = max(fake.most_busy, fake.busy)
            fault = fake.always or (fake.faults.popleft() if fake.faults else "")
            fault = "reset" if len(fake.calls) >= fake.dies_after else fault
            fake.calls.append({**asked, "fault": fault})
        time.sleep(fake.seconds)
        status, told = fake.answer(asked)
        with fake.lock:
            fake.busy -= 1
        with contextlib.suppress(OSError):  # the client has gone
            self.reply(fault, status, told)

    def do_POST(self) -> None:
        self.send(500, {"message": "Internal Server Error"})

    def reply(self, fault: str, status: int, told: Any) -> None:
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
        elif fault == "hang":
            time.sleep(1.5)
        elif fault == "torn":
            data = json.dumps(told).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
        elif fault == "short":
            told["sentences"].pop()
            self.send(status, told)
        elif fault == "foreign":
            told["sentences"][0] = "Something else altogether."
            told["tokens"][0] = ["▁Some", "thing"]
            told["token_ids"][0] = [5, 6]
            self.send(status, told)
        elif fault.isdigit():
            self.send(int(fault), {"message": "CUDA out of memory"})
        else:
            self.send(status, told)

    def send(self, status: int, told: Any) -> None:
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None: ...


@contextmanager
def serving(fake: Fake) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fake(**settings: Any) -> Fake:
    import sentencepiece

    return Fake(sentencepiece.SentencePieceProcessor(model_proto=quickstart_spm(symbols=(TURN,))), **settings)
