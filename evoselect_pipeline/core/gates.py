"""What a candidate must pass before selection looks at it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.core.selection import Rejection

SENTENCE_MARKS = str.maketrans(dict.fromkeys(".,!?;:\"'", " "))


def normalised(text: str) -> str:
    """Fold what does not change a text's meaning: case, width, sentence marks, white space.

    Brackets and signs stay: `[ (` and `( [`, `3 + 4` and `3 - 4` are not copies of each other.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(SENTENCE_MARKS).split())


def text_key(sample: Sample) -> str:
    """Hash of a row's normalised text; near-copies by spelling share it."""
    return digest([(m.role, normalised(m.content)) for m in sample.messages])


def prompt_key(sample: Sample) -> str:
    """Hash of a row's normalised prompt, whatever the answer."""
    return digest([(m.role, normalised(m.content)) for m in sample.messages[:-1]])


def evaluation_keys(rows: Iterable[Sample]) -> dict[str, str]:
    """Prompt key to sample id of the rows that must never be trained on."""
    return {prompt_key(row): row.sample_id for row in rows}


def gate(
    samples: Sequence[Sample],
    evaluation: Mapping[str, str],
    selected_before: frozenset[str] = frozenset(),
) -> tuple[list[Sample], list[Rejection]]:
    """Let through what may be selected; say of every other row why not.

    Parameters
    ----------
    samples : sequence of Sample
        Well-formed candidates of one round.
    evaluation : mapping of str to str
        `evaluation_keys` of all target, validation and test rows.
    selected_before : frozenset of str
        Ids of rows that an earlier round has already trained on.

    Returns
    -------
    passed : list of Sample
        Distinct rows, in the order given.
    rejected : list of Rejection
        One per distinct row left out: `leaks_evaluation` or `already_selected`.
    """
    passed: list[Sample] = []
    rejected: list[Rejection] = []
    for sample in {sample.sample_id: sample for sample in samples}.values():
        leak = evaluation.get(prompt_key(sample))
        if leak is not None:
            reason = f"its prompt is that of evaluation row {leak}"
            rejected.append(Rejection(sample.sample_id, "leaks_evaluation", reason, leak))
        elif sample.sample_id in selected_before:
            reason = "an earlier round has trained on this very row"
            rejected.append(Rejection(sample.sample_id, "already_selected", reason))
        else:
            passed.append(sample)
    return passed, rejected
