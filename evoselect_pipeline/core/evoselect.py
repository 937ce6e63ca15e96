"""EvoSelect: weights by transport and diversity, then whole rows; large pools are narrowed first.

To narrow the pool, and what a row's weight starts from, are this project's reconstruction.

Shapes: N candidates, M targets, k rows to choose, R rows that are weighed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from evoselect_pipeline.core.capped import integer_quotas
from evoselect_pipeline.core.evolve_weights import (
    Evolution,
    cost_matrix,
    evolve_weights,
    restore_evolution,
)
from evoselect_pipeline.core.explain import (
    explain_rejections,
    make_picks,
    nearest_targets,
    ranked_out,
    serves,
    target_diagnostics,
)
from evoselect_pipeline.core.ledger import Choice, Ledger, nearest_rows, repeats_history
from evoselect_pipeline.core.rounding import capped_quota, plan_quota, reach_cap, topk
from evoselect_pipeline.core.selection import (
    Candidates,
    Selection,
    SelectionProblem,
    Targets,
    prepare,
)
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.core.streaming import (
    reserve_quotas,
    stream_nearest_targets,
    stream_reserve,
)
from evoselect_pipeline.errors import DataError

HELD_PER_ROW = 4.0  # rows weighed for each row to choose, where not all are
LARGEST_SHARE_HELD = 0.25  # of the pool: to hold more costs as much as it saves


@dataclass(frozen=True)
class Alignment:
    """EvoSelect's weights of the candidates that it weighs, before rows are chosen.

    `rows` [R] are their numbers among the usable candidates in sample_id order. `sample_ids` and
    `target_ids` name the rows and columns of `evolution`.
    """

    rows: np.ndarray
    sample_ids: tuple[str, ...]
    target_ids: tuple[str, ...]
    evolution: Evolution


def align(problem: SelectionProblem, budget: Budget, settings: EvoSelectSettings) -> Alignment:
    """Weigh the candidates: the first half of `evoselect`, whatever method then chooses.

    Raises
    ------
    DataError
        If no candidate is usable.
    NumericsError
        If transport does not converge.
    """
    return _align(prepare(problem, settings.norm_quarantine)[0], budget, settings)


def restore_alignment(
    problem: SelectionProblem,
    budget: Budget,
    settings: EvoSelectSettings,
    weights: np.ndarray,
    potentials: tuple[np.ndarray, np.ndarray],
    rows: np.ndarray | None = None,
) -> Alignment:
    """The alignment of the same problem, from what was kept of it; `rows` are all if not given."""
    prepared, _, _ = prepare(problem, settings.norm_quarantine)
    rows = np.arange(len(prepared.candidates)) if rows is None else rows
    weighed = _restricted(prepared, rows)
    start = start_of(weighed, settings)
    evolution = restore_evolution(weighed, budget, settings, weights, potentials, *start)
    return _alignment(weighed, rows, evolution)


def evoselect(
    problem: SelectionProblem,
    budget: Budget,
    seed: int,
    settings: EvoSelectSettings,
    *,
    alignment: Alignment | None = None,
) -> Selection:
    """Evolve weights by transport and diversity, then round the plan to whole rows."""
    alignment = alignment or _align(problem, budget, settings)
    evolution, rows = alignment.evolution, alignment.rows
    _refuse_other_rows(alignment, problem)
    weighed = _restricted(problem, rows)
    weights = np.zeros(len(problem.candidates))
    weights[rows] = evolution.weights
    log_plan, cost = evolution.log_plan(), evolution.transport.cost
    limits = {
        "reach": reach_cap(problem, settings.reach),
        "dedup_cosine": settings.dedup_cosine,
        "quality_floor": settings.quality_floor,
    }
    if settings.rounding == "topk":
        choice = topk(weighed, budget, evolution.weights, log_plan.argmax(axis=1))
        rejections = ranked_out(problem.candidates, _renumbered(choice, rows), weights, "weight")
    else:
        in_turns = settings.rounding == "plan_quota"
        score = log_plan if in_turns else _log_weights(evolution.weights, settings) - cost
        by_quota = plan_quota if in_turns else capped_quota
        choice = by_quota(weighed, budget, score, problem.targets.weights, cost=cost, **limits)
        among_all, nearest = _renumbered(choice, rows), nearest_targets(cost)
        if weighed is not problem:
            implausible = Ledger(problem, budget, quality_floor=settings.quality_floor).refusals()
            among_all = replace(among_all, refusals={**implausible, **among_all.refusals})
            nearest = stream_nearest_targets(problem.candidates.gradients, problem.targets)
        rejections = explain_rejections(
            problem, among_all, nearest, limits["reach"], settings.dedup_cosine
        )
    mass = np.exp(log_plan[choice.rows, choice.targets])
    quality = weighed.candidates.quality
    sentences = [
        f"{serves(problem.targets, j)}: transport mass {p:.3g}, cosine {1.0 - cost[i, j]:.2f}"
        + (f", answer plausible at {quality[i]:.0%}" if quality[i] < 1 else "")
        for i, j, p in zip(choice.rows, choice.targets, mass, strict=True)
    ]
    return Selection(
        method="evoselect",
        picks=make_picks(weighed, choice, cost, sentences, mass),
        rejections=rejections,
        weights=weights,
        diagnostics=evolution.diagnostics(weighed.candidates.num_tokens)
        | target_diagnostics(choice, problem.targets)
        | {
            "num_weighed": len(rows),
            "reach": limits["reach"],
            "rounding": settings.rounding,
            "target_near_duplicate_share": _target_repeats(problem.targets, settings.dedup_cosine),
        },
    )


def start_of(
    problem: SelectionProblem, settings: EvoSelectSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Where the weights start [N], and which shares the targets have [M].

    A row starts with the plausibility of its answer. What may not be chosen must not draw the
    targets' mass away from what may, so it starts at 0; and copies of a text, of which one may be
    chosen, share the start of one row.
    """
    candidates, b = problem.candidates, problem.targets.weights
    if settings.rounding == "topk":  # the published rule has no admissibility
        return candidates.quality.copy(), b
    prior = _admissible_quality(problem, settings)
    copies = Counter(candidates.text_keys[i] for i in prior.nonzero()[0])
    prior /= np.array([max(1, copies[key]) for key in candidates.text_keys])
    if settings.partial:
        reached = (cost_matrix(problem)[prior > 0] <= reach_cap(problem, settings.reach)).any(0)
        b = np.where(reached, b, 0.0) / b[reached].sum() if b[reached].any() else b
    return prior, b


