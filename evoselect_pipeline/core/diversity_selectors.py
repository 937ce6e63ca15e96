"""Selectors that ask which rows differ from each other, some with a look at the targets."""

from __future__ import annotations

import numpy as np

from evoselect_pipeline.core.clustering import spherical_kmeans
from evoselect_pipeline.core.evolve_weights import cost_matrix
from evoselect_pipeline.core.explain import equal_selection, not_needed
from evoselect_pipeline.core.greedy import cover_landmarks, farthest_first, most_volume
from evoselect_pipeline.core.ledger import Ledger
from evoselect_pipeline.core.rounding import take_in_order
from evoselect_pipeline.core.selection import Diagnostics, Selection, SelectionProblem
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.core.target_selectors import attribution_scores

DROPPED_SHARE = 0.25
MAX_LANDMARKS = 2048
MAX_SIMILARITIES = 50_000_000  # 200 MB in float32; a pool of 100,000 rows keeps 500 landmarks
DPP_RIDGE = 1e-3  # variance that no other row explains, on top of the unit of each row
DPP_SHARPNESS = 3.0  # log quality per unit of cosine: 0.1 more is worth 1.8 times the variance


def diversity(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """Prismatic's rule: cluster the gradients, then fill the budget from the smallest clusters up.

    round(sqrt(N)) clusters by seeded spherical k-means. Clusters of one size go by their first
    row, the rows of a cluster in sample_id order: ids are digests, so that order is arbitrary.
    Targets play no part.
    """
    everything = np.arange(len(problem.candidates))
    return _fill_small_clusters("diversity", problem, budget, seed, everything, everything[:0])


def attr_div(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """Drop the quarter of the rows with the lowest attribution, then choose by `diversity`.

    The dropped rows, best first, are taken only where a budget above three quarters of the pool
    needs them.
    """
    score = attribution_scores(problem)[0]
    order = np.argsort(-score, kind="stable")
    num_kept = len(order) - int(DROPPED_SHARE * len(order))
    kept, dropped = np.sort(order[:num_kept]), order[num_kept:]
    return _fill_small_clusters("attr_div", problem, budget, seed, kept, dropped)


def _fill_small_clusters(
    method: str,
    problem: SelectionProblem,
    budget: Budget,
    seed: int,
    kept: np.ndarray,
    dropped: np.ndarray,
) -> Selection:
    """Cluster the rows `kept`, in ascending order, and walk them; `dropped` come last."""
    labels = spherical_kmeans(problem.candidates.gradients[kept], round(len(kept) ** 0.5), seed)
    clusters, first, member, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    by_size = np.lexsort((first, sizes))
    place = np.empty(len(clusters), dtype=int)
    place[by_size] = np.arange(1, len(clusters) + 1)
    order = kept[np.argsort(place[member], kind="stable")]
    cost = cost_matrix(problem)
    choice = take_in_order(problem, budget, np.append(order, dropped), cost.argmin(axis=1))
    where = dict.fromkeys(
        dropped.tolist(), f"among the {len(dropped)} rows of the lowest attribution"
    )
    for i, m in zip(kept.tolist(), member.tolist(), strict=True):
        where[i] = f"cluster of {sizes[m]} rows, number {place[m]} of {len(clusters)} by size"
    rejections = not_needed(
        problem.candidates,
        choice,
        lambda i: f"{where[i]}; what comes before filled the budget of {len(choice.rows)} rows",
    )
    sentences = [where[i] for i in choice.rows.tolist()]
    diagnostics: Diagnostics = {
        "num_clusters": len(clusters),
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
    }
    return equal_selection(method, problem, choice, cost, sentences, rejections, diagnostics)


def k_center(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """Greedy k-centre: start at the row nearest to the targets' mean, then farthest first.

    The targets are used for the start alone.
    """
    gradients, targets = problem.candidates.gradients, problem.targets
    ledger = Ledger(problem, budget)
    mean = (targets.weights @ targets.gradients).astype(gradients.dtype)
    taken_at, nearest = farthest_first(gradients, ledger, gradients @ mean)
    cost = cost_matrix(problem)
    choice = ledger.choice(cost.argmin(axis=1))
    sentences = [
        f"farthest from the rows chosen before it, the nearest of them at cosine {cosine:.2f}"
        if np.isfinite(cosine)
        else "nearest to the mean of the targets, where the choice starts"
        for cosine in taken_at
    ]
    rejections = not_needed(
        problem.candidates,
        choice,
        lambda i: (
            f"cosine {nearest[i]:.2f} to its nearest chosen row, the last row taken was at"
            f" {taken_at[-1]:.2f}"
        ),
    )
    diagnostics: Diagnostics = {"covering_cosine": float(nearest.min())}
    return equal_selection("k_center", problem, choice, cost, sentences, rejections, diagnostics)


def facility_location(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """Cover the pool: maximise sum_l max(0, max over chosen rows c of <g_c, g_l>), greedily.

    l runs over all rows of a pool of up to 2,048; over as many landmarks, drawn with the seed, of a
    larger one, and over fewer where N times that is above `MAX_SIMILARITIES`. Every row stays a
    candidate. Targets play no part.
    """
    gradients = problem.candidates.gradients
    num_landmarks = min(MAX_LANDMARKS, max(1, MAX_SIMILARITIES // len(gradients)), len(gradients))
    drawn = np.random.default_rng(seed).choice(len(gradients), num_landmarks, replace=False)
    landmarks = np.sort(drawn)
    ledger = Ledger(problem, budget)
    gains, left, covered = cover_landmarks(gradients @ gradients[landmarks].T, ledger)
    cost = cost_matrix(problem)
    choice = ledger.choice(cost.argmin(axis=1))
    sentences = [
        f"adds {gain:.3g} to the similarity that {num_landmarks} landmark rows find in the choice"
        for gain in gains
    ]
    rejections = not_needed(
        problem.candidates,
        choice,
        lambda i: (
            f"would add {left[i]:.3g} to the landmarks' similarity, the last row taken added"
            f" {gains[-1]:.3g}"
        ),
    )
    diagnostics: Diagnostics = {
        "num_landmarks": num_landmarks,
        "mean_landmark_similarity": float(covered.mean()),
    }
    return equal_selection(
        "facility_location", problem, choice, cost, sentences, rejections, diagnostics
    )


def dpp(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """Rows that are like a target and unlike each other: the greedy mode of a quality-weighted DPP.

    q_i = exp(`DPP_SHARPNESS` * max_j <g_i, v_j>), K as in `most_volume`.
    """
    cost = cost_matrix(problem)
    best = 1.0 - cost.min(axis=1)
    ledger = Ledger(problem, budget)
    log_quality = DPP_SHARPNESS * best
    variances, left = most_volume(problem.candidates.gradients, log_quality, ledger, DPP_RIDGE)
    choice = ledger.choice(cost.argmin(axis=1))
    gains = 2.0 * log_quality[choice.rows] + np.log(variances)
    sentences = [
        f"adds {gain:.2f} to the log-volume: cosine {best[i]:.2f} to its nearest target, and the"
        f" rows chosen before it leave {v:.0%} of its variance"
        for i, gain, v in zip(choice.rows, gains, variances, strict=True)
    ]
    rejections = not_needed(
        problem.candidates,
        choice,
        lambda i: (
            f"would add {2.0 * log_quality[i] + np.log(left[i]):.2f} to the log-volume (cosine"
            f" {best[i]:.2f} to a target, {left[i]:.0%} of its variance left), the last row taken"
            f" added {gains[-1]:.2f}"
        ),
    )
    diagnostics: Diagnostics = {"log_volume": float(gains.sum())}
    return equal_selection("dpp", problem, choice, cost, sentences, rejections, diagnostics)
