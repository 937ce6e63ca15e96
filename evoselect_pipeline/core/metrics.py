"""Numbers a round is judged by: intervals of accuracies, and alignment and diversity of a choice.

Shapes: n selected rows X [n, D], M targets V [M, D], all of unit length.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from evoselect_pipeline.core.ledger import nearest_rows
from evoselect_pipeline.core.transport import check_transport
from evoselect_pipeline.errors import DataError, NumericsError

MAX_DRAWS = 2_000_000  # indices held at once while resampling: 16 MB
MAX_EXACT_ITERATIONS = 1_000_000


class Interval(NamedTuple):
    """A mean with a bootstrap interval around it."""

    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """The mean of after - before with a bootstrap interval; 0 inside means no clear change."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: np.ndarray, seed: int, confidence: float = 0.95, num_resamples: int = 2000
) -> Interval:
    """Mean of `values` [n] with the percentile bootstrap interval (Efron 1979), seeded.

    Rows are drawn with replacement; the bounds are the (1 -+ confidence) / 2 quantiles of the
    resampled means.

    Raises
    ------
    DataError
        If there are no values, one is not finite, or `confidence` is outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise DataError(
            f"bootstrap needs a non-empty row of finite values, got shape {values.shape}"
        )
    if not 0 < confidence < 1 or num_resamples < 1:
        raise DataError(
            "bootstrap needs a confidence inside (0, 1) and at least 1 resample, got"
            f" {confidence} and {num_resamples}"
        )
    rng = np.random.default_rng(seed)
    block = max(1, MAX_DRAWS // len(values))
    means = [
        values[
            rng.integers(len(values), size=(min(block, num_resamples - done), len(values)))
        ].mean(axis=1)
        for done in range(0, num_resamples, block)
    ]
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def paired_bootstrap(
    before: np.ndarray,
    after: np.ndarray,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> PairedDifference:
    """Mean of after_i - before_i with a bootstrap interval over the pairs.

    Both are [n], row i being the same question. Pairing takes out how hard the questions are.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape:
        raise DataError(
            f"paired bootstrap needs the same rows on both sides, got {before.shape} before and"
            f" {after.shape} after"
        )
    return PairedDifference(*bootstrap_interval(after - before, seed, confidence, num_resamples))


def vendi_score(vectors: np.ndarray) -> float:
    """Effective number of distinct rows (Friedman and Dieng 2023) under the cosine kernel.

    exp(-sum_i l_i log l_i) with l the eigenvalues of X X^T / n: 1 for copies of one row, n for n
    orthogonal rows. X^T X / n has the same non-zero eigenvalues; the smaller one is formed.
    """
    vectors = _unit_matrix("vendi score", vectors).astype(np.float64)
    num_rows, width = vectors.shape
    gram = vectors @ vectors.T if num_rows <= width else vectors.T @ vectors
    eigenvalues = np.linalg.eigvalsh(gram / num_rows)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-np.sum(eigenvalues * np.log(eigenvalues))))


def ot_distance(
    selected: np.ndarray, targets: np.ndarray, target_weights: np.ndarray | None = None
) -> float:
    """Exact optimal transport cost between equally weighted rows and targets.

    min sum_ij P_ij (1 - <x_i, v_j>) over plans with marginals 1/n and b (uniform by default),
    solved by POT's network simplex: unlike an entropic value it depends on no epsilon.

    Raises
    ------
    NumericsError
        If the solver does not reach the optimum.
    """
    import ot  # see transport.sinkhorn

    selected = _unit_matrix("ot distance, selected rows", selected).astype(np.float64)
    targets = _unit_matrix("ot distance, targets", targets).astype(np.float64)
    b = np.full(len(targets), 1.0 / len(targets)) if target_weights is None else target_weights
    a = np.full(len(selected), 1.0 / len(selected))
    a, b, cost = check_transport(a, b, 1.0 - selected @ targets.T, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the solver's warning is raised below
        value, log = ot.emd2(a, b, cost, numItermax=MAX_EXACT_ITERATIONS, log=True)
    if log["warning"] is not None or not np.isfinite(value):
        raise NumericsError(f"ot distance: the exact solver stopped early: {log['warning']}")
    return float(value)


def near_duplicate_share(vectors: np.ndarray, threshold: float) -> float:
    """Share of rows that have another row at a cosine above `threshold`; 0 for no rows."""
    if len(vectors) == 0:
        return 0.0
    vectors = _unit_matrix("near-duplicate share", vectors)
    return float(np.mean(nearest_rows(vectors, vectors, same=True)[1] > threshold))


def target_coverage(selected: np.ndarray, targets: np.ndarray, reach: float) -> float:
    """Share of targets that have a selected row at a cost 1 - cosine of at most `reach`."""
    targets = _unit_matrix("target coverage", targets)
    if len(selected) == 0:
        return 0.0
    return float(np.mean(1.0 - nearest_rows(targets, selected)[1] <= reach))


def _unit_matrix(what: str, vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.size == 0 or not np.isfinite(vectors).all():
        raise DataError(f"{what}: expected finite rows of vectors, got shape {vectors.shape}")
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if np.abs(lengths - 1.0).max() > 1e-2:
        raise DataError(
            f"{what}: rows must be of unit length, got {lengths.min():.4g} to {lengths.max():.4g}"
        )
    return vectors
