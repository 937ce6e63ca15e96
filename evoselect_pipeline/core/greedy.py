"""Greedy choices that look at what is chosen already: far, covering, or spanning much volume.

Each walks with a `Ledger`, which says what may still be taken; no [N, N] matrix is formed. Ties go
to the earlier row.

Shapes: N candidates G [N, D], k rows taken, L landmarks.
"""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace

import numpy as np

from evoselect_pipeline.core.ledger import Ledger


def farthest_first(
    gradients: np.ndarray, ledger: Ledger, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take, again and again, the row whose nearest taken row is farthest (Gonzalez 1985).

    The next row is argmin_i max_{c taken} <g_i, g_c>, a 2-approximation of the smallest radius
    that covers all rows. O(N D) for each row taken.

    Parameters
    ----------
    gradients : array [N, D]
    ledger : Ledger
        Takes the rows.
    start : array [N]
        The first row is the open one with the largest value.

    Returns
    -------
    taken_at : array [k]
        Cosine to the nearest row taken before; -inf for the first.
    nearest : array [N]
        Cosine to the nearest row taken, in the end.
    """
    nearest = np.full(len(gradients), -np.inf)
    taken_at: list[float] = []
    wanted = start
    while not ledger.full:
        row = int(np.where(ledger.open, wanted, -np.inf).argmax())
        ledger.take(row)
        taken_at.append(float(nearest[row]))
        nearest = np.maximum(nearest, gradients @ gradients[row])
        wanted = -nearest
    return np.array(taken_at), nearest


def cover_landmarks(
    similarity: np.ndarray, ledger: Ledger
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maximise sum_l max(0, max_{c taken} s_cl) over the rows taken (facility location).

    Lazy greedy (Minoux 1978): a gain only ever shrinks, so a row whose gain is out of date is an
    upper bound, and only the row at the top of the heap is looked at again. At least 1 - 1/e of the
    best value under a budget of rows (Nemhauser et al. 1978).

    Parameters
    ----------
    similarity : array [N, L]
    ledger : Ledger
        Takes the rows.

    Returns
    -------
    gains : array [k]
        What each row added when it was taken.
    left : array [N]
        What each row would still add.
    covered : array [L]
        max(0, max_{c taken} s_cl).
    """
    covered = np.zeros(similarity.shape[1], dtype=similarity.dtype)

    def gain(row: int) -> float:
        return float(np.maximum(similarity[row] - covered, 0.0).sum())

    heap = [(-gain(row), row) for row in range(len(similarity))]
    heapify(heap)
    gains: list[float] = []
    while not ledger.full:
        _, row = heap[0]
        if not ledger.open[row]:
            heappop(heap)
            continue
        now = (-gain(row), row)
        heapreplace(heap, now)
        if heap[0] != now:
            continue
        heappop(heap)
        ledger.take(row)
        gains.append(-now[0])
        covered = np.maximum(covered, similarity[row])
    return np.array(gains), np.array([gain(row) for row in range(len(similarity))]), covered


def most_volume(
    gradients: np.ndarray, log_quality: np.ndarray, ledger: Ledger, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy maximum of log det of K over the rows taken: the mode of a determinantal process.

        K_il = q_i q_l (<g_i, g_l> + ridge * [i = l])
        gain of i, given the rows taken = 2 log q_i + log v_i,   v_i its residual variance

    This is the incremental Cholesky of Chen et al. (2018), carried in feature space: with r the
    part of the new row's gradient that the rows taken leave over, v_i falls by <g_i, r>^2 / v_new.
    That takes O(N D + k D) for a row and memory O(k D), where a factor of K needs O(N k). The ridge
    keeps every v at or above it, so that more than D rows can be taken.

    Parameters
    ----------
    gradients : array [N, D]
    log_quality : array [N]
        log q.
    ledger : Ledger
        Takes the rows.
    ridge : float

    Returns
    -------
    variances : array [k]
        v of each row when it was taken.
    left : array [N]
        v of each row in the end.
    """
    squares = np.einsum("nd,nd->n", gradients, gradients, dtype=np.float64)
    left = squares + ridge
    basis = np.empty((64, gradients.shape[1]))
    variances: list[float] = []
    while not ledger.full:
        gain = 2.0 * log_quality + np.log(left)
        row = int(np.where(ledger.open, gain, -np.inf).argmax())
        ledger.take(row)
        count = len(variances)
        variances.append(float(left[row]))
        if count == len(basis):
            basis = np.concatenate([basis, np.empty_like(basis)])
        new = gradients[row].astype(np.float64)
        rest = new - (basis[:count] @ new) @ basis[:count]
        basis[count] = rest / np.sqrt(ridge + max(0.0, float(new @ rest)))
        along = gradients @ basis[count].astype(gradients.dtype)
        left = np.maximum(left - np.square(along, dtype=np.float64), ridge)
    return np.array(variances), left
