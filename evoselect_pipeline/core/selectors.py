"""The selectors behind one function: a problem and a budget in, a decision per candidate out.

Selectors see a prepared problem: rows in sample_id order (ties and sums do not depend on the order
of arrival), rows with broken or outsized gradients already set aside by `select`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from evoselect_pipeline.core.controls import every_row, random_rows
from evoselect_pipeline.core.diversity_selectors import (
    attr_div,
    diversity,
    dpp,
    facility_location,
    k_center,
)
from evoselect_pipeline.core.evolve_weights import (
    Evolution,
    cost_matrix,
    evolve_weights,
    restore_evolution,
)
from evoselect_pipeline.core.explain import (
    explain_rejections,
    make_picks,
    ranked_out,
    serves,
    target_diagnostics,
)
from evoselect_pipeline.core.ledger import nearest_rows, repeats_history
from evoselect_pipeline.core.rounding import capped_quota, plan_quota, reach_cap, topk
from evoselect_pipeline.core.selection import (
    Candidates,
    Diagnostics,
    Rejection,
    Selection,
    SelectionProblem,
    Targets,
    set_aside_broken,
)
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.core.target_selectors import (
    attribution,
    ot_vote,
    round_robin,
    tarot,
    tsds,
)
from evoselect_pipeline.errors import ConfigError, DataError

Selector = Callable[[SelectionProblem, Budget, int, EvoSelectSettings], Selection]


@dataclass(frozen=True)
class Alignment:
    """EvoSelect's weights of the usable candidates, before rows are chosen.

    `sample_ids` and `target_ids` name the rows and columns of `evolution`.
    """

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
    prepared, _, _ = _prepared(problem, settings)
    return _alignment(prepared, _evolve(prepared, budget, settings))


def restore_alignment(
    problem: SelectionProblem,
    budget: Budget,
    settings: EvoSelectSettings,
    weights: np.ndarray,
    potentials: tuple[np.ndarray, np.ndarray],
) -> Alignment:
    """The alignment of the same problem, from the weights and potentials that were kept of it."""
    prepared, _, _ = _prepared(problem, settings)
    start = _start(prepared, settings)
    evolution = restore_evolution(prepared, budget, settings, weights, potentials, *start)
    return _alignment(prepared, evolution)


def select(
    problem: SelectionProblem,
    budget: Budget,
    seed: int,
    method: str = "evoselect",
    settings: EvoSelectSettings | None = None,
    alignment: Alignment | None = None,
) -> Selection:
    """Choose rows by the named method and account for every candidate.

    Parameters
    ----------
    problem : SelectionProblem
    budget : Budget
        Fewer rows come back where not enough admissible ones exist: see `num_short` in the
        diagnostics. `all` ignores it.
    seed : int
        `random` and `tsds` draw, `diversity` and `attr_div` seed their clusters, and pools too
        large for exact sums are sampled; the other methods are functions of the problem.
    method : str
        A key of `SELECTORS`.
    settings : EvoSelectSettings, optional
    alignment : Alignment, optional
        What `align` found for this problem; `evoselect` then does not evolve weights again.

    Returns
    -------
    Selection
        `weights` [N] follow the order of the candidates handed in.

    Raises
    ------
    ConfigError
        If the method is unknown.
    DataError
        If the pool cannot meet the budget, or no candidate is usable.
    NumericsError
        If transport does not converge.
    """
    if method not in SELECTORS:
        raise ConfigError(f"selector {method!r} is unknown; choose one of {sorted(SELECTORS)}")
    settings = settings or EvoSelectSettings()
    prepared, kept, set_aside = _prepared(problem, settings)
    if method != "all":
        budget.check(len(problem.candidates), np.asarray(prepared.candidates.num_tokens))
    selector = SELECTORS[method]
    if method == "evoselect" and alignment is not None:
        selector = partial(evoselect, evolution=alignment.evolution)
    answer = selector(prepared, budget, seed, settings)
    weights = np.zeros(len(problem.candidates))
    weights[kept] = answer.weights
    complete = replace(answer, rejections=set_aside + answer.rejections, weights=weights)
    totals = _totals(complete, budget, prepared.candidates)
    return replace(complete, diagnostics=totals | answer.diagnostics)


def evoselect(
    problem: SelectionProblem,
    budget: Budget,
    seed: int,
    settings: EvoSelectSettings,
    *,
    evolution: Evolution | None = None,
) -> Selection:
    """Evolve weights by transport and diversity, then round the plan to whole rows."""
    if evolution is None:
        evolution = _evolve(problem, budget, settings)
    log_plan, cost = evolution.log_plan(), evolution.transport.cost
    limits = {
        "reach": reach_cap(problem, settings.reach),
        "dedup_cosine": settings.dedup_cosine,
        "quality_floor": settings.quality_floor,
    }
    if settings.rounding == "topk":
        choice = topk(problem, budget, evolution.weights, log_plan.argmax(axis=1))
        rejections = ranked_out(problem.candidates, choice, evolution.weights, "weight")
    else:
        in_turns = settings.rounding == "plan_quota"
        score = log_plan if in_turns else _log_weights(evolution.weights, settings) - cost
        by_quota = plan_quota if in_turns else capped_quota
        choice = by_quota(problem, budget, score, problem.targets.weights, cost=cost, **limits)
        rejections = explain_rejections(
            problem, choice, cost, limits["reach"], settings.dedup_cosine
        )
    mass = np.exp(log_plan[choice.rows, choice.targets])
    quality = problem.candidates.quality
    sentences = [
        f"{serves(problem.targets, j)}: transport mass {p:.3g}, cosine {1.0 - cost[i, j]:.2f}"
        + (f", answer plausible at {quality[i]:.0%}" if quality[i] < 1 else "")
        for i, j, p in zip(choice.rows, choice.targets, mass, strict=True)
    ]
    return Selection(
        method="evoselect",
        picks=make_picks(problem, choice, cost, sentences, mass),
        rejections=rejections,
        weights=evolution.weights,
        diagnostics=evolution.diagnostics(problem.candidates.num_tokens)
        | target_diagnostics(choice, problem.targets)
        | {
            "reach": limits["reach"],
            "rounding": settings.rounding,
            "target_near_duplicate_share": _target_repeats(problem.targets, settings.dedup_cosine),
        },
    )


def _log_weights(weights: np.ndarray, settings: EvoSelectSettings) -> np.ndarray:
    """Weights as an advantage in cost [N, 1], as they enter the plan; -inf at weight 0."""
    with np.errstate(divide="ignore"):
        return settings.epsilon * np.log(weights)[:, None]


def _evolve(problem: SelectionProblem, budget: Budget, settings: EvoSelectSettings) -> Evolution:
    prior, target_weights = _start(problem, settings)
    return evolve_weights(problem, budget, settings, prior, target_weights)


def _start(problem: SelectionProblem, settings: EvoSelectSettings) -> tuple[np.ndarray, np.ndarray]:
    """Where the weights start [N], and which shares the targets have [M].

    A row starts with the plausibility of its answer. What may not be chosen must not draw the
    targets' mass away from what may, so it starts at 0; and copies of a text, of which one may be
    chosen, share the start of one row.
    """
    candidates, b = problem.candidates, problem.targets.weights
    prior = candidates.quality.copy()
    if settings.rounding == "topk":  # the published rule has no admissibility
        return prior, b
    prior[repeats_history(problem, settings.dedup_cosine)] = 0.0
    prior[candidates.quality < settings.quality_floor] = 0.0
    copies = Counter(candidates.text_keys[i] for i in prior.nonzero()[0])
    prior /= np.array([max(1, copies[key]) for key in candidates.text_keys])
    if not prior.any():
        raise DataError(
            f"all {len(prior)} candidates repeat rows of earlier rounds or have implausible"
            " answers; generate new rows, or lower select.quality_floor"
        )
    if settings.partial:
        reached = (cost_matrix(problem)[prior > 0] <= reach_cap(problem, settings.reach)).any(0)
        b = np.where(reached, b, 0.0) / b[reached].sum() if b[reached].any() else b
    return prior, b


SELECTORS: dict[str, Selector] = {
    "evoselect": evoselect,
    "all": every_row,
    "random": random_rows,
    "attribution": attribution,
    "round_robin": round_robin,
    "diversity": diversity,
    "attr_div": attr_div,
    "tsds": tsds,
    "tarot": tarot,
    "ot_vote": ot_vote,
    "k_center": k_center,
    "facility_location": facility_location,
    "dpp": dpp,
}


def _prepared(
    problem: SelectionProblem, settings: EvoSelectSettings
) -> tuple[SelectionProblem, np.ndarray, tuple[Rejection, ...]]:
    """The usable part of the problem in sample_id order, its row numbers, and the rest."""
    kept, set_aside = set_aside_broken(problem.candidates, settings.norm_quarantine)
    if len(kept) == 0:
        raise DataError(
            f"none of {len(problem.candidates)} candidates has a usable gradient;"
            f" first reason: {set_aside[0].reason}"
        )
    order = sorted(range(len(problem.targets)), key=problem.targets.sample_ids.__getitem__)
    candidates, targets = problem.candidates.take(kept), problem.targets.take(np.array(order))
    return replace(problem, candidates=candidates, targets=targets), kept, set_aside


def _alignment(prepared: SelectionProblem, evolution: Evolution) -> Alignment:
    return Alignment(prepared.candidates.sample_ids, prepared.targets.sample_ids, evolution)


def _totals(answer: Selection, budget: Budget, usable: Candidates) -> Diagnostics:
    stages = Counter(rejection.stage for rejection in answer.rejections)
    num_tokens = dict(zip(usable.sample_ids, np.asarray(usable.num_tokens), strict=True))
    return {
        "num_candidates": len(answer.weights),
        "num_selected": len(answer.picks),
        "num_selected_tokens": int(sum(num_tokens[i] for i in answer.selected_ids)),
        "num_short": max(0, (budget.rows or 0) - len(answer.picks)),
        **{f"num_{stage}": count for stage, count in sorted(stages.items())},
    }


def _target_repeats(targets: Targets, dedup_cosine: float) -> float:
    """Share of targets closer to a fellow than `dedup_cosine`: if high, the limit is too strict.

    Targets are known to be different rows, so the representation cannot tell rows apart there.
    """
    cosines = nearest_rows(targets.gradients, targets.gradients, same=True)[1]
    return float(np.mean(cosines > dedup_cosine))
