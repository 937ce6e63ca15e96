"""The selection problem and its answer: what every selector gets and what it must give back.

Shapes: N candidates, M targets, D projection width, h rows selected in earlier rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evoselect_pipeline.errors import ConfigError, DataError

Diagnostics = dict[str, float | int | str | list]

UNIT_NORM_TOLERANCE = 2e-3  # a unit vector that went through float16 is off by up to 5e-4


@dataclass(frozen=True)
class EvoSelectSettings:
    """How candidates are weighted against the targets, and how k rows are taken from the weights.

    Attributes
    ----------
    epsilon : float
        Entropic regularisation, in units of cost (1 - cosine).
    num_updates : int
        Most exponentiated weight updates.
    sinkhorn_iterations : int
        Warm-started Sinkhorn iterations between two updates.
    step_size : float
        Step of the exponentiated update, per standard deviation of the score.
    diversity : float
        Final weight of the diversity energy against the transport potential.
    diversity_ramp : int
        Updates over which `diversity` grows from zero.
    memory : float
        Weight of similarity to earlier rounds' rows inside the energy.
    dedup_cosine : float
        Two rows with a cosine above this are near-duplicates; 1 or more switches the check off.
    reach : float or None
        Largest cost at which a row may serve a target; None derives it from the targets.
    tolerance : float
        L1 marginal error allowed in the final plan, and the change at which updates stop.
    norm_quarantine : float
        Rows whose gradient norm exceeds this many pool medians are set aside.
    rounding : str
        `plan_quota` (targets take turns) or `topk` (the largest weights).
    """

    epsilon: float = 0.05
    num_updates: int = 30
    sinkhorn_iterations: int = 20
    step_size: float = 0.3
    diversity: float = 0.3
    diversity_ramp: int = 10
    memory: float = 0.5
    dedup_cosine: float = 0.95
    reach: float | None = None
    tolerance: float = 1e-3
    norm_quarantine: float = 10.0
    rounding: str = "plan_quota"

    def __post_init__(self) -> None:
        positive = ("epsilon", "num_updates", "sinkhorn_iterations", "step_size", "tolerance")
        for name in (*positive, "dedup_cosine"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"select.{name} must be above 0, got {getattr(self, name)}")
        for name in ("diversity", "diversity_ramp", "memory"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"select.{name} must be 0 or more, got {getattr(self, name)}")
        if not self.norm_quarantine > 1:
            raise ConfigError(f"select.norm_quarantine must be above 1, got {self.norm_quarantine}")
        if self.reach is not None and not 0 < self.reach <= 2:
            raise ConfigError(f"select.reach is a cost 1 - cosine in (0, 2], got {self.reach}")
        if self.rounding not in ("plan_quota", "topk"):
            raise ConfigError(f"select.rounding must be plan_quota or topk, got {self.rounding!r}")


@dataclass(frozen=True)
class Budget:
    """How much may be selected; at least one of `rows` and `tokens` is given.

    Attributes
    ----------
    rows : int or None
        Rows to choose.
    tokens : int or None
        Most tokens that the chosen rows may have together.
    source_share : float or None
        Largest share of the budget that rows of one source may take: of the rows, or of the tokens
        where only tokens are given. A share of the rows lets every source give at least one.
    """

    rows: int | None = None
    tokens: int | None = None
    source_share: float | None = None

    def __post_init__(self) -> None:
        if self.rows is None and self.tokens is None:
            raise ConfigError("budget needs a number of rows or of tokens, got neither")
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"budget must be at least 1 row, got {self.rows}")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"budget must be at least 1 token, got {self.tokens}")
        if self.source_share is not None and not 0 < self.source_share <= 1:
            raise ConfigError(
                f"budget: source_share must be above 0 and at most 1, got {self.source_share}"
            )

    def check(self, num_candidates: int, num_tokens: np.ndarray) -> None:
        """Refuse a budget that the pool, or its usable rows of `num_tokens` each, cannot meet."""
        if self.rows is not None and self.rows > num_candidates:
            raise DataError(
                f"budget of {self.rows} rows is above the pool of {num_candidates} candidates;"
                " lower the budget or generate more rows"
            )
        room, shortest = self.tokens, int(np.min(num_tokens))
        if room is not None and self.rows is None and self.source_share is not None:
            room = int(self.source_share * room)
        if room is not None and room < shortest:
            raise DataError(
                f"budget: a source may give {room} tokens, the shortest of {len(num_tokens)} usable"
                f" candidates has {shortest}; raise the budget"
                + (" or its source_share" if room != self.tokens else "")
            )

    def num_rows(self, num_tokens: np.ndarray) -> int:
        """Rows to expect from a pool of rows with `num_tokens` [N] each: between 1 and N.

        `rows`, or `tokens` / mean tokens per row, whichever is less.
        """
        expected = float(len(num_tokens))
        if self.rows is not None:
            expected = min(expected, self.rows)
        if self.tokens is not None:
            expected = min(expected, self.tokens / max(float(np.mean(num_tokens)), 1e-9))
        return max(1, int(expected))


@dataclass(frozen=True)
class Candidates:
    """The pool, one entry per row in every field.

    `gradients` [N, D] holds unit rows. A row with a zero or non-finite gradient or norm may be
    handed in: `select` sets it aside with a reason. Rows that are finite but not of unit length
    are a caller's error. Equal `text_keys` mean the same text after normalisation.
    """

    sample_ids: tuple[str, ...]
    gradients: np.ndarray
    norms: np.ndarray
    losses: np.ndarray
    num_tokens: np.ndarray
    sources: tuple[str, ...]
    text_keys: tuple[str, ...]

    def __post_init__(self) -> None:
        num_rows = len(self.sample_ids)
        if num_rows == 0:
            raise DataError("candidates: the pool is empty; generate or import rows first")
        _check_matrix("candidates", self.gradients, num_rows)
        for name in ("norms", "losses", "num_tokens", "sources", "text_keys"):
            _check_length("candidates", name, len(getattr(self, name)), num_rows)
        _check_unique("candidates", self.sample_ids)
        _check_unit("candidates", self.gradients[self.usable], self.sample_ids)

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def usable(self) -> np.ndarray:
        """Boolean [N]: gradient and norm are finite and not zero."""
        norms = np.asarray(self.norms, dtype=np.float64)
        squares = np.einsum("nd,nd->n", self.gradients, self.gradients)
        return np.isfinite(norms) & (norms > 0) & np.isfinite(squares) & (squares > 0)

    def take(self, rows: np.ndarray) -> Candidates:
        """The pool restricted to, and in the order of, the given row numbers."""
        return Candidates(
            sample_ids=tuple(self.sample_ids[i] for i in rows),
            gradients=self.gradients[rows],
            norms=np.asarray(self.norms)[rows],
            losses=np.asarray(self.losses)[rows],
            num_tokens=np.asarray(self.num_tokens)[rows],
            sources=tuple(self.sources[i] for i in rows),
            text_keys=tuple(self.text_keys[i] for i in rows),
        )


@dataclass(frozen=True)
class Targets:
    """The trusted rows that say what the model should become good at.

    `gradients` [M, D] holds unit rows; `weights` [M] sums to 1 and defaults to
    `uniform_target_weights(subtasks)`.
    """

    sample_ids: tuple[str, ...]
    gradients: np.ndarray
    losses: np.ndarray
    subtasks: tuple[str, ...]
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        num_rows = len(self.sample_ids)
        if num_rows == 0:
            raise DataError("targets: the target set is empty; give at least one target row")
        _check_matrix("targets", self.gradients, num_rows)
        _check_length("targets", "losses", len(self.losses), num_rows)
        _check_length("targets", "subtasks", len(self.subtasks), num_rows)
        _check_unique("targets", self.sample_ids)
        _check_unit("targets", self.gradients, self.sample_ids)
        if len(self.weights) == 0:
            object.__setattr__(self, "weights", uniform_target_weights(self.subtasks))
        _check_length("targets", "weights", len(self.weights), num_rows)
        _check_weights(self.weights)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def take(self, rows: np.ndarray) -> Targets:
        """The targets in the order of the given row numbers, which must name every row once."""
        return Targets(
            sample_ids=tuple(self.sample_ids[j] for j in rows),
            gradients=self.gradients[rows],
            losses=np.asarray(self.losses)[rows],
            subtasks=tuple(self.subtasks[j] for j in rows),
            weights=self.weights[rows],
        )


@dataclass(frozen=True)
class SelectionProblem:
    """Candidates, targets, and the gradients [h, D] of rows selected in earlier rounds."""

    candidates: Candidates
    targets: Targets
    history: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    history_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        width = self.candidates.gradients.shape[1]
        if self.history.size == 0:
            object.__setattr__(self, "history", np.zeros((0, width), np.float32))
        _check_length("history", "history_ids", len(self.history_ids), len(self.history))
        for name, matrix in (("targets", self.targets.gradients), ("history", self.history)):
            if matrix.ndim != 2 or matrix.shape[1] != width:
                raise DataError(
                    f"{name}: gradients have shape {matrix.shape}, the candidates' have width"
                    f" {width}; project all of them with the same sketch"
                )
        _check_unit("history", self.history, self.history_ids)

    def with_candidates(self, candidates: Candidates) -> SelectionProblem:
        """The same problem over another pool."""
        return replace(self, candidates=candidates)


@dataclass(frozen=True)
class Pick:
    """One selected row and why: `rank` counts from 1 in the order of choice.

    `transport_mass` is None for selectors without a plan, `nearest_*` (the closest other selected
    row of this or an earlier round) is None where there is no other or none was looked for.
    """

    sample_id: str
    rank: int
    target_id: str
    transport_mass: float | None
    cost: float
    nearest_id: str | None
    nearest_cosine: float | None
    reason: str


@dataclass(frozen=True)
class Rejection:
    """One row that was not selected: `stage` is a slug, `reason` a sentence.

    Stages: non_finite, quarantined_norm, already_selected, same_text, near_duplicate,
    beyond_reach, over_source_cap, over_token_budget, not_needed. `related_id` names the row or
    target the reason speaks of, or is "".
    """

    sample_id: str
    stage: str
    reason: str
    related_id: str = ""


@dataclass(frozen=True)
class Selection:
    """The answer: every candidate is in exactly one of `picks` and `rejections`."""

    method: str
    picks: tuple[Pick, ...]
    rejections: tuple[Rejection, ...]
    weights: np.ndarray
    diagnostics: Diagnostics

    def __post_init__(self) -> None:
        ids = [pick.sample_id for pick in self.picks] + [r.sample_id for r in self.rejections]
        _check_unique(f"selection by {self.method}", ids)
        _check_length(f"selection by {self.method}", "decisions", len(ids), len(self.weights))

    @property
    def selected_ids(self) -> tuple[str, ...]:
        """Ids of the picks in the order of choice."""
        return tuple(pick.sample_id for pick in self.picks)


def set_aside_broken(
    candidates: Candidates, norm_quarantine: float
) -> tuple[np.ndarray, tuple[Rejection, ...]]:
    """Split the pool into usable row numbers, in sample_id order, and rejections.

    Set aside: rows whose gradient or norm is zero or not finite, and rows whose norm is above
    `norm_quarantine` times the median of the finite norms (such rows are mostly broken text).
    """
    usable = candidates.usable
    norms = np.asarray(candidates.norms, dtype=np.float64)
    median = float(np.median(norms[usable])) if usable.any() else 0.0
    kept, rejections = [], []
    for i in sorted(range(len(candidates)), key=candidates.sample_ids.__getitem__):
        if not usable[i]:
            reason = f"gradient is zero or not finite (norm {norms[i]:.4g})"
            rejections.append(Rejection(candidates.sample_ids[i], "non_finite", reason))
        elif norms[i] > norm_quarantine * median:
            reason = (
                f"gradient norm {norms[i]:.4g} is {norms[i] / median:.1f} times the pool's median,"
                f" allowed {norm_quarantine:g}"
            )
            rejections.append(Rejection(candidates.sample_ids[i], "quarantined_norm", reason))
        else:
            kept.append(i)
    return np.array(kept, dtype=int), tuple(rejections)


def uniform_target_weights(subtasks: Sequence[str]) -> np.ndarray:
    """Weights [M] that give every subtask the same share, split evenly among its rows.

    b_j = 1 / (number of subtasks * rows of j's subtask); the sum is 1.
    """
    sizes = Counter(subtasks)
    return np.array([1.0 / (len(sizes) * sizes[name]) for name in subtasks])


def _check_matrix(what: str, matrix: np.ndarray, num_rows: int) -> None:
    if matrix.ndim != 2 or len(matrix) != num_rows or matrix.shape[1] == 0:
        raise DataError(
            f"{what}: gradients have shape {matrix.shape}, expected ({num_rows}, width) to match"
            " the sample ids"
        )
    if matrix.dtype not in (np.float32, np.float64):
        raise DataError(f"{what}: gradients must be float32 or float64, got {matrix.dtype}")


def _check_length(what: str, name: str, got: int, expected: int) -> None:
    if got != expected:
        raise DataError(f"{what}: {name} has {got} entries, expected {expected}")


def _check_unique(what: str, sample_ids: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(sample_ids).items() if count > 1]
    if repeated:
        raise DataError(
            f"{what}: sample ids must be unique, {len(repeated)} repeat, first {repeated[0]!r};"
            " drop repeated rows before selection"
        )


def _check_unit(what: str, vectors: np.ndarray, sample_ids: Sequence[str]) -> None:
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    wrong = ~(np.abs(lengths - 1.0) <= UNIT_NORM_TOLERANCE)  # negated: NaN counts as wrong
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{what}: {int(wrong.sum())} of {len(sample_ids)} gradient rows are not of unit length,"
            f" the first has length {lengths[row]:.4g}; divide each row by its norm"
        )


def _check_weights(weights: np.ndarray) -> None:
    if not np.isfinite(weights).all() or (weights < 0).any() or abs(weights.sum() - 1.0) > 1e-6:
        raise DataError(
            "targets: weights must be finite, not negative and sum to 1, got a sum of"
            f" {float(np.sum(weights)):.6g} and a minimum of {float(np.min(weights)):.6g}"
        )
