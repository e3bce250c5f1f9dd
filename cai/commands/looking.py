"""``list``, ``show``, ``schema``, ``rows`` and ``store``: look, change nothing (but ``store gc``)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cai.commands.common import find_run, named_constitution, options, read_plan
from cai.errors import Problem, SpecError, did_you_mean
from cai.files.library import GROUPS, Library
from cai.files.yaml_lines import load as load_yaml
from cai.text import exact, json_text


def list_verb(args: Sequence[str]) -> int:
    """Names by group, with the first line that each file says of itself."""
    parser = options("list", "What can be named: experiments, constitutions, templates, public data.")
    parser.add_argument("group", nargs="?", choices=sorted({*GROUPS, *GROUPS.values(), "data"}))
    parsed = parser.parse_args(list(args))
    library = Library.here()
    for group, folder in GROUPS.items():
        if parsed.group in (None, group, folder):
            print(f"{group}=")
            for name, path in library.names(folder):
                print(f"  {name:<24} {_about(path)}".rstrip())
    if parsed.group in (None, "data"):
        from cai.data.public import public_sets

        print("data (path: public:NAME)")
        for name, about in public_sets():
            print(f"  {name:<34} {about}")
    return 0


def _about(path: Path) -> str:
    try:
        return _description(path)
    except SpecError:
        return ""  # asking for it says why


def _description(path: Path) -> str:
    if path.suffix == ".yaml" and path.parent.name != "few_shots":
        data, _ = load_yaml(path)
        described = data.get("description", "") if isinstance(data, dict) else ""
        return " ".join(str(described).split())[:90]
    if path.suffix == ".jinja":
        from cai.chat import description_of, read_text

        return description_of(read_text(path))[:90]
    return ""


def show_verb(args: Sequence[str]) -> int:
    """One item, rendered: an experiment composed, a constitution resolved, a template with a sample conversation."""
    parser = options("show", "One item, rendered.", True)
    parsed = parser.parse_intermixed_args(list(args))
    library = Library.here()
    first, *rest = parsed.overrides or ["experiment=quickstart"]
    group, equals, name = first.partition("=")
    if not equals:
        group, name = _group_of(library, first), first
    if group == "constitution":
        from cai.constitution import dump_yaml

        exact(dump_yaml(named_constitution(library, name)))
    elif group == "template":
        _show_template(library, name)
    else:
        import yaml

        from cai.experiment.compose import compose
        from cai.experiment.model import parse

        composed = compose(parsed.overrides if equals else [f"experiment={name}", *rest], library)
        parse(composed.data, composed.where)
        exact(yaml.safe_dump(composed.data, sort_keys=False, allow_unicode=True, width=110))
    return 0


def _group_of(library: Library, name: str) -> str:
    all_names: list[str] = []
    for group, folder in GROUPS.items():
        names = [n for n, _ in library.names(folder)]
        if name in names:
            return group
        all_names += names
    raise SpecError(
        Problem(name, "no experiment, constitution or template of that name", did_you_mean(name, all_names))
    )


def _show_template(library: Library, name: str) -> None:
    from cai.chat import ChatTemplate, Message, PromptTemplate, is_chat, read_text

    path = library.find("prompt_templates", name)
    text = read_text(path)
    where = library.display_path(path)
    print(f"# {where}")
    if not is_chat(text):
        exact(text)  # a prompt template or a few-shot file: its text is what there is to see
        if path.suffix == ".jinja":
            PromptTemplate.from_text(name, text, where)  # a bad one is an error, below its text
        return
    template = ChatTemplate.from_text(name, text, where)
    talk = (Message("user", "Hello!"), Message("assistant", "Hello, how can I help?"), Message("user", "Tell me more."))
    print(template.prompt(talk))
    print(f"# stop strings: {', '.join(map(repr, template.stops)) or 'none'}")


def schema_verb(args: Sequence[str]) -> int:
    """JSON Schema on standard output or into a folder."""
    parser = options("schema", "JSON Schema of the files that people write, for editors.")
    parser.add_argument("what", nargs="?", choices=("experiment", "constitution"), default="experiment")
    parser.add_argument("--out", type=Path, help="write both schemas into this folder")
    parsed = parser.parse_args(list(args))
    from cai.constitution import constitution_schema
    from cai.experiment.schema import experiment_schema

    schemas = {"experiment": experiment_schema, "constitution": constitution_schema}
    if parsed.out is None:
        print(json.dumps(schemas[parsed.what](), indent=1))
        return 0
    try:
        parsed.out.mkdir(parents=True, exist_ok=True)
        for name, make in schemas.items():
            (parsed.out / f"{name}.schema.json").write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        reason = "it is a file" if parsed.out.is_file() else error.strerror
        message = f"{parsed.out} cannot be written into ({reason})"
        raise SpecError(Problem("--out", message, "name a folder: both schemas go into it")) from error
    return 0


def rows_verb(args: Sequence[str]) -> int:
    """The ledger of a run; with a step, its rows."""
    parser = options("rows", "Rows in = rows out + dropped, for each step; with STEP, the rows themselves.")
    parser.add_argument("run", nargs="?", help="run folder or experiment; by default the newest run")
    parser.add_argument("step", nargs="?")
    parser.add_argument("--why", action="store_true", help="the reasons for which rows were dropped")
    parser.add_argument("--limit", type=int, default=10, help="rows to print (0: all)")
    parser.add_argument("--part", help="train, val ... for a step with parts")
    parsed = parser.parse_args(list(args))
    from cai.run.ledger import iter_rows, ledger_table
    from cai.terminal.listing import print_ledger

    run = find_run(parsed.run)
    plan = read_plan(run / "plan.json")
    from cai.store.artifacts import default_store

    table = ledger_table(plan, default_store())
    if parsed.step is None:
        print_ledger(table, parsed.why)
        return 0
    names = [step.name for step in plan.steps]
    if parsed.step not in names:
        raise SpecError(Problem(parsed.step, f"no such step in {run}", did_you_mean(parsed.step, names)))
    if parsed.why:
        print_ledger([line for line in table if line.step == parsed.step], True)
        return 0
    step = plan.step(parsed.step)
    artifact = default_store().find(step.kind, step.key)
    if artifact is None:
        raise SpecError(Problem(parsed.step, "has not been made yet", "run the experiment first"))
    for count, row in enumerate(iter_rows(artifact, parsed.part)):
        if parsed.limit and count >= parsed.limit:
            print(f"... more; --limit 0 prints all ({artifact.path})", file=sys.stderr)
            break
        print(json_text(row))
    return 0


def store_verb(args: Sequence[str]) -> int:
    """``ls``, ``verify`` and ``gc``."""
    parser = options("store", "The artifacts that runs share.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=type(parser))
    actions.add_parser("ls", help="what is there, its size, and which runs use it")
    verify = actions.add_parser("verify", help="recompute every digest")
    verify.add_argument(
        "--repair", action="store_true", help="set damaged artifacts aside, so that they are made again"
    )
    clean = actions.add_parser("gc", help="remove what no run refers to")
    clean.add_argument("--dry-run", action="store_true", help="only say what would go")
    clean.add_argument("--requests", action="store_true", help="also the answers that the request cache keeps")
    clean.add_argument("--older-than", type=float, default=0.0, metavar="DAYS", help="only what was unused for so long")
    parsed = parser.parse_args(list(args))
    from cai.files.durable import size_text
    from cai.store import upkeep
    from cai.store.artifacts import default_store
    from cai.terminal.listing import print_removed, print_store

    store = default_store()
    if parsed.action == "ls":
        print_store(upkeep.ls(store))
        caches = upkeep.request_caches(store.home)
        if caches:
            size = size_text(sum(size for _, size, _ in caches))
            print(f"request cache: {len(caches)} model{'s' * (len(caches) != 1)}, {size} (gc --requests removes it)")
        return 0
    if parsed.action == "verify":
        findings = upkeep.verify(store, repair=parsed.repair)
        for finding in findings:
            print(finding)
        print(f"{len(findings)} problem{'s' * (len(findings) != 1)} found")
        return 1 if findings and not parsed.repair else 0
    older = parsed.older_than * 86400
    removed = upkeep.gc(store, older_than=older, dry_run=parsed.dry_run)
    if parsed.requests:
        removed += upkeep.gc_requests(store.home, older, parsed.dry_run)
    print_removed(removed, parsed.dry_run)
    return 0
