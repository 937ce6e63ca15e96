"""Exact capped transport, against linear programming and its own dual."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linprog

from evoselect_pipeline.core import capped
from evoselect_pipeline.core.capped import CappedPlan, capped_transport, integer_quotas
from evoselect_pipeline.errors import DataError, NumericsError

UNMET_COST = 1000.0


@pytest.fixture(autouse=True, scope="module")
def _solve_often():
    """Let small problems take as many solves as large ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capped, "MIN_PENDING_ROWS", 1)
        yield


def lp_optimum(cost: np.ndarray, quotas: np.ndarray) -> tuple[float, float]:
    """Least cost and unmet units, by HiGHS; an unmet unit costs more than any change of rows."""
    num_rows, num_targets = cost.shape
    pairs = np.argwhere(np.isfinite(cost))
    one_use = (pairs[:, 0] == np.arange(num_rows)[:, None]).astype(float)
    service = (pairs[:, 1] == np.arange(num_targets)[:, None]).astype(float)
    result = linprog(
        np.concatenate([cost[tuple(pairs.T)], np.full(num_targets, UNMET_COST)]),
        A_ub=np.hstack([one_use, np.zeros((num_rows, num_targets))]),
        b_ub=np.ones(num_rows),
        A_eq=np.hstack([service, np.eye(num_targets)]),
        b_eq=quotas,
    )
    assert result.status == 0
    unmet = result.x[len(pairs) :].sum()
    return result.fun - UNMET_COST * unmet, unmet


def check_feasible(plan: CappedPlan, cost: np.ndarray, quotas: np.ndarray) -> None:
    assert (np.diff(plan.rows) > 0).all()
    served = np.bincount(plan.targets, minlength=len(quotas))
    np.testing.assert_array_equal(served + plan.unmet, quotas)
    assert (plan.unmet >= 0).all()
    np.testing.assert_array_equal(plan.costs, cost[plan.rows, plan.targets])
    assert np.isfinite(plan.costs).all()


def blocks_of(cost: np.ndarray, size: int, order: np.ndarray):
    starts = np.arange(0, len(cost), size)
    for start in starts[np.argsort(order[: len(starts)])]:
        yield int(start), cost[start : start + size]


