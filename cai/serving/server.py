"""An OpenAI-compatible server around one model: whoever speaks to that API can speak to a finished run.

One thread owns the model and answers what waits in batches; the event loop only parses, queues and sends. When a
caller hangs up, its request leaves the queue, and a streamed answer stops where it is.

The same seed gives the same answer as far as the client promises it: one whose arithmetic depends on what is in the
batch repeats an answer exactly only when the same requests meet again.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import logging
import os
import secrets
import shlex
import socket
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import uvicorn
from rich.console import Console
from rich.text import Text
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cai.clients.base import Completion, Request
from cai.clients.key_hosts import is_loopback
from cai.errors import CaiError, PrerequisiteError
from cai.identity import sampling_seed
from cai.serving.bodies import MAX_BODY, ApiError, Body, ChatBody, TextBody, parse_body, read_body
from cai.serving.connections import KnownCallers, LimitedConnection, Rarely
from cai.serving.model_thread import Event, ModelJob, ModelThread
from cai.terminal.chat import ChatModel
from cai.terminal.output import make_console
from cai.text import plain

_CLOSED = 499  # What servers log when the client hung up; nobody reads the answer.


class _Answers:
    """The choices of one HTTP request: their jobs, and their events in the order they come."""

    def __init__(self, model: ModelThread, requests: Sequence[Request], streamed: bool) -> None:
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def to(index: int) -> Callable[[Event], None]:
            def emit(event: Event) -> None:
                # The loop is closed when the server stopped while the model was busy: nobody listens any more.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

            return emit

        self._jobs = [ModelJob(request, to(i), streamed) for i, request in enumerate(requests)]
        model.submit(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    async def events(self) -> AsyncGenerator[tuple[int, str | Completion]]:
        """(choice, piece of text or the end of the choice) until every choice has ended; cancels them when closed."""
        open_choices = len(self._jobs)
        try:
            while open_choices:
                index, event = await self._events.get()
                if isinstance(event, ApiError):
                    raise event
                if isinstance(event, Exception):
                    raise ApiError(500, f"the model failed ({type(event).__name__})", kind="server_error") from event
                open_choices -= isinstance(event, Completion)
                yield index, event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits for the answers any more."""
        for job in self._jobs:
            job.cancelled.set()

    async def all(self) -> list[Completion]:
        """Every choice, whole, in order."""
        completions: dict[int, Completion] = {}
        async for index, event in self.events():
            if isinstance(event, Completion):
                completions[index] = event
        return [completions[i] for i in range(len(self._jobs))]


def _usage(completions: Sequence[Completion], per_prompt: int) -> dict[str, int]:
    """Tokens read and made; a prompt with several choices is counted once."""
    prompt_tokens, completion_tokens = (
        sum(d.prompt_tokens for d in completions[::per_prompt]),
        sum(d.tokens for d in completions),
    )
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _finish_reason(completion: Completion) -> str:
    """As OpenAI's protocol names it; a prompt that cannot be read is an error and comes to no such end."""
    if completion.tool_calls and not completion.answered:
        return "tool_calls"
    if not completion.answered:
        raise ApiError(400, f"the request cannot be answered: {completion.refused}", code="context_length_exceeded")
    return completion.finish.value


@dataclass(frozen=True)
class _Shape:
    """How one endpoint spells its answers."""

    prefix: str
    whole: str
    part: str

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        text: dict[str, Any] = {"text": completion.text}
        if self.prefix == "chatcmpl":
            thought = {"reasoning_content": completion.thinking} if completion.thinking else {}
            text = {"message": {"role": "assistant", "content": completion.text, "refusal": None, **thought}}
        return {"index": index, **text, "logprobs": None, "finish_reason": _finish_reason(completion)}

    def thought(self, index: int, thinking: str) -> dict[str, Any]:
        delta = {"reasoning_content": thinking}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, index: int, text: str | None, finish: str | None = None, role: bool = False) -> dict[str, Any]:
        body: dict[str, Any] = {"text": text or ""}
        if self.prefix == "chatcmpl":
            body = {"delta": ({"role": "assistant"} if role else {}) | ({"content": text} if text is not None else {})}
        return {"index": index, **body, "logprobs": None, "finish_reason": finish}


