"""Templates that did not ship render in a warm process of their own, with limits of time and memory for each render.

``CAI_RENDER_SECONDS`` (1) is processor time, ``CAI_RENDER_MB`` (256) memory: the user's own settings, so they stand in
the environment and not in an experiment. The process has nothing of the environment but where libraries lie, and JSON
is all that comes back.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import markupsafe
import yaml

from cai.chat.child import HEADER
from cai.chat.sandbox import MAX_TEXT, Inspection, Rendered, TemplateFailure
from cai.errors import PrerequisiteError, Problem, SpecError

SECONDS, MEGABYTES = "CAI_RENDER_SECONDS", "CAI_RENDER_MB"

_START = "import sys; sys.path += sys.argv[3:]; from cai.chat.child import main; main()"
_FOLDERS = tuple(
    dict.fromkeys(str(Path(module.__file__ or "").resolve().parents[1]) for module in (jinja2, markupsafe, yaml))
)
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
"""Without these the Python of some clusters does not start."""

_PATIENCE = 60.0
"""Seconds by the clock, beside many times the limit, in which an answer must come: a template cannot wait."""

_MAX_ANSWER = 8 * MAX_TEXT
"""Bytes of an answer; a character has at most four, or six where JSON escapes it."""


@dataclass(frozen=True)
class Limits:
    """Of one render: processor time, and memory beyond what the process has when it starts."""

    seconds: float = 1.0
    megabytes: float = 256.0

    @classmethod
    def from_environment(cls) -> Limits:
        """The user's own settings.

        Raises:
            SpecError: for what is no number, or no sane one.
        """
        return cls(_setting(SECONDS, cls.seconds, 3600), _setting(MEGABYTES, cls.megabytes, 2**20))


Answer = TypeVar("Answer", Inspection, Rendered)


class _ProcessGone(Exception):
    """The process ended without an answer."""


class TemplateProcess:
    """The process, started when it is first needed and again after it ended; one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._parents: subprocess.Popen[bytes] | None = None
        self._limits = Limits()

    @property
    def pid(self) -> int | None:
        """Which process it is now; none before it is needed."""
        return None if self._process is None else self._process.pid

    def check(self, text: str) -> None:
        """As ``sandbox.check``.

        Raises:
            TemplateFailure: also past the limits.
        """
        self._answer(text, None, _inspection)

    def inspect(self, text: str) -> Inspection:
        """As ``sandbox.inspect``.

        Raises:
            TemplateFailure: also past the limits.
        """
        return self._answer(text, None, _inspection)

    def render(self, text: str, values: dict[str, Any]) -> Rendered:
        """As ``sandbox.render``.

        Raises:
            TemplateFailure: also past the limits.
        """
        return self._answer(text, values, _rendered)

    def stop(self) -> None:
        """End the process, if there is one."""
        process = self._process
        self._process = None
        if process is not None:
            process.kill()
            _close(process)
            process.wait()

    def forget(self) -> None:
        """After a fork: the process answers to the parent, and ends with it."""
        self._lock = threading.Lock()
        self._parents = self._process  # kept: when it is collected, Python looks for a child that is another's
        self._process = None
        if self._parents is not None:
            _close(self._parents)

    def _answer(self, text: str, values: dict[str, Any] | None, read: Callable[[dict[str, Any]], Answer]) -> Answer:
        payload = json.dumps({"text": text, "values": values}, ensure_ascii=False).encode("utf-8", "surrogatepass")
        with self._lock:
            try:
                return self._ask(payload, read)
            except _ProcessGone:  # by another's hand, perhaps: a signal to the whole group
                try:
                    return self._ask(payload, read)
                except _ProcessGone as error:
                    raise TemplateFailure(f"ended the process in which it rendered ({error})") from error

    def _ask(self, payload: bytes, read: Callable[[dict[str, Any]], Answer]) -> Answer:
        """One request and what ``read`` makes of its answer.

        Raises:
            TemplateFailure: as the process says, or past the limits.
            _ProcessGone: the process was gone, or went, or answers what is no answer.
        """
        process = self._process or self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(len(payload).to_bytes(HEADER, "little") + payload)
            process.stdin.flush()
            size = int.from_bytes(self._received(process, HEADER), "little")
            if size > _MAX_ANSWER:
                raise ValueError(f"an answer of {size:,} bytes")
            answer = json.loads(self._received(process, size).decode("utf-8", "surrogatepass"))
            if "limit" in answer:
                raise self._past(str(answer["limit"]), int(answer["line"]))
            if "error" in answer:
                raise TemplateFailure(str(answer["error"]), int(answer["line"]), bool(answer["refused"]))
            return read(answer)
        except TemplateFailure:
            raise
        except Exception as error:  # whatever a process may say that a template took over
            self.stop()
            if process.returncode == -signal.SIGVTALRM:
                raise self._past("time", 0) from error
            raise _ProcessGone(f"{error or type(error).__name__}; exit code {process.returncode}") from error
        except BaseException:  # Ctrl-C: the answer would be taken for that to the next request
            self.stop()
            raise

    def _past(self, limit: str, line: int) -> TemplateFailure:
        self.stop()
        if limit == "time":
            return TemplateFailure(
                f"takes longer than {self._limits.seconds:g} s of processor time; loop over less, or allow more with "
                f"{SECONDS}",
                line,
            )
        return TemplateFailure(
            f"needs more than {self._limits.megabytes:g} MB; build smaller values, or allow more with {MEGABYTES}", line
        )

    def _received(self, process: subprocess.Popen[bytes], size: int) -> bytes:
        assert process.stdout is not None
        fd, parts, missing = process.stdout.fileno(), list[bytes](), size
        poll = select.poll()  # select would take no descriptor above 1,023
        poll.register(fd, select.POLLIN)
        while missing:
            if not poll.poll(1000 * (_PATIENCE + 30 * self._limits.seconds)):
                raise EOFError("no answer")
            part = os.read(fd, min(missing, 2**20))
            if not part:
                process.wait()
                raise EOFError("no answer")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _started(self) -> subprocess.Popen[bytes]:
        self._limits = Limits.from_environment()
        limits = (str(self._limits.seconds), str(int(self._limits.megabytes)))
        cai = str(Path(__file__).resolve().parents[2])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, *limits, cai, *_FOLDERS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                cwd="/",
            )
        except OSError as error:
            raise PrerequisiteError(f"no process can be started to render a template in ({error})") from error
        return self._process


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        with suppress(OSError):
            if stream is not None:
                stream.close()


def _setting(name: str, default: float, most: float) -> float:
    text = os.environ.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise SpecError(Problem(name, f"is {text!r}, no number above 0 and at most {most:g}", f"default {default:g}"))
    return value


def _inspection(answer: dict[str, Any]) -> Inspection:
    return Inspection(frozenset(answer["every"]), frozenset(answer["required"]), bool(answer["alters"]))


def _rendered(answer: dict[str, Any]) -> Rendered:
    return Rendered(str(answer["text"]), [(int(start), int(end)) for start, end in answer["blocks"]])


PROCESS = TemplateProcess()
atexit.register(PROCESS.stop)
os.register_at_fork(after_in_child=PROCESS.forget)
