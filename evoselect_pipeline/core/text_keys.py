"""Texts and rows that differ in nothing but spelling, under one key."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from evoselect_pipeline.core.records import Message, Sample, digest

SENTENCE_MARKS = str.maketrans(dict.fromkeys(".,!?;:\"'", " "))


def normalised(text: str) -> str:
    """Fold what does not change a text's meaning: case, width, sentence marks, white space.

    Brackets and signs stay: `[ (` and `( [`, `3 + 4` and `3 - 4` are not copies of each other.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().translate(SENTENCE_MARKS)
    if not folded.isascii():
        folded = "".join(map(_plain, folded))
    return " ".join(folded.split())


def _plain(letter: str) -> str:
    """Nothing for what cannot be seen, a blank for the sentence marks of all other scripts."""
    if letter.isascii():
        return letter
    category = unicodedata.category(letter)
    if category == "Cf":
        return ""
    return " " if category in ("Pc", "Pd", "Pi", "Pf", "Po") else letter


def text_key(sample: Sample) -> str:
    """Hash of a row's normalised text; near-copies by spelling share it."""
    return digest([(m.role, normalised(m.content)) for m in sample.messages])


def prompt_key(sample: Sample) -> str:
    """Hash of what a row asks, normalised, whatever the answer and the system turn say."""
    return digest([(m.role, normalised(m.content)) for m in asked_turns(sample)])


def asked_turns(sample: Sample) -> list[Message]:
    """All before the answer but the system turn, which others who ask the same need not repeat."""
    return [message for message in sample.messages[:-1] if message.role != "system"]


def asked_text(sample: Sample) -> str:
    """What a row asks, as one text."""
    return "\n".join(message.content for message in asked_turns(sample))


def evaluation_keys(rows: Iterable[Sample]) -> dict[str, str]:
    """Prompt key to sample id of the rows that must never be trained on."""
    return {prompt_key(row): row.sample_id for row in rows}
