"""Why rows were left out, in words, in the order in which a round asks."""

from __future__ import annotations

from collections.abc import Iterable

REASONS = {
    "leaks_evaluation": "asks what a target, validation or test row asks",
    "already_selected": "an earlier round trained on it",
    "special_token_in_text": "text holds one of the model's special tokens",
    "too_long": "longer than the model reads",
    "non_finite": "no usable gradient",
    "quarantined_norm": "gradient far too large: often broken text",
    "same_text": "nearly the words of a chosen row",
    "near_duplicate": "nearly the gradient of a chosen row",
    "beyond_reach": "too far from every target row",
    "implausible_answer": "answer more likely wrong than right",
    "over_source_cap": "its source had its share already",
    "over_token_budget": "no tokens left for it",
    "not_needed": "better rows filled the budget",
}


def in_words(stage: str) -> str:
    """A reason's slug for people; one that is not listed tells itself."""
    return REASONS.get(stage, stage.replace("_", " "))


def in_order(stages: Iterable[str]) -> list[str]:
    """Reasons in the order in which a round asks; those that are not listed come first."""
    order = list(REASONS)
    return sorted(stages, key=lambda s: (order.index(s) if s in REASONS else -1, s))
