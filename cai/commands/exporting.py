"""``export``: rows of a data source, or of a finished step, as a file that another trainer reads."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from cai.commands.common import find_run, options, read_plan
from cai.data.formats import FORMATS, TextOptions, export
from cai.data.rows import ROW_TYPES, Row, from_json
from cai.data.splits import OTHER_PART, OVER_LIMIT
from cai.errors import Problem, SpecError, did_you_mean
from cai.files.library import Library
from cai.files.paths import exists, user_path
from cai.run.ledger import HasRows, iter_rows

TEMPLATE = "nemo_extra_id"
_FORMATS = "\n".join(f"  {name:<20} {form.about}" for name, form in FORMATS.items())


def export_verb(args: Sequence[str]) -> int:
    """Stream the rows into the file; it appears when it is whole, and the reasons of all lost rows are told."""
    parsed = _parsed(args)
    out: Path = parsed.out
    if out.is_dir():
        raise SpecError(Problem(f"--out {out}", "is a folder", "give the name of a file"))
    if out.exists() and not parsed.force:
        raise SpecError(Problem(f"--out {out}", "is already there", "give another name, or --force to replace it"))
    text = _text(parsed)
    tally: Counter[str] = Counter()
    rows = _rows(parsed, tally)
    out.parent.mkdir(parents=True, exist_ok=True)
    written = export(out, islice(rows, parsed.limit), parsed.format, text)
    tally.update(written.dropped)
    print(f"{written.rows:,} rows written to {out} ({parsed.format})")
    if parsed.tokenizer:
        print(f"  {written.tokens:,} tokens, {written.longest:,} in the longest text")
    for reason, count in sorted(tally.items()):
        if count and reason not in (OTHER_PART, OVER_LIMIT):
            print(f"  {count:,} dropped: {reason}")
    return 0


def _parsed(args: Sequence[str]) -> argparse.Namespace:
    parser = options("export", "Write rows as a file for another trainer.")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"formats:\n{_FORMATS}"
    parser.add_argument(
        "data", help="public:NAME, hf:NAME@COMMIT:FILE, shipped:NAME, a file, folder or glob; or RUN/STEP of a run"
    )
    parser.add_argument("--format", required=True, choices=list(FORMATS), metavar="FORMAT", help="see below")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    parser.add_argument("--force", action="store_true", help="replace a file that is already there")
    parser.add_argument("--limit", type=_count, metavar="N", help="read at most N rows, the first ones")
    parser.add_argument("--part", help="of a step: train, val ...")
    parser.add_argument("--reader", help="how files are read; jsonl, or what a public name says")
    parser.add_argument("--makes", help="prompts, conversations or comparisons, where the format takes several")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the reader: merge_turns=true"
    )
    parser.add_argument("--revision", help="commit of a hub data set")
    parser.add_argument("--moving", action="store_true", help="take a branch of the hub in place of a commit")
    parser.add_argument("--template", default=TEMPLATE, help=f"chat template of rendered formats ({TEMPLATE})")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="MODEL", help="a .nemo file or model folder that counts tokens"
    )
    parser.add_argument("--max-tokens", type=_count, metavar="N", help="leave longer texts out; needs --tokenizer")
    parser.add_argument(
        "--thinking",
        choices=("keep", "drop"),
        default="keep",
        help="drop: write rows without what was thought; keep: leave such rows out where the format cannot say it",
    )
    parsed = parser.parse_args(list(args))
    if (parsed.tokenizer is None) != (parsed.max_tokens is None):
        raise SpecError(Problem("--max-tokens", "counts the tokens of --tokenizer", "give both or neither"))
    if parsed.tokenizer and not FORMATS[parsed.format].rendered:
        raise SpecError(Problem("--tokenizer", f"{parsed.format} holds messages, not rendered text", "leave it out"))
    return parsed


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("below 1")
    return number


def _text(parsed: argparse.Namespace) -> TextOptions:
    from cai.chat import ChatTemplate, read_text

    library = Library.here()
    path = library.find("prompt_templates", parsed.template, "--template")
    template = ChatTemplate.from_text(parsed.template, read_text(path), library.display_path(path))
    drop_thinking = parsed.thinking == "drop"
    if parsed.tokenizer is None:
        return TextOptions(template, drop_thinking=drop_thinking)
    from cai.data.nemo_tokens import open_tokenizer

    return TextOptions(template, open_tokenizer(parsed.tokenizer).count, parsed.max_tokens, drop_thinking)


def _rows(parsed: argparse.Namespace, tally: Counter[str]) -> Iterator[Row]:
    from cai.data.locate import is_remote
    from cai.data.public import PUBLIC
    from cai.files.library import SHIPPED

    name: str = parsed.data
    if is_remote(name) or name.startswith((SHIPPED, PUBLIC)) or exists(user_path(name)) or set(name) & set("*?["):
        return _source_rows(parsed, tally)
    run, slash, step = name.rstrip("/").rpartition("/")
    if not slash:
        raise SpecError(Problem(name, "is no file here", "give a path, public:NAME, or RUN/STEP of a run"))
    return _step_rows(parsed, run, step)


def _source_rows(parsed: argparse.Namespace, tally: Counter[str]) -> Iterator[Row]:
    import yaml
    from pydantic import ValidationError

    from cai.data.public import expanded
    from cai.data.readers import READERS
    from cai.data.source import DataSource, part_makes, part_rows

    if parsed.part:
        raise SpecError(Problem("--part", "is of a step", "a public set's other part is public:NAME/test"))
    explicit_fields = {
        name: getattr(parsed, name) for name in ("reader", "revision") if getattr(parsed, name) is not None
    }
    reading = {n: yaml.safe_load(v) for n, _, v in (option.partition("=") for option in parsed.option)}
    try:
        fields = dict(expanded({"path": parsed.data, "moving": parsed.moving, "options": reading, **explicit_fields}))
        readable_kinds = (
            READERS[fields.get("reader", "jsonl")].makes if fields.get("reader", "jsonl") in READERS else ()
        )
        accepted_kinds = FORMATS[parsed.format].takes or ("prompts",)
        makes = parsed.makes or next((kind for kind in accepted_kinds if kind in readable_kinds), None)
        source = DataSource.model_validate({**fields, "makes": makes})
    except ValidationError as error:
        problems = [Problem(parsed.data, e["msg"].removeprefix("Value error, ")) for e in error.errors()]
        raise SpecError(problems) from error
    except ValueError as error:
        raise SpecError(Problem(parsed.data, str(error))) from error
    _check_kind(parsed.data, parsed.format, part_makes(source))
    return part_rows(source, next(iter(source.splits)), tally, (Path.cwd(), *Library.here().roots))


def _step_rows(parsed: argparse.Namespace, run: str, name: str) -> Iterator[Row]:
    from cai.store.artifacts import default_store

    folder = find_run(run)
    plan = read_plan(folder / "plan.json")
    names = [step.name for step in plan.steps]
    if name not in names:
        raise SpecError(Problem(name, f"no such step in {folder}", did_you_mean(name, names)))
    step = plan.step(name)
    artifact = default_store().find(step.kind, step.key)
    if artifact is None:
        raise SpecError(Problem(name, "has not been made yet", "run the experiment first"))
    return step_rows(artifact, name, parsed.format, parsed.part)


def step_rows(artifact: HasRows, name: str, form: str, part: str | None) -> Iterator[Row]:
    """The rows of one part of an artifact, which must be fit for the format.

    Raises:
        SpecError: when the artifact holds other rows or none, and when it has several parts and none is named.
    """
    from cai.stages.base import IS_A

    kind = next((k for k in (artifact.makes, *IS_A.get(artifact.makes, ())) if k in ROW_TYPES), artifact.makes)
    _check_kind(name, form, kind)
    parts = sorted(path.stem for path in artifact.path.glob("*.jsonl"))
    if part is None and len(parts) > 1:
        raise SpecError(Problem(name, f"has the parts {', '.join(parts)}", "choose one with --part"))
    return (from_json(ROW_TYPES[kind], raw) for raw in iter_rows(artifact, part))


def _check_kind(where: str, name: str, kind: str) -> None:
    form = FORMATS[name]
    if kind not in (form.takes or ROW_TYPES):
        fitting = [format_name for format_name, its in FORMATS.items() if kind in (its.takes or ROW_TYPES)]
        message = f"{name} holds {' or '.join(form.takes) or 'rows'}, but this makes {kind}"
        raise SpecError(
            Problem(where, message, f"formats for {kind}: {', '.join(fitting)}" if kind in ROW_TYPES else "")
        )
