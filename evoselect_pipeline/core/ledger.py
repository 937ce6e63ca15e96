"""What may still be chosen: the one place where admissibility is decided.

Shapes: N candidates, D projection width, n rows of one matrix, m of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evoselect_pipeline.core.selection import SelectionProblem
from evoselect_pipeline.core.settings import Budget

MAX_BLOCK_ENTRIES = 4_000_000  # of a cosine block: 16 MB in float32
SHORT_ID = 8
OVER_TOKENS, OVER_SOURCE = "over_token_budget", "over_source_cap"
IMPLAUSIBLE = "implausible_answer"


@dataclass(frozen=True)
class Choice:
    """Chosen row numbers in the order of choice, and for each the target it serves.

    `unreached` targets never got a row, `exhausted` ones got some and then ran out before the
    budget did; both are target numbers. `refusals` maps the rows that were implausible, or
    that the budget had no room for, to a stage and a sentence. `ceilings` [M], where the choice
    was a transport, are costs: a further row at or above those of all targets changes nothing.
    """

    rows: np.ndarray
    targets: np.ndarray
    unreached: tuple[int, ...] = ()
    exhausted: tuple[int, ...] = ()
    refusals: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    ceilings: np.ndarray = field(default_factory=lambda: np.zeros(0))


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
    """Boolean [N]: the row was selected in an earlier round, or nearly repeats one."""
    earlier, texts = set(problem.history_ids), problem.history_text_keys
    rows = zip(problem.candidates.sample_ids, problem.candidates.text_keys, strict=True)
    known = np.array([sample_id in earlier or key in texts for sample_id, key in rows])
    if dedup_cosine >= 1 or len(problem.history) == 0:
        return known
    return known | (nearest_rows(problem.candidates.gradients, problem.history)[1] > dedup_cosine)


class Ledger:
    """What is chosen so far, and what may still be: the one place where admissibility is decided.

    A row is open while it is unused and fits into what is left of the rows, the tokens and its
    source's share; nothing is ever given back, so a row that no longer fits is closed for good.
    With a `dedup_cosine`, rows that repeat a chosen row or one of an earlier round, by id, by text
    key or by a cosine above it (1 or more: not by cosine), are not admitted either; nor are rows
    of a quality below `quality_floor`.
    """

    def __init__(
        self,
        problem: SelectionProblem,
        budget: Budget,
        dedup_cosine: float | None = None,
        quality_floor: float = 0.0,
    ) -> None:
        self.candidates = problem.candidates
        self.budget = budget
        self.dedup_cosine = dedup_cosine
        self.rows: list[int] = []
        self.open = np.ones(len(self.candidates), dtype=bool)
        self._closed_by = np.full(len(self.candidates), "", dtype="U18")
        self._start_accounts()
        if dedup_cosine is not None:
            self.open &= ~repeats_history(problem, dedup_cosine)
        self._close(self.candidates.quality < quality_floor, IMPLAUSIBLE)
        self._texts: set[str] = set()
        self._vectors = self.candidates.gradients[:0]
        self._num_compared = 0
        self._close_what_no_longer_fits()

    @property
    def full(self) -> bool:
        """No row can be taken any more."""
        return len(self.rows) == self.budget.rows or not self.open.any()

    @property
    def num_rows_left(self) -> int:
        """Rows that may still come, by the mean length of the open ones; one at least."""
        rows, tokens = self.budget.rows, self.budget.tokens
        left = Budget(
            rows=None if rows is None else rows - len(self.rows),
            tokens=None if tokens is None else max(1, int(self._tokens_left)),
        )
        return left.num_rows(self._num_tokens[self.open])

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

    def close_repetitions(self) -> None:
        """Close every open row that repeats a chosen one now, not only when it is asked for."""
        if self.dedup_cosine is None:
            return
        gradients, fresh = self.candidates.gradients, self.rows[self._num_compared :]
        self._num_compared = len(self.rows)
        self.open &= np.array([key not in self._texts for key in self.candidates.text_keys])
        if self.dedup_cosine < 1:
            self.open &= nearest_rows(gradients, gradients[fresh])[1] <= self.dedup_cosine

    def refusals(self) -> dict[int, tuple[str, str]]:
        """Stage and sentence of the rows closed for their quality or for want of budget."""
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
        if self._closed_by[row] == IMPLAUSIBLE:
            quality = self.candidates.quality[row]
            return f"its answer surprises beside those of like targets: plausible at {quality:.0%}"
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
