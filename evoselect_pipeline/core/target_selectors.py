"""Selectors that ask which rows are like the targets."""

from __future__ import annotations

import numpy as np

from evoselect_pipeline.core.evolve_weights import cost_matrix
from evoselect_pipeline.core.explain import (
    equal_selection,
    explain_rejections,
    nearest_targets,
    not_needed,
    ranked_out,
    serves,
    target_diagnostics,
)
from evoselect_pipeline.core.ledger import SHORT_ID
from evoselect_pipeline.core.rounding import plan_quota, take_in_order, topk
from evoselect_pipeline.core.selection import Diagnostics, Selection, SelectionProblem
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.core.target_mass import (
    kernel_density,
    semi_relaxed_mass,
    spread_over_near_rows,
)
from evoselect_pipeline.core.whitening import whitened_cosines

NO_REACH = 2.0  # a cost of 1 - cosine is never above 2
TSDS_ALPHA = 0.5  # the three numbers are those of the published configuration
TSDS_SCALE = 5.0
TSDS_BANDWIDTH = 0.75  # rows with a cosine above 0.72 share their mass
TAROT_COMPONENTS = 256
TAROT_RIDGE = 0.01
OT_VOTE_RELAXATION = 0.1  # rho in units of epsilon: what is near decides, not an even share each


