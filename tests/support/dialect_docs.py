"""The table of dialects as docs/servers.md shows it."""

from __future__ import annotations

from collections.abc import Iterator

from cai.clients.dialect_table import DIALECTS, FIELDS, Dialect, Support

BEGIN = "<!-- dialects: CAI_WRITE_GOLDEN=1 pytest tests/clients/test_dialects.py writes from here ... -->"
END = "<!-- ... to here -->"
WORDS = {Support.HONOURED: "yes", Support.IGNORED: "**ignored**", Support.REFUSED: "refused"}
LABELS = {
    "response_format": "`response_format` (json_schema)",
    "max_completion_tokens": "`max_completion_tokens`",
}


def table() -> str:
    """Markdown: a column for each server that was tried, then what was remarked, then those that were not."""
    tried = {name: dialect for name, dialect in DIALECTS.items() if dialect.tried}
    lines = [
        _line("", *(dialect.title for dialect in tried.values())),
        _line(*["---"] * (len(tried) + 1)),
        _line("`dialect`", *(f"`{name}`" for name in tried)),
        _line("tried", *(dialect.tried for dialect in tried.values())),
    ]
    lines += [
        _line(LABELS.get(field, f"`{field}`"), *(_fate(dialect, field) for dialect in tried.values()))
        for field in FIELDS
    ]
    lines += [_line(label, *cells) for label, cells in _facts(list(tried.values()))]
    lines += ["", *(f"- {dialect.title}: {remark}" for dialect in tried.values() for remark in dialect.remarks)]
    untried = [f"{dialect.title} (`{name}`)" for name, dialect in DIALECTS.items() if not dialect.tried]
    return "\n".join([*lines, "", f"Not tried: {', '.join(untried)}.", ""])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _fate(dialect: Dialect, field: str) -> str:
    plain = WORDS[dialect.plain[field]]
    if field not in dialect.named:
        return plain
    name = dialect.renames.get(field, field)
    words = [] if name == field else [f"`{name}`"]
    if dialect.config_field:
        words.append(f"{'in' if field in dialect.renames else 'by'} `{dialect.config_field}`")
    return f"{plain}; named: {WORDS[dialect.named[field]]}, {' '.join(words)}"


def _facts(tried: list[Dialect]) -> Iterator[tuple[str, list[str]]]:
    yield "stop strings", [f"{dialect.stops}{' or more' * (dialect.stops == 64)}" for dialect in tried]
    yield (
        "`logprobs: top`",
        [
            f"up to {dialect.top_logprobs}{' or more' * (dialect.top_logprobs == 21)}"
            if dialect.top_logprobs
            else "**ignored**"
            for dialect in tried
        ],
    )
    yield "`logprobs: prompt`", ["yes" if dialect.prompt_logprobs else "**ignored**" for dialect in tried]
    yield "field of thoughts", [f"`{name}`" if (name := d.reasoning_field) else "none seen" for d in tried]
    yield "limits a draw by its own", [dialect.own_limits or "nothing" for dialect in tried]
    yield "seeds hold", ["one call at a time" if dialect.alone else "also under load" for dialect in tried]
    yield (
        "known by",
        [
            f"`Server: {dialect.server_header}`"
            if dialect.server_header
            else f"`system_fingerprint: {dialect.fingerprint}...`"
            if dialect.fingerprint
            else "nothing"
            for dialect in tried
        ],
    )
