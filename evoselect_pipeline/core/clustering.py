"""Spherical k-means: groups of rows that point the same way.

Shapes: n unit rows X [n, D], K clusters.
"""

from __future__ import annotations

import numpy as np

MAX_ITERATIONS = 25  # memberships of gradients settle in about ten


def spherical_kmeans(vectors: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Labels [n] that maximise sum_i <x_i, c_label(i)> over unit centres c.

    Lloyd's iterations with cosines (Dhillon and Modha 2001) from seeded k-means++ centres (Arthur
    and Vassilvitskii 2007): the next first centre is a row drawn in proportion to its 1 - cosine to
    the nearest centre so far. A centre that loses all of its rows stays where it is. Ties go to the
    earlier centre. Memory is O(n K).

    Parameters
    ----------
    vectors : array [n, D]
        Unit rows.
    num_clusters : int
        K; fewer are made where the rows have fewer distinct directions.
    seed : int
    """
    centres = _first_centres(vectors, num_clusters, np.random.default_rng(seed))
    labels = np.full(len(vectors), -1)
    for _ in range(MAX_ITERATIONS):
        found = (vectors @ centres.T).argmax(axis=1)
        if np.array_equal(found, labels):
            break
        labels = found
        for cluster in range(len(centres)):
            total = vectors[labels == cluster].sum(axis=0)
            length = np.linalg.norm(total)
            if length > 0:
                centres[cluster] = total / length
    return labels


def _first_centres(vectors: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    rows = [int(rng.integers(len(vectors)))]
    nearest = vectors @ vectors[rows[0]]
    while len(rows) < num_clusters:
        # A row's cosine to itself is 1 only up to rounding: without the floor, copies are drawn.
        distance = np.where(nearest < 1 - 1e-6, 1.0 - nearest, 0.0).astype(np.float64)
        if distance.sum() == 0:
            break
        rows.append(int(rng.choice(len(vectors), p=distance / distance.sum())))
        nearest = np.maximum(nearest, vectors @ vectors[rows[-1]])
    return vectors[rows].copy()
