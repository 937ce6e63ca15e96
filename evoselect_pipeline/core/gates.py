"""What a candidate must pass before selection looks at it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evoselect_pipeline.core.contamination import EvaluationText, Hit
from evoselect_pipeline.core.private_text import email_in, secret_in
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.core.selection import Rejection
from evoselect_pipeline.core.settings import GateSettings
from evoselect_pipeline.core.text_keys import evaluation_keys, prompt_key


@dataclass(frozen=True)
class Passage:
    """What came of a round's candidates at the gates.

    `hits` are the rows that hold text of an evaluation row, by their ids: a list to look through,
    since what a few words betray is not always a leak.
    """

    passed: list[Sample]
    rejected: list[Rejection]
    hits: dict[str, Hit]


def gate(
    samples: Sequence[Sample],
    trusted: Sequence[Sample],
    settings: GateSettings,
    selected_before: frozenset[str] = frozenset(),
) -> Passage:
    """Let through what may be selected; say of every other row why not.

    Parameters
    ----------
    samples : sequence of Sample
        Well-formed candidates of one round; a row that is there twice is looked at once.
    trusted : sequence of Sample
        Target, validation and test rows, which must never be trained on.
    selected_before : frozenset of str
        Ids of rows that an earlier round has already trained on.

    Returns
    -------
    Passage
        `rejected` holds one per distinct row left out, the first reason of: `leaks_evaluation`,
        `already_selected`, `too_short`, `too_long`, `holds_secret`, `holds_email`,
        `resembles_evaluation`, `source_flood`.
    """
    asked = evaluation_keys(trusted)
    text = None
    if settings.overlap == "quarantine":
        text = EvaluationText(trusted, settings.ngram, settings.near_copy)
    from_source: Counter[str] = Counter()
    passage = Passage([], [], {})
    for sample in {sample.sample_id: sample for sample in samples}.values():
        leak = asked.get(prompt_key(sample))
        if leak is not None:
            passage.hits[sample.sample_id] = Hit(leak, "same_prompt", "its prompt, as it is")
            found = ("leaks_evaluation", f"its prompt is that of evaluation row {leak}", leak)
        elif sample.sample_id in selected_before:
            found = ("already_selected", "an earlier round has trained on this very row", "")
        elif found := next(_unfit(sample, settings), None):
            pass
        elif text and (hit := text.hit(sample)):
            passage.hits[sample.sample_id] = hit
            reason = f"it holds text of evaluation row {hit.evaluation_id}: {hit.evidence}"
            found = ("resembles_evaluation", reason, hit.evaluation_id)
        elif from_source[sample.source] == settings.max_per_source:
            reason = f"{settings.max_per_source} rows of {sample.source!r} had passed before"
            found = ("source_flood", reason, "")
        else:
            from_source[sample.source] += 1
            passage.passed.append(sample)
            continue
        passage.rejected.append(Rejection(sample.sample_id, *found))
    return passage


def _unfit(sample: Sample, settings: GateSettings) -> Iterator[tuple[str, str, str]]:
    """Why a row is unfit by itself, whatever it is meant for."""
    num_chars = sum(len(message.content) for message in sample.messages)
    answer = len(sample.completion.strip())
    if answer < settings.min_answer_chars:
        allowed = f"fewer than gates.min_answer_chars = {settings.min_answer_chars}"
        yield "too_short", f"its answer has {answer} characters, {allowed}", ""
    if num_chars > settings.max_chars:
        allowed = f"more than gates.max_chars = {settings.max_chars}"
        yield "too_long", f"it has {num_chars} characters, {allowed}", ""
    for message in sample.messages:
        if settings.secrets == "drop" and (secret := secret_in(message.content)):
            yield "holds_secret", f"its {message.role} turn holds what looks like {secret}", ""
        if settings.emails == "drop" and email_in(message.content):
            yield "holds_email", f"its {message.role} turn holds an e-mail address", ""
