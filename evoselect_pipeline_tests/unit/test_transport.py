"""Laws of entropic transport: exact limit, symmetries, marginals, and no silent failure."""

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.core.transport import (
    log_plan,
    marginal_error,
    sinkhorn,
    sinkhorn_steps,
)
from evoselect_pipeline.errors import DataError, NumericsError


def problem(num_rows=8, num_targets=5, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.random(num_rows) + 0.1, rng.random(num_targets) + 0.1
    return a / a.sum(), b / b.sum(), rng.random((num_rows, num_targets)) * 2


@pytest.mark.parametrize("seed", range(5))
def test_cost_falls_to_the_exact_optimum_as_epsilon_falls(seed):
    a, b, cost = problem(seed=seed)
    exact = ot.emd2(a, b, cost)
    gaps = [
        sinkhorn(a, b, cost, epsilon=eps, max_iterations=200_000, tolerance=1e-5).transport_cost()
        - exact
        for eps in (0.5, 0.1, 0.02, 0.004)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert abs(gaps[-1]) < 2e-3


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.05, 0.3]))
@settings(max_examples=40, deadline=None)
def test_plan_is_non_negative_and_has_the_marginals(seed, num_rows, num_targets, epsilon):
    a, b, cost = problem(num_rows, num_targets, seed)
    result = sinkhorn(a, b, cost, epsilon=epsilon, max_iterations=20_000)
    plan = result.plan()
    assert result.converged and result.marginal_error <= 1e-3
    assert (plan >= 0).all() and abs(plan.sum() - 1) < 1e-3
    assert np.abs(plan.sum(axis=1) - a).sum() <= 1e-3
    assert np.abs(plan.sum(axis=0) - b).sum() <= 1e-3


def test_plan_is_permutation_equivariant():
    a, b, cost = problem()
    rows, columns = np.random.default_rng(1).permutation(8), np.random.default_rng(2).permutation(5)
    plan = sinkhorn(a, b, cost, epsilon=0.1, tolerance=1e-8).plan()
    moved = sinkhorn(
        a[rows], b[columns], cost[np.ix_(rows, columns)], epsilon=0.1, tolerance=1e-8
    ).plan()
    np.testing.assert_allclose(moved, plan[np.ix_(rows, columns)], atol=1e-9)


@pytest.mark.parametrize("shift", [-3.0, 0.7, 40.0])
def test_adding_a_constant_to_the_cost_leaves_the_plan_unchanged(shift):
    a, b, cost = problem()
    plan = sinkhorn(a, b, cost, epsilon=0.1, tolerance=1e-8).plan()
    shifted = sinkhorn(a, b, cost + shift, epsilon=0.1, tolerance=1e-8).plan()
    np.testing.assert_allclose(shifted, plan, atol=1e-9)


def test_warm_start_at_the_solution_needs_one_look():
    a, b, cost = problem()
    cold = sinkhorn(a, b, cost, epsilon=0.02, max_iterations=10_000, tolerance=1e-6)
    warm = sinkhorn(a, b, cost, epsilon=0.02, tolerance=1e-5, warm_start=(cold.f, cold.g))
    assert warm.num_iterations == 1 < cold.num_iterations
    np.testing.assert_allclose(warm.plan(), cold.plan(), atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.3, 0.05, 0.01, 1e-4])
def test_fast_steps_equal_the_same_number_of_log_domain_iterations(epsilon):
    a, b, cost = problem(30, 7)
    f, g = sinkhorn_steps(a, b, cost, np.zeros(7), epsilon=epsilon, num_iterations=20)
    f_log = _softmin(cost, b, epsilon)
    for _ in range(20):
        g_log = _softmin((cost - f_log[:, None]).T, a, epsilon)
        f_log = _softmin(cost - g_log, b, epsilon)
    np.testing.assert_allclose(f, f_log, atol=1e-9)
    np.testing.assert_allclose(g, g_log, atol=1e-9)


def _softmin(cost, weights, epsilon):
    scaled = -cost / epsilon + np.log(weights)
    top = scaled.max(axis=1)
    return -epsilon * (top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)))


def test_fast_steps_converge_to_the_checked_solution():
    a, b, cost = problem(40, 6)
    f, g = sinkhorn_steps(a, b, cost, np.zeros(6), epsilon=0.05, num_iterations=3000)
    solved = sinkhorn(a, b, cost, epsilon=0.05, max_iterations=20_000, tolerance=1e-7)
    np.testing.assert_allclose(np.exp(log_plan(a, b, cost, f, g, 0.05)), solved.plan(), atol=1e-6)
    assert marginal_error(a, b, cost, f, g, 0.05) < 1e-9


