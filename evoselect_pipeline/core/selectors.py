"""The selectors behind one function: a problem and a budget in, a decision per candidate out.

Selectors see a prepared problem: rows in sample_id order (ties and sums do not depend on the order
of arrival), rows with broken or outsized gradients already set aside by `select`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
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
from evoselect_pipeline.core.evoselect import Alignment, evoselect
from evoselect_pipeline.core.selection import (
    Candidates,
    Diagnostics,
    Selection,
    SelectionProblem,
    prepare,
)
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.core.target_selectors import (
    attribution,
    ot_vote,
    round_robin,
    tarot,
    tsds,
)
from evoselect_pipeline.errors import ConfigError

Selector = Callable[[SelectionProblem, Budget, int, EvoSelectSettings], Selection]


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
        What `align` found for this problem, budget and settings; `evoselect` then does not evolve
        weights again.

    Returns
    -------
    Selection
        `weights` [N] follow the order of the candidates handed in.

    Raises
    ------
    ConfigError
        If the method is unknown.
    DataError
        If the pool cannot meet the budget, no candidate is usable, or the alignment is of another
        problem.
    NumericsError
        If transport does not converge.
    """
    if method not in SELECTORS:
        raise ConfigError(f"selector {method!r} is unknown; choose one of {sorted(SELECTORS)}")
    settings = settings or EvoSelectSettings()
    prepared, kept, set_aside = prepare(problem, settings.norm_quarantine)
    if method != "all":
        budget.check(len(problem.candidates), np.asarray(prepared.candidates.num_tokens))
    selector = SELECTORS[method]
    if method == "evoselect" and alignment is not None:
        selector = partial(evoselect, alignment=alignment)
    answer = selector(prepared, budget, seed, settings)
    weights = np.zeros(len(problem.candidates))
    weights[kept] = answer.weights
    complete = replace(answer, rejections=set_aside + answer.rejections, weights=weights)
    totals = _totals(complete, budget, prepared.candidates)
    return replace(complete, diagnostics=totals | answer.diagnostics)


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
