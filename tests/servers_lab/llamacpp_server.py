"""llama.cpp's own server from the wheel of xllamacpp, which brings no command: ``llamacpp_server.py GGUF PORT``.

A program of its own, which runs in a virtual environment without this project.
"""

from __future__ import annotations

import signal
import sys

import xllamacpp  # type: ignore[import-not-found]

SLOTS = 4


def main(model: str, port: int) -> None:
    """Serve until the process is ended."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {"lab"}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = 1024 * SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
