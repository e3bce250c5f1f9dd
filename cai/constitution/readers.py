"""From published files to a constitution of ours, and back out as YAML."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cai.constitution.few_shots import few_shot_rows
from cai.constitution.model import Constitution, Principle
from cai.constitution.resolve import SCHEMA_PATH, load_constitution
from cai.constitution.shapes import (
    MAX_PRINCIPLES,
    MAX_TEXT,
    READERS,
    Draft,
    drafts_of,
    make_slug,
    ours,
    shape_of,
    with_unique_ids,
)
from cai.errors import Problem, SpecError
from cai.files.yaml_lines import dumps, loads, read_text


def read_data(path: Path) -> Any:
    """A file as data: JSON, JSON lines or YAML by its suffix; any other file as text, unless it is JSON.

    Raises:
        SpecError: when it cannot be read.
    """
    text = read_text(path)
    kind = path.suffix.lower()
    if not text.strip():
        raise SpecError(Problem(str(path), "is empty"))
    if kind == ".jsonl":
        return [_json(line, f"{path}:{n}") for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if kind in (".yaml", ".yml"):
        return loads(text, str(path))[0]
    if kind == ".json":
        return _json(text, str(path))
    if text.lstrip()[0] in "[{":
        try:
            json.loads(text)
        except json.JSONDecodeError:
            return text
        except RecursionError:
            pass  # JSON without end: reported below
        return _json(text, str(path))
    return text


def _json(text: str, where: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in pairs:
            if key in mapping:
                raise SpecError(Problem(where, f"key {key!r:.60} is there twice", "keep one"))
            mapping[key] = value
        return mapping

    try:
        data = json.loads(text, object_pairs_hook=once)
        # Half of a surrogate pair is legal in JSON and in no file that we could write.
        json.dumps(data, ensure_ascii=False).encode()
        return data
    except json.JSONDecodeError as error:
        line = f"{where}:{error.lineno}" if "\n" in text else where
        raise SpecError(Problem(line, f"is not valid JSON ({error.msg})")) from error
    except UnicodeEncodeError as error:
        raise SpecError(Problem(where, "holds half of a surrogate pair, which is no text")) from error
    except RecursionError as error:
        raise SpecError(Problem(where, "nests too deeply", "is it the right file?")) from error


def import_files(paths: list[Path], name: str) -> Constitution:
    """One constitution from published files.

    Where one set of files gives critiques and revisions and another the same number of comparisons, they are paired
    by position; otherwise comparisons become principles of their own.

    Raises:
        SpecError: when a file is unreadable, has an unknown shape, or holds no principle; all files are looked at.
    """
    drafts: list[Draft] = []
    alone: Constitution | None = None
    problems: list[Problem] = []
    for path in paths:
        try:
            parsed = _parse_file(path)
            if isinstance(parsed, Constitution):
                alone, parsed = parsed, drafts_of(parsed)
            drafts += parsed
        except SpecError as error:
            problems += error.problems
    if not problems and not drafts:
        problems.append(Problem(", ".join(map(str, paths)) or "import", "no principle found"))
    if len(drafts) > MAX_PRINCIPLES:
        message = f"{len(drafts)} principles are more than {MAX_PRINCIPLES}"
        problems.append(Problem(name, message, "is it the right file?"))
    for draft in drafts:
        if (size := max(len(draft.critique), len(draft.revision), len(draft.comparison))) > MAX_TEXT:
            problems.append(
                Problem(name, f"a principle has {size} characters, more than {MAX_TEXT}", "is it one rule?")
            )
    if problems:
        raise SpecError(problems)
    if alone is not None and len(paths) == 1:
        # Our own format keeps its preamble, source and licence.
        return alone.model_copy(update={"name": name})
    principles = tuple(Principle.model_validate(asdict(d)) for d in with_unique_ids(_paired(drafts)))
    return Constitution(name=name, source=", ".join(p.name for p in paths), principles=principles)


def _parse_file(path: Path) -> list[Draft] | Constitution:
    data = read_data(path)
    shape = shape_of(data)
    if shape is None:
        supported = "a list of principles, critique and revision requests, comparisons, Markdown, or our own YAML"
        raise SpecError(Problem(str(path), "has no shape that is known", f"wanted: {supported}"))
    if shape == "ours":
        sentences = isinstance(data.get("principles"), list) and any(isinstance(p, str) for p in data["principles"])
        yaml = path.suffix.lower() in (".yaml", ".yml")
        # From YAML with its lines, and with what it extends found beside it.
        return load_constitution(path) if yaml and not sentences else ours(data, str(path))
    drafts = [d for d in READERS[shape](data, str(path)) if d.critique or d.revision or d.comparison]
    if not drafts:
        raise SpecError(Problem(str(path), "no principle found", "a principle is a list item or a paragraph"))
    return drafts


def _paired(drafts: list[Draft]) -> list[Draft]:
    comparisons = [d for d in drafts if d.only_comparison]
    others = [d for d in drafts if not d.only_comparison]
    if len(comparisons) == len(others) and not any(d.comparison for d in others):
        return [replace(d, comparison=c.comparison) for d, c in zip(others, comparisons, strict=True)]
    return drafts


def read_few_shots(path: Path) -> list[dict[str, str]]:
    """Few-shot rows for critique and revision from a published file.

    Each row has ``prompt``, ``response``, ``critique_request``, ``critique``, ``revision_request``, ``revision``.
    Read are ``{"samples": [[six messages], ...]}``, lists of such, transcripts with ``Human:`` ... ``Revision:``
    marks, and lists of such rows.

    Raises:
        SpecError: when the file holds something else, or a sample lacks a part; all samples are looked at.
    """
    return few_shot_rows(read_data(path), str(path))


_DEFAULTS = {
    "critique": "",
    "revision": "",
    "comparison": "",
    "tags": [],
    "weight": 1.0,
    "rationale": "",
    "priority": 0,
}


def dump_yaml(constitution: Constitution, command: str = "") -> str:
    """A constitution as a file: block style, a header that says how it was made, defaults left out.

    Reading it back gives the same constitution. ``command`` is what follows ``python -m cai import``.
    """
    head = {k: v for k, v in constitution.to_json().items() if v and k != "principles"}
    principles = [
        {k: v for k, v in p.model_dump(mode="json").items() if k == "id" or v != _DEFAULTS[k]}
        for p in constitution.principles
    ]
    arguments = command or f"FILE... --out constitutions/{make_slug(constitution.name) or 'mine'}.yaml"
    lines = [
        f"# yaml-language-server: $schema=../{SCHEMA_PATH}",
        f"# Made with: python -m cai import {' '.join(arguments.split())}",
    ]
    blocks = [dumps(head)] + [_indented(p) for p in principles]
    return "\n".join(lines) + "\n" + blocks[0] + "principles:\n" + "\n".join(blocks[1:])


def _indented(principle: dict[str, Any]) -> str:
    # Dumped as a list under its key, so that folded lines are indented as they must be.
    return dumps({"principles": [principle]}).removeprefix("principles:\n")
