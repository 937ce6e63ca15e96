"""Which target rows the next round's rows should be grown from: those that are served worst."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from evoselect_pipeline.core.near_text import words
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.rounds.data import split_rows
from evoselect_pipeline.rounds.line import Line, decision_after, read_json

LEAST, MOST = 0.25, 4.0  # no target is forgotten, and none takes all
NEAR = 0.05  # a row whose cosine is lower by this counts e times less


def pressure(line: Line, round_number: int) -> dict[str, float]:
    """Weight of each target row, by id, about 1 on the average.

    Half of it is how far the rows that the last round chose for the target lie from it (their mean
    transport cost; of a target that got none, the largest of all), half the share of validation
    rows like it that the champion answers wrongly; each relative to the mean over targets. All
    targets weigh the same in the first round.
    """
    targets = split_rows(line, "targets")
    if round_number == 0:
        return {row.sample_id: 1.0 for row in targets}
    before = round_number - 1
    costs: dict[str, list[float]] = defaultdict(list)
    for pick in read_json(line.artifact(before, "selected_subset").path / "picks.json"):
        costs[pick["target_id"]].append(pick["cost"])
    mean_of = {target: sum(found) / len(found) for target, found in costs.items()}
    largest = max(mean_of.values(), default=1.0)
    residual = _relative([mean_of.get(row.sample_id, largest) for row in targets])

    validation = split_rows(line, "validation")
    wrong = [1.0 - is_right for is_right in _champions_answers(line, before)]
    has_subtasks = len({row.subtask for row in targets}) > 1
    share_of = _wrong_of_subtask if has_subtasks else _wrong_in_like_words
    unlearned = _relative(share_of(targets, validation, wrong))
    return {
        row.sample_id: min(MOST, max(LEAST, (far + missed) / 2))
        for row, far, missed in zip(targets, residual, unlearned, strict=True)
    }


def _wrong_of_subtask(
    targets: Sequence[Sample], validation: Sequence[Sample], wrong: Sequence[float]
) -> list[float]:
    """Share of wrong answers among a target's subtask; among all where it has none there."""
    of_subtask: dict[str, list[float]] = defaultdict(list)
    for row, is_wrong in zip(validation, wrong, strict=True):
        of_subtask[row.subtask].append(is_wrong)
    everywhere = sum(map(sum, of_subtask.values())) / len(wrong)
    share_of = {subtask: sum(found) / len(found) for subtask, found in of_subtask.items()}
    return [share_of.get(row.subtask, everywhere) for row in targets]


def _wrong_in_like_words(
    targets: Sequence[Sample], validation: Sequence[Sample], wrong: Sequence[float]
) -> list[float]:
    """Share of wrong answers among all rows, those counting most that ask in a target's words.

    A row counts e^(cosine / NEAR), the cosine being that of the prompts' words by TF-IDF: a kernel
    regression (Nadaraya and Watson 1964), which of equals gives equal shares.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import

    texts = [row.prompt for row in (*targets, *validation)]
    vectors = TfidfVectorizer(analyzer=_words_of).fit_transform(texts)  # type: ignore[arg-type]
    cosines = (vectors[: len(targets)] @ vectors[len(targets) :].T).toarray()
    counts = np.exp(cosines / NEAR)
    shares = counts @ np.asarray(wrong) / counts.sum(axis=1)
    # The last digits differ from machine to machine, and the weights are part of a stage's inputs.
    return [round(float(share), 6) for share in shares]


def _words_of(text: str) -> list[str]:
    """A text's words; one of marks alone is its own only word."""
    return words(text) or [text]


def _champions_answers(line: Line, round_number: int) -> list[float]:
    """Which validation rows the champion after a round answers rightly, 0 or 1."""
    champion = decision_after(line, round_number)["champion_round"]
    evaluated = line.artifact(round_number if champion is None else champion, "evaluation")
    file = "base.json" if champion is None else "after.json"
    return read_json(evaluated.path / file)["validation"]


def _relative(values: Iterable[float]) -> list[float]:
    listed = list(values)
    mean = sum(listed) / len(listed)
    return [value / mean if mean > 0 else 1.0 for value in listed]
