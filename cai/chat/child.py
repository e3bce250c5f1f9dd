"""The process in which templates render that did not ship: no files, no secrets, little time and little memory.

``python -I -S -c ... SECONDS MEGABYTES`` reads requests from its standard input and writes answers to its standard
output, each a length of 8 bytes and JSON. A request is ``{"text", "values"}``; without values it asks what the source
says. An answer is ``{"text", "blocks"}``, ``{"every", "required", "alters"}``, ``{"error", "line", "refused"}``, or
``{"limit", "line"}`` with "time" or "memory", after which the process ends.

Time is the processor's, so that a busy machine does not count against a template. One timer raises, which tells the
line; where that cannot get through (a multiplication of huge numbers), another one ends the process.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any, BinaryIO

from cai.chat.sandbox import TemplateFailure, check, inspect, line_of, render

SLACK = 1.25
"""How many times the limit of time a render takes before the process is ended."""

HEADER = 8
"""Bytes that say how long a message is."""


WARM = (
    r"{{ 'a\n' ~ 1 ~ 1.5 ~ (x | tojson) ~ (x | pprint) ~ (x | wordwrap(9)) ~ (x | urlize) ~ ([3, 1] | sum) }}",
    "{% for a in x | groupby(0) %}{{ a }}{% break %}{% endfor %}{% generation %}{{ x }}{% endgeneration %}",
    "{{ missing }}",
    "{% no %}",
)
"""Templates, good ones and bad ones, that import what rendering imports: later no file can be opened."""


class RenderTimeout(BaseException):
    """The processor's time is over; no ``except Exception`` of a filter stops it."""


def main() -> None:
    """Answer until the input ends."""
    for number in (signal.SIGINT, signal.SIGPROF, signal.SIGVTALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the program; this ends with it
    seconds, megabytes = float(sys.argv[1]), int(sys.argv[2])
    read, write = os.fdopen(0, "rb"), os.fdopen(1, "wb")
    for text in WARM:
        answer({"text": text, "values": {"x": "warm"}}, seconds)
    _confine(megabytes * 2**20)
    signal.signal(signal.SIGPROF, _out_of_time)
    while request := _received(read):
        reply = answer(json.loads(request), seconds)
        payload = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
        write.write(len(payload).to_bytes(HEADER, "little") + payload)
        write.flush()
        if "limit" in reply:
            return


def answer(request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a template makes of its values, or says of itself."""
    try:
        _timers(seconds)
        try:
            if request["values"] is None:
                check(request["text"])
                report = inspect(request["text"])
                return {"every": sorted(report.every), "required": sorted(report.required), "alters": report.alters}
            rendered = render(request["text"], request["values"])
            return {"text": rendered.text, "blocks": rendered.blocks}
        finally:
            _timers(0)
    except TemplateFailure as error:
        if isinstance(error.__cause__, MemoryError):
            return {"limit": "memory", "line": error.line}
        return {"error": error.message[:2000], "line": error.line, "refused": error.refused}
    except MemoryError:
        return {"limit": "memory", "line": 0}
    except Exception as error:
        return {"error": f"{error or type(error).__name__}"[:2000], "line": 0, "refused": False}
    except RenderTimeout as error:
        return {"limit": "time", "line": line_of(request["text"], error)}


def _received(file: BinaryIO) -> bytes:
    header = file.read(HEADER)
    return file.read(int.from_bytes(header, "little")) if len(header) == HEADER else b""


def _out_of_time(*_: object) -> None:
    raise RenderTimeout


def _timers(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds * SLACK)


def _confine(memory: int) -> None:
    """No memory beyond ``memory`` bytes more than now, no file, no process."""
    with suppress(OSError):  # only Linux says how much is mapped, and keeps this limit
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = mapped + memory if most == resource.RLIM_INFINITY else min(mapped + memory, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
