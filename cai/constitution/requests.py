"""The wrappers around requests: taking those of published files off, and putting our own around a plain principle."""

from __future__ import annotations

import re
from string import Template

MARKS = ("CritiqueRequest", "Critique", "RevisionRequest", "Revision", "Options", "Human", "Assistant")
"""What published transcripts put before a part."""

_LEADING = re.compile(r"\s*(?:critique ?request|revision ?request|critique|revision)\s*:\s*", re.IGNORECASE)
_TRAILING = re.compile(
    r"(?:^|(?<=\s))(?:critique ?request|revision ?request|critique|revision|options)\s*:\s*$", re.IGNORECASE
)

REQUESTS = {
    "critique": Template(
        "Here is a principle: $rule Say where the assistant's last answer does not live up to it, and why."
    ),
    "revision": Template(
        "Rewrite the assistant's last answer so that it lives up to this principle, and keep all that is useful: $rule"
    ),
    "comparison": Template("Which of the two answers lives up to this principle better? The principle: $rule"),
}
"""The requests made of a plain principle."""


def requests_for(rule: str) -> dict[str, str]:
    """Critique, revision and comparison requests for one principle stated as a rule."""
    rule = rule.strip()
    if rule and rule[-1] not in ".!?":
        rule += "."
    return {field: template.substitute(rule=rule) for field, template in REQUESTS.items()}


def clean(text: str) -> str:
    """A request without the marks of its transcript: ``CritiqueRequest:`` before, ``Critique:`` after."""
    for _ in range(4):  # marks come in pairs at most; a bound keeps hostile text cheap
        text = _TRAILING.sub("", _LEADING.sub("", text, count=1) if _LEADING.match(text) else text).strip()
    return text


def looks_like_comparison(text: str) -> bool:
    """Whether a request asks which of several answers is better."""
    if re.search(r"options\s*:\s*$", text, re.IGNORECASE):
        return True
    opening = r"\s*(?:please\s+)?(?:choose|compare|select|pick|consider\s+(?:these|the\s+following))\b"
    return bool(re.match(rf"{opening}.{{0,200}}\b(?:answer|response|repl)", text, re.IGNORECASE | re.DOTALL)) or bool(
        re.match(r"\s*which\s+(?:one\s+)?(?:of\s+(?:the|these)\b|(?:answer|response)\b)", text, re.IGNORECASE)
    )
