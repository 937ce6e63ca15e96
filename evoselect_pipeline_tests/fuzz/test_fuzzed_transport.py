"""Law: whatever the numbers, a plan keeps its marginals, or an error of ours says what is wrong."""

from fractions import Fraction
from itertools import product

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evoselect_pipeline.core.capped import capped_transport, integer_quotas
from evoselect_pipeline.core.transport import sinkhorn
from evoselect_pipeline.errors import DataError, NumericsError
from evoselect_pipeline_tests.fuzz.fuzzing import fuzz

ANY = st.floats()
MODEST = st.floats(-2, 2) | st.integers(-2, 2).map(float)
FINITE = MODEST | st.floats(allow_nan=False, allow_infinity=False)
WEIGHTS = st.floats(0, 1) | st.sampled_from([0.0, 1e-300, 5e-324, 1e300])
TOLERANCE = 1e-3


@st.composite
def arrays(draw, shape, *elements):
    """Of one kind of elements; now and then of another shape."""
    if draw(st.integers(0, 15)) == 0:
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    return draw(hnp.arrays(np.float64, shape, elements=draw(st.sampled_from(elements))))


@st.composite
def problems(draw):
    """Of mass 1, with costs like ours; or of any numbers."""
    n, m = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    if draw(st.integers(0, 2)):
        weights = st.floats(1e-6, 1) | st.sampled_from([0.0, 1e-300, 1.0])
        a, b = (draw(hnp.arrays(np.float64, k, elements=weights)) for k in (n, m))
        a[0], b[0] = 1.0, 1.0
        return a / a.sum(), b / b.sum(), draw(hnp.arrays(np.float64, (n, m), elements=MODEST))
    a, b = draw(arrays((n,), WEIGHTS, ANY)), draw(arrays((m,), WEIGHTS, ANY))
    return a, b, draw(arrays((n, m), MODEST, FINITE, ANY))


@fuzz(
    examples=50,
    problem=problems(),
    epsilon=st.sampled_from([0.05, 0.3, 1.0]) | st.floats(1e-3, 9) | ANY,
)
def test_any_entropic_problem_has_a_plan_with_its_marginals_or_is_refused(problem, epsilon):
    a, b, cost = problem
    try:
        with np.errstate(all="ignore"):
            solved = sinkhorn(a, b, cost, epsilon=epsilon, max_iterations=60, tolerance=TOLERANCE)
            plan = solved.plan()
    except (DataError, NumericsError):
        return
    mass = a.sum()
    assert np.isfinite(plan).all() and (plan >= 0).all()
    assert np.abs(plan.sum(axis=1) - a).sum() <= 1.01 * TOLERANCE * mass
    assert np.abs(plan.sum(axis=0) - b).sum() <= 1.01 * TOLERANCE * mass


@st.composite
def capped_problems(draw):
    """Costs of up to 5 rows and 3 targets, some pairs forbidden, and quotas."""
    n, m = draw(st.integers(0, 5)), draw(st.integers(1, 3))
    modest, finite = (kind | st.just(np.inf) for kind in (MODEST, FINITE))
    cost = draw(arrays((n, m), modest, modest, finite, ANY))
    if draw(st.booleans()):
        with np.errstate(over="ignore"):
            cost = cost.astype(np.float32)
    whole = st.integers(0, 2).map(float)
    return cost, draw(arrays((m,), *[whole] * 12, st.floats(-1, 1e300), ANY))


def best_total(cost: np.ndarray, quotas: np.ndarray) -> tuple[int, Fraction]:
    """Units left unmet, and the cost, of the best choice of all there are."""
    found = []
    for targets in product(range(-1, len(quotas)), repeat=len(cost)):
        pairs = [(i, j) for i, j in enumerate(targets) if j >= 0]
        served = np.bincount([j for _, j in pairs], minlength=len(quotas))
        if all(np.isfinite(cost[pair]) for pair in pairs) and (served <= quotas).all():
            total = sum((Fraction(float(cost[pair])) for pair in pairs), Fraction(0))
            found.append((int((quotas - served).sum()), total))
    return min(found)


@fuzz(examples=50, problem=capped_problems())
def test_any_capped_problem_has_the_best_plan_or_is_refused(problem):
    cost, quotas = problem
    try:
        with np.errstate(all="ignore"):
            plan = capped_transport(cost, quotas)
    except (DataError, NumericsError):
        return
    assert (np.diff(plan.rows) > 0).all()
    np.testing.assert_array_equal(
        np.bincount(plan.targets, minlength=len(quotas)), quotas - plan.unmet
    )
    np.testing.assert_array_equal(plan.costs, cost[plan.rows, plan.targets])
    unmet, total = best_total(cost, quotas)
    assert plan.unmet.sum() == unmet
    largest = max((abs(Fraction(float(c))) for c in cost[np.isfinite(cost)]), default=Fraction(0))
    found = sum(map(Fraction, plan.costs.tolist()), Fraction(0))
    assert found - total <= largest * len(cost) / 10**8


@fuzz(examples=60, shares=arrays((4,), WEIGHTS, MODEST, ANY), k=st.integers(-1, 10**7))
def test_any_shares_split_into_whole_units_of_the_right_sum_or_are_refused(shares, k):
    try:
        with np.errstate(all="ignore"):
            quotas = integer_quotas(shares, k)
    except DataError:
        return
    assert quotas.sum() == k and (quotas >= 0).all()
    assert (quotas[shares == 0] == 0).all()
    exact = k * (shares / shares.sum())
    assert (np.abs(quotas - exact) < 1 + 1e-6).all()