_CHAT = _Shape("chatcmpl", "chat.completion", "chat.completion.chunk")
_TEXT = _Shape("cmpl", "text_completion", "text_completion")


def make_app(
    speaker: ChatModel,
    *,
    api_key: str | None = None,
    max_body: int = MAX_BODY,
    max_batch: int = 16,
    max_waiting: int = 256,
    max_tokens: int = 4096,
    local: bool = True,
) -> Starlette:
    """The application: ``/v1/chat/completions``, ``/v1/completions``, ``/v1/models`` and ``/health``.

    ``speaker.name`` is the model's name in the API, ``speaker.sampling`` what a request leaves out (its ``max_tokens``
    included). ``api_key``: callers must send it as a bearer token. ``max_body`` is in bytes, ``max_tokens`` the most a
    request may ask for. ``local``: it listens on loopback, and answers only what is addressed to this machine and comes
    from no other site's page. The caller owns ``speaker.client`` and closes it after the server has stopped.
    """
    model = ModelThread(speaker.client, max_batch, max_waiting)
    card = {"id": speaker.name, "object": "model", "created": int(time.time()), "owned_by": "constitution-as-code"}

    def authorize(http: HttpRequest) -> None:
        token = http.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is not None and not hmac.compare_digest(token.encode(), api_key.encode()):
            raise ApiError(401, "wrong or missing API key", kind="authentication_error", code="invalid_api_key")

    def check_model(name: str) -> None:
        if name != speaker.name:
            raise ApiError(
                404, f"no model '{name}'; this server has '{speaker.name}'", param="model", code="model_not_found"
            )

    def requests_of(body: Body, prompts: list[str], limit: int | None, stops: tuple[str, ...]) -> list[Request]:
        tokens = limit or speaker.sampling.max_tokens
        if tokens > max_tokens:
            raise ApiError(400, f"at most {max_tokens} tokens can be asked for, not {tokens}", param="max_tokens")
        for prompt in prompts:
            count = 0 if speaker.context is None else speaker.count(prompt)
            if speaker.context is not None and count + tokens > speaker.context:
                message = f"the model reads {speaker.context} tokens; the prompt has {count} and {tokens} are asked for"
                raise ApiError(400, message, code="context_length_exceeded")
        sampling = body.sampling(speaker.sampling, tokens, stops)
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed & 0x7FFFFFFF
        n, batch = body.n or 1, uuid.uuid4().hex
        # The first choice has the caller's seed itself; the others must differ from it.
        seeds = [seed if i == 0 else sampling_seed(seed, f"choice {i}", "serve") for i in range(n)]
        return [Request(f"{batch}-{i}-{k}", p, sampling, s) for i, p in enumerate(prompts) for k, s in enumerate(seeds)]

    async def answer(http: HttpRequest, body: Body, requests: list[Request], shape: _Shape) -> Response:
        answers = _Answers(model, requests, streamed=bool(body.stream))
        head = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": speaker.name}
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            head["object"] = shape.part
            events = _sse(answers, head, shape, per_prompt=body.n or 1, usage=usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        work, gone = asyncio.ensure_future(answers.all()), asyncio.ensure_future(_hung_up(http))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=_CLOSED)
            finished_choices = work.result()
        finally:
            answers.cancel()
            work.cancel()
            gone.cancel()
        choices = [shape.choice(i, d) for i, d in enumerate(finished_choices)]
        return JSONResponse(
            {**head, "object": shape.whole, "choices": choices, "usage": _usage(finished_choices, body.n or 1)}
        )

    async def chat_completions(http: HttpRequest) -> Response:
        authorize(http)
        body = parse_body(ChatBody, await read_body(http, max_body))
        check_model(body.model)
        try:
            prompt = speaker.template.prompt([turn.message() for turn in body.messages])
        except (CaiError, ValueError) as error:
            raise ApiError(400, f"the chat template cannot render these messages: {error}", param="messages") from error
        requests = requests_of(body, [prompt], body.max_completion_tokens or body.max_tokens, speaker.template.stops)
        return await answer(http, body, requests, _CHAT)

    async def completions(http: HttpRequest) -> Response:
        authorize(http)
        body = parse_body(TextBody, await read_body(http, max_body))
        check_model(body.model)
        return await answer(http, body, requests_of(body, body.prompt, body.max_tokens, ()), _TEXT)

    async def models(http: HttpRequest) -> Response:
        authorize(http)
        return JSONResponse({"object": "list", "data": [card]})

    async def one_model(http: HttpRequest) -> Response:
        authorize(http)
        check_model(http.path_params["name"])
        return JSONResponse(card)

    async def health(http: HttpRequest) -> Response:
        return JSONResponse({"status": "ok", "model": speaker.name, "waiting": len(model)})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(model.close)

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/health", health),
        ],
        middleware=[Middleware(KnownCallers, local=local)],
        lifespan=lifespan,
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, ClientDisconnect: _nobody},
    )
    app.state.model_name = speaker.name
    app.state.guarded = api_key is not None
    return app


