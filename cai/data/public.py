"""Public data sets by name: what ``path: public:hh-rlhf/helpful-base`` stands for, one line each in one table.

A name is only a shorter way to write where the files are on the hub or on GitHub, at which commit, and how they are
read. It is replaced by that when an experiment is read, so the plan shows what is meant, and a name and its meaning
written out are the same step. What the experiment says itself (``reader``, ``revision``, ``expect``) wins. A new set is
one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cai.data.locate import GITHUB, HUB, HubFile, published_place
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
    """One data set. ``commit`` pins it; where that is None the experiment must say ``revision`` or ``moving``.

    ``options`` are the reader's, ``sha256`` the digests of files at that commit, where they are known. ``checked`` says
    that digests and rows were held against the files themselves; else rows are those of the paper or the hub's page.
    A set that is ``evaluation_only`` is never trained on.
    """

    hub: str
    commit: str | None
    reader: str
    files: Mapping[str, Files]
    about: str
    host: str = HUB
    licence: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluation_only: bool = False
    checked: bool = False
    sha256: Mapping[str, str] = field(default_factory=dict)


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


def _or_bench(file: str, rows: int, label: str, about: str) -> PublicSet:
    files = {"test": Files((f"{file}.csv",), rows)}
    more: dict[str, Any] = {"licence": "CC-BY-4.0", "options": {"label": label}, "evaluation_only": True}
    return PublicSet("bench-llm/or-bench", None, "or_bench", files, about, **more)


def _hhh(part: str, rows: int) -> PublicSet:
    files = {"test": Files((f"data/{part}/task.json",), rows)}
    more: dict[str, Any] = {"licence": "Apache-2.0", "options": {"topic": part}, "evaluation_only": True}
    about = f"pairs, which is more {part}" if part != "other" else "pairs, which is better otherwise"
    return PublicSet("HuggingFaceH4/hhh_alignment", None, "hhh_alignment", files, about, **more)


def _on_github(hub: str, reader: str, files: Mapping[str, Files], about: str) -> PublicSet:
    more: dict[str, Any] = {"host": GITHUB, "licence": "MIT", "evaluation_only": True}
    return PublicSet(hub, None, reader, files, about, **more)


def _strongreject(name: str, rows: int, about: str) -> PublicSet:
    files = {"test": Files((f"strongreject_dataset/{name}.csv",), rows)}
    return _on_github("alexandrasouly/strongreject", "strongreject", files, about)


_BEHAVIORS = {
    part: Files((f"data/behavior_datasets/harmbench_behaviors_text_{part}.csv",), rows)
    for part, rows in (("all", 400), ("val", 80), ("test", 320))
}
_XSTEST = {"test": Files(("xstest_prompts.csv",), 450)}
# 450 records with one chosen and three rejected answers each.
_REWARDBENCH_SAFETY = {"test": Files(("data/test-00000-of-00001.parquet",), 1_350)}

SETS: dict[str, PublicSet] = {
    "hh-rlhf/harmless-base": _pairs("pairs, which is less harmful", 42_537, 2_312, "harmless-base"),
    "hh-rlhf/helpful-base": _pairs("pairs, which helps more: base models", 43_835, 2_354, "helpful-base"),
    "hh-rlhf/helpful-online": _pairs("the same: models trained on the way", 22_007, 1_137, "helpful-online"),
    "hh-rlhf/helpful-rejection-sampled": _pairs("the same: best of many", 52_421, 2_749, "helpful-rejection-sampled"),
    "hh-rlhf/helpful": _pairs("the three helpful parts together", 118_263, 6_240, *_ALL_HELPFUL),
    "hh-rlhf/red-team-attempts": PublicSet(*_HH, "hh_red_team", _ATTEMPTS, "conversations that attack a model"),
    "sft_datablend_v1": PublicSet("nvidia/sft_datablend_v1", None, "sft_datablend", _BLEND, "conversations that help"),
    # Of the sets below neither commits nor digests are known here, and their rows were not counted (`checked`).
    "xstest": PublicSet(
        "Paul/XSTest",
        None,
        "xstest",
        _XSTEST,
        "250 safe requests that sound unsafe, 200 unsafe ones",
        licence="CC-BY-4.0",
        evaluation_only=True,
    ),
    "or-bench/80k": _or_bench("or-bench-80k", 80_359, "safe", "safe requests that models tend to refuse"),
    "or-bench/hard": _or_bench("or-bench-hard-1k", 1_319, "safe", "the same: those that several models refused"),
    "or-bench/toxic": _or_bench("or-bench-toxic", 655, "unsafe", "requests to be declined"),
    "strongreject": _strongreject("strongreject_dataset", 313, "forbidden requests"),
    "strongreject/small": _strongreject("strongreject_small_dataset", 60, "the same, a part"),
    "harmbench": _on_github("centerforaisafety/HarmBench", "harmbench", _BEHAVIORS, "harmful behaviors, text alone"),
    "hhh/harmless": _hhh("harmless", 58),
    "hhh/helpful": _hhh("helpful", 59),
    "hhh/honest": _hhh("honest", 61),
    "hhh/other": _hhh("other", 43),
    "rewardbench-2/safety": PublicSet(
        "allenai/reward-bench-2",
        None,
        "rewardbench",
        _REWARDBENCH_SAFETY,
        "pairs: which answer is safer, one against three",
        licence="ODC-BY-1.0",
        options={"subset": ["Safety"]},
        evaluation_only=True,
    ),
}


def public_sets() -> Iterator[tuple[str, str]]:
    """Every name as it is written in ``path``, and what it is, for lists."""
    for name, public_set in SETS.items():
        parts = " or ".join(f"/{part}" for part in public_set.files)
        licence = f"; {public_set.licence}" if public_set.licence else ""
        checked = "" if public_set.checked else ", rows and digest not checked"
        only = f"; for evaluation only{checked}" if public_set.evaluation_only else ""
        yield PUBLIC + name, f"{public_set.about} ({public_set.hub}; {parts}{licence}{only})"


def evaluation_only(paths: Sequence[str]) -> list[str]:
    """The names of the sets for evaluation only of which ``paths`` read a file, at whatever commit."""
    places = set(map(published_place, paths))
    return [
        name
        for name, public in SETS.items()
        if public.evaluation_only and any(places & _places(public, files) for files in public.files.values())
    ]


def published_digest(remote: HubFile) -> str | None:
    """The SHA-256 that a file was published with; None where it is not known."""
    for public in SETS.values():
        pinned = (public.host, public.hub, public.commit) == (remote.host, remote.name, remote.revision)
        if pinned and remote.file in public.sha256:
            return public.sha256[remote.file]
    return None


def published_rows(paths: Sequence[str]) -> tuple[int, bool] | None:
    """How many rows the files of one evaluation set were published with, and whether that was checked here."""
    places = set(map(published_place, paths))
    for public in SETS.values():
        for files in public.files.values():
            if public.evaluation_only and places == _places(public, files):
                return files.rows, public.checked
    return None


def _places(public: PublicSet, files: Files) -> set[tuple[str, str, str] | None]:
    return {(public.host, public.hub, path) for path in files.paths}


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
        if options := _options(sets_by_path):
            fields["options"] = {**options, **(raw.get("options") or {})}
    if "expect" not in raw and len(public_paths) == len(paths) and len(written) == len(distinct):
        fields["expect"] = sum(files.rows for _, files in sets_by_path.values())
    return fields


def _options(sets_by_path: Mapping[str, tuple[PublicSet, Files]]) -> Mapping[str, Any]:
    """What the names say of how they are read.

    Raises:
        ValueError: where two names say different things.
    """
    options_by_name = {name: public.options for name, (public, _) in sets_by_path.items()}
    (first, options), *others = options_by_name.items()
    for name, different in others:
        if different != options:
            raise ValueError(
                f"one source has one set of options, but {first} is read with {dict(options)} and {name} with "
                f"{dict(different)}; make them two sources"
            )
    return options


def _find(path: str) -> tuple[PublicSet, Files]:
    name = path.removeprefix(PUBLIC)
    if name in SETS:
        files = SETS[name].files
        return SETS[name], files[_DEFAULT if _DEFAULT in files else next(iter(files))]
    name, _, part = name.rpartition("/")
    if name in SETS:
        if part not in SETS[name].files:
            raise ValueError(f"'{path}': no part '{part}'; it has {' and '.join(SETS[name].files)}")
        return SETS[name], SETS[name].files[part]
    raise ValueError(f"'{path}' is no public data set; {did_you_mean(path.removeprefix(PUBLIC), SETS)}")


def _hub_paths(path: str, public: PublicSet, files: Files, raw: Mapping[str, Any]) -> list[str]:
    pin = ""
    if raw.get("revision") is None:
        if public.commit is None and (raw.get("moving") is not True or public.host != HUB):
            message = f"'{path}' has no commit that this program knows"
            branch = ", or `moving: true` to take its main branch" if public.host == HUB else ""
            raise ValueError(f"{message}; give `revision:` the commit's 40 digits{branch}")
        pin = f"@{public.commit or 'main'}"
    return [f"{public.host}{public.hub}{pin}:{file}" for file in files.paths]
