"""From scores to k whole rows, with a reason for every row taken and every row left.

The quota rule, its admissibility checks and the derived reach are this project's reconstruction;
`topk` is the published rule. Ties go to the earlier row, so callers hand rows in sample_id order.

Shapes: N candidates, M targets, D projection width, k rows to choose, h rows of earlier rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from evoselect_pipeline.core.selection import Candidates, Pick, Rejection, SelectionProblem

MAX_BLOCK_ENTRIES = 4_000_000  # of a cosine block: 16 MB in float32
REACH_SHARE = 0.5
REACH_QUANTILE = 0.25
SHORT_ID = 8


@dataclass(frozen=True)
class Choice:
    """Chosen row numbers in the order of choice, and for each the target it serves.

    `unreached` targets never got a row, `exhausted` ones got some and then ran out before the
    budget did; both are target numbers.
    """

    rows: np.ndarray
    targets: np.ndarray
    unreached: tuple[int, ...] = ()
    exhausted: tuple[int, ...] = ()


def plan_quota(
    problem: SelectionProblem,
    num_rows: int,
    score: np.ndarray,
    shares: np.ndarray,
    *,
    cost: np.ndarray,
    reach: float,
    dedup_cosine: float,
) -> Choice:
    """Targets take turns; each takes its best-scored admissible row.

    The turn goes to the target with the smallest picked_j / b_j. A row is admissible to it if it
    is unused, its cost is at most `reach`, its cosine to every chosen row of this and earlier
    rounds is at most `dedup_cosine`, and no chosen row has its text key or its id. A target
    without an admissible row leaves and the others go on, so its quota is shared out. Rows run
    out before the budget where only repetitions are left: fewer rows are better than copies.

    Admissibility never comes back, so each target walks its ranking once, and a cosine check
    happens only when a row is about to be taken: O(N M log N + N k D) at worst.

    Parameters
    ----------
    problem : SelectionProblem
    num_rows : int
        k, the budget.
    score : array [N, M]
        Higher is better; -inf means never. EvoSelect passes log P.
    shares : array [M]
        b, the targets' shares of the budget; targets of share 0 take no turn.
    cost : array [N, M]
    reach : float
    dedup_cosine : float
        1 or more switches the cosine check off.
    """
    chosen = _Chosen(problem, num_rows, dedup_cosine)
    ranking = np.argsort(-score, axis=0, kind="stable")
    allowed = (cost <= reach) & np.isfinite(score)
    queues = [iter(r[allowed[r, j]].tolist()) for j, r in enumerate(ranking.T)]
    turns = [(0.0, j) for j in range(len(shares)) if shares[j] > 0]
    heapify(turns)
    served = np.zeros(len(shares), dtype=int)
    left: list[int] = []
    order: list[tuple[int, int]] = []
    while turns and len(order) < num_rows:
        _, j = heappop(turns)
        row = next((i for i in queues[j] if chosen.admits(i)), None)
        if row is None:
            left.append(j)
            continue
        chosen.add(row)
        order.append((row, j))
        served[j] += 1
        heappush(turns, (served[j] / shares[j], j))
    rows, targets = np.array(order, dtype=int).reshape(-1, 2).T
    unreached = tuple(sorted(j for j in left if served[j] == 0))
    exhausted = tuple(sorted(j for j in left if served[j] > 0))
    return Choice(rows, targets, unreached, exhausted)


def topk(values: np.ndarray, num_rows: int, best_target: np.ndarray) -> Choice:
    """The rows of the largest values [N], each with its `best_target` [N]; copies are kept."""
    rows = np.argsort(-values, kind="stable")[:num_rows]
    return Choice(rows, best_target[rows])


def reach_cap(problem: SelectionProblem, reach: float | None) -> float:
    """The largest cost at which a row may serve a target.

    Derived, where not given, from how near the targets lie to each other: a row has to be half as
    similar to the target as the lower quartile of the targets is to its nearest fellow,

        reach = 1 - max(0, 0.5 * quantile_0.25 over j of max_{l != j} <v_j, v_l>).

    Copies among the targets (cosine above 0.999) say nothing and are passed over. With centred
    gradients, unrelated rows have a cosine near 0 and stay outside; without, the cap is lenient.
    """
    if reach is not None:
        return reach
    vectors = problem.targets.gradients.astype(np.float64)
    cosines = vectors @ vectors.T
    cosines[cosines > 0.999] = -np.inf
    nearest = cosines.max(axis=1)
    nearest = nearest[np.isfinite(nearest)]
    if len(nearest) == 0:
        return 1.0
    return 1.0 - max(0.0, REACH_SHARE * float(np.quantile(nearest, REACH_QUANTILE)))


def nearest_rows(
    vectors: np.ndarray, others: np.ndarray, *, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """For each unit row of `vectors` [n, D] the nearest of `others` [m, D]: (number, cosine) [n].

    With `same`, row i of `vectors` is row i of `others` and is not its own neighbour. Number -1
    and cosine -inf where there is no other. Only a block of [n, m] exists at a time.
    """
    index = np.full(len(vectors), -1)
    best = np.full(len(vectors), -np.inf)
    if len(others) == 0:
        return index, best
    block = max(1, MAX_BLOCK_ENTRIES // len(others))
    for start in range(0, len(vectors), block):
        cosines = vectors[start : start + block] @ others.T
        numbers = np.arange(len(cosines))
        if same:
            cosines[numbers, start + numbers] = -np.inf
        winner = cosines.argmax(axis=1)
        index[start : start + block] = winner
        best[start : start + block] = cosines[numbers, winner]
    index[~np.isfinite(best)] = -1
    return index, best


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


def explain_rejections(
    problem: SelectionProblem,
    choice: Choice,
    cost: np.ndarray,
    reach: float,
    dedup_cosine: float,
) -> tuple[Rejection, ...]:
    """Say for every row that is not chosen which check it fails against the final choice.

    The first of these holds: already_selected, same_text, near_duplicate, beyond_reach; a row that
    fails none was not_needed.
    """
    candidates = problem.candidates
    rest = _complement(len(candidates), choice.rows)
    others, other_ids = _chosen_and_history(problem, choice.rows)
    nearest, cosines = nearest_rows(candidates.gradients[rest], others)
    text_owner = {candidates.text_keys[i]: candidates.sample_ids[i] for i in choice.rows[::-1]}
    earlier = set(problem.history_ids)
    rejections = []
    for position, i in enumerate(rest):
        sample_id = candidates.sample_ids[i]
        owner = text_owner.get(candidates.text_keys[i])
        if sample_id in earlier:
            found = ("already_selected", "selected in an earlier round", sample_id)
        elif owner is not None:
            found = ("same_text", f"same text as chosen row {owner[:SHORT_ID]}", owner)
        elif dedup_cosine < 1 and cosines[position] > dedup_cosine:
            other, cosine = other_ids[nearest[position]], cosines[position]
            sentence = f"near-duplicate of chosen row {other[:SHORT_ID]} at cosine {cosine:.3f}"
            found = ("near_duplicate", f"{sentence}, allowed {dedup_cosine:g}", other)
        else:
            found = _too_far_or_not_needed(problem, cost[i], reach)
        rejections.append(Rejection(sample_id, *found))
    return tuple(rejections)


def _too_far_or_not_needed(
    problem: SelectionProblem, costs: np.ndarray, reach: float
) -> tuple[str, str, str]:
    """Stage, sentence and related target of a row [M] that repeats nothing."""
    nearest = int(costs.argmin())
    target = problem.targets.sample_ids[nearest]
    where = f"its nearest target {target[:SHORT_ID]} is at cosine {1.0 - costs[nearest]:.2f}"
    if costs[nearest] > reach:
        return "beyond_reach", f"{where}, reach ends at {1.0 - reach:.2f}", target
    return "not_needed", f"better rows filled the budget; {where}", target


def not_needed(
    candidates: Candidates, rows: np.ndarray, sentence_of: Callable[[int], str]
) -> tuple[Rejection, ...]:
    """Rejections for selectors that only rank: every row outside `rows` came too late."""
    rest = _complement(len(candidates), rows)
    return tuple(
        Rejection(candidates.sample_ids[i], "not_needed", sentence_of(int(i))) for i in rest
    )


def repeats_history(problem: SelectionProblem, dedup_cosine: float) -> np.ndarray:
    """Boolean [N]: the row was selected in an earlier round, or is a near-duplicate of one."""
    earlier = set(problem.history_ids)
    known = np.array([sample_id in earlier for sample_id in problem.candidates.sample_ids])
    if dedup_cosine >= 1 or len(problem.history) == 0:
        return known
    return known | (nearest_rows(problem.candidates.gradients, problem.history)[1] > dedup_cosine)


class _Chosen:
    """The rows chosen so far, and whether one more would repeat them."""

    def __init__(self, problem: SelectionProblem, num_rows: int, dedup_cosine: float) -> None:
        self.candidates = problem.candidates
        self.dedup_cosine = dedup_cosine
        self.closed = repeats_history(problem, dedup_cosine)
        self.texts: set[str] = set()
        width = self.candidates.gradients.shape[1]
        self.vectors = np.empty((num_rows, width), dtype=self.candidates.gradients.dtype)
        self.count = 0

    def admits(self, row: int) -> bool:
        if not self.closed[row]:
            self.closed[row] = self._repeats(row)
        return not self.closed[row]

    def add(self, row: int) -> None:
        self.vectors[self.count] = self.candidates.gradients[row]
        self.count += 1
        self.texts.add(self.candidates.text_keys[row])
        self.closed[row] = True

    def _repeats(self, row: int) -> bool:
        if self.candidates.text_keys[row] in self.texts:
            return True
        if self.dedup_cosine >= 1 or self.count == 0:
            return False
        cosines = self.vectors[: self.count] @ self.candidates.gradients[row]
        return bool(cosines.max() > self.dedup_cosine)


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