def test_zero_weights_carry_no_mass_and_leave_the_rest_alone():
    a, b, cost = problem(6, 4)
    wider_a, wider_b = np.append(a, 0.0), np.append(b, 0.0)
    wider = np.pad(cost, ((0, 1), (0, 1)), constant_values=0.3)
    result = sinkhorn(wider_a, wider_b, wider, epsilon=0.1, tolerance=1e-7)
    plan = result.plan()
    assert np.isfinite(result.f).all() and np.isfinite(result.g).all()
    assert plan[-1].sum() == 0 and plan[:, -1].sum() == 0
    narrow = sinkhorn(a, b, cost, epsilon=0.1, tolerance=1e-7).plan()
    np.testing.assert_allclose(plan[:-1, :-1], narrow, atol=1e-7)


def test_potential_of_a_zero_weight_row_is_the_slope_of_the_objective():
    a, b, cost = problem(6, 4)
    a = np.append(a, 0.0)
    cost = np.vstack([cost, np.linspace(0.2, 0.8, 4)])
    step = 1e-4
    moved = (1 - step) * a + step * np.eye(7)[6]

    def dual(weights):
        solved = sinkhorn(weights, b, cost, epsilon=0.2, tolerance=1e-10)
        return solved.f @ weights + solved.g @ b, solved.f

    before, f = dual(a)
    after, _ = dual(moved)
    assert (after - before) / step == pytest.approx(f[6] - f @ a, abs=1e-3)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_single_rows_and_single_targets_have_the_only_plan(shape):
    a, b, cost = problem(*shape)
    plan = sinkhorn(a, b, cost, epsilon=0.05).plan()
    np.testing.assert_allclose(plan, np.outer(a, b), atol=1e-6)


def test_duplicate_rows_share_their_mass_evenly():
    _, b, cost = problem(4, 3)
    doubled = np.vstack([cost, cost])
    plan = sinkhorn(np.full(8, 1 / 8), b, doubled, epsilon=0.1).plan()
    np.testing.assert_allclose(plan[:4], plan[4:], atol=1e-12)


def test_equal_costs_give_the_product_plan():
    a, b, _ = problem()
    plan = sinkhorn(a, b, np.full((8, 5), 0.4), epsilon=1e-4).plan()
    np.testing.assert_allclose(plan, np.outer(a, b), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_tiny_epsilon_is_solved_or_refused_but_never_wrong(seed):
    a, b, cost = problem(60, 20, seed)
    try:
        plan = sinkhorn(a, b, cost, epsilon=1e-4, max_iterations=1000).plan()
    except NumericsError as error:
        assert "0.0001" in str(error) and "raise epsilon" in str(error)
    else:
        assert np.abs(plan.sum(axis=0) - b).sum() <= 1e-3


def test_too_few_iterations_raise():
    a, b, cost = problem(60, 20)
    with pytest.raises(NumericsError, match=r"marginal error .* after 2 .*epsilon 0.01"):
        sinkhorn(a, b, cost, epsilon=0.01, max_iterations=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["a", "b", "cost"])
def test_non_finite_input_raises(bad, where):
    arrays = dict(zip(("a", "b", "cost"), problem(), strict=True))
    arrays[where].flat[0] = bad
    with pytest.raises(NumericsError, match="not finite"):
        sinkhorn(arrays["a"], arrays["b"], arrays["cost"], epsilon=0.1)


@pytest.mark.parametrize(
    ("a", "b", "cost", "words"),
    [
        ([0.5, 0.5], [1.0], [[1.0]], "need a cost of shape"),
        ([], [1.0], np.zeros((0, 1)), "empty"),
        ([1.0], [], np.zeros((1, 0)), "empty"),
        ([1.0, 1.0], [1.0], [[1.0], [1.0]], "same mass"),
        ([0.0, 0.0], [0.0], [[1.0], [1.0]], "same mass"),
        ([1.5, -0.5], [1.0], [[1.0], [1.0]], "negative"),
    ],
)
def test_unusable_problems_raise(a, b, cost, words):
    with pytest.raises(DataError, match=words):
        sinkhorn(np.array(a), np.array(b), np.array(cost), epsilon=0.1)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, np.nan, np.inf])
def test_unusable_epsilon_raises(epsilon):
    with pytest.raises(NumericsError, match="epsilon"):
        sinkhorn(*problem(), epsilon=epsilon)
