"""How much of the targets' mass each candidate gets: the closed forms behind `tsds` and `ot_vote`.

Shapes: N candidates G [N, D], M targets of weights b [M], distances and costs [N, M].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evoselect_pipeline.core.transport import soft_minimum

MAX_KERNEL_ROWS = 8192  # rows that a density is summed over: exact up to here, sampled beyond
BLOCK_ROWS = 1024
MAX_ITERATIONS = 1000
TOLERANCE = 1e-12  # change of a potential, in units of cost


class SpreadMass(NamedTuple):
    """Mass [N, M] of columns b_j, and the width W of inverse density that each is spread over."""

    mass: np.ndarray
    width: float


def kernel_density(vectors: np.ndarray, bandwidth: float, seed: int) -> np.ndarray:
    """rho_i = sum_l max(0, 1 - ||g_i - g_l||^2 / bandwidth^2) over all rows l, i itself included.

    A row without a near-duplicate has density 1, so 1 / rho shares one row's worth among copies.
    Above `MAX_KERNEL_ROWS` rows the others' part is estimated from as many, drawn with the seed.
    """
    num_rows = len(vectors)
    size = min(num_rows, MAX_KERNEL_ROWS)
    rows = np.sort(np.random.default_rng(seed).choice(num_rows, size, replace=False))
    drawn = np.zeros(num_rows, dtype=bool)
    drawn[rows] = True
    place = np.cumsum(drawn) - 1
    others = np.empty(num_rows)
    for start in range(0, num_rows, BLOCK_ROWS):
        numbers = np.arange(start, min(start + BLOCK_ROWS, num_rows))
        squared = 2.0 - 2.0 * (vectors[numbers] @ vectors[rows].T)
        kernel = np.maximum(0.0, 1.0 - squared / bandwidth**2)
        own = numbers[drawn[numbers]]
        kernel[own - start, place[own]] = 0.0
        others[numbers] = kernel.sum(axis=1, dtype=np.float64)
    counted = np.maximum(1, size - drawn)
    return 1.0 + others * (num_rows - 1) / counted


def spread_over_near_rows(
    distance: np.ndarray, density: np.ndarray, b: np.ndarray, alpha: float, scale: float
) -> SpreadMass:
    """KNN-KDE: each target spreads its mass over near rows, inversely to their density.

    The closed form (TSDS, Liu et al. 2024, arXiv 2410.11303) of the minimum, over distributions
    q_j of each target, of

        alpha / scale * sum_ij b_j q_ij d_ij + (1 - alpha) * max_ij rho_i |q_ij - u_i|,
        u_i = (1 / rho_i) / S,   S = sum_i 1 / rho_i.

    A largest deviation of 1/W - 1/S allows q_ij <= (1 / rho_i) / W, so target j fills its nearest
    rows up to that, the last of them in part, until their inverse densities sum to W. With
    d_j(w) the distance at which they sum to w, W is the smallest at which

        alpha / scale * sum_j b_j (W d_j(W) - integral_0^W d_j(w) dw) >= 1 - alpha,

    where the left side grows by b_j w (d_j(w+) - d_j(w)) at the end w of each row. Deviations
    below 1/S also bind from below, where the published form does not look: the nearer half of S is
    then up and the other down, the objective is linear, and its minimum is at W = S/2 or q = u.

    Parameters
    ----------
    distance : array [N, M]
    density : array [N]
        rho.
    b : array [M]
        Target weights; the paper has 1 / M.
    alpha : float
        Nearness (towards 1) against evenness (towards 0).
    scale : float
        C of the paper, in units of distance.
    """
    order = np.argsort(distance, axis=0, kind="stable")
    near = np.take_along_axis(distance, order, axis=0)
    inverse = (1.0 / density)[order]
    ends = np.cumsum(inverse, axis=0)
    total = float((1.0 / density).sum())
    wanted = (1.0 - alpha) * scale / alpha
    width = _first_width(near, ends, b, wanted)
    if width > 0.5 * total:
        half = np.clip(0.5 * total - (ends - inverse), 0.0, inverse)
        slope = float(((inverse - 2.0 * half) * near).sum(axis=0) @ b)
        width = 0.5 * total if slope >= wanted else total
    share = np.clip(width - (ends - inverse), 0.0, inverse)
    mass = np.empty_like(share)
    np.put_along_axis(mass, order, b * share / share.sum(axis=0), axis=0)
    return SpreadMass(mass, width)


def _first_width(near: np.ndarray, ends: np.ndarray, b: np.ndarray, wanted: float) -> float:
    """The smallest end of a row at which the summed jumps reach `wanted`, or infinity."""
    jumps = (b * ends[:-1] * np.diff(near, axis=0)).ravel()
    at = ends[:-1].ravel()
    order = np.argsort(at, kind="stable")
    reached = np.searchsorted(np.cumsum(jumps[order]), wanted)
    return float(at[order[reached]]) if reached < len(at) else np.inf


def semi_relaxed_mass(
    cost: np.ndarray, b: np.ndarray, epsilon: float, relaxation: float
) -> np.ndarray:
    """The plan P [N, M] of transport that meets the targets' side and hardly minds the candidates'.

        min over P:  sum_ij P_ij C_ij + epsilon * KL(P | a b^T) + rho * KL(P 1 | a)
        subject to   sum_i P_ij = b_j,     a_i = 1/N,   rho = relaxation * epsilon

    Solved by the unbalanced Sinkhorn iteration (Chizat et al. 2018) in the log domain,

        g_j <- -epsilon log sum_i a_i exp((f_i - C_ij) / epsilon)
        f_i <- -rho / (rho + epsilon) * epsilon log sum_j b_j exp((g_j - C_ij) / epsilon),

    a contraction by relaxation / (1 + relaxation). At rho = 0 it is a softmax of -C / epsilon over
    the candidates for each target; at rho = infinity it is balanced transport.
    """
    a = np.full(len(cost), 1.0 / len(cost))
    f = np.zeros(len(cost))
    damping = relaxation / (1.0 + relaxation)
    for _ in range(MAX_ITERATIONS):
        g = soft_minimum((cost - f[:, None]).T, a, epsilon)
        f_new = damping * soft_minimum(cost - g, b, epsilon)
        change = float(np.abs(f_new - f).max())
        f = f_new
        if change <= TOLERANCE:
            break
    log_kernel = (f[:, None] - cost) / epsilon
    kernel = np.exp(log_kernel - log_kernel.max(axis=0))
    return b * kernel / kernel.sum(axis=0)
