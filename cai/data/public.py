"""Public data sets by name: what ``path: public:hh-rlhf/helpful-base`` stands for, one line each in one table.

A name is only a shorter way to write where the files are on the hub, at which commit, and how they are read. It is
replaced by that when an experiment is read, so the plan shows what is meant, and a name and its meaning written out
are the same step. What the experiment says itself (``reader``, ``revision``, ``expect``) wins. A new set is one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cai.data.locate import HUB
from cai.errors import did_you_mean

PUBLIC = "public:"
_DEFAULT = "train"


@dataclass(frozen=True)
class Files:
    """One part that the publisher made, ``train`` or ``test``: files in the repository, and how many rows they have.

    ``rows`` is for estimates before the files are here, never for the result.
    """

    paths: tuple[str, ...]
    rows: int


@dataclass(frozen=True)
class PublicSet:
    """One data set. ``commit`` pins it; where that is None the experiment must say ``revision`` or ``moving``."""

    hub: str
    commit: str | None
    reader: str
    files: Mapping[str, Files]
    about: str


_HH = ("Anthropic/hh-rlhf", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa")


def _pairs(about: str, train: int, test: int, *folders: str) -> PublicSet:
    files = {
        part: Files(tuple(f"{folder}/{part}.jsonl.gz" for folder in folders), rows)
        for part, rows in (("train", train), ("test", test))
    }
    return PublicSet(*_HH, "hh_rlhf", files, about)


_ATTEMPTS = {"train": Files(("red-team-attempts/red_team_attempts.jsonl.gz",), 38_961)}
_BLEND = {"train": Files(("sft_datablend_v1.jsonl",), 128_000)}
_ALL_HELPFUL = ("helpful-base", "helpful-online", "helpful-rejection-sampled")

SETS: dict[str, PublicSet] = {
    "hh-rlhf/harmless-base": _pairs("pairs, which is less harmful", 42_537, 2_312, "harmless-base"),
    "hh-rlhf/helpful-base": _pairs("pairs, which helps more: base models", 43_835, 2_354, "helpful-base"),
    "hh-rlhf/helpful-online": _pairs("the same: models trained on the way", 22_007, 1_137, "helpful-online"),
    "hh-rlhf/helpful-rejection-sampled": _pairs("the same: best of many", 52_421, 2_749, "helpful-rejection-sampled"),
    "hh-rlhf/helpful": _pairs("the three helpful parts together", 118_263, 6_240, *_ALL_HELPFUL),
    "hh-rlhf/red-team-attempts": PublicSet(*_HH, "hh_red_team", _ATTEMPTS, "conversations that attack a model"),
    "sft_datablend_v1": PublicSet("nvidia/sft_datablend_v1", None, "sft_datablend", _BLEND, "conversations that help"),
}


def public_sets() -> Iterator[tuple[str, str]]:
    """Every name as it is written in ``path``, and what it is, for lists."""
    for name, public_set in SETS.items():
        parts = " or ".join(f"/{part}" for part in public_set.files)
        yield PUBLIC + name, f"{public_set.about} ({public_set.hub}; {parts})"


def expanded(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A data source's fields with every public name replaced by what it stands for; others stay as they are.

    Raises:
        ValueError: for an unknown name, one that is not pinned, and names of several formats without a ``reader``.
    """
    path = raw.get("path")
    paths = list(path) if isinstance(path, list | tuple) else [path]
    public_paths = [p for p in paths if isinstance(p, str) and p.startswith(PUBLIC)]
    if not public_paths:
        return raw
    sets_by_path = {name: _find(name) for name in public_paths}
    fields = dict(raw)
    written: list[Any] = []
    for each in paths:
        written += _hub_paths(each, *sets_by_path[each], raw) if each in sets_by_path else [each]
    distinct = [each for i, each in enumerate(written) if each not in written[:i]]
    fields["path"] = distinct[0] if len(distinct) == 1 else tuple(distinct)
    if "reader" not in raw:
        readers = {public.reader: name for name, (public, _) in sets_by_path.items()}
        if len(readers) > 1:
            listing = ", ".join(f"{name} is {reader}" for reader, name in readers.items())
            raise ValueError(f"one source has one reader, but {listing}; make them two sources")
        fields["reader"] = next(iter(readers))
    if "expect" not in raw and len(public_paths) == len(paths) and len(written) == len(distinct):
        fields["expect"] = sum(files.rows for _, files in sets_by_path.values())
    return fields


def _find(path: str) -> tuple[PublicSet, Files]:
    name = path.removeprefix(PUBLIC)
    if name in SETS:
        return SETS[name], SETS[name].files[_DEFAULT]
    name, _, part = name.rpartition("/")
    if name in SETS:
        if part not in SETS[name].files:
            raise ValueError(f"'{path}': no part '{part}'; it has {' and '.join(SETS[name].files)}")
        return SETS[name], SETS[name].files[part]
    raise ValueError(f"'{path}' is no public data set; {did_you_mean(path.removeprefix(PUBLIC), SETS)}")


def _hub_paths(path: str, public: PublicSet, files: Files, raw: Mapping[str, Any]) -> list[str]:
    pin = ""
    if raw.get("revision") is None:
        if public.commit is None and raw.get("moving") is not True:
            message = f"'{path}' has no commit that this program knows"
            raise ValueError(
                f"{message}; give `revision:` the commit's 40 digits, or `moving: true` to take its main branch"
            )
        pin = f"@{public.commit or 'main'}"
    return [f"{HUB}{public.hub}{pin}:{file}" for file in files.paths]
