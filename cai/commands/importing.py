"""``import``: a published principle file becomes a constitution that people can edit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cai.commands.common import options
from cai.constitution import dump_yaml, import_files, lint
from cai.errors import Problem, SpecError
from cai.files.durable import write_durably
from cai.text import exact


def import_verb(args: Sequence[str]) -> int:
    """Read files, lint what came of them, write YAML."""
    parser = options("import", "Read published principle files (or a plain list of principles) into a constitution.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, help="the YAML file to write; without it the text is printed")
    parser.add_argument("--name", help="the constitution's name; by default the name of the file written")
    parser.add_argument("--force", action="store_true", help="replace a file that is already there")
    parsed = parser.parse_args(list(args))
    name = parsed.name or (parsed.out or parsed.files[0]).stem
    constitution = import_files(parsed.files, name)
    text = dump_yaml(constitution)
    if parsed.out is None:
        exact(text)
    else:
        if parsed.out.exists() and not parsed.force:
            raise SpecError(Problem(str(parsed.out), "is already there", "give another name, or --force to replace it"))
        parsed.out.parent.mkdir(parents=True, exist_ok=True)
        write_durably(parsed.out, text)
        print(f"{len(constitution.principles)} principles written to {parsed.out}", file=sys.stderr)
    for finding in lint(constitution):
        print(f"{finding.level}: {finding.where}: {finding.message}; {finding.next}".rstrip("; "), file=sys.stderr)
    return 0
