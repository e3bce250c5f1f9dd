"""What an evaluation's figures do not show, computed from the figures themselves, in plain words."""

from __future__ import annotations

from collections.abc import Iterator

from cai.figures.evaluation import PHRASES, Evaluation, ModelFigures, PromptSetFigures, RewardModelFigures

SMALL = 30
CORRELATED = 0.5
GAP = 0.15
OFTEN = 0.1


def caveats(evaluation: Evaluation) -> list[str]:
    """Every doubt that the figures of an evaluation give cause for."""
    return [
        *_of_the_reward_model(evaluation),
        *_of_the_answers(evaluation),
        *_of_grades(evaluation),
        *_of_ratings(evaluation),
        *_of_principles(evaluation),
    ]


def _of_the_reward_model(evaluation: Evaluation) -> Iterator[str]:
    sets = evaluation.reward_model
    scored = any(m.reward is not None for s in evaluation.sets.values() for m in s.models.values())
    if scored and not sets:
        yield "The reward model was checked on no pairs, so nothing says that its rewards mean anything."
    for name, figures in sets.items():
        yield from _of_pairs(name, figures)
    shares = {name: figures.accuracy.value for name, figures in sets.items()}
    checked = [(name, share) for name, share in shares.items() if share is not None]
    if len(checked) > 1:
        (best, high), (worst, low) = (choose(checked, key=lambda pair: pair[1]) for choose in (max, min))
        if high - low > GAP:
            yield (
                f"The reward model is right in {high:.0%} of '{best}' and {low:.0%} of '{worst}': "
                "it has learnt something that holds for the one and less for the other."
            )


def _of_pairs(name: str, figures: RewardModelFigures) -> Iterator[str]:
    accuracy, longer = figures.accuracy, figures.longer_is_better.value
    if accuracy.value is None or accuracy.low is None:
        yield f"'{name}' has no pairs with a preference; the reward model was not checked on it."
        return
    if accuracy.n < SMALL:
        yield f"'{name}' has only {accuracy.n} pairs; its accuracy is a rough figure."
    if accuracy.low <= 0.5:
        yield (
            f"On '{name}' the reward model is right in {accuracy.value:.0%} of the pairs "
            f"({accuracy.low:.0%} to {accuracy.high:.0%}), which is not clearly better than chance."
        )
    if longer is not None and abs(longer - 0.5) > 0.25:
        better = max(longer, 1 - longer)
        word = "longer" if longer > 0.5 else "shorter"
        yield f"In '{name}' the {word} answer is the better one in {better:.0%} of the pairs: length alone does it."
    for shares in (figures.by_topic, figures.by_kind):
        for part, share in shares.items():
            if share.n >= 10 and share.high is not None and share.high < 0.5:
                yield f"On '{name}', {part}, the reward model prefers worse answers ({share.value:.0%} right)."


def _of_the_answers(evaluation: Evaluation) -> Iterator[str]:
    first = evaluation.models[0]
    for name, prompt_set in evaluation.sets.items():
        if prompt_set.rows < SMALL:
            yield f"'{name}' has only {prompt_set.rows} prompts; differences between models on it are rough."
        for model, figures in prompt_set.models.items():
            where = f"On '{name}', '{model}'"
            yield from _of_a_model(where, prompt_set, figures)
            if model != first:
                yield from _of_a_change(where, first, prompt_set.models[first], figures)
        for win in prompt_set.wins:
            if win.low is not None and win.high is not None and win.low <= 0.5 <= win.high:
                yield f"On '{name}', '{win.model}' against '{win.against}': the win rate may be chance."


def _of_a_model(where: str, prompt_set: PromptSetFigures, figures: ModelFigures) -> Iterator[str]:
    correlation = figures.reward_length_correlation
    if correlation is not None and abs(correlation) >= CORRELATED:
        word = "longer" if correlation > 0 else "shorter"
        yield f"{where}: reward goes with {word} answers (rank correlation {correlation:.2f})."
    refused = figures.refusals.value
    if prompt_set.benign and refused is not None and refused > OFTEN:
        yield f"{where} refuses {refused:.0%} of harmless requests."
    if figures.different_answers is not None and figures.different_answers < 0.9:
        yield f"{where} gives the same answer to several prompts ({figures.different_answers:.0%} differ)."
    if figures.ended.value is not None and figures.ended.value < 0.7:
        yield f"{where}: only {figures.ended.value:.0%} of its answers end by themselves; the rest are cut."
    if figures.empty:
        yield f"{where} gives {figures.empty} empty answers."
    for share, words in ((figures.evasive, "evades the question"), (figures.repetition, "repeats itself")):
        if share.value is not None and share.value > OFTEN:
            yield f"{where} {words} in {share.value:.0%} of its answers."


def _of_a_change(where: str, first: str, before: ModelFigures, after: ModelFigures) -> Iterator[str]:
    if before.distinct_2 and after.distinct_2 is not None and after.distinct_2 < 0.7 * before.distinct_2:
        yield f"{where}: answers vary less than those of '{first}' (distinct-2 {after.distinct_2:.2f})."
    tokens, tokens_before = after.tokens.value, before.tokens.value
    if tokens and tokens_before and not 0.5 <= tokens / tokens_before <= 2:
        yield f"{where}: answers have {tokens:.0f} tokens on average, those of '{first}' {tokens_before:.0f}."


def _of_ratings(evaluation: Evaluation) -> Iterator[str]:
    for axis, rated in evaluation.elo.items():
        if rated.rows < SMALL:
            yield f"The Elo of '{axis}' rests on only {rated.rows} prompts."
        open_ended = [m for m, figure in rated.models.items() if m != rated.reference and figure.low is None]
        if open_ended and rated.rows >= 3:
            models = ", ".join(f"'{model}'" for model in open_ended)
            yield (
                f"On '{axis}' a model won or lost every comparison, so how far {models} is from '{rated.reference}' in "
                "Elo follows from the prior; read it as 'at least so far'."
            )


def _of_grades(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.grader != PHRASES:
        yield (
            "Refusals and evasions are found by rules that know English and miss most partial refusals; "
            "docs/evaluation.md says how often people agree with them."
        )


def _of_principles(evaluation: Evaluation) -> Iterator[str]:
    for label, revised in evaluation.revisions.items():
        if revised.rows < SMALL:
            yield f"'{label}' has only {revised.rows} revised answers; figures by round and by principle are rough."
        last = revised.rounds[-1].change if revised.rounds else None
        if last and last.low is not None and last.low <= 0:
            word = "lower" if last.high is not None and last.high < 0 else "do not clearly raise"
            yield f"The revisions of '{label}' {word} the reward."
    if adherence := evaluation.adherence:
        judge = adherence.model
        yield f"Which principles are violated is the opinion of '{judge}': compare models by it, not principles."
        if adherence.asked and adherence.unread / adherence.asked > OFTEN:
            share = adherence.unread / adherence.asked
            yield f"Of what '{judge}' was asked about principles, {share:.0%} has no readable answer."
