"""Why a row was taken or left: the sentences, and what else a pick or rejection carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evoselect_pipeline.core.ledger import SHORT_ID, Choice, nearest_rows
from evoselect_pipeline.core.selection import (
    Candidates,
    Diagnostics,
    Pick,
    Rejection,
    Selection,
    SelectionProblem,
    Targets,
)


def make_picks(
    problem: SelectionProblem,
    choice: Choice,
    cost: np.ndarray,
    sentences: Sequence[str],
    mass: np.ndarray | None = None,
    *,
    look_for_nearest: bool = True,
) -> tuple[Pick, ...]:
    """Write the picks; `sentences` say for each why it was chosen, `mass` [k] is its P_ij."""
    ids, target_ids = problem.candidates.sample_ids, problem.targets.sample_ids
    neighbours: list[tuple[str, float] | None] = [None] * len(choice.rows)
    if look_for_nearest:
        neighbours = _nearest_chosen(problem, choice.rows)
    picks = []
    for position, (i, j) in enumerate(zip(choice.rows, choice.targets, strict=True)):
        reason, neighbour = sentences[position], neighbours[position]
        if neighbour is not None:
            reason += f"; nearest chosen row {neighbour[0][:SHORT_ID]} at {neighbour[1]:.2f}"
        picks.append(
            Pick(
                sample_id=ids[i],
                rank=position + 1,
                target_id=target_ids[j],
                transport_mass=None if mass is None else float(mass[position]),
                cost=float(cost[i, j]),
                nearest_id=neighbour[0] if neighbour else None,
                nearest_cosine=neighbour[1] if neighbour else None,
                reason=reason,
            )
        )
    return tuple(picks)


def nearest_targets(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a cost [N, M] its cheapest target and what that costs, [N] each."""
    return cost.argmin(axis=1), cost.min(axis=1)


def explain_rejections(
    problem: SelectionProblem,
    choice: Choice,
    nearest: tuple[np.ndarray, np.ndarray],
    reach: float,
    dedup_cosine: float,
) -> tuple[Rejection, ...]:
    """Say for every row that is not chosen which check it fails against the final choice.

    The first of these holds: already_selected, same_text, near_duplicate, beyond_reach,
    implausible_answer, over_source_cap or over_token_budget; a row that fails none was not_needed.
    `nearest` is what `nearest_targets` says of all rows.
    """
    candidates = problem.candidates
    rest = _complement(len(candidates), choice.rows)
    looks_for_copies = dedup_cosine < 1
    if looks_for_copies:
        others, other_ids = _chosen_and_history(problem, choice.rows)
        copied, cosines = nearest_rows(candidates.gradients[rest], others)
    text_owner = {candidates.text_keys[i]: candidates.sample_ids[i] for i in choice.rows[::-1]}
    earlier = set(problem.history_ids)
    rejections = []
    for position, i in enumerate(rest):
        sample_id = candidates.sample_ids[i]
        owner = text_owner.get(candidates.text_keys[i])
        if sample_id in earlier:
            found = ("already_selected", "selected in an earlier round", sample_id)
        elif owner is not None:
            found = ("same_text", f"nearly the text of chosen row {owner[:SHORT_ID]}", owner)
        elif candidates.text_keys[i] in problem.history_text_keys:
            found = ("same_text", "nearly the text of a row that an earlier round chose", "")
        elif looks_for_copies and cosines[position] > dedup_cosine:
            other, cosine = other_ids[copied[position]], cosines[position]
            sentence = f"near-duplicate of chosen row {other[:SHORT_ID]} at cosine {cosine:.3f}"
            found = ("near_duplicate", f"{sentence}, allowed {dedup_cosine:g}", other)
        else:
            place = int(nearest[0][i]), float(nearest[1][i])
            refusal = choice.refusals.get(int(i))
            found = _too_far_or_too_late(problem, place, reach, refusal)
        rejections.append(Rejection(sample_id, *found))
    return tuple(rejections)


