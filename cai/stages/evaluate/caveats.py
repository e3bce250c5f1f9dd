"""What an evaluation's figures do not show, computed from the figures themselves, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SMALL = 30
CORRELATED = 0.5
GAP = 0.15
OFTEN = 0.1


def caveats(report: Mapping[str, Any]) -> list[str]:
    """Every doubt that the figures of an evaluation give cause for."""
    return [*_of_the_reward_model(report), *_of_the_answers(report), *_of_ratings(report), *_of_principles(report)]


def _of_the_reward_model(report: Mapping[str, Any]) -> Iterator[str]:
    sets = report["reward_model"]
    scored = any(m["reward"] is not None for s in report["sets"].values() for m in s["models"].values())
    if scored and not sets:
        yield "The reward model was checked on no pairs, so nothing says that its rewards mean anything."
    for name, found in sets.items():
        accuracy, longer = found["accuracy"], found["longer_is_better"]
        if accuracy["n"] == 0:
            yield f"'{name}' has no pairs with a preference; the reward model was not checked on it."
            continue
        if accuracy["n"] < SMALL:
            yield f"'{name}' has only {accuracy['n']} pairs; its accuracy is a rough figure."
        if accuracy["low"] <= 0.5:
            yield (
                f"On '{name}' the reward model is right in {accuracy['value']:.0%} of the pairs "
                f"({accuracy['low']:.0%} to {accuracy['high']:.0%}), which is not clearly better than chance."
            )
        if longer["value"] is not None and abs(longer["value"] - 0.5) > 0.25:
            better = max(longer["value"], 1 - longer["value"])
            word = "longer" if longer["value"] > 0.5 else "shorter"
            yield f"In '{name}' the {word} answer is the better one in {better:.0%} of the pairs: length alone does it."
        for group in ("by_topic", "by_kind"):
            for part, value in found[group].items():
                if value["n"] >= 10 and value["high"] < 0.5:
                    yield f"On '{name}', {part}, the reward model prefers worse answers ({value['value']:.0%} right)."
    checked = [(name, f["accuracy"]) for name, f in sets.items() if f["accuracy"]["n"]]
    if len(checked) > 1:
        (best, high), (worst, low) = (f(checked, key=lambda c: c[1]["value"]) for f in (max, min))
        if high["value"] - low["value"] > GAP:
            yield (
                f"The reward model is right in {high['value']:.0%} of '{best}' and {low['value']:.0%} of '{worst}': "
                "it has learnt something that holds for the one and less for the other."
            )


def _of_the_answers(report: Mapping[str, Any]) -> Iterator[str]:
    first = report["models"][0]
    for name, found in report["sets"].items():
        if found["rows"] < SMALL:
            yield f"'{name}' has only {found['rows']} prompts; differences between models on it are rough."
        before = found["models"][first]
        for model, now in found["models"].items():
            where = f"On '{name}', '{model}'"
            correlation = now["reward_length_correlation"]
            if correlation is not None and abs(correlation) >= CORRELATED:
                word = "longer" if correlation > 0 else "shorter"
                yield f"{where}: reward goes with {word} answers (rank correlation {correlation:.2f})."
            refusals = now["refusals"]
            if found["benign"] and refusals["value"] is not None and refusals["value"] > 0.1:
                yield f"{where} refuses {refusals['value']:.0%} of harmless requests."
            if now["different_answers"] is not None and now["different_answers"] < 0.9:
                yield f"{where} gives the same answer to several prompts ({now['different_answers']:.0%} differ)."
            if now["ended"]["value"] is not None and now["ended"]["value"] < 0.7:
                yield f"{where}: only {now['ended']['value']:.0%} of its answers end by themselves; the rest are cut."
            if now["empty"]:
                yield f"{where} gives {now['empty']} empty answers."
            for field, words in (("evasive", "evades the question"), ("repetition", "repeats itself")):
                figure = now.get(field)
                if figure and figure["value"] is not None and figure["value"] > OFTEN:
                    yield f"{where} {words} in {figure['value']:.0%} of its answers."
            if model == first:
                continue
            if (
                before["distinct_2"]
                and now["distinct_2"] is not None
                and now["distinct_2"] < 0.7 * before["distinct_2"]
            ):
                yield f"{where}: answers vary less than those of '{first}' (distinct-2 {now['distinct_2']:.2f})."
            tokens, were = now["tokens"]["value"], before["tokens"]["value"]
            if tokens and were and not 0.5 <= tokens / were <= 2:
                yield f"{where}: answers have {tokens:.0f} tokens on average, those of '{first}' {were:.0f}."
        for win in found["wins"]:
            if win["low"] is not None and win["low"] <= 0.5 <= win["high"]:
                yield f"On '{name}', '{win['model']}' against '{win['against']}': the win rate may be chance."


def _of_ratings(report: Mapping[str, Any]) -> Iterator[str]:
    for axis, found in report.get("elo", {}).items():
        reference, rows = found["reference"], found["rows"]
        if rows < SMALL:
            yield f"The Elo of '{axis}' rests on only {rows} prompts."
        open_ended = [m for m, f in found["models"].items() if m != reference and f["low"] is None]
        if open_ended and rows >= 3:
            told = ", ".join(f"'{model}'" for model in open_ended)
            yield (
                f"On '{axis}' a model won or lost every comparison, so how far {told} is from '{reference}' in Elo "
                "follows from the prior; read it as 'at least so far'."
            )


def _of_principles(report: Mapping[str, Any]) -> Iterator[str]:
    for label, found in report.get("revisions", {}).items():
        if found["rows"] < SMALL:
            yield f"'{label}' has only {found['rows']} revised answers; figures by round and by principle are rough."
        last = found["rounds"][-1]["change"] if found["rounds"] else None
        if last and last["low"] is not None and last["low"] <= 0:
            word = "lower" if last["high"] < 0 else "do not clearly raise"
            yield f"The revisions of '{label}' {word} the reward."
    asked = report.get("adherence", {})
    if asked:
        judge = asked["model"]
        yield f"Which principles are violated is the opinion of '{judge}': compare models by it, not principles."
        if asked["asked"] and asked["unread"] / asked["asked"] > OFTEN:
            share = asked["unread"] / asked["asked"]
            yield f"Of what '{judge}' was asked about principles, {share:.0%} has no readable answer."
