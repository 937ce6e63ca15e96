"""Why rows were left out, in words, in the order in which a round asks."""

from __future__ import annotations

from collections.abc import Iterable

REASONS = {
    "no_conversation": "a prompt or an answer is missing",
    "unknown_role": "a turn of another role than system, user and assistant",
    "turns_out_of_order": "turns that do not alternate and end with the assistant",
    "empty_content": "an empty prompt or answer",
    "not_text": "a prompt or an answer that is no text",
    "repeated": "the very row stands there twice",
    "leaks_evaluation": "asks what a target, validation or test row asks",
    "already_selected": "an earlier round trained on it",
    "too_short": "answer too short",
    "too_long": "longer than the model reads, or than gates.max_chars",
    "holds_secret": "holds an API or private key",
    "holds_email": "holds an e-mail address",
    "resembles_evaluation": "holds text of a target, validation or test row",
    "source_flood": "its source had brought enough rows",
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
