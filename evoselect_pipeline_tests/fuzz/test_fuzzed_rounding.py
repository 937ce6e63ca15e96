"""Law: whatever the scores, rows are chosen once, budgets are kept, and no choice is by chance."""

import warnings
from dataclasses import replace
from typing import get_args

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evoselect_pipeline.config import Method
from evoselect_pipeline.core.rounding import capped_quota, plan_quota, topk
from evoselect_pipeline.core.selectors import select
from evoselect_pipeline.core.settings import ROUNDINGS, Budget, EvoSelectSettings
from evoselect_pipeline.errors import EvoselectError, NumericsError
from evoselect_pipeline_tests.fuzz.fuzzing import fuzz
from evoselect_pipeline_tests.unit.test_rounding import fits, make_problem

PARTS = st.sampled_from([0.0, 0.0, 1.0, -1.0]) | st.floats(-4, 4, width=32)
SCORES = st.floats(-30, 0) | st.integers(-2, 2).map(float) | st.just(-np.inf)
WILD = SCORES | st.floats(allow_nan=False)
BUDGETS = st.builds(
    Budget,
    st.integers(1, 14),
    st.none() | st.integers(1, 60),
    st.none() | st.floats(0, 1, exclude_min=True),
) | st.builds(Budget, st.none(), st.integers(1, 60), st.none() | st.floats(0.1, 1))


@st.composite
def problems(draw, least=1):
    """Rows that repeat others, point nowhere or are broken, of few sources, some implausible."""
    n, m, width = draw(st.integers(least, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    vectors = draw(hnp.arrays(np.float64, (n, width), elements=PARTS))
    targets = draw(hnp.arrays(np.float64, (m, width), elements=PARTS))
    targets[~targets.any(axis=1)] = 1.0
    shares = draw(hnp.arrays(np.float64, m, elements=st.sampled_from([0.0, 0.1, 1.0, 7.0])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rows that point nowhere
        problem = make_problem(
            vectors,
            targets,
            shares / shares.sum() if shares.any() else (),
            draw(st.lists(st.sampled_from("abcdefghijkl"), min_size=n, max_size=n)),
        )
    rows = st.lists(st.integers(1, 20), min_size=n, max_size=n)
    candidates = replace(
        problem.candidates,
        num_tokens=np.array(draw(rows)),
        norms=np.array(draw(rows), float),
        sources=tuple("xyz"[i % 3] for i in draw(rows)),
        quality=np.array(draw(rows)) / 20,
    )
    return replace(problem, candidates=candidates)


def is_of_rows(budget: Budget) -> bool:
    """Whether it says how many rows, and nothing else."""
    return budget.tokens is None and budget.source_share is None


@st.composite
def scored(draw):
    problem = draw(problems())
    shape = (len(problem.candidates), len(problem.targets))
    score, cost = (
        draw(hnp.arrays(np.float64, shape, elements=draw(st.sampled_from([SCORES, WILD]))))
        for _ in range(2)
    )
    return problem, score, cost


@fuzz(
    examples=60,
    drawn=scored(),
    budget=BUDGETS,
    reach=st.floats(0, 3) | st.just(np.inf),
    dedup_cosine=st.sampled_from([0.5, 0.95, 1.0]),
    floor=st.sampled_from([0.0, 0.5]),
    rule=st.sampled_from([plan_quota, capped_quota]),
)
def test_any_scores_choose_distinct_rows_within_the_budget_and_the_same_again(
    drawn, budget, reach, dedup_cosine, floor, rule
):
    problem, score, cost = drawn
    limits = {"reach": reach, "dedup_cosine": dedup_cosine, "quality_floor": floor}

    def choose():
        with np.errstate(all="ignore"):
            return rule(problem, budget, score, problem.targets.weights, cost=cost, **limits)

    try:
        choice, again = choose(), choose()
    except NumericsError:
        return
    rows = choice.rows.tolist()
    assert rows == again.rows.tolist() and choice.targets.tolist() == again.targets.tolist()
    assert len(set(rows)) == len(rows) and fits(problem, rows, budget)
    assert (cost[choice.rows, choice.targets] <= reach).all()
    assert np.isfinite(score[choice.rows, choice.targets]).all()
    assert (problem.candidates.quality[choice.rows] >= floor).all()
    assert (problem.targets.weights[choice.targets] > 0).all()
    keys = [problem.candidates.text_keys[row] for row in rows]
    assert len(set(keys)) == len(keys)
    plain = dedup_cosine >= 1 and floor == 0 and is_of_rows(budget)
    if plain and reach == np.inf and np.isfinite(score).all():
        assert len(rows) == min(budget.rows, len(set(problem.candidates.text_keys)))


@fuzz(examples=100, problem=problems(), budget=BUDGETS, scores=st.data())
def test_the_largest_values_are_taken_as_far_as_the_budget_goes(problem, budget, scores):
    n = len(problem.candidates)
    values = scores.draw(hnp.arrays(np.float64, n, elements=WILD))
    choice = topk(problem, budget, values, np.zeros(n, int))
    rows = choice.rows.tolist()
    assert len(set(rows)) == len(rows) and fits(problem, rows, budget)
    assert values[rows].tolist() == sorted(values[rows], reverse=True)
    if is_of_rows(budget):
        assert len(rows) == min(budget.rows, n)
        assert values[rows].tolist() == sorted(values, reverse=True)[: len(rows)]


@fuzz(
    examples=60,
    problem=problems(),
    budget=BUDGETS,
    method=st.sampled_from(get_args(Method)),
    rounding=st.sampled_from(ROUNDINGS),
    partial=st.booleans(),
)
def test_any_selector_decides_about_every_row_once_and_the_same_again(
    problem, budget, method, rounding, partial
):
    settings = EvoSelectSettings(rounding=rounding, partial=partial, num_updates=4)
    try:
        first, again = (select(problem, budget, 0, method, settings) for _ in range(2))
    except EvoselectError:
        return
    assert (first.picks, first.rejections) == (again.picks, again.rejections)
    decided = {*first.selected_ids, *(rejection.sample_id for rejection in first.rejections)}
    assert decided == set(problem.candidates.sample_ids)
    place_of = {sample_id: i for i, sample_id in enumerate(problem.candidates.sample_ids)}
    assert method == "all" or fits(problem, [place_of[i] for i in first.selected_ids], budget)
