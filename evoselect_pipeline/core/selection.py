"""The selection problem and its answer: what every selector gets and what it must give back.

Shapes: N candidates, M targets, D projection width, h rows selected in earlier rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evoselect_pipeline.errors import DataError

Diagnostics = dict[str, float | int | str | list]

UNIT_NORM_TOLERANCE = 2e-3  # a unit vector that went through float16 is off by up to 5e-4


@dataclass(frozen=True)
class Candidates:
    """The pool, one entry per row in every field.

    `gradients` [N, D] holds unit rows. A row with a zero or non-finite gradient or norm may be
    handed in: `select` sets it aside with a reason. Rows that are finite but not of unit length
    are a caller's error. Equal `text_keys` mean that rows say nearly the same. `quality` (0, 1] is
    the plausibility of a row's answer, see `quality.plausibility`; 1 for all if not given.
    """

    sample_ids: tuple[str, ...]
    gradients: np.ndarray
    norms: np.ndarray
    losses: np.ndarray
    num_tokens: np.ndarray
    sources: tuple[str, ...]
    text_keys: tuple[str, ...]
    quality: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        num_rows = len(self.sample_ids)
        if num_rows == 0:
            raise DataError("candidates: the pool is empty; generate or import rows first")
        if len(self.quality) == 0:
            object.__setattr__(self, "quality", np.ones(num_rows))
        _check_matrix("candidates", self.gradients, num_rows)
        for name in ("norms", "losses", "num_tokens", "sources", "text_keys", "quality"):
            _check_length("candidates", name, len(getattr(self, name)), num_rows)
        _check_unique("candidates", self.sample_ids)
        _check_unit("candidates", self.gradients[self.usable], self.sample_ids)
        if not ((self.quality > 0) & (self.quality <= 1)).all():  # negated: NaN counts as wrong
            raise DataError("candidates: quality must be above 0 and at most 1 for every row")

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
        if np.array_equal(rows, np.arange(len(self))):
            return self  # the gradients are what takes memory
        return Candidates(
            sample_ids=tuple(self.sample_ids[i] for i in rows),
            gradients=self.gradients[rows],
            norms=np.asarray(self.norms)[rows],
            losses=np.asarray(self.losses)[rows],
            num_tokens=np.asarray(self.num_tokens)[rows],
            sources=tuple(self.sources[i] for i in rows),
            text_keys=tuple(self.text_keys[i] for i in rows),
            quality=self.quality[rows],
        )


@dataclass(frozen=True)
class Targets:
    """The trusted rows that say what the model should become good at.

    `gradients` [M, D] holds unit rows; `weights` [M] sums to 1 and defaults to
    `target_weights(subtasks)`.
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
            object.__setattr__(self, "weights", target_weights(self.subtasks))
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
    """Candidates, targets, and the gradients [h, D] of rows selected in earlier rounds.

    `history_text_keys` say which candidates nearly repeat the text of an earlier row.
    """

    candidates: Candidates
    targets: Targets
    history: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    history_ids: tuple[str, ...] = ()
    history_text_keys: frozenset[str] = frozenset()

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

    def with_quality(self, quality: np.ndarray) -> SelectionProblem:
        """The same problem with another plausibility [N] of the candidates' answers."""
        return replace(self, candidates=replace(self.candidates, quality=quality))

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
    beyond_reach, implausible_answer, over_source_cap, over_token_budget, not_needed. `related_id`
    names the row or target the reason speaks of, or is "".
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


@dataclass(frozen=True)
class SourceShare:
    """What one source has of the candidates, of their transport mass and of the chosen rows."""

    source: str
    candidates: float
    mass: float
    chosen: float


def source_shares(
    candidates: Candidates, mass: Mapping[str, float], selected_ids: Sequence[str]
) -> list[SourceShare]:
    """The influence of every source, the largest share of the transport mass first.

    `mass` is that of a row by its id; a row that is not named has none.
    """
    source_of = dict(zip(candidates.sample_ids, candidates.sources, strict=True))
    rows, chosen = Counter(candidates.sources), Counter(source_of[i] for i in selected_ids)
    carried = dict.fromkeys(rows, 0.0)
    for sample_id, own in mass.items():
        carried[source_of[sample_id]] += own
    total = sum(carried.values()) or 1.0
    shares = [
        SourceShare(
            source=source,
            candidates=count / len(candidates),
            mass=carried[source] / total,
            chosen=chosen[source] / max(1, len(selected_ids)),
        )
        for source, count in rows.items()
    ]
    return sorted(shares, key=lambda share: (-share.mass, -share.chosen, share.source))


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


def prepare(
    problem: SelectionProblem, norm_quarantine: float
) -> tuple[SelectionProblem, np.ndarray, tuple[Rejection, ...]]:
    """The usable part of the problem in sample_id order, its row numbers, and the rest.

    Raises
    ------
    DataError
        If no candidate is usable.
    """
    kept, set_aside = set_aside_broken(problem.candidates, norm_quarantine)
    if len(kept) == 0:
        raise DataError(
            f"none of {len(problem.candidates)} candidates has a usable gradient;"
            f" first reason: {set_aside[0].reason}"
        )
    order = sorted(range(len(problem.targets)), key=problem.targets.sample_ids.__getitem__)
    candidates, targets = problem.candidates.take(kept), problem.targets.take(np.array(order))
    return replace(problem, candidates=candidates, targets=targets), kept, set_aside


def target_weights(
    subtasks: Sequence[str], weight_of: Mapping[str, float] | None = None
) -> np.ndarray:
    """Weights [M] of targets: every subtask's share, split evenly among its rows.

    b_j = v_s / (n_s * sum of all v), with the n_s rows of j's subtask s and its weight v_s, which
    is 1 where `weight_of` does not name it.

    Raises
    ------
    DataError
        If a subtask is named that no target is of.
    """
    sizes, weight_of = Counter(subtasks), weight_of or {}
    if unknown := weight_of.keys() - sizes.keys():
        known = ", ".join(repr(name) for name in sorted(sizes) if name) or "no subtask at all"
        raise DataError(
            f"selection.subtask_weights: no target row is of subtask {min(unknown)!r}; the target"
            f" rows are of {known}"
        )
    share_of = {name: weight_of.get(name, 1.0) for name in sizes}
    total = sum(share_of.values())
    return np.array([share_of[name] / (total * sizes[name]) for name in subtasks])


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
