"""Exact capped transport over vectors that need not fit in memory: one pass, a reserve, a proof.

The reserve and its proof are this project's reconstruction. Costs are C_ij = 1 - <x_i, y_j>, plus
a_i where rows have a cost of their own.

Shapes: N candidates X [N, D], M targets Y [M, D], row costs a [N], k rows to choose, R of reserve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from evoselect_pipeline.core.capped import CappedPlan, capped_transport, integer_quotas
from evoselect_pipeline.core.evolve_weights import cost_matrix
from evoselect_pipeline.core.explain import nearest_targets
from evoselect_pipeline.core.ledger import Choice
from evoselect_pipeline.core.rounding import capped_quota
from evoselect_pipeline.core.selection import SelectionProblem, Targets
from evoselect_pipeline.core.settings import Budget
from evoselect_pipeline.errors import ConfigError, DataError

CHUNK_ROWS = 2048  # its costs to 256 targets, 2 MB, stay in cache between the looks at them
FIRST_RESERVE = 2.0  # rows held for each row to choose: lets half of them be copies


class Rows(Protocol):
    """Vectors [N, D] of any float type: an array, a memory map, or what reads slices of a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Reserve:
    """The rows that a choice can need, in ascending order, and where every row stands.

    No row outside costs target j less than `duals[j]` [M]. `unmet` [M] counts the rows that were
    wanted for a target and do not exist. `nearest_target` [N] and `nearest_cosine` [N] say which
    target each of all rows is most like.
    """

    rows: np.ndarray
    duals: np.ndarray
    unmet: np.ndarray
    nearest_target: np.ndarray
    nearest_cosine: np.ndarray


@dataclass(frozen=True)
class StreamedChoice:
    """A choice whose row numbers count in `problem`, the reserve; `reserve.rows` translates them.

    `cost` [R, M] is that of the reserve, without row costs. It took `num_passes` over all vectors.
    """

    choice: Choice
    problem: SelectionProblem
    reserve: Reserve
    cost: np.ndarray
    num_passes: int

    @property
    def rows(self) -> np.ndarray:
        """The chosen rows among all N, in the order of choice."""
        return self.reserve.rows[self.choice.rows]


