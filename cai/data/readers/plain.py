"""The project's own simple shapes, chat messages, and NeMo-RL preference rows: one JSON object a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cai.chat import Message
from cai.data.readers.messages import CALL, ROLE_NAMES, answer, messages_of, turns_of
from cai.data.readers.shape import Odd, clean, comparison, pair, prompt_or_conversation, text_of
from cai.data.rows import Row

_OURS = {"id", "prompt", "answer", "chosen", "rejected", "messages", "system", "topic", "p_chosen", "meta"}


def simple(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """``prompt``; with ``answer``; with ``chosen`` and ``rejected``; ``messages`` instead of ``prompt``; whole rows.

    ``system`` and ``topic`` are optional, ``chosen`` and ``rejected`` may be whole exchanges, ``p_chosen`` is a soft
    label, and other plain keys go to the row's ``meta``. ``columns`` renames: ``{prompt: question}``.
    """
    renamed = options.get("columns") or {}
    if renamed:
        raw = {
            **{k: v for k, v in raw.items() if k not in renamed.values()},
            **{k: raw.get(v) for k, v in renamed.items()},
        }
    more: dict[str, Any] = {"topic": clean(raw.get("topic") or ""), "meta": _meta(raw)}
    if makes == "comparisons":
        chosen, rejected = raw.get("chosen"), raw.get("rejected")
        more["p_chosen"] = 1.0 if raw.get("p_chosen") is None else raw["p_chosen"]
        if isinstance(chosen, list) or isinstance(rejected, list):
            return pair(_led(raw, messages_of(chosen)), _led(raw, messages_of(rejected)), **more)
        answers = [answer(text_of(raw, key)).content for key in ("chosen", "rejected")]
        return comparison(_prompt_messages(raw), *answers, **more)
    messages = _prompt_messages(raw)
    if makes == "conversations" and raw.get("messages") is None:
        messages = (*messages, answer(text_of(raw, "answer")))
    return prompt_or_conversation(makes, messages, **more)


def openai_messages(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """``{"messages": [{"role", "content", ...}, ...]}``; a system turn may come first."""
    if raw.get("messages") is None:
        raise Odd("missing_messages")
    return prompt_or_conversation(makes, messages_of(raw["messages"]))


def nemo_chat(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """``{"system", "conversations": [{"from", "value", "label"?}], "mask", "dataset"}`` as NeMo's SFT reads it.

    ``mask`` names the role on which no loss is taken: the user, whatever the file calls it.
    """
    if raw.get("conversations") is None:
        raise Odd("missing_conversations")
    turns = raw["conversations"]
    if not isinstance(turns, list) or not all(isinstance(t, Mapping) for t in turns):
        raise Odd("wrong_type")
    mask = raw.get("mask")
    if isinstance(mask, str) and any(t.get("from") == mask for t in turns):
        messages = tuple(said for t in turns for said in turns_of(t, _masked_role(t, mask), "value"))
    else:
        messages = messages_of(turns, "from", "value")
    label = next((t["label"] for t in reversed(turns) if isinstance(t.get("label"), str)), None)
    return prompt_or_conversation(makes, _led(raw, messages), meta={"dataset": raw.get("dataset"), "label": label})


def _masked_role(turn: Mapping[str, Any], mask: str) -> str:
    """Whoever is not the user is the assistant, whatever the file calls it, but for tools."""
    name = turn.get("from")
    if name == mask:
        return "user"
    role = ROLE_NAMES.get(name.strip().lower(), "") if isinstance(name, str) else ""
    return role if role in ("tool", CALL) else "assistant"


def nemo_rl_preference(raw: Mapping[str, Any], makes: str, options: Mapping[str, Any]) -> Row:
    """``{"context": [...], "completions": [{"rank", "completion": [...]}, ...]}``: rank 0 is the best.

    Of more than two completions the best and the worst are compared.
    """
    if raw.get("context") is None or raw.get("completions") is None:
        raise Odd("missing_context" if raw.get("context") is None else "missing_completions")
    context = raw["context"]
    before = (Message("user", clean(context)),) if isinstance(context, str) else messages_of(context)
    ranked = []
    if not isinstance(raw["completions"], list):
        raise Odd("wrong_type")
    for item in raw["completions"]:
        if not isinstance(item, Mapping) or isinstance(item.get("rank"), bool) or not isinstance(item.get("rank"), int):
            raise Odd("wrong_type")
        ranked.append((item["rank"], (*before, *messages_of(item.get("completion")))))
    if len(ranked) < 2:
        raise Odd("one_completion")
    ranked.sort(key=lambda entry: entry[0])
    if ranked[0][0] == ranked[-1][0]:
        raise Odd("tie")
    return pair(ranked[0][1], ranked[-1][1])


def _prompt_messages(raw: Mapping[str, Any]) -> tuple[Message, ...]:
    if raw.get("messages") is not None:
        return _led(raw, messages_of(raw["messages"]))
    if isinstance(raw.get("prompt"), list):
        return _led(raw, messages_of(raw["prompt"]))
    return _led(raw, (Message("user", text_of(raw, "prompt")),))


def _led(raw: Mapping[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    system = clean(raw.get("system") or "")
    return (Message("system", system), *messages) if system else messages


def _meta(raw: Mapping[str, Any]) -> dict[str, Any]:
    own = raw.get("meta")
    return {**{k: v for k, v in raw.items() if k not in _OURS}, **(own if isinstance(own, Mapping) else {})}