def rows_to_weigh(
    problem: SelectionProblem, budget: Budget, settings: EvoSelectSettings
) -> np.ndarray:
    """Row numbers [R], ascending, of the candidates whose weights are evolved: all, or the nearest.

    Weights need 84 bytes for each row and target, and half a thousand passes. Of a pool above
    `weigh_whole_up_to` a streamed transport therefore holds `HELD_PER_ROW` rows for each row to
    choose, at the cost C_ij - epsilon log(plausibility): an approximation. What a target lacks,
    others hold for it. Of rows with one text the cheapest stands for all. All are weighed where
    that saves little, and where any row could be needed: with a budget of tokens, a cap on
    sources, a look for copies by gradient, and the published rule.
    """
    num_rows, reach = len(problem.candidates), reach_cap(problem, settings.reach)
    wanted = HELD_PER_ROW * (budget.rows or num_rows)
    by_rows = budget.tokens is None and budget.source_share is None and settings.dedup_cosine >= 1
    saves = num_rows > settings.weigh_whole_up_to and wanted <= LARGEST_SHARE_HELD * num_rows
    if not (saves and by_rows) or settings.rounding == "topk":
        return np.arange(num_rows)
    vectors, targets = problem.candidates.gradients, problem.targets
    with np.errstate(divide="ignore"):
        row_cost = -settings.epsilon * np.log(_admissible_quality(problem, settings))
    _, cost = stream_nearest_targets(vectors, targets)
    row_cost[~_stands_for_its_text(problem.candidates, cost, row_cost, reach)] = np.inf
    if not (np.isfinite(row_cost) & (cost <= reach)).any():
        reach = np.inf  # nothing will be chosen, and the nearest rows tell why
    quotas = reserve_quotas(targets, budget.rows or 0, HELD_PER_ROW)
    poor = np.zeros(len(quotas), dtype=bool)
    while True:  # each further pass has found a target that is poor in rows
        held = stream_reserve(vectors, targets, quotas, row_cost=row_cost, reach=reach)
        poor |= held.unmet > 0
        rich, missing = ~poor & (quotas > 0), int(wanted) - len(held.rows)
        if missing <= wanted / 20 or not rich.any():
            return held.rows
        quotas = quotas - held.unmet + integer_quotas(np.where(rich, quotas, 0), missing)


