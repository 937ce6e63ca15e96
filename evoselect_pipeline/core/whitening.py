"""Features in which the candidates vary equally in every direction.

Shapes: N candidates G [N, D], M targets V [M, D], r components.
"""

from __future__ import annotations

import numpy as np

BLOCK_ROWS = 8192  # rows centred at a time: a second copy of all gradients is never made


def whitened_cosines(
    gradients: np.ndarray, targets: np.ndarray, num_components: int, ridge: float
) -> np.ndarray:
    """Cosines [N, M] of candidates and targets after whitening by the candidates' covariance.

        Sigma = mean_i (g_i - m)(g_i - m)^T,   Sigma' = Sigma on its r leading axes + gamma I
        Sigma' = L L^T,   x = L^-1 (g - m),    cosine = <x_i, x_j> / (||x_i|| ||x_j||)

    so <x_i, x_j> = (g_i - m)^T Sigma'^-1 (v_j - m): Mahalanobis' inner product. r is at most
    `num_components`, D and N - 1, the rank of Sigma, so that D may exceed N. gamma is `ridge` times
    the mean of the r leading variances: directions that hardly vary are not blown up.
    """
    mean = gradients.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, len(gradients), BLOCK_ROWS):
        block = (gradients[start : start + BLOCK_ROWS] - mean).astype(gradients.dtype)
        covariance += block.T @ block
    axes, variances = _leading_axes(covariance / len(gradients), num_components, len(gradients))
    scale = np.sqrt(variances + ridge * max(float(variances.mean()), np.finfo(np.float64).tiny))
    leading, centre = axes.astype(gradients.dtype), mean @ axes
    whitened = [_unit_rows((x @ leading - centre) / scale) for x in (gradients, targets)]
    return whitened[0] @ whitened[1].T


def _leading_axes(
    covariance: np.ndarray, num_components: int, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    from scipy.linalg import eigh  # slow to import, and needed only here

    width = len(covariance)
    count = max(1, min(num_components, width, num_rows - 1))
    variances, axes = eigh(covariance, subset_by_index=[width - count, width - 1])
    return axes, np.maximum(variances, 0.0)


def _unit_rows(matrix: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.maximum(lengths, np.finfo(np.float64).tiny)
