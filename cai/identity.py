"""Identity: one canonical encoding, keys made from it, and random numbers counted instead of streamed.

A key is the SHA-256 of a canonical JSON text. The encoder refuses what has no stable form, so that two runs of the
same thing always agree. Every random draw is a function of (seed, row id, purpose): rows do not depend on order,
on batches, or on how many there are.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

KEY_LENGTH = 64
_BLOCK = 1 << 18


class _Runtime:
    """Marks a field that cannot change a result: ``concurrency: Annotated[int, RUNTIME] = 16``."""

    def __repr__(self) -> str:
        return "RUNTIME"


RUNTIME = _Runtime()


@dataclass(frozen=True, slots=True)
class Added:
    """Marks a field that came after stores had been made: ``min_tokens: Annotated[int, ADDED(0)] = 0``.

    At ``value``, which is what the program did before the field was there, the field is left out of the ingredients,
    so that every key made before stays. Any other value counts.
    """

    value: Any


ADDED = Added


def canonical(value: Any) -> str:
    """Canonical JSON of plain data: sorted keys, no spaces, shortest floats that round-trip.

    Raises:
        TypeError: for anything without a stable text (sets, objects, bytes, non-string keys).
        ValueError: for NaN and infinities.
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says, as plain data.

    Raises:
        ValueError: for whatever is no JSON, and for what nests deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nests too deep") from error


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return _plain(value.value, where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no canonical form; use a finite number")
        # 1.0 and 1 are the same setting however the YAML spells it.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is {type(key).__name__}; keys must be strings")
        return {str(k): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise TypeError(f"{where}: {type(value).__name__} has no canonical form")


def key_of(value: Any) -> str:
    """SHA-256 of ``canonical(value)``, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits; reads it once, in blocks."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


_ODD = re.compile("[\0\ud800-\udfff]")


def odd_texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Texts in plain data that no file holds and nothing can be hashed of: (field path, what is odd)."""
    if isinstance(value, str):
        if odd := _ODD.search(value):
            yield path, "holds a NUL" if odd[0] == "\0" else f"holds half a character (\\u{ord(odd[0]):x})"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if _ODD.search(str(key)):
                yield path, "has a field whose name is no text"
            else:
                yield from odd_texts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from odd_texts(inner, f"{path}[{number}]")


def path_digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, of the names and digests of the files in it (not of folders below)."""
    if path.is_file():
        return file_digest(path)
    return key_of({file.name: file_digest(file) for file in sorted(path.iterdir()) if file.is_file()})


def row_id(*parts: str) -> str:
    """A row's id from what the row is about (its prompt): 16 hexadecimal digits."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def counted(seed: int, row: str, purpose: str) -> int:
    """A 64-bit number that is a function of (seed, row, purpose) alone."""
    digest = hashlib.blake2b(f"{seed}\x1f{row}\x1f{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform(seed: int, row: str, purpose: str) -> float:
    """A number in the open interval (0, 1), a function of (seed, row, purpose) alone."""
    return (counted(seed, row, purpose) + 0.5) / 2.0**64


def sampling_seed(seed: int, row: str, purpose: str) -> int:
    """A 31-bit seed for a sampler, a function of (seed, row, purpose) alone."""
    return counted(seed, row, purpose) & 0x7FFFFFFF


def rendezvous(seed: int, row: str, purpose: str, weights: Iterable[tuple[str, float]]) -> str:
    """Draw one id from (id, weight) pairs by weighted rendezvous hashing.

    Adding an id moves only the rows that now draw it (about w / total); changing what an id stands for moves none.
    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998, with -w / ln(u) scores.

    Raises:
        ValueError: when no id has a positive weight.
    """
    best, best_score = None, -math.inf
    for name, weight in weights:
        if weight <= 0:
            continue
        score = -weight / math.log(uniform(seed, row, f"{purpose}\x1e{name}"))
        if score > best_score or (score == best_score and best is not None and name < best):
            best, best_score = name, score
    if best is None:
        raise ValueError("nothing to draw: every weight is zero")
    return best


def rendezvous_order(seed: int, row: str, purpose: str, weights: Iterable[tuple[str, float]]) -> list[str]:
    """All ids with a positive weight, in the order in which ``rendezvous`` would draw them without replacement."""
    scored = [(-w / math.log(uniform(seed, row, f"{purpose}\x1e{n}")), n) for n, w in weights if w > 0]
    return [name for _, name in sorted(scored, key=lambda pair: (-pair[0], pair[1]))]


def unit(seed: int, row: str, purpose: str, parts: Mapping[str, float]) -> str:
    """Assign a row to one of the named parts with the given shares (they need not sum to one)."""
    draw, total = uniform(seed, row, purpose) * sum(parts.values()), 0.0
    for name, share in parts.items():
        total += share
        if draw < total:
            return name
    return list(parts)[-1]  # Rounding may leave the sum a hair below the draw.


def is_commit(revision: str) -> bool:
    """Whether a revision is the 40 digits of a commit, and so can never name anything else; a branch or a tag can."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None
