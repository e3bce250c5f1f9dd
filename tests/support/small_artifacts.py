"""What the store's tests share: making a small artifact, and harming it."""

import time
from pathlib import Path

from cai.identity import key_of
from cai.store.artifacts import Build, Store, Stored

KEY = key_of("one")
NAME = f"sft-{KEY[:16]}"


def commit(build: Build, **outcome: object) -> Stored:
    ledger = {"rows_in": 1, "rows_out": 1, "dropped": {}, "parts": {}}
    return build.commit(
        makes="model", seed=3, seconds=1.5, ingredients={"kind": "sft"}, outcome={"ledger": ledger, **outcome}
    )


def make(store: Store, key: str = KEY, kind: str = "sft", text: str = "weights") -> Stored:
    with store.building(kind, key) as build:
        assert build.stored is None
        (build.out / "model.bin").write_text(text)
        (build.out / "deep").mkdir()
        (build.out / "deep" / "config.json").write_text("{}")
        return commit(build)


def settle() -> None:
    time.sleep(0.02)  # change times move in steps of some milliseconds


def flip(path: Path) -> None:
    settle()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
