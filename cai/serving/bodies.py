"""What callers may send, and errors in OpenAI's shape. What this server cannot do is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import anyio
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from cai.chat import Message, ToolCall
from cai.clients.base import Sampling
from cai.errors import did_you_mean

MAX_BODY = 4 * 1024 * 1024
BODY_SECONDS = 30.0
MAX_CHOICES = 16
MAX_PROMPTS = 64


class ApiError(Exception):
    """An error in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code or None}}

    def response(self) -> Response:
        """The HTTP response."""
        # What was not read to its end leaves a connection that cannot be used again.
        headers = {503: {"Retry-After": "1"}, 408: {"Connection": "close"}}.get(self.status)
        return JSONResponse(self.body, self.status, headers)


class _Loose(BaseModel):
    """Part of a request body whose other keys change nothing here."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _StreamOptions(_Loose):
    include_usage: bool = False


# Settings that would change the answer and that no client here has: allowed only at the value that changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
# Settings that say something about the caller or the account and cannot change the answer.
_IDLE = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


class Body(BaseModel):
    """What both endpoints read; ``top_k``, ``repetition_penalty`` and ``min_tokens`` are additions to OpenAI's API."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_ignored(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            raise ApiError(400, "the body must be a JSON object")
        for name, neutral in _NEUTRAL.items():
            if raw.get(name) is not None and raw[name] not in neutral and name not in cls.model_fields:
                raise ApiError(400, f"this server does not support '{name}'", param=name, code="unsupported_parameter")
        return {k: v for k, v in raw.items() if k in cls.model_fields or (k not in _NEUTRAL and k not in _IDLE)}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        stops = [stop] if isinstance(stop, str) else stop
        if isinstance(stops, list) and (len(stops) > 4 or "" in stops):
            raise ValueError("at most 4 stop strings, none of them empty")
        return stops

    def sampling(self, default: Sampling, max_tokens: int, stops: tuple[str, ...]) -> Sampling:
        """How to draw tokens; what the request leaves out is the server's default."""

        def chosen(name: str) -> Any:
            value = getattr(self, name)
            return getattr(default, name) if value is None else value

        names = ("temperature", "top_p", "top_k", "repetition_penalty", "min_tokens")
        stop = tuple(dict.fromkeys((*(self.stop or ()), *stops)))
        return Sampling(max_tokens=max_tokens, stop=stop, **{name: chosen(name) for name in names})


class _CalledFunction(_Loose):
    name: Annotated[str, Field(min_length=1)]
    arguments: str = "{}"


class _CalledTool(_Loose):
    id: str = ""
    type: Literal["function"] = "function"
    function: _CalledFunction

    def tool_call(self) -> ToolCall:
        return ToolCall(self.function.name, self.function.arguments, self.id)


class _Turn(_Loose):
    """A turn as callers send it. What an assistant thought is taken and, as in every prompt, not rendered."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[_CalledTool] | None = None
    function_call: None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        texts: list[str] = []
        for part in content:
            text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            if not isinstance(text, str):
                raise ValueError("only parts of type 'text' can be read")
            texts.append(text)
        return "".join(texts)

    @model_validator(mode="after")
    def _parts_belong_to_the_role(self) -> _Turn:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a turn of role '{self.role}' calls no tool")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError(f"a turn of role '{self.role}' answers no tool call")
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing")
        return self

    def message(self) -> Message:
        return Message(
            "system" if self.role == "developer" else self.role,
            self.content or "",
            (self.reasoning_content or "") if self.role == "assistant" else "",
            tuple(call.tool_call() for call in self.tool_calls or ()),
            self.tool_call_id or "",
            (self.name or "") if self.role == "tool" else "",
        )


class ChatBody(Body):
    """What ``/v1/chat/completions`` reads."""

    messages: Annotated[list[_Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class TextBody(Body):
    """What ``/v1/completions`` reads: raw text, to which no chat template is applied."""

    prompt: Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        return [prompt] if isinstance(prompt, str) else prompt


async def read_body(http: HttpRequest, max_body: int) -> bytes:
    """The JSON body, at most ``max_body`` bytes of it."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps other web pages out: a browser asks before it sends JSON across sites.
        raise ApiError(415, f"send the body as application/json, not '{kind}'", code="unsupported_media_type")
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in http.stream():
                body += chunk
                if len(body) > max_body:
                    raise ApiError(413, f"the body is larger than {max_body} bytes", code="request_too_large")
    except TimeoutError as error:
        message = f"the body has not come within {BODY_SECONDS:g} seconds"
        raise ApiError(408, message, kind="timeout_error", code="request_timeout") from error
    return bytes(body)


B = TypeVar("B", bound=Body)


def parse_body(kind: type[B], raw: bytes) -> B:
    """The request body.

    Raises:
        ApiError: 400 that names the first field that is wrong.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).removeprefix(".")
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown field; " + did_you_mean(param, kind.model_fields)
        raise ApiError(400, f"{param}: {message}" if param else message, param=param or None) from error
