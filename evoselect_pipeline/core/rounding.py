"""From scores to k whole rows, with a reason for every row taken and every row left.

The quota rule, its admissibility checks and the derived reach are this project's reconstruction;
`topk` is the published rule. Ties go to the earlier row, so callers hand rows in sample_id order.

Shapes: N candidates, M targets, D projection width, k rows to choose, h rows of earlier rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush

import numpy as np

from evoselect_pipeline.core.capped import capped_transport, integer_quotas
from evoselect_pipeline.core.ledger import Choice, Ledger
from evoselect_pipeline.core.selection import SelectionProblem
from evoselect_pipeline.core.settings import Budget

REACH_QUANTILE = 0.1
PENALTY_ROWS = 8192


def plan_quota(
    problem: SelectionProblem,
    budget: Budget,
    score: np.ndarray,
    shares: np.ndarray,
    *,
    cost: np.ndarray,
    reach: float,
    dedup_cosine: float,
    quality_floor: float = 0.0,
) -> Choice:
    """Targets take turns; each takes its best-scored admissible row.

    The turn goes to the target with the smallest picked_j / b_j. A row is admissible to it if it
    is unused, it fits into what the budget has left, its cost is at most `reach`, its quality at
    least `quality_floor`, its cosine to every chosen row of this and earlier rounds is at most
    `dedup_cosine`, and none of these rows has its text key or its id. A target without an
    admissible row leaves and the others go on, so its quota is shared out. Rows run out before the
    budget where only such rows are left: fewer rows are better than copies.

    Admissibility never comes back, so each target walks its ranking once, and a cosine check
    happens only when a row is about to be taken: O(N M log N + N k D) at worst.

    Parameters
    ----------
    problem : SelectionProblem
    budget : Budget
    score : array [N, M]
        Higher is better; -inf means never. EvoSelect passes log P.
    shares : array [M]
        b, the targets' shares of the budget; targets of share 0 take no turn.
    cost : array [N, M]
    reach : float
    dedup_cosine : float
        1 or more switches the cosine check off.
    quality_floor : float
    """
    ledger = Ledger(problem, budget, dedup_cosine, quality_floor)
    queues = _rankings(score, allowed=cost <= reach)
    turns = [(0.0, j) for j in range(len(shares)) if shares[j] > 0]
    heapify(turns)
    served = np.zeros(len(shares), dtype=int)
    left: list[int] = []
    order: list[tuple[int, int]] = []
    while turns and not ledger.full:
        _, j = heappop(turns)
        row = next((i for i in queues[j] if ledger.admits(i)), None)
        if row is None:
            left.append(j)
            continue
        ledger.take(row)
        order.append((row, j))
        served[j] += 1
        heappush(turns, (served[j] / shares[j], j))
    if budget.tokens is None and len(order) != budget.rows:
        left += [j for _, j in turns]
    rows, targets = np.array(order, dtype=int).reshape(-1, 2).T
    unreached = tuple(sorted(j for j in left if served[j] == 0))
    exhausted = tuple(sorted(j for j in left if served[j] > 0))
    return Choice(rows, targets, unreached, exhausted, ledger.refusals())


def capped_quota(
    problem: SelectionProblem,
    budget: Budget,
    score: np.ndarray,
    shares: np.ndarray,
    *,
    cost: np.ndarray,
    reach: float,
    dedup_cosine: float,
    quality_floor: float = 0.0,
) -> Choice:
    """Exact transport with whole units, in stages; `plan_quota` says what is admissible.

    Each stage solves max sum_ij P_ij score_ij over choices that use a row once and serve target j
    with its share of the rows still to come (`capped.capped_transport`), then enters the rows that
    repeat nothing, best score first. What the repetitions leave uncovered, and the quotas of
    targets that have no admissible row left, go into the next stage. Every stage takes or closes a
    row at least, and mostly two or three stages are enough. Beyond its arguments it needs memory
    for a chunk of rows only.
    """
    ledger = Ledger(problem, budget, dedup_cosine, quality_floor)
    wanting = shares > 0
    served = np.zeros(len(shares), dtype=int)
    left = np.zeros(len(shares), dtype=bool)
    ceilings = np.full(len(shares), -np.inf)
    order: list[tuple[int, int]] = []
    while not ledger.full:
        left = wanting.copy()
        for _, penalty in _penalties(score, cost, reach, ledger.open):
            left &= ~np.isfinite(penalty).any(axis=0)
        if (left == wanting).all():
            break
        quotas = _missing(np.where(left, 0.0, shares), served, ledger.num_rows_left)
        plan = capped_transport(_penalties(score, cost, reach, ledger.open), quotas)
        ceilings = np.maximum(ceilings, np.where(left, np.inf, plan.duals))
        for position in np.argsort(plan.costs, kind="stable"):
            row, target = int(plan.rows[position]), int(plan.targets[position])
            if not ledger.full and ledger.admits(row):
                ledger.take(row)
                order.append((row, target))
                served[target] += 1
        ledger.close_repetitions()
    if budget.tokens is None and len(order) != budget.rows:
        left = wanting
        ceilings[wanting] = np.inf
    rows, targets = np.array(order, dtype=int).reshape(-1, 2).T
    unreached = tuple(np.flatnonzero(left & (served == 0)).tolist())
    exhausted = tuple(np.flatnonzero(left & (served > 0)).tolist())
    return Choice(rows, targets, unreached, exhausted, ledger.refusals(), ceilings)


def _penalties(
    score: np.ndarray, cost: np.ndarray, reach: float, open_rows: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """Chunks of -score [n, M], +inf where a pair is inadmissible."""
    for start in range(0, len(score), PENALTY_ROWS):
        part = slice(start, start + PENALTY_ROWS)
        allowed = (cost[part] <= reach) & np.isfinite(score[part]) & open_rows[part, None]
        yield start, np.where(allowed, -score[part], np.inf)


def _missing(shares: np.ndarray, served: np.ndarray, num_left: int) -> np.ndarray:
    """Quotas [M] of the rows still to come, so that all rows together come near the shares."""
    wanted = shares / shares.sum() * (served[shares > 0].sum() + num_left)
    missing = np.maximum(wanted - served, 0.0) * (shares > 0)
    return integer_quotas(missing / missing.sum(), num_left)


def _rankings(score: np.ndarray, allowed: np.ndarray) -> list[Iterator[int]]:
    """For each target its allowed rows of finite score [N, M], the best first."""
    ranking = np.argsort(-score, axis=0, kind="stable")
    allowed = allowed & np.isfinite(score)
    return [iter(rows[allowed[rows, j]].tolist()) for j, rows in enumerate(ranking.T)]


def take_in_order(
    problem: SelectionProblem, budget: Budget, order: Iterable[int], best_target: np.ndarray
) -> Choice:
    """Walk an order of rows and take what still fits; each row serves its `best_target` [N].

    A row that does not fit is passed over and the walk goes on to smaller ones. Copies are kept.
    """
    ledger = Ledger(problem, budget)
    for row in order:
        if ledger.full:
            break
        if ledger.admits(int(row)):
            ledger.take(int(row))
    return ledger.choice(best_target)


def topk(
    problem: SelectionProblem, budget: Budget, values: np.ndarray, best_target: np.ndarray
) -> Choice:
    """The rows of the largest values [N], each with its `best_target` [N]; copies are kept."""
    return take_in_order(problem, budget, np.argsort(-values, kind="stable"), best_target)


def reach_cap(problem: SelectionProblem, reach: float | None) -> float:
    """The largest cost at which a row may serve a target.

    Derived, where not given, from how near the targets lie to each other: a row has to be as
    similar to a target as nine in ten targets are to their nearest fellow,

        reach = 1 - max(0, quantile_0.1 over j of max_{l != j} <v_j, v_l>).

    Copies among the targets (cosine above 0.999) say nothing and are passed over. With centred
    gradients, unrelated rows have a cosine near 0 and stay outside; without, the cap is lenient.
    """
    if reach is not None:
        return reach
    vectors = problem.targets.gradients.astype(np.float64)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)  # stored in half precision, a row may look unlike itself
    cosines[cosines > 0.999] = -np.inf
    nearest = cosines.max(axis=1)
    nearest = nearest[np.isfinite(nearest)]
    if len(nearest) == 0:
        return 1.0
    return 1.0 - max(0.0, float(np.quantile(nearest, REACH_QUANTILE)))
