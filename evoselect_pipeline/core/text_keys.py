"""Texts and rows that differ in nothing but spelling, under one key."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from evoselect_pipeline.core.records import Sample, digest

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
