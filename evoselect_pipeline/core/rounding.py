"""From scores to k whole rows, with a reason for every row taken and every row left.

The quota rule, its admissibility checks and the derived reach are this project's reconstruction;
`topk` is the published rule. Ties go to the earlier row, so callers hand rows in sample_id order.

Shapes: N candidates, M targets, D projection width, k rows to choose, h rows of earlier rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

import numpy as np

from evoselect_pipeline.core.selection import Budget, SelectionProblem

MAX_BLOCK_ENTRIES = 4_000_000  # of a cosine block: 16 MB in float32
REACH_SHARE = 0.5
REACH_QUANTILE = 0.25
SHORT_ID = 8
OVER_TOKENS, OVER_SOURCE = "over_token_budget", "over_source_cap"


@dataclass(frozen=True)
class Choice:
    """Chosen row numbers in the order of choice, and for each the target it serves.

    `unreached` targets never got a row, `exhausted` ones got some and then ran out before the
    budget did; both are target numbers. `refusals` maps the rows that the budget had no room for to
    a stage and a sentence.
    """

    rows: np.ndarray
    targets: np.ndarray
    unreached: tuple[int, ...] = ()
    exhausted: tuple[int, ...] = ()
    refusals: Mapping[int, tuple[str, str]] = field(default_factory=dict)


def plan_quota(
    problem: SelectionProblem,
    budget: Budget,
    score: np.ndarray,
    shares: np.ndarray,
    *,
    cost: np.ndarray,
    reach: float,
    dedup_cosine: float,
) -> Choice:
    """Targets take turns; each takes its best-scored admissible row.

    The turn goes to the target with the smallest picked_j / b_j. A row is admissible to it if it
    is unused, it fits into what the budget has left, its cost is at most `reach`, its cosine to
    every chosen row of this and earlier rounds is at most `dedup_cosine`, and no chosen row has its
    text key or its id. A target without an admissible row leaves and the others go on, so its
    quota is shared out. Rows run out before the budget where only repetitions are left: fewer rows
    are better than copies.

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
    """
    ledger = Ledger(problem, budget, dedup_cosine)
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
    rows, targets = np.array(order, dtype=int).reshape(-1, 2).T
    unreached = tuple(sorted(j for j in left if served[j] == 0))
    exhausted = tuple(sorted(j for j in left if served[j] > 0))
    return Choice(rows, targets, unreached, exhausted, ledger.refusals())


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


def repeats_history(problem: SelectionProblem, dedup_cosine: float) -> np.ndarray:
    """Boolean [N]: the row was selected in an earlier round, or is a near-duplicate of one."""
    earlier = set(problem.history_ids)
    known = np.array([sample_id in earlier for sample_id in problem.candidates.sample_ids])
    if dedup_cosine >= 1 or len(problem.history) == 0:
        return known
    return known | (nearest_rows(problem.candidates.gradients, problem.history)[1] > dedup_cosine)


class Ledger:
    """What is chosen so far, and what may still be: the one place where admissibility is decided.

    A row is open while it is unused and fits into what is left of the rows, the tokens and its
    source's share; nothing is ever given back, so a row that no longer fits is closed for good.
    With a `dedup_cosine`, rows that repeat a chosen row or one of an earlier round, by id, by text
    key or by a cosine above it (1 or more: not by cosine), are not admitted either.
    """

    def __init__(
        self, problem: SelectionProblem, budget: Budget, dedup_cosine: float | None = None
    ) -> None:
        self.candidates = problem.candidates
        self.budget = budget
        self.dedup_cosine = dedup_cosine
        self.rows: list[int] = []
        self.open = np.ones(len(self.candidates), dtype=bool)
        self._closed_by = np.full(len(self.candidates), "", dtype="U17")
        self._start_accounts()
        if dedup_cosine is not None:
            self.open &= ~repeats_history(problem, dedup_cosine)
        self._texts: set[str] = set()
        self._vectors = self.candidates.gradients[:0]
        self._close_what_no_longer_fits()

    @property
    def full(self) -> bool:
        """No row can be taken any more."""
        return len(self.rows) == self.budget.rows or not self.open.any()

    def admits(self, row: int) -> bool:
        """Whether the row may be taken now; a repetition is closed when it is asked for."""
        if self.open[row] and self._repeats(row):
            self.open[row] = False
        return bool(self.open[row])

    def take(self, row: int) -> None:
        """Enter an admitted row into the accounts."""
        if self.dedup_cosine is not None:
            self._remember(row)
        self.rows.append(row)
        self.open[row] = False
        self._tokens_left -= self._num_tokens[row]
        self._source_left[self._source[row]] -= self._source_size[row]
        self._close_what_no_longer_fits()

    def refusals(self) -> dict[int, tuple[str, str]]:
        """Stage and sentence of the rows that were closed because the budget had no room left."""
        closed = self._closed_by.nonzero()[0].tolist()
        return {i: (str(self._closed_by[i]), self._why_closed(i)) for i in closed}

    def choice(self, best_target: np.ndarray) -> Choice:
        """The rows taken, each of them for its `best_target` [N]."""
        rows = np.array(self.rows, dtype=int)
        return Choice(rows, best_target[rows], refusals=self.refusals())

    def _start_accounts(self) -> None:
        budget = self.budget
        self._num_tokens = np.asarray(self.candidates.num_tokens, dtype=np.float64)
        self._tokens_left = np.inf if budget.tokens is None else float(budget.tokens)
        names, self._source = np.unique(np.array(self.candidates.sources), return_inverse=True)
        by_rows = budget.rows is not None
        self._source_size = np.ones_like(self._num_tokens) if by_rows else self._num_tokens
        self._source_cap = np.inf
        if budget.source_share is not None:
            whole = budget.rows if budget.rows is not None else budget.tokens
            self._source_cap = np.floor(budget.source_share * float(whole or 0) + 1e-9)
            if by_rows:
                self._source_cap = max(1.0, self._source_cap)
        self._source_left = np.full(len(names), self._source_cap)

    def _close_what_no_longer_fits(self) -> None:
        if len(self.rows) == self.budget.rows:
            return  # what is left over now was not needed, whether it fits or not
        if self.budget.tokens is not None:
            self._close(self._num_tokens > self._tokens_left, OVER_TOKENS)
        if self.budget.source_share is not None:
            self._close(self._source_size > self._source_left[self._source], OVER_SOURCE)

    def _close(self, late: np.ndarray, stage: str) -> None:
        late = late & self.open
        self._closed_by[late] = stage
        self.open[late] = False

    def _why_closed(self, row: int) -> str:
        size = f"{self._num_tokens[row]:.0f} tokens"
        if self._closed_by[row] == OVER_TOKENS:
            used = self._num_tokens[self.rows].sum()
            return f"its {size} did not fit any more: {used:.0f} of {self.budget.tokens} are taken"
        code, cap = self._source[row], self._source_cap
        used = cap - self._source_left[code]
        has = f"source {self.candidates.sources[row]} has {used:.0f} of its {cap:.0f}"
        if self.budget.rows is not None:
            return f"{has} rows"
        return f"{has} tokens, the row's {size} did not fit any more"

    def _remember(self, row: int) -> None:
        self._texts.add(self.candidates.text_keys[row])
        count, gradients = len(self.rows), self.candidates.gradients
        if count == len(self._vectors):
            grown = np.empty((max(64, 2 * count), gradients.shape[1]), dtype=gradients.dtype)
            grown[:count] = self._vectors
            self._vectors = grown
        self._vectors[count] = gradients[row]

    def _repeats(self, row: int) -> bool:
        if self.dedup_cosine is None:
            return False
        if self.candidates.text_keys[row] in self._texts:
            return True
        if self.dedup_cosine >= 1 or not self.rows:
            return False
        cosines = self._vectors[: len(self.rows)] @ self.candidates.gradients[row]
        return bool(cosines.max() > self.dedup_cosine)