@st.composite
def problems(draw):
    """Small problems: forbidden pairs, ties, negative costs, quotas of 0 and of all rows."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 4)))
    entries = st.one_of(st.just(np.inf), st.integers(-2, 3).map(float), st.floats(-3, 3, width=32))
    cost = draw(hnp.arrays(np.float64, shape, elements=entries))
    targets = draw(st.lists(st.integers(0, shape[1] - 1), max_size=shape[0]))
    return cost, np.bincount(np.array(targets, dtype=int), minlength=shape[1])


@settings(deadline=None, max_examples=150)
@given(problems(), st.integers(1, 9))
def test_plan_serves_most_units_at_least_cost(problem, chunk_rows):
    cost, quotas = problem
    plan = capped_transport(cost, quotas, chunk_rows=chunk_rows)
    check_feasible(plan, cost, quotas)
    best, unmet = lp_optimum(cost, quotas)
    assert plan.unmet.sum() == pytest.approx(unmet, abs=1e-6)
    assert plan.total_cost == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("num_targets", [1, 5])
@pytest.mark.parametrize("num_units", [0, 1, 17, 40])
def test_plan_equals_linear_program(num_targets, num_units):
    rng = np.random.default_rng(num_units)
    cost = rng.random((40, num_targets))
    quotas = integer_quotas(rng.random(num_targets), num_units)
    plan = capped_transport(cost, quotas)
    check_feasible(plan, cost, quotas)
    assert len(plan.rows) == num_units
    assert plan.total_cost == pytest.approx(lp_optimum(cost, quotas)[0], abs=1e-9)


@pytest.mark.parametrize("chunk_rows", [8192, 500])
def test_duals_prove_the_plan_over_all_rows(chunk_rows):
    rng = np.random.default_rng(0)
    cost = rng.random((6000, 32)).astype(np.float32)
    cost[rng.random(cost.shape) < 0.5] = np.inf
    quotas = integer_quotas(rng.random(32), 1200)
    plan = capped_transport(cost, quotas, chunk_rows=chunk_rows)
    check_feasible(plan, cost, quotas)
    reduced = cost - plan.duals
    row_duals = np.minimum(reduced.min(axis=1), 0.0)
    unchosen = np.setdiff1d(np.arange(6000), plan.rows)
    np.testing.assert_allclose(row_duals[plan.rows], reduced[plan.rows, plan.targets], atol=1e-9)
    np.testing.assert_allclose(row_duals[unchosen], 0.0, atol=1e-9)
    assert row_duals.sum() + quotas @ plan.duals == pytest.approx(plan.total_cost, abs=1e-8)


def test_dual_is_what_the_last_unit_of_a_target_costs():
    rng = np.random.default_rng(1)
    cost = rng.random((30, 4))
    quotas = np.array([3, 1, 5, 0])
    plan = capped_transport(cost, quotas)
    for j in range(3):
        fewer = quotas - (np.arange(4) == j)
        saved = plan.total_cost - capped_transport(cost, fewer).total_cost
        assert plan.duals[j] == pytest.approx(saved, abs=1e-12)
    assert plan.duals[3] == -np.inf


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 2500), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.6, 0.997]))
def test_blocks_of_any_size_in_any_order_give_the_same_plan(size, seed, forbidden):
    rng = np.random.default_rng(seed)
    cost = rng.random((2500, 6))
    cost[rng.random(cost.shape) < forbidden] = np.inf
    quotas = integer_quotas(rng.random(6), 100)
    whole = capped_transport(cost, quotas, chunk_rows=2500)
    streamed = capped_transport(blocks_of(cost, size, rng.permutation(2500)), quotas)
    np.testing.assert_array_equal(streamed.rows, whole.rows)
    np.testing.assert_array_equal(streamed.targets, whole.targets)
    np.testing.assert_allclose(streamed.duals, whole.duals, atol=1e-9)


def test_row_order_changes_neither_the_rows_nor_the_cost():
    rng = np.random.default_rng(2)
    cost = rng.random((3000, 8))
    quotas = integer_quotas(np.ones(8), 1100)
    order = rng.permutation(3000)
    plan = capped_transport(cost, quotas)
    shuffled = capped_transport(cost[order], quotas, chunk_rows=200)
    np.testing.assert_array_equal(np.sort(order[shuffled.rows]), plan.rows)
    assert shuffled.total_cost == pytest.approx(plan.total_cost, abs=1e-9)


@pytest.mark.parametrize("unit", [2.0**-130, 2.0**100])
def test_the_unit_of_the_cost_does_not_matter(unit):
    rng = np.random.default_rng(7)
    cost = rng.random((200, 5)) - 0.5
    cost[:, 4] = np.inf
    quotas = integer_quotas(np.ones(5), 60)
    plan, scaled = (capped_transport(c, quotas, chunk_rows=70) for c in (cost, unit * cost))
    np.testing.assert_array_equal(scaled.rows, plan.rows)
    np.testing.assert_array_equal(scaled.targets, plan.targets)
    np.testing.assert_allclose(scaled.duals, unit * plan.duals, rtol=1e-9)


@pytest.mark.parametrize("targets", [[0, 1, -1], [1, 0, -1], [-1, 0, -1], [0, -1, 1]])
def test_a_plan_that_is_not_optimal_is_refused(monkeypatch, targets):
    cost = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    monkeypatch.setattr(capped, "_solve", lambda *_: np.array(targets))
    with pytest.raises(NumericsError, match="one could be placed"):
        capped_transport(cost, np.array([1, 1]))


def test_a_solver_that_gives_up_is_reported(monkeypatch):
    monkeypatch.setattr(capped, "MAX_PIVOTS", 1)
    with pytest.raises(NumericsError, match="solver failed on 50 rows and 4 targets"):
        capped_transport(np.random.default_rng(9).random((50, 4)), np.full(4, 5))


def test_unmet_units_are_reported_and_never_more_than_need_be():
    cost = np.array([[0.0, 5.0, np.inf], [1.0, np.inf, np.inf], [2.0, np.inf, np.inf]])
    plan = capped_transport(cost, np.array([1, 1, 1]))
    # The cheapest row of target 0 is the only one that may serve target 1.
    assert plan.rows.tolist() == [0, 1]
    assert plan.targets.tolist() == [1, 0]
    assert plan.unmet.tolist() == [0, 0, 1]
    assert plan.total_cost == 6.0
    assert plan.duals.tolist() == [1.0, 6.0, np.inf]  # 6: row 0 leaves target 0 to row 1


def test_infinite_duals_prove_that_no_more_units_can_be_served():
    rng = np.random.default_rng(3)
    cost = rng.random((300, 12))
    cost[:, :6][rng.random((300, 6)) < 0.97] = np.inf
    quotas = integer_quotas(np.ones(12), 200)
    plan = capped_transport(cost, quotas, chunk_rows=70)
    short = np.isposinf(plan.duals)
    assert plan.unmet.sum() > 0
    assert short[plan.unmet > 0].all()
    # Whatever row may serve a short target already serves one of them.
    inside = plan.rows[short[plan.targets]]
    outside = np.setdiff1d(np.arange(300), inside)
    assert np.isinf(cost[np.ix_(outside, short)]).all()


def test_nothing_admissible_leaves_every_unit_unmet():
    plan = capped_transport(np.full((4, 2), np.inf), np.array([2, 1]))
    assert plan.rows.size == 0
    assert plan.unmet.tolist() == [2, 1]
    assert plan.total_cost == 0.0


def test_quotas_of_zero_choose_nothing():
    plan = capped_transport(np.zeros((4, 2)), np.zeros(2, dtype=int))
    assert plan.rows.size == 0
    assert plan.duals.tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("chunk_rows", [1, 7, 50])
def test_of_identical_rows_the_lowest_numbers_are_chosen(chunk_rows):
    rng = np.random.default_rng(4)
    distinct = rng.random((10, 3))
    cost = distinct[np.arange(50) % 10]
    plan = capped_transport(cost, np.array([6, 5, 4]), chunk_rows=chunk_rows)
    for kind in range(10):
        chosen = plan.rows[plan.rows % 10 == kind]
        np.testing.assert_array_equal(chosen, kind + 10 * np.arange(len(chosen)))


@pytest.mark.parametrize("chunk_rows", [5, 100])
def test_a_single_target_takes_the_cheapest_rows_lower_numbers_first(chunk_rows):
    cost = np.random.default_rng(5).integers(0, 4, (100, 1))
    plan = capped_transport(cost, np.array([37]), chunk_rows=chunk_rows)
    expected = np.sort(np.argsort(cost[:, 0], kind="stable")[:37])
    np.testing.assert_array_equal(plan.rows, expected)


def test_equal_input_gives_equal_plans():
    cost = np.random.default_rng(6).integers(0, 3, (2000, 10))
    quotas = integer_quotas(np.ones(10), 300)
    first, second = (capped_transport(cost, quotas, chunk_rows=300) for _ in range(2))
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.targets, second.targets)


@pytest.mark.parametrize(
    ("cost", "quotas", "error", "message"),
    [
        (np.zeros(3), [1], DataError, r"shape \[N, M\]"),
        (np.zeros((3, 2)), [1], DataError, r"shape \[n, 1\]"),
        (np.zeros((0, 2)), [1], DataError, r"shape \[n, 1\]"),
        (np.zeros((3, 1)), [[1]], DataError, "vector of whole numbers"),
        (np.zeros((3, 1)), ["1"], DataError, "vector of whole numbers"),
        (np.zeros((3, 0)), [], DataError, "vector of whole numbers"),
        (np.zeros((3, 2)), [1, 0.5], DataError, "quota 0.5 of target 1"),
        (np.zeros((3, 2)), [-1, 1], DataError, "quota -1 of target 0"),
        (np.zeros((3, 2)), [1, np.nan], DataError, "quota nan of target 1"),
        (np.zeros((3, 2)), [2, 2], DataError, "ask for 4 rows, only 3"),
        (np.array([[0.0], [np.nan]]), [1], NumericsError, "1 costs from row 0"),
        (np.array([[0.0], [-np.inf]]), [1], NumericsError, "1 costs from row 0"),
        (iter([(0, np.zeros((2, 1))), (1, np.zeros((2, 1)))]), [1], DataError, "row 1 comes"),
        (iter([]), [1], DataError, "only 0 were given"),
    ],
)
def test_bad_input_is_refused(cost, quotas, error, message):
    with pytest.raises(error, match=message):
        capped_transport(cost, quotas)


def test_chunks_of_no_rows_are_refused():
    with pytest.raises(DataError, match="chunk_rows 0"):
        capped_transport(np.zeros((3, 1)), np.array([1]), chunk_rows=0)


@pytest.mark.parametrize(
    ("shares", "k", "expected"),
    [
        ([1, 1, 1], 10, [4, 3, 3]),
        ([1, 1, 1], 11, [4, 4, 3]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
        ([0.1] * 3, 3, [1, 1, 1]),
        ([0, 5, 1], 1, [0, 1, 0]),
        ([2, 3], 0, [0, 0]),
    ],
)
def test_quotas_go_by_largest_remainder(shares, k, expected):
    assert integer_quotas(np.array(shares), k).tolist() == expected


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1)), st.integers(0, 10**4))
def test_quotas_are_within_one_unit_of_the_shares(shares, k):
    shares[0] += 0.5
    quotas = integer_quotas(shares, k)
    assert quotas.sum() == k
    assert (np.abs(quotas - k * shares / shares.sum()) < 1 + 1e-6).all()
    assert (quotas[shares == 0] == 0).all()


@pytest.mark.parametrize(
    ("shares", "k"), [([0, 0], 1), ([1, -1], 1), ([np.nan], 1), ([[1]], 1), ([], 1), ([1], -1)]
)
def test_shares_that_cannot_be_split_are_refused(shares, k):
    with pytest.raises(DataError, match="quotas:"):
        integer_quotas(np.array(shares), k)