def not_needed(
    candidates: Candidates, choice: Choice, sentence_of: Callable[[int], str]
) -> tuple[Rejection, ...]:
    """Rejections for selectors that only rank: every other row came too late or did not fit.

    `sentence_of` a row number says why it was not wanted sooner.
    """
    rejections = []
    for i in _complement(len(candidates), choice.rows).tolist():
        stage, sentence = choice.refusals.get(i, ("not_needed", ""))
        reason = f"{sentence}; {sentence_of(i)}" if sentence else sentence_of(i)
        rejections.append(Rejection(candidates.sample_ids[i], stage, reason))
    return tuple(rejections)


def ranked_out(
    candidates: Candidates, choice: Choice, values: np.ndarray, what: str
) -> tuple[Rejection, ...]:
    """Rejections that name a row's rank by its value; `values` [N] are called `what`."""
    rank = np.empty(len(values), dtype=int)
    rank[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return not_needed(
        candidates,
        choice,
        lambda i: (
            f"rank {rank[i]} by {what} ({values[i]:.3g}), the budget ends at {len(choice.rows)}"
        ),
    )


def equal_selection(
    method: str,
    problem: SelectionProblem,
    choice: Choice,
    cost: np.ndarray,
    sentences: Sequence[str],
    rejections: tuple[Rejection, ...],
    diagnostics: Diagnostics | None = None,
    *,
    look_for_nearest: bool = True,
) -> Selection:
    """The answer of a selector without weights of its own: every chosen row weighs the same."""
    weights = np.zeros(len(problem.candidates))
    weights[choice.rows] = 1.0 / max(1, len(choice.rows))
    picks = make_picks(problem, choice, cost, sentences, look_for_nearest=look_for_nearest)
    return Selection(method, picks, rejections, weights, diagnostics or {})


def serves(targets: Targets, j: int) -> str:
    """Which target a row serves, as the first words of a sentence."""
    subtask = f" (subtask {targets.subtasks[j]})" if targets.subtasks[j] else ""
    return f"serves target {targets.sample_ids[j][:SHORT_ID]}{subtask}"


def target_diagnostics(choice: Choice, targets: Targets) -> Diagnostics:
    """Which targets got no row at all, and which ran out of rows before the budget did."""
    return {
        "num_unreached_targets": len(choice.unreached),
        "unreached_targets": [targets.sample_ids[j] for j in choice.unreached],
        "num_exhausted_targets": len(choice.exhausted),
        "exhausted_targets": [targets.sample_ids[j] for j in choice.exhausted],
    }


def _too_far_or_too_late(
    problem: SelectionProblem,
    place: tuple[int, float],
    reach: float,
    refusal: tuple[str, str] | None,
) -> tuple[str, str, str]:
    """Stage, sentence and nearest target of a row that repeats nothing."""
    nearest, cost = place
    target = problem.targets.sample_ids[nearest]
    where = f"its nearest target {target[:SHORT_ID]} is at cosine {1.0 - cost:.2f}"
    if cost > reach:
        return "beyond_reach", f"{where}, reach ends at {1.0 - reach:.2f}", target
    if refusal is not None:
        return refusal[0], f"{refusal[1]}; {where}", target
    return "not_needed", f"better rows filled the budget; {where}", target


def _nearest_chosen(problem: SelectionProblem, rows: np.ndarray) -> list[tuple[str, float] | None]:
    others, other_ids = _chosen_and_history(problem, rows)
    index, cosine = nearest_rows(problem.candidates.gradients[rows], others, same=True)
    return [
        (other_ids[number], float(value)) if number >= 0 else None
        for number, value in zip(index, cosine, strict=True)
    ]


def _chosen_and_history(
    problem: SelectionProblem, rows: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    vectors = np.concatenate([problem.candidates.gradients[rows], problem.history])
    ids = [problem.candidates.sample_ids[i] for i in rows]
    return vectors, ids + list(problem.history_ids)


def _complement(num_rows: int, rows: np.ndarray) -> np.ndarray:
    kept = np.ones(num_rows, dtype=bool)
    kept[rows] = False
    return np.flatnonzero(kept)