async def _sse(
    answers: _Answers, head: dict[str, Any], shape: _Shape, *, per_prompt: int, usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events: pieces, the end of every choice, the usage if wanted, and ``[DONE]``."""

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        # With usage asked for, OpenAI's chunks carry a null usage until the last.
        return _line({**head, "choices": choices, **({"usage": None} if usage else {}), **more})

    completions: dict[int, Completion] = {}
    async with aclosing(answers.events()) as events:
        if shape is _CHAT:
            for index in range(len(answers)):
                yield event([shape.piece(index, "", role=True)])
        try:
            async for index, chunk in events:
                if isinstance(chunk, Completion):
                    completions[index] = chunk
                    if chunk.thinking and shape is _CHAT:
                        yield event([shape.thought(index, chunk.thinking)])
                    yield event([shape.piece(index, None, _finish_reason(chunk))])
                elif chunk:
                    yield event([shape.piece(index, chunk)])
        except ApiError as error:
            # The status line is sent already: the error can only travel as an event.
            yield _line(error.body)
            return
    if usage:
        yield event([], usage=_usage([completions[i] for i in range(len(answers))], per_prompt))
    yield b"data: [DONE]\n\n"


def _line(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode(errors="replace")


async def _hung_up(http: HttpRequest) -> None:
    """Return when the client has closed the connection; the body has been read before."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _api_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{http.method} {http.url.path}: {error.detail}").response()


async def _nobody(http: HttpRequest, error: Exception) -> Response:
    return Response(status_code=_CLOSED)


def api_key_from(variable: str | None) -> str | None:
    """The API key in the environment variable of that name; None when no name is given.

    Raises:
        PrerequisiteError: when the variable is not set or empty.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise PrerequisiteError(f"--api-key-env {variable}: the environment variable is not set; export it first")
    return key


def make_server(app: Starlette) -> uvicorn.Server:
    """uvicorn with limits on connections, and with logs that a flood of requests does not fill."""
    config = uvicorn.Config(
        app,
        http=LimitedConnection,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(known, Rarely) for known in logger.filters):
            logger.addFilter(Rarely())
    return uvicorn.Server(config)


def serve(app: Starlette, host: str = "127.0.0.1", port: int = 8000, console: Console | None = None) -> None:
    """Serve until Ctrl-C; ``port`` 0 takes a free one.

    Raises:
        PrerequisiteError: when the address cannot be had.
    """
    console = console or make_console()
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        why = "already in use; choose another with --port" if error.errno == errno.EADDRINUSE else str(error)
        raise PrerequisiteError(f"{host}:{port}: {why}") from error
    with listener:
        _announce(app, host, listener.getsockname()[1], console)
        with suppress(KeyboardInterrupt):
            make_server(app).run(sockets=[listener])
    console.print(Text("stopped", style="dim"))


def _announce(app: Starlette, host: str, port: int, console: Console) -> None:
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    guarded = app.state.guarded
    body = json.dumps({"model": app.state.model_name, "messages": [{"role": "user", "content": "Hello"}]})
    console.print(Text(plain(f"{app.state.model_name} is served at {base}/v1 (Ctrl-C stops)"), style="bold"))
    if not guarded and not is_loopback(host):
        console.print(Text(f"warning: {host} is open to others and no API key is asked for (--api-key-env)", "yellow"))
    key = " -H 'Authorization: Bearer '\"$API_KEY\"" if guarded else ""
    console.out(
        f"curl {base}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(plain(body))}",
        highlight=False,
    )
