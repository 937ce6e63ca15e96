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
from evoselect_pipeline.core.rounding import (
    nearest_rows,
    plan_quota,
    reach_cap,
    repeats_history,
    topk,
)
from evoselect_pipeline.core.selection import (
    Budget,
    Candidates,
    Diagnostics,
    EvoSelectSettings,
    Rejection,
    Selection,
    SelectionProblem,
    Targets,
    set_aside_broken,
)
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
        If transport does not converge or weights collapse.
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
    rows = _in_rows(budget, prepared)
    return _alignment(prepared, restore_evolution(prepared, rows, settings, weights, potentials))


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
        If transport does not converge or weights collapse.
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
    """Evolve weights by transport and diversity, then round the plan: by quota, or the top k."""
    if evolution is None:
        evolution = _evolve(problem, budget, settings)
    log_plan, cost = evolution.log_plan(), evolution.transport.cost
    reach = reach_cap(problem, settings.reach)
    if settings.rounding == "plan_quota":
        limits = {"reach": reach, "dedup_cosine": settings.dedup_cosine}
        b = problem.targets.weights
        choice = plan_quota(problem, budget, log_plan, b, cost=cost, **limits)
        rejections = explain_rejections(problem, choice, cost, **limits)
    else:
        choice = topk(problem, budget, evolution.weights, log_plan.argmax(axis=1))
        rejections = ranked_out(problem.candidates, choice, evolution.weights, "weight")
    mass = np.exp(log_plan[choice.rows, choice.targets])
    sentences = [
        f"{serves(problem.targets, j)}: transport mass {p:.3g}, cosine {1.0 - cost[i, j]:.2f}"
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
            "reach": reach,
            "rounding": settings.rounding,
            "target_near_duplicate_share": _target_repeats(problem.targets, settings.dedup_cosine),
        },
    )


def _evolve(problem: SelectionProblem, budget: Budget, settings: EvoSelectSettings) -> Evolution:
    prior = np.ones(len(problem.candidates))
    if settings.rounding == "plan_quota":
        # What may not be chosen must not draw the targets' mass away from what may.
        prior[repeats_history(problem, settings.dedup_cosine)] = 0.0
    if not prior.any():
        raise DataError(
            f"all {len(prior)} candidates repeat rows selected in earlier rounds;"
            " generate new rows, or raise select.dedup_cosine"
        )
    return evolve_weights(problem, _in_rows(budget, problem), settings, prior)


def _in_rows(budget: Budget, problem: SelectionProblem) -> Budget:
    """The budget as a number of rows, which is what weights are held to."""
    return Budget(rows=budget.num_rows(np.asarray(problem.candidates.num_tokens)))


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
