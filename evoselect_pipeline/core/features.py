"""From rows and their gradient features to a selection problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evoselect_pipeline.core.near_text import distinct_overlap, near_text_keys
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.core.selection import (
    Candidates,
    SelectionProblem,
    Targets,
    target_weights,
)
from evoselect_pipeline.core.text_keys import text_key

CHUNK_ROWS = 8192  # vectors are many; what is made of them on the way need not be
HALF_PRECISION = 2e-3  # of the square of a unit vector's length, stored in 16 bits


class Features(NamedTuple):
    """Gradient features of n rows in a given order; see `gradients.GradientBatch`."""

    vectors: np.ndarray  # [n, D] or [n, M + D] float32, unit rows
    norms: np.ndarray  # [n] float32
    losses: np.ndarray  # [n] float32
    num_tokens: np.ndarray  # [n] int32


def join_span(vectors: np.ndarray, coordinates: np.ndarray, folded: np.ndarray) -> np.ndarray:
    r"""Unit vectors [n, M + D] whose inner products with the targets' are exact.

    A row g is split at the targets' span, of orthonormal basis Q, into its coordinates and a rest:

    .. math::
        g = Q c + h, \qquad \langle g, g' \rangle = \langle c, c' \rangle + \langle h, h' \rangle

    The coordinates are exact; of the rest there is the sketch S h = S g - S Q c, brought to its
    right length, sqrt(1 - |c|^2). A target has no rest. Between two rows only the rests' inner
    product is estimated, so the sketch's error shrinks for them, too. This project's
    reconstruction.

    Parameters
    ----------
    vectors : array [n, D]
        Sketches S g of unit length.
    coordinates : array [n, M]
        See `target_span`; without columns the vectors stay as they are.
    folded : array [M, D]
        Sketches S Q of the basis.
    """
    if not coordinates.shape[1]:
        return vectors
    rest = vectors - coordinates @ folded
    outside = 1.0 - np.square(coordinates).sum(axis=1, keepdims=True)
    outside[outside < HALF_PRECISION] = 0.0  # a target's rest is rounding, not a direction
    length = np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-30)
    joined = np.hstack([coordinates, rest * (np.sqrt(outside) / length)])
    return joined / np.maximum(np.linalg.norm(joined, axis=1, keepdims=True), 1e-30)


def selection_problem(
    candidates: Sequence[Sample],
    candidate_features: Features,
    targets: Sequence[Sample],
    target_features: Features,
    history_vectors: np.ndarray | None = None,
    *,
    history_ids: Sequence[str] = (),
    trained: Sequence[Sample] = (),
    near_text: float = 1.0,
    centre: bool = True,
    subtask_weights: Mapping[str, float] | None = None,
) -> SelectionProblem:
    """Put rows and features together.

    Parameters
    ----------
    history_ids : sequence of str
        The rows of the last rounds, as `history_vectors` has them.
    trained : sequence of Sample
        The rows of all earlier rounds; what nearly copies one of them is no news.
    near_text : float
        Jaccard index of word triples from which on rows are copies; more where distinct targets
        overlap more, see `near_text_keys` and `distinct_overlap`. Above 1 no row is a copy.
    centre : bool
        Take the mean of the usable candidates' vectors out of every vector, and renormalise. All
        answers share a large common direction ("write an answer, then stop") that says nothing
        about which row is like which target; this project's reconstruction.
    subtask_weights : mapping of str to float
        How much the targets' subtasks count beside each other, see `target_weights`.
    """
    pool = candidate_features.vectors
    if history_vectors is None:
        history_vectors = np.zeros((0, pool.shape[1]), np.float32)
    mean = np.zeros(pool.shape[1], np.float32)
    if centre:
        usable = np.isfinite(pool).all(axis=1) & (np.abs(pool).max(axis=1) > 0)
        if usable.sum() > 1:  # without its mean, nothing is left of a single row
            mean = pool[usable].mean(axis=0)
    sample_ids = tuple(sample.sample_id for sample in candidates)
    subtasks = tuple(sample.subtask for sample in targets)
    text_keys, trained_keys = sample_ids, frozenset()
    if near_text <= 1:
        # A hair above the targets' own overlap: at it, rows may still be distinct.
        threshold = min(1.0, max(near_text, distinct_overlap(targets) + 1e-9))
        text_keys = near_text_keys(candidates, threshold, first=trained)
        trained_keys = frozenset(text_key(sample) for sample in trained)
    return SelectionProblem(
        candidates=Candidates(
            sample_ids=sample_ids,
            gradients=_centred(pool, mean),
            norms=candidate_features.norms,
            losses=candidate_features.losses,
            num_tokens=candidate_features.num_tokens,
            sources=tuple(sample.source for sample in candidates),
            text_keys=text_keys,
        ),
        targets=Targets(
            sample_ids=tuple(sample.sample_id for sample in targets),
            gradients=_centred(target_features.vectors, mean),
            losses=target_features.losses,
            subtasks=subtasks,
            weights=target_weights(subtasks, subtask_weights),
        ),
        history=_centred(history_vectors, mean),
        history_ids=tuple(history_ids),
        history_text_keys=trained_keys,
    )


def _centred(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Subtract the mean and renormalise; rows without a gradient stay zero."""
    centred = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), CHUNK_ROWS):
        rows = vectors[start : start + CHUNK_ROWS]
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        shifted = np.where(lengths > 0, rows - mean, 0.0).astype(np.float32)
        lengths = np.maximum(np.linalg.norm(shifted, axis=1, keepdims=True), 1e-12)
        np.divide(shifted, lengths, out=centred[start : start + CHUNK_ROWS])
    return centred
