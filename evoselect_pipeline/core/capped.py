"""Exact transport with whole units: k rows are chosen, each for one target.

    min over P >= 0:  sum_ij P_ij C_ij
    subject to        sum_j P_ij <= 1,   sum_i P_ij = n_j
    dual              max over f <= 0, g:  sum_i f_i + sum_j n_j g_j,   f_i + g_j <= C_ij

Shapes: N candidates, M targets, quotas n [M] of sum k. The polytope is integral (its matrix is
totally unimodular), so the optimum is a choice of exactly k rows. C_ij = +inf forbids a pair.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evoselect_pipeline.errors import DataError, NumericsError

UNUSED = -1
CHECK_TOLERANCE = 1e-9  # as a share of the largest finite cost
ROUNDING = 1e-12  # likewise
SHARE_ROUNDING = 1e-9  # remainders are compared in this unit, so that rounding breaks no tie
FEW_TARGETS = 16
MIN_PENDING_ROWS = 1024  # solving fewer new rows at a time costs more than it prunes
MOST_UNITS = 2**53  # beyond, floats skip whole numbers
MAX_PIVOTS = 10**7  # guards against cycling: 25,000 rows x 256 targets take fewer than 10**5


@dataclass(frozen=True)
class CappedPlan:
    """The chosen rows in ascending order, and the target each of them serves.

    `unmet[j]` counts the units that no admissible row was left for. `duals` are the least optimal
    ones: g_j is what the last unit of target j costs, all knock-on moves included, -inf at quota 0
    and +inf where one more admissible row would serve an unmet unit.
    """

    rows: np.ndarray
    targets: np.ndarray
    costs: np.ndarray
    unmet: np.ndarray
    duals: np.ndarray

    @property
    def total_cost(self) -> float:
        """sum_ij P_ij C_ij over the units that are served."""
        return float(self.costs.sum())


@dataclass(frozen=True)
class _Pool:
    """Some rows in ascending order, their costs [S, M] and the target of each, or UNUSED."""

    rows: np.ndarray
    cost: np.ndarray
    targets: np.ndarray


def capped_transport(
    cost: np.ndarray | Iterable[tuple[int, np.ndarray]],
    quotas: np.ndarray,
    *,
    chunk_rows: int = 8192,
) -> CappedPlan:
    """Choose the rows that serve every quota at the least total cost, each row at most once.

    Serving comes first: the number of units served is the largest that the admissible pairs
    allow, and among all such plans the cost is the least. What stays unmet is reported, not raised.

    The rows are seen once, in blocks. The choice is path-independent (gross substitutes, Kelso and
    Crawford 1982): the best rows of S u S' lie in best(S) u S'. With the duals g of the rows kept
    so far, a new row lowers the cost only if C_ij < g_j for some j, so only such rows are held,
    and solved together with the kept ones by POT's network simplex. Streaming with duals is this
    project's reconstruction.

    Ties: the result is deterministic. A later row that only ties does not enter; within one solve
    no chosen row has an unchosen one of lower number at the same cost on the same target. Between
    other optima of equal cost the solver decides, and the blocks may matter.

    Parameters
    ----------
    cost : array [N, M], or iterable of (start, array [n, M])
        Costs in any real unit, +inf where a pair is inadmissible. Blocks of an iterable carry the
        number of their first row, may come in any order, and are not kept.
    quotas : array [M]
        Whole units n_j >= 0, in sum at most N.
    chunk_rows : int
        Rows looked at together when `cost` is an array.

    Raises
    ------
    DataError
        If shapes disagree, a quota is no whole number, quotas exceed N or blocks overlap.
    NumericsError
        If a cost is NaN or -inf, or the plan is not proved to within 1e-9 of the largest |C_ij|.
    """
    quotas = _checked_quotas(quotas)
    used = np.flatnonzero(quotas)
    used_quotas = quotas[used]
    pool = _Pool(np.empty(0, np.int64), np.empty((0, len(used))), np.empty(0, np.int64))
    duals = np.full(len(used), np.inf)
    pending: list[tuple[np.ndarray, np.ndarray]] = []
    spans: list[tuple[int, int]] = []
    blocks = _array_blocks(cost, chunk_rows) if isinstance(cost, np.ndarray) else cost
    for start, block in blocks:
        block, least = _checked_block(start, block, len(quotas))
        spans.append((start, start + len(block)))
        if len(used) < len(quotas):
            block, least = block[:, used], least[used]
        entering = _entering(block, least, duals)
        pending.append((start + entering, block[entering].astype(np.float64)))
        if sum(len(rows) for rows, _ in pending) >= max(MIN_PENDING_ROWS, quotas.sum()):
            pool, duals = _absorb(pool, pending, used_quotas)
            pending = []
    _check_spans(spans, int(quotas.sum()))
    pool, duals = _absorb(pool, pending, used_quotas)
    all_duals = np.full(len(quotas), -np.inf)
    all_duals[used] = duals
    targets = used[pool.targets]
    return CappedPlan(
        rows=pool.rows,
        targets=targets,
        costs=pool.cost[np.arange(len(pool.rows)), pool.targets],
        unmet=quotas - np.bincount(targets, minlength=len(quotas)),
        duals=all_duals,
    )


def integer_quotas(shares: np.ndarray, k: int) -> np.ndarray:
    """Split k whole units by shares [M]: largest remainders (Hamilton), ties to the lower index.

    n_j = floor(k s_j / sum s), and the units left go one each to the largest k s_j / sum s - n_j.

    Raises
    ------
    DataError
        If shares are negative, not finite, all zero or not a vector, or k is below 0.
    """
    shares = np.asarray(shares, dtype=np.float64)
    if shares.ndim != 1 or not np.isfinite(shares).all() or (shares < 0).any():
        raise DataError(
            "quotas: shares must be a vector of finite numbers not below 0,"
            f" got shape {shares.shape}, least {shares.min(initial=0.0)}"
        )
    if k < 0 or not 0 < shares.sum() < np.inf:
        raise DataError(
            f"quotas: {k} units cannot be split by shares of sum {shares.sum():g};"
            " expected at least 0 units and a finite sum above 0"
        )
    exact = k * (shares / shares.sum())
    quotas = np.floor(exact + SHARE_ROUNDING).astype(np.int64)
    order = np.argsort(-np.round((exact - quotas) / SHARE_ROUNDING), kind="stable")
    quotas[order[: k - quotas.sum()]] += 1
    return quotas


def _entering(block: np.ndarray, least: np.ndarray, duals: np.ndarray) -> np.ndarray:
    """Numbers of the rows of a block [n, M] that cost some target less than its dual [M].

    Only targets whose least cost in the block is low enough are looked at: late in a stream that
    is none, mostly. They are compared in the block's own precision, which takes half the time of
    a mixed comparison, against duals that are rounded up to it; the few rows left, exactly.
    """
    rounded_up = np.nextafter(duals.astype(block.dtype), np.inf, dtype=block.dtype)
    low = np.flatnonzero(least < rounded_up)
    # Beyond a few, to gather columns takes longer than to compare all.
    chosen = low if len(low) <= FEW_TARGETS else slice(None)
    rows = np.flatnonzero((block[:, chosen] < rounded_up[chosen]).any(axis=1))
    return rows[(block[rows] < duals).any(axis=1)]


def _absorb(
    pool: _Pool, pending: list[tuple[np.ndarray, np.ndarray]], quotas: np.ndarray
) -> tuple[_Pool, np.ndarray]:
    """The best rows of the pool and the pending ones, and their least duals."""
    rows = np.concatenate([pool.rows, *(rows for rows, _ in pending)])
    order = np.argsort(rows)
    rows = rows[order]
    cost = np.concatenate([pool.cost, *(cost for _, cost in pending)])[order]
    exponent = _exponent(cost)
    unit_cost = np.ldexp(cost, -exponent)  # POT's tolerances are absolute in part
    # One more served unit moves at most M rows, so it changes the cost by less than 2 M max |C|:
    # at twice that, as few units as possible stay unmet, and duals tell which targets they are.
    unmet_cost = 4.0 * (len(quotas) + 1)
    targets = _solve(unit_cost, quotas, unmet_cost)
    duals = _least_duals(unit_cost, targets, quotas, unmet_cost)
    _certify(unit_cost, targets, duals, unmet_cost)
    targets = _prefer_lower_rows(unit_cost, targets, duals)
    chosen = targets != UNUSED
    duals = np.where(duals > unmet_cost / 2, np.inf, np.ldexp(duals, exponent))
    return _Pool(rows[chosen], cost[chosen], targets[chosen]), duals


def _solve(cost: np.ndarray, quotas: np.ndarray, unmet_cost: float) -> np.ndarray:
    """The target of each row of cost [S, M], or UNUSED, as a balanced transport problem.

    A spare target takes unused rows at cost 0, and a dummy row gives unmet units at `unmet_cost`.
    A forbidden pair costs twice that: the dummy row and the spare target always undercut it.
    """
    # POT imports every array library it finds, torch included: seconds that only solving pays.
    from ot.lp import emd

    num_rows, num_targets = cost.shape
    if cost.size == 0:
        return np.full(num_rows, UNUSED)
    table = np.zeros((num_rows + 1, num_targets + 1))
    table[:-1, :-1] = np.where(np.isfinite(cost), cost, 2 * unmet_cost)
    table[-1, :-1] = unmet_cost
    supply = np.append(np.ones(num_rows), quotas.sum())
    demand = np.append(quotas, num_rows).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what POT warns of is raised below
        plan, log = emd(supply, demand, table, numItermax=MAX_PIVOTS, log=True)
    if log["warning"] is not None:
        raise NumericsError(
            f"capped transport: POT's solver failed on {num_rows} rows and {num_targets} targets:"
            f" {log['warning']}"
        )
    served = plan[:-1].argmax(axis=1)
    return np.where(served == num_targets, UNUSED, served)


def _least_duals(
    cost: np.ndarray, targets: np.ndarray, quotas: np.ndarray, unmet_cost: float
) -> np.ndarray:
    """The least optimal target duals g [M] of an optimal choice: longest paths over the targets.

        g_j >= C_ij for rows i on j,   g_j >= g_l - D_jl,   D_jl = min over i on j of C_il - C_ij

    They depend on the chosen rows alone and never rise as rows are added, so the last ones certify
    the plan against every row dropped earlier. The solver's own duals are not unique: they do not.
    """
    num_targets = len(quotas)
    moves = np.full((num_targets, num_targets), np.inf)
    duals = np.full(num_targets, unmet_cost)
    for j in range(num_targets):
        on_j = cost[targets == j]
        if len(on_j):
            moves[j] = (on_j - on_j[:, [j]]).min(axis=0)
        if len(on_j) == quotas[j]:
            duals[j] = on_j[:, j].max()
    for _ in range(num_targets):
        through = (duals - moves).max(axis=1)
        lifted = through > duals + ROUNDING  # a dual must stay the very cost that it equals
        if not lifted.any():
            break
        duals[lifted] = through[lifted]
    return duals


def _certify(cost: np.ndarray, targets: np.ndarray, duals: np.ndarray, unmet_cost: float) -> None:
    """Raise unless the duals prove the plan: each row is where C_ij - g_j, or 0 unused, is least.

    The same holds for the dummy row: no dual is above the cost of an unmet unit.
    """
    reduced = cost - duals
    taken = np.where(targets == UNUSED, 0.0, reduced[np.arange(len(cost)), targets])
    gap = (taken - reduced.min(axis=1, initial=0.0)).max(
        initial=duals.max(initial=0.0) - unmet_cost
    )
    if not gap <= CHECK_TOLERANCE:  # negated: NaN must not pass
        raise NumericsError(
            f"capped transport: in a plan of {len(cost)} rows one could be placed {gap:.3g}"
            f" cheaper, as a share of the largest cost, allowed {CHECK_TOLERANCE:g};"
            " costs of very different size defeat the solver: clip the largest or forbid them"
        )


def _prefer_lower_rows(cost: np.ndarray, targets: np.ndarray, duals: np.ndarray) -> np.ndarray:
    """Exchange chosen rows for unchosen ones of lower number at the same cost on the same target.

    C_ij <= g_j for a chosen row and C_ij >= g_j for an unchosen one, so both equal g_j.
    """
    level = cost == duals
    targets = targets.copy()
    changed = True
    while changed:  # every exchange lowers the sum of the row numbers
        changed = False
        for j in np.flatnonzero(level[targets == UNUSED].any(axis=0)):
            tied = np.flatnonzero(level[:, j] & ((targets == j) | (targets == UNUSED)))
            count = int((targets[tied] == j).sum())
            changed |= bool((targets[tied[:count]] == UNUSED).any())
            targets[tied] = UNUSED
            targets[tied[:count]] = j
    return targets


def _exponent(cost: np.ndarray) -> int:
    """Of the power of two above the largest finite |C_ij|: scaling by it does not round."""
    largest = np.abs(cost[np.isfinite(cost)]).max(initial=0.0)
    return int(np.frexp(largest)[1])


def _array_blocks(cost: np.ndarray, chunk_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    if cost.ndim != 2 or chunk_rows < 1:
        raise DataError(
            "capped transport: expected a cost of shape [N, M] and chunk_rows of at least 1,"
            f" got shape {cost.shape} and chunk_rows {chunk_rows}"
        )
    for start in range(0, max(len(cost), 1), chunk_rows):  # an empty one is checked as well
        yield start, cost[start : start + chunk_rows]


def _checked_quotas(quotas: np.ndarray) -> np.ndarray:
    values = np.asarray(quotas)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iuf":
        raise DataError(
            "capped transport: quotas must be a vector of whole numbers, one a target,"
            f" got shape {values.shape} of {values.dtype}"
        )
    bad = ~(np.isfinite(values) & (values >= 0) & (values == np.floor(values)))
    if bad.any():
        j = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"capped transport: quota {values[j]} of target {j} is not a whole number of at least"
            " 0; integer_quotas turns shares into quotas"
        )
    asked = float(values.sum(dtype=np.float64))
    if asked > MOST_UNITS:
        raise DataError(f"capped transport: quotas ask for {asked:g} rows; lower the budget")
    return values.astype(np.int64)


def _checked_block(
    start: int, block: np.ndarray, num_targets: int
) -> tuple[np.ndarray, np.ndarray]:
    """A block of costs [n, M] as floats, and the least cost of each target in it [M]."""
    block = np.asarray(block)
    if block.dtype.kind != "f":
        block = block.astype(np.float64)
    if block.ndim != 2 or block.shape[1] != num_targets:
        raise DataError(
            f"capped transport: {num_targets} quotas need costs of shape [n, {num_targets}],"
            f" got {block.shape} at row {start}"
        )
    least = block.min(axis=0, initial=np.inf)
    if not (least > -np.inf).all():  # negated: NaN must not pass
        count = int((np.isnan(block) | np.isneginf(block)).sum())
        raise NumericsError(
            f"capped transport: {count} costs from row {start} on are NaN or -inf;"
            " set the rows with broken gradients aside first"
        )
    return block, least


def _check_spans(spans: list[tuple[int, int]], num_units: int) -> None:
    num_rows = sum(stop - start for start, stop in spans)
    if num_units > num_rows:
        raise DataError(
            f"capped transport: quotas ask for {num_units} rows, only {num_rows} were given;"
            " lower the budget or generate more candidates"
        )
    spans.sort()
    for (_, stop), (start, _) in pairwise(spans):
        if start < stop:
            raise DataError(
                f"capped transport: row {start} comes in two blocks; each row must come once"
            )
