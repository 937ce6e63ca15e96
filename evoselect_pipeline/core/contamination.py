"""Candidates that hold an evaluation row's text: word for word, in part, or nearly.

What the trusted rows have in common is the task's own wording, an instruction or a template, and
proves nothing; only what few of them say does. Wording is told from content by counting.

After the 13-grams of GPT-3 (Brown et al. 2020, appendix C), with containment of word triples for
what was re-worded; setting common n-grams aside and searching short prompts whole are this
project's own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from evoselect_pipeline.core.near_text import text_shingles, words
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.core.text_keys import asked_text

FEW = 2  # so many trusted rows may say the same, and it is still their content
MOSTLY = 0.5
LEAST_OWN = 8  # word triples; nearly all of fewer are too little to say
SHORTEST = 5  # words; shorter prompts are found within any text


@dataclass(frozen=True)
class Hit:
    """A candidate that holds text of an evaluation row."""

    evaluation_id: str
    kind: str  # `same_prompt`, `whole`, `ngram` or `near_copy`
    evidence: str


class EvaluationText:
    """The prompts that no training row may hold.

    Parameters
    ----------
    rows : sequence of Sample
        Target, validation and test rows.
    ngram : int
        So many words in a row that are an evaluation row's alone betray it. Whole prompts do, too,
        and lines of their own, of whatever words, if they have five at least.
    near_copy : float
        Share of a prompt's own word triples that a near-copy holds.
    """

    def __init__(self, rows: Sequence[Sample], ngram: int = 13, near_copy: float = 0.8):
        self.near_copy = near_copy
        asked = {row.sample_id: asked_text(row) for row in rows}
        prompts = {row: words(text) for row, text in asked.items()}
        triples = {row: text_shingles(" ".join(prompt)) for row, prompt in prompts.items()}
        self._triples = _owned((row, one) for row, own in triples.items() for one in own)
        self._num_own = Counter(row for owners in self._triples.values() for row in owners)
        # What is mostly wording betrays nothing, though the words that fill its gaps be rare.
        self._telling = {
            row
            for row, own in triples.items()
            if self._num_own[row] > max(LEAST_OWN - 1, MOSTLY * len(own))
        }
        grams = _owned(
            (row, gram) for row, prompt in prompts.items() for gram in _runs(prompt, ngram)
        )
        self._ngrams = {gram: own for gram, own in grams.items() if self._is_telling(gram)}
        self.ngram = ngram
        self._starting: defaultdict[str, list[tuple[str, list[str]]]] = defaultdict(list)
        lines = _owned((row, line) for row, text in asked.items() for line in _lines(text))
        wholes = list(prompts.items())
        wholes += [(row, line.split()) for line, owners in lines.items() for row in owners]
        for row, whole in wholes:
            if len(whole) >= SHORTEST:
                self._starting[" ".join(whole[:SHORTEST])].append((row, whole))

    def _is_telling(self, text: str) -> bool:
        own = text_shingles(text)
        return sum(one in self._triples for one in own) > MOSTLY * len(own)

    def hit(self, sample: Sample) -> Hit | None:
        """The evaluation row that a candidate's text gives away most plainly, if any."""
        text = words(" ".join(message.content for message in sample.messages))
        for start, run in enumerate(_runs(text, SHORTEST)):
            for row, prompt in self._starting.get(run, ()):
                if text[start : start + len(prompt)] == prompt:
                    return Hit(row, "whole", f"its prompt, or a line of it: {run!r} ...")
        for run in _runs(text, self.ngram):
            if owners := self._ngrams.get(run):
                return Hit(owners[0], "ngram", f"{self.ngram} words of it in a row: {run!r}")
        shared = Counter(
            row for one in text_shingles(" ".join(text)) for row in self._triples.get(one, ())
        )
        share, row = max(
            ((count / self._num_own[row], row) for row, count in shared.items()), default=(0.0, "")
        )
        if share < self.near_copy or row not in self._telling:
            return None
        return Hit(row, "near_copy", f"{share:.0%} of what it alone says")


def _lines(text: str) -> list[str]:
    """The lines of a text of several: a question without its options is the question still."""
    lines = [" ".join(words(line)) for line in text.splitlines()]
    return lines if len(lines) > 1 else []


def _runs(text: Sequence[str], length: int) -> Iterator[str]:
    for start in range(len(text) - length + 1):
        yield " ".join(text[start : start + length])


def _owned(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """The texts that few rows have, each with these rows."""
    owners: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for row, text in pairs:
        owners[text][row] = None
    return {text: tuple(rows) for text, rows in owners.items() if len(rows) <= FEW}
