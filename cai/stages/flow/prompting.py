"""The prompts of a stage: the text file fields of its spec, ready to be filled in."""

from __future__ import annotations

from collections.abc import Sequence

from cai.chat import PromptTemplate
from cai.clients.prompting import Asking, read_records
from cai.stages.base import Context


def asking(ctx: Context, name: str) -> Asking:
    """The prompt template in the text file field ``name``."""
    # Contents must not end a completion either: what stops one is broken in them like a control string.
    guard = tuple(stop for stop in ctx.stops if len(stop) > 1)
    template = PromptTemplate.from_text(name, ctx.texts[name], f"{ctx.name}.{name}", guard)
    if template.format == "chat":
        return Asking(template, ctx.chat, tuple(dict.fromkeys((*template.stops, *ctx.stops))))
    return Asking(template, None, tuple(template.stops))


def records(ctx: Context, name: str, section: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """The list ``section`` of the YAML in the text file field ``name`` (see ``cai.clients.prompting.read_records``)."""
    return read_records(ctx.texts[name], f"{ctx.name}.{name}", section, fields)
