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

from evoselect_pipeline.core.evolve_weights import (
    Evolution,
    cost_matrix,
    evolve_weights,
    restore_evolution,
)
from evoselect_pipeline.core.rounding import (
    SHORT_ID,
    Choice,
    explain_rejections,
    make_picks,
    nearest_rows,
    not_needed,
    plan_quota,
    reach_cap,
    repeats_history,
    topk,
)
from evoselect_pipeline.core.selection import (
    Budget,
    Candidates,
    EvoSelectSettings,
    Rejection,
    Selection,
    SelectionProblem,
    Targets,
    set_aside_broken,
)
from evoselect_pipeline.errors import ConfigError, DataError

Selector = Callable[[SelectionProblem, Budget, int, EvoSelectSettings], Selection]
NO_REACH = 2.0  # a cost of 1 - cosine is never above 2


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
    return _alignment(prepared, restore_evolution(prepared, budget, settings, weights, potentials))


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
        Rows to choose. Fewer come back where not enough admissible rows exist: see `num_short`
        in the diagnostics.
    seed : int
        Only `random` draws; the other methods are functions of the problem.
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
        If the budget is above the pool, or no candidate is usable.
    NumericsError
        If transport does not converge or weights collapse.
    """
    if method not in SELECTORS:
        raise ConfigError(f"selector {method!r} is unknown; choose one of {sorted(SELECTORS)}")
    if method != "all":
        budget.check(len(problem.candidates))
    settings = settings or EvoSelectSettings()
    prepared, kept, set_aside = _prepared(problem, settings)
    selector = SELECTORS[method]
    if method == "evoselect" and alignment is not None:
        selector = partial(evoselect, evolution=alignment.evolution)
    answer = selector(prepared, budget, seed, settings)
    weights = np.zeros(len(problem.candidates))
    weights[kept] = answer.weights
    rejections = set_aside + answer.rejections
    return replace(
        answer,
        rejections=rejections,
        weights=weights,
        diagnostics=_totals(answer, rejections, budget) | answer.diagnostics,
    )


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
        choice = plan_quota(problem, budget.rows, log_plan, b, cost=cost, **limits)
        rejections = explain_rejections(problem, choice, cost, **limits)
    else:
        choice = topk(evolution.weights, budget.rows, log_plan.argmax(axis=1))
        rejections = _ranked_out(problem.candidates, choice, evolution.weights, "weight")
    mass = np.exp(log_plan[choice.rows, choice.targets])
    sentences = [
        f"{_serves(problem.targets, j)}: transport mass {p:.3g}, cosine {1.0 - cost[i, j]:.2f}"
        for i, j, p in zip(choice.rows, choice.targets, mass, strict=True)
    ]
    return Selection(
        method="evoselect",
        picks=make_picks(problem, choice, cost, sentences, mass),
        rejections=rejections,
        weights=evolution.weights,
        diagnostics=evolution.diagnostics(problem.candidates.num_tokens)
        | _target_diagnostics(choice, problem.targets)
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
    return evolve_weights(problem, budget, settings, prior)


def every_row(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """The control `all`: every usable row, whatever the budget; nearest rows are not looked for."""
    cost = cost_matrix(problem)
    rows = np.arange(len(problem.candidates))
    choice = Choice(rows, cost.argmin(axis=1))
    sentences = ["every usable row is taken"] * len(rows)
    picks = make_picks(problem, choice, cost, sentences, look_for_nearest=False)
    return Selection("all", picks, (), _equal_weights(problem, choice), {})


def random_rows(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """The control `random`: rows drawn without replacement, each as likely as any other."""
    cost = cost_matrix(problem)
    rows = np.random.default_rng(seed).permutation(len(problem.candidates))[: budget.rows]
    choice = Choice(rows, cost[rows].argmin(axis=1))
    sentences = [f"drawn at random with seed {seed}"] * len(rows)
    return Selection(
        method="random",
        picks=make_picks(problem, choice, cost, sentences),
        rejections=not_needed(problem.candidates, rows, lambda i: f"not drawn with seed {seed}"),
        weights=_equal_weights(problem, choice),
        diagnostics={},
    )


def attribution(
    problem: SelectionProblem, budget: Budget, seed: int, settings: EvoSelectSettings
) -> Selection:
    """LESS's rule: mean cosine to the targets of a subtask, the best subtask counts, top k.

    score_i = max over subtasks s of (1 / |s|) sum_{j in s} <g_i, v_j>. Subtasks may differ in size
    and their rows may come in any order.
    """
    cost = cost_matrix(problem)
    subtasks = np.array(problem.targets.subtasks)
    names = sorted(set(problem.targets.subtasks))
    means = np.stack([1.0 - cost[:, subtasks == name].mean(axis=1) for name in names], axis=1)
    winner = means.argmax(axis=1)
    in_winner = subtasks == np.array(names)[winner][:, None]
    choice = topk(means.max(axis=1), budget.rows, np.where(in_winner, cost, np.inf).argmin(axis=1))
    score = means.max(axis=1)
    sentences = [
        f"mean cosine {score[i]:.3f} to subtask {names[winner[i]] or '(unnamed)'};"
        f" nearest target of it {problem.targets.sample_ids[j][:SHORT_ID]}"
        for i, j in zip(choice.rows, choice.targets, strict=True)
    ]
    return Selection(
        method="attribution",
        picks=make_picks(problem, choice, cost, sentences),
        rejections=_ranked_out(problem.candidates, choice, score, "mean cosine"),
        weights=_equal_weights(problem, choice),
        diagnostics={"lowest_chosen_score": float(score[choice.rows].min())},
    )


def round_robin(
    problem: SelectionProblem,
    budget: Budget,
    seed: int,
    settings: EvoSelectSettings,
    *,
    deduplicate: bool = True,
) -> Selection:
    """Cycle through the targets, each takes its nearest unused row; copies are passed over.

    There is no reach cap unless `settings.reach` is set. `deduplicate=False` keeps near-duplicates
    by gradient; rows of equal text are never taken twice.
    """
    cost = cost_matrix(problem)
    reach = NO_REACH if settings.reach is None else settings.reach
    dedup_cosine = settings.dedup_cosine if deduplicate else 1.0
    shares = np.full(len(problem.targets), 1.0 / len(problem.targets))
    choice = plan_quota(
        problem, budget.rows, -cost, shares, cost=cost, reach=reach, dedup_cosine=dedup_cosine
    )
    sentences = [
        f"{_serves(problem.targets, j)}: nearest unused row, cosine {1.0 - cost[i, j]:.2f}"
        for i, j in zip(choice.rows, choice.targets, strict=True)
    ]
    return Selection(
        method="round_robin",
        picks=make_picks(problem, choice, cost, sentences),
        rejections=explain_rejections(problem, choice, cost, reach, dedup_cosine),
        weights=_equal_weights(problem, choice),
        diagnostics=_target_diagnostics(choice, problem.targets),
    )


SELECTORS: dict[str, Selector] = {
    "evoselect": evoselect,
    "all": every_row,
    "random": random_rows,
    "attribution": attribution,
    "round_robin": round_robin,
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


def _totals(
    answer: Selection, rejections: tuple[Rejection, ...], budget: Budget
) -> dict[str, float | int | str | list]:
    stages = Counter(rejection.stage for rejection in rejections)
    return {
        "num_candidates": len(answer.picks) + len(rejections),
        "num_selected": len(answer.picks),
        "num_short": max(0, budget.rows - len(answer.picks)),
        **{f"num_{stage}": count for stage, count in sorted(stages.items())},
    }


def _serves(targets: Targets, j: int) -> str:
    subtask = f" (subtask {targets.subtasks[j]})" if targets.subtasks[j] else ""
    return f"serves target {targets.sample_ids[j][:SHORT_ID]}{subtask}"


def _equal_weights(problem: SelectionProblem, choice: Choice) -> np.ndarray:
    weights = np.zeros(len(problem.candidates))
    weights[choice.rows] = 1.0 / max(1, len(choice.rows))
    return weights


def _ranked_out(
    candidates: Candidates, choice: Choice, values: np.ndarray, what: str
) -> tuple[Rejection, ...]:
    rank = np.empty(len(values), dtype=int)
    rank[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return not_needed(
        candidates,
        choice.rows,
        lambda i: (
            f"rank {rank[i]} by {what} ({values[i]:.3g}), the budget ends at {len(choice.rows)}"
        ),
    )


def _target_diagnostics(choice: Choice, targets: Targets) -> dict[str, float | int | str | list]:
    return {
        "num_unreached_targets": len(choice.unreached),
        "unreached_targets": [targets.sample_ids[j] for j in choice.unreached],
        "num_exhausted_targets": len(choice.exhausted),
        "exhausted_targets": [targets.sample_ids[j] for j in choice.exhausted],
    }


def _target_repeats(targets: Targets, dedup_cosine: float) -> float:
    """Share of targets closer to a fellow than `dedup_cosine`: if high, the limit is too strict.

    Targets are known to be different rows, so the representation cannot tell rows apart there.
    """
    cosines = nearest_rows(targets.gradients, targets.gradients, same=True)[1]
    return float(np.mean(cosines > dedup_cosine))