def attribution(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """LESS's rule: mean cosine to the targets of a subtask, the best subtask counts, top k."""
    cost = cost_matrix(problem)
    score, winner = attribution_scores(problem)
    in_winner = np.array(problem.targets.subtasks) == winner[:, None]
    nearest = np.where(in_winner, cost, np.inf).argmin(axis=1)
    choice = topk(problem, budget, score, nearest)
    sentences = [
        f"mean cosine {score[i]:.3f} to subtask {winner[i] or '(unnamed)'};"
        f" nearest target of it {problem.targets.sample_ids[j][:SHORT_ID]}"
        for i, j in zip(choice.rows, choice.targets, strict=True)
    ]
    rejections = ranked_out(problem.candidates, choice, score, "mean cosine")
    diagnostics: Diagnostics = {"lowest_chosen_score": float(score[choice.rows].min())}
    return equal_selection("attribution", problem, choice, cost, sentences, rejections, diagnostics)


def attribution_scores(problem: SelectionProblem) -> tuple[np.ndarray, np.ndarray]:
    """Score [N] and the subtask [N] that gives it.

    score_i = max over subtasks s of (1 / |s|) sum_{j in s} <g_i, v_j>. Subtasks may differ in size
    and their rows may come in any order.
    """
    cosines = 1.0 - cost_matrix(problem)
    subtasks = np.array(problem.targets.subtasks)
    names = np.unique(subtasks)
    means = np.stack([cosines[:, subtasks == name].mean(axis=1) for name in names], axis=1)
    return means.max(axis=1), names[means.argmax(axis=1)]


def round_robin(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """Cycle through the targets, each takes its nearest unused row; copies are passed over.

    There is no reach cap unless `settings.reach` is set.
    """
    cost = cost_matrix(problem)
    limits = {
        "reach": NO_REACH if settings.reach is None else settings.reach,
        "dedup_cosine": settings.dedup_cosine,
    }
    shares = np.full(len(problem.targets), 1.0 / len(problem.targets))
    choice = plan_quota(problem, budget, -cost, shares, cost=cost, **limits)
    sentences = [
        f"{serves(problem.targets, j)}: nearest unused row, cosine {1.0 - cost[i, j]:.2f}"
        for i, j in zip(choice.rows, choice.targets, strict=True)
    ]
    rejections = explain_rejections(problem, choice, nearest_targets(cost), **limits)
    diagnostics = target_diagnostics(choice, problem.targets)
    return equal_selection("round_robin", problem, choice, cost, sentences, rejections, diagnostics)


def tsds(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """TSDS with KNN-KDE: draw rows in proportion to the mass that near targets spread on them.

    p_i = sum_j b_j q_ij of `spread_over_near_rows`, with Euclidean distances of unit gradients. The
    paper draws k rows from p with replacement; here every row is drawn at most once, by the k
    largest log p_i + Gumbel noise, which is drawing one by one and renormalising (Efraimidis and
    Spirakis 2006). Rows of p = 0, nearest first, come last, where fewer than k have any mass.
    """
    cost = cost_matrix(problem)
    density = kernel_density(problem.candidates.gradients, TSDS_BANDWIDTH, seed)
    distance, b = np.sqrt(np.maximum(0.0, 2.0 * cost)), problem.targets.weights
    mass, width = spread_over_near_rows(distance, density, b, TSDS_ALPHA, TSDS_SCALE)
    p = mass.sum(axis=1)
    noise = np.random.default_rng(seed).gumbel(size=len(p))
    drawn = np.full(len(p), -np.inf)
    drawn[p > 0] = np.log(p[p > 0]) + noise[p > 0]
    order = np.lexsort((cost.min(axis=1), -drawn))
    giver = np.where(p > 0, mass.argmax(axis=1), cost.argmin(axis=1))
    choice = take_in_order(problem, budget, order, giver)

    def told(i: int) -> str:
        return f"probability {p[i]:.3g}, density {density[i]:.1f}"

    sentences = [
        f"{serves(problem.targets, j)}: drawn with seed {seed}, {told(i)}"
        if p[i] > 0
        else f"{serves(problem.targets, j)}: no target spread mass on it, nearest of such rows"
        for i, j in zip(choice.rows, choice.targets, strict=True)
    ]
    rejections = not_needed(
        problem.candidates, choice, lambda i: f"not drawn with seed {seed}, {told(i)}"
    )
    diagnostics: Diagnostics = {
        "num_rows_with_mass": int((p > 0).sum()),
        "mean_density": float(density.mean()),
        "spread_width": width,
    }
    return equal_selection("tsds", problem, choice, cost, sentences, rejections, diagnostics)


def tarot(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """TAROT's rule: in whitened features, the nearest row of each target, then the second, ...

    The distance is that of unit vectors after whitening (arXiv 2412.00420; `whitened_cosines`).
    Layer l holds the l-th nearest row of every target; rows of an earlier layer are passed over.
    Within a layer the nearest come first, so that a last layer that does not fit is cut at its far
    end; the published code asks transport potentials there.
    """
    cosines = whitened_cosines(
        problem.candidates.gradients, problem.targets.gradients, TAROT_COMPONENTS, TAROT_RIDGE
    )
    distance = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * cosines))
    order = np.argsort(distance, axis=0, kind="stable")
    layers = np.empty_like(order)
    np.put_along_axis(layers, order, np.arange(1, len(order) + 1)[:, None], axis=0)
    layer = layers.min(axis=1)
    target = np.where(layers == layer[:, None], distance, np.inf).argmin(axis=1)
    at = distance[np.arange(len(layer)), target]
    cost = cost_matrix(problem)
    choice = take_in_order(problem, budget, np.lexsort((at, layer)), target)
    sentences = [
        f"{serves(problem.targets, j)}: number {layer[i]} by whitened distance ({at[i]:.2f})"
        for i, j in zip(choice.rows, choice.targets, strict=True)
    ]
    last = int(layer[choice.rows].max())
    rejections = not_needed(
        problem.candidates,
        choice,
        lambda i: (
            f"at best number {layer[i]} by whitened distance ({at[i]:.2f}), of target"
            f" {problem.targets.sample_ids[target[i]][:SHORT_ID]}; number {last} was the last taken"
        ),
    )
    diagnostics: Diagnostics = {"num_layers": last}
    return equal_selection("tarot", problem, choice, cost, sentences, rejections, diagnostics)


def ot_vote(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """Rank by the mass that semi-relaxed transport moves to a row: targets vote, rows need no fill.

    The plan is that of `semi_relaxed_mass` with `settings.epsilon` and `OT_VOTE_RELAXATION`.
    """
    cost = cost_matrix(problem)
    mass = semi_relaxed_mass(cost, problem.targets.weights, settings.epsilon, OT_VOTE_RELAXATION)
    votes = mass.sum(axis=1)
    choice = topk(problem, budget, votes, mass.argmax(axis=1))
    sentences = [
        f"{serves(problem.targets, j)}: {mass[i, j]:.3g} of its {votes[i]:.3g} transport mass"
        for i, j in zip(choice.rows, choice.targets, strict=True)
    ]
    rejections = ranked_out(problem.candidates, choice, votes, "transport mass")
    diagnostics: Diagnostics = {
        "lowest_chosen_mass": float(votes[choice.rows].min()),
        "chosen_mass": float(votes[choice.rows].sum()),
    }
    return equal_selection("ot_vote", problem, choice, cost, sentences, rejections, diagnostics)
