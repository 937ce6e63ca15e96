"""Which target rows the next round's rows should be grown from: those that are served worst."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from evoselect_pipeline.rounds.data import split_rows
from evoselect_pipeline.rounds.line import Line, decision_after, read_json

LEAST, MOST = 0.25, 4.0  # no target is forgotten, and none takes all


def pressure(line: Line, round_number: int) -> dict[str, float]:
    """Weight of each target row, by id, about 1 on the average.

    Half of it is how far the rows that the last round chose for the target lie from it (their mean
    transport cost; of a target that got none, the largest of all), half the share of its subtask's
    validation rows that the champion answers wrongly; each relative to the mean over targets. All
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

    wrong: dict[str, list[float]] = defaultdict(list)
    correct = _champions_answers(line, before)
    for row, is_right in zip(split_rows(line, "validation"), correct, strict=True):
        wrong[row.subtask].append(1.0 - is_right)
    everywhere = sum(map(sum, wrong.values())) / len(correct)
    share_of = {subtask: sum(found) / len(found) for subtask, found in wrong.items()}
    unlearned = _relative([share_of.get(row.subtask, everywhere) for row in targets])
    return {
        row.sample_id: min(MOST, max(LEAST, (far + missed) / 2))
        for row, far, missed in zip(targets, residual, unlearned, strict=True)
    }


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