def cost_blocks(
    vectors: Rows, targets: np.ndarray, chunk_rows: int = CHUNK_ROWS
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number of its first row, 1 - <x_i, y_j> of a chunk as float32 [n, M]), one at a time.

    Raises
    ------
    DataError
        If widths disagree, or chunk_rows is below 1.
    """
    if chunk_rows < 1:
        raise DataError(f"streamed costs: chunk_rows must be at least 1, got {chunk_rows}")
    towards = np.ascontiguousarray(targets.T, dtype=np.float32)
    for start in range(0, len(vectors), chunk_rows):
        chunk = np.asarray(vectors[start : start + chunk_rows], dtype=np.float32)
        if chunk.ndim != 2 or chunk.shape[1] != len(towards):
            raise DataError(
                f"streamed costs: rows from {start} on have shape {chunk.shape}, the targets have"
                f" width {len(towards)}; project both with the same sketch"
            )
        block = chunk @ towards
        np.subtract(1.0, block, out=block)
        yield start, block


def stream_nearest_targets(
    vectors: Rows, targets: Targets, chunk_rows: int = CHUNK_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """For each row its nearest target and 1 - <x_i, y_j>, [N] each, in one pass."""
    nearest, cost = np.empty(len(vectors), np.int32), np.empty(len(vectors), np.float32)
    for start, block in cost_blocks(vectors, targets.gradients, chunk_rows):
        part = slice(start, start + len(block))
        nearest[part], cost[part] = nearest_targets(block)
    return nearest, cost


def choose_streamed(
    vectors: Rows, targets: Targets, num_rows: int, *, chunk_rows: int = CHUNK_ROWS
) -> CappedPlan:
    """The rows of least total cost that serve each target with its share of `num_rows`: one pass.

    Copies are not looked for; `capped_quota_streamed` refuses them. Memory is
    O(chunk_rows (D + M) + (k + pending) M), whatever N; `capped_transport` says why it is exact.
    """
    quotas = integer_quotas(targets.weights, num_rows)
    return capped_transport(cost_blocks(vectors, targets.gradients, chunk_rows), quotas)


def stream_reserve(
    vectors: Rows,
    targets: Targets,
    quotas: np.ndarray,
    *,
    row_cost: np.ndarray | None = None,
    reach: float = np.inf,
    chunk_rows: int = CHUNK_ROWS,
) -> Reserve:
    """Hold the rows that serve each target j with `quotas[j]` [M] rows, by one capped transport.

    Rows of infinite `row_cost`, and pairs with 1 - <x_i, y_j> above `reach`, are inadmissible.
    The reserve is the optimum for its quotas, so that its duals h bound the rows outside:
    C_ij >= h_j for all j. Where that is as many rows as there are, it is all of them.
    """
    nearest_target = np.empty(len(vectors), np.int32)
    nearest_cosine = np.empty(len(vectors), np.float32)

    def admissible() -> Iterator[tuple[int, np.ndarray]]:
        for start, block in cost_blocks(vectors, targets.gradients, chunk_rows):
            part = slice(start, start + len(block))
            nearest_target[part], least = nearest_targets(block)
            nearest_cosine[part] = 1.0 - least
            if reach < np.inf:
                block[block > reach] = np.inf
            if row_cost is not None:
                block += row_cost[part, None].astype(np.float32)
            yield start, block

    if quotas.sum() >= len(vectors):
        for _ in admissible():
            pass  # only for the nearest targets
        rows, duals = np.arange(len(vectors)), np.full(len(quotas), np.inf)
        unmet = np.zeros_like(quotas)
    else:
        plan = capped_transport(admissible(), quotas)
        rows, duals, unmet = plan.rows, plan.duals, plan.unmet
    return Reserve(rows, duals, unmet, nearest_target, nearest_cosine)


def reserve_quotas(targets: Targets, num_rows: int, factor: float) -> np.ndarray:
    """ceil(factor k b_j), [M]: so many times the rows that will be chosen for each target."""
    return np.ceil(factor * num_rows * targets.weights).astype(np.int64)


def capped_quota_streamed(
    vectors: Rows,
    problem_of: Callable[[np.ndarray], SelectionProblem],
    targets: Targets,
    budget: Budget,
    *,
    row_cost: np.ndarray | None = None,
    reach: float = np.inf,
    dedup_cosine: float = 1.0,
    quality_floor: float = 0.0,
    factor: float = FIRST_RESERVE,
    chunk_rows: int = CHUNK_ROWS,
) -> StreamedChoice:
    """Make the choice of `rounding.capped_quota`, from a reserve of O(k) rows instead of N.

    Every stage of that choice is a capped transport over the open rows. Its duals g prove it over
    all N rows if g_j <= h_j, h being the reserve's duals: no row outside then costs less than
    what the stage pays at the margin. Where copies take too much of the reserve the proof fails,
    and a pass with twice the reserve follows. Costs are float32: the proof holds to about 1e-7.

    A pool that cannot fill the budget is the exception. The last stages split what is missing by
    the number of open rows, and of those only the reserve's are counted: other rows may then come
    out. If copies are the cause, the reserve grows to all rows before that is known.

    Parameters
    ----------
    vectors : Rows [N, D]
        Unit rows, in the order that breaks ties.
    problem_of : callable
        Gives the problem whose candidates are the named rows [R], in that order.
    targets : Targets
    budget : Budget
        A number of rows, and at will a share of any one source.
    row_cost : array [N], optional
        a, as EvoSelect's -epsilon log w; +inf is never chosen.
    reach, dedup_cosine, quality_floor : float
        As in `capped_quota`. Only the reserve is looked at for copies.
    factor : float
        Size of the first reserve in rows to choose, above 1.

    Raises
    ------
    ConfigError
        If the budget counts tokens: what then fits depends on rows outside the reserve.
    """
    if budget.rows is None or budget.tokens is not None or not factor > 1:
        raise ConfigError(
            f"streamed choice: expected a budget of rows alone and a reserve factor above 1, got"
            f" {budget} and factor {factor}; a budget of tokens needs the choice in memory"
        )
    num_passes = 0
    while True:
        num_passes += 1
        reserve = stream_reserve(
            *(vectors, targets, reserve_quotas(targets, budget.rows, factor)),
            row_cost=row_cost,
            reach=reach,
            chunk_rows=chunk_rows,
        )
        problem = problem_of(reserve.rows)
        cost = cost_matrix(problem)
        score = -cost if row_cost is None else -cost - row_cost[reserve.rows, None]
        limits = {"reach": reach, "dedup_cosine": dedup_cosine, "quality_floor": quality_floor}
        choice = capped_quota(problem, budget, score, targets.weights, cost=cost, **limits)
        if (choice.ceilings <= reserve.duals).all():
            return StreamedChoice(choice, problem, reserve, cost, num_passes)
        factor *= 2