def _align(problem: SelectionProblem, budget: Budget, settings: EvoSelectSettings) -> Alignment:
    rows = rows_to_weigh(problem, budget, settings)
    weighed = _restricted(problem, rows)
    evolution = evolve_weights(weighed, budget, settings, *start_of(weighed, settings))
    return _alignment(weighed, rows, evolution)


def _alignment(weighed: SelectionProblem, rows: np.ndarray, evolution: Evolution) -> Alignment:
    return Alignment(rows, weighed.candidates.sample_ids, weighed.targets.sample_ids, evolution)


def _refuse_other_rows(alignment: Alignment, problem: SelectionProblem) -> None:
    """Refuse the weights of another problem: other rows stand in their rows' places."""
    ids, target_ids = problem.candidates.sample_ids, problem.targets.sample_ids
    in_their_place = tuple(ids[row] for row in alignment.rows if row < len(ids))
    if (in_their_place, target_ids) != (alignment.sample_ids, alignment.target_ids):
        raise DataError(
            f"the alignment is of {len(alignment.sample_ids)} rows and {len(alignment.target_ids)}"
            f" targets of another problem than this one, of {len(ids)} and {len(target_ids)}; call"
            " align on this one, or give no alignment"
        )


def _restricted(problem: SelectionProblem, rows: np.ndarray) -> SelectionProblem:
    if len(rows) == len(problem.candidates):
        return problem
    return problem.with_candidates(problem.candidates.take(rows))


def _renumbered(choice: Choice, rows: np.ndarray) -> Choice:
    """The same choice, its row numbers counting in the whole pool."""
    refusals = {int(rows[i]): why for i, why in choice.refusals.items()}
    return replace(choice, rows=rows[choice.rows], refusals=refusals)


def _admissible_quality(problem: SelectionProblem, settings: EvoSelectSettings) -> np.ndarray:
    """The plausibility [N] of the rows that may be chosen, and 0 for the others."""
    quality = problem.candidates.quality.copy()
    quality[repeats_history(problem, settings.dedup_cosine)] = 0.0
    quality[problem.candidates.quality < settings.quality_floor] = 0.0
    if not quality.any():
        raise DataError(
            f"all {len(quality)} candidates repeat rows of earlier rounds or have implausible"
            " answers; generate new rows, or lower selection.evoselect.quality_floor"
        )
    return quality


def _stands_for_its_text(
    candidates: Candidates, cost: np.ndarray, row_cost: np.ndarray, reach: float
) -> np.ndarray:
    """Boolean [N]: of all rows with its text this one is the cheapest within reach, or the first.

    `cost` [N] is that of the nearest target.
    """
    total = np.where(cost <= reach, cost + row_cost, np.inf)
    order = np.argsort(total, kind="stable")
    _, first = np.unique(np.array(candidates.text_keys)[order], return_index=True)
    stands = np.zeros(len(cost), dtype=bool)
    stands[order[first]] = True
    return stands


def _log_weights(weights: np.ndarray, settings: EvoSelectSettings) -> np.ndarray:
    """Weights as an advantage in cost [N, 1], as they enter the plan; -inf at weight 0."""
    with np.errstate(divide="ignore"):
        return settings.epsilon * np.log(weights)[:, None]


def _target_repeats(targets: Targets, dedup_cosine: float) -> float:
    """Share of targets closer to a fellow than `dedup_cosine`: if high, the limit is too strict.

    Targets are known to be different rows, so the representation cannot tell rows apart there.
    """
    cosines = nearest_rows(targets.gradients, targets.gradients, same=True)[1]
    return float(np.mean(cosines > dedup_cosine))
