"""Laws of the selectors that follow targets: each equals its published rule, written out."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from scipy.special import softmax

from evoselect_pipeline.core import target_mass
from evoselect_pipeline.core.evolve_weights import cost_matrix
from evoselect_pipeline.core.selection import Candidates, SelectionProblem, Targets
from evoselect_pipeline.core.selectors import select
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.core.target_mass import (
    kernel_density,
    semi_relaxed_mass,
    spread_over_near_rows,
)
from evoselect_pipeline.core.target_selectors import TAROT_RIDGE, TSDS_ALPHA, TSDS_SCALE, tsds
from evoselect_pipeline.core.whitening import whitened_cosines

METHODS = ["tsds", "tarot", "ot_vote"]
RAGGED = ("a", "b", "a", "c", "a", "b", "a")


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def make_problem(seed, num_rows=60, width=12, subtasks=RAGGED):
    rng = np.random.default_rng(seed)
    ids, ones = tuple(f"c{i:03d}" for i in range(num_rows)), np.ones(num_rows)
    spread = rng.uniform(0.3, 2.0, size=width)  # uneven directions: whitening has work to do
    num_targets = len(subtasks)
    return SelectionProblem(
        Candidates(
            ids,
            unit(rng.normal(size=(num_rows, width)) * spread),
            ones,
            ones,
            ones,
            ("g",) * num_rows,
            ids,
        ),
        Targets(
            tuple(f"t{j}" for j in range(num_targets)),
            unit(rng.normal(size=(num_targets, width)) * spread),
            np.ones(num_targets),
            subtasks,
        ),
    )


def rows_of(selection):
    return [int(name[1:]) for name in selection.selected_ids]


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_rows_whatever_the_order_of_arrival(method):
    problem = make_problem(0)
    order = np.random.default_rng(1).permutation(60)
    moved = problem.with_candidates(problem.candidates.take(order))
    moved = replace(moved, targets=moved.targets.take(np.array([3, 1, 6, 0, 2, 5, 4])))
    first, again, other = (select(p, Budget(15), 4, method) for p in (problem, problem, moved))
    assert first.picks == again.picks == other.picks
    assert first.rejections == other.rejections


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("num_rows", "subtasks"), [(1, ("a",)), (2, RAGGED), (9, ("a", "b"))])
def test_tiny_pools_are_selected_whole_and_every_row_has_a_reason(method, num_rows, subtasks):
    problem = make_problem(2, num_rows=num_rows, subtasks=subtasks)
    selection = select(problem, Budget(num_rows), 0, method)
    assert Counter(selection.selected_ids) == Counter(problem.candidates.sample_ids)
    assert all(pick.reason for pick in selection.picks)


def test_density_sums_the_kernel_over_all_rows():
    vectors = make_problem(3).candidates.gradients.astype(np.float64)
    expected = [
        sum(max(0.0, 1.0 - np.sum((x - y) ** 2) / 0.9**2) for y in vectors) for x in vectors
    ]
    np.testing.assert_allclose(kernel_density(vectors, 0.9, 0), expected, rtol=1e-5)


def test_copies_share_the_density_of_one_row():
    vectors = np.repeat(np.eye(3), [4, 1, 1], axis=0)
    np.testing.assert_allclose(kernel_density(vectors, 0.5, 0), [4, 4, 4, 4, 1, 1])


def test_a_sampled_density_is_right_on_average(monkeypatch):
    vectors = np.repeat(make_problem(4).candidates.gradients, 5, axis=0)
    exact = kernel_density(vectors, 0.75, 0)
    monkeypatch.setattr(target_mass, "MAX_KERNEL_ROWS", 100)
    sampled = [kernel_density(vectors, 0.75, seed) for seed in range(200)]
    np.testing.assert_allclose(np.mean(sampled, axis=0), exact, rtol=0.12)


def spread_by_linear_program(distance, density, b, alpha, scale):
    """Minimum of the regularised objective, by a solver that knows nothing of its closed form."""
    num_rows, num_targets = distance.shape
    u = (1 / density) / (1 / density).sum()
    cells = num_rows * num_targets
    objective = np.append(alpha / scale * (distance * b).ravel(), 1 - alpha)
    upper, limit = [], []
    for i in range(num_rows):
        for j in range(num_targets):
            for sign in (1.0, -1.0):
                row = np.zeros(cells + 1)
                row[i * num_targets + j] = sign * density[i]
                row[-1] = -1.0
                upper.append(row)
                limit.append(sign * density[i] * u[i])
    sums = np.zeros((num_targets, cells + 1))
    for j in range(num_targets):
        sums[j, j:cells:num_targets] = 1.0
    return linprog(objective, upper, limit, sums, np.ones(num_targets)).fun


@given(st.integers(0, 2**31), st.floats(0.05, 0.95), st.floats(0.1, 5.0))
@settings(max_examples=40, deadline=None)
def test_the_closed_form_of_tsds_is_the_minimum_of_its_objective(seed, alpha, scale):
    rng = np.random.default_rng(seed)
    distance, density = rng.random((12, 3)), 1 + 3 * rng.random(12)
    b = rng.dirichlet(np.ones(3))
    mass, _ = spread_over_near_rows(distance, density, b, alpha, scale)
    np.testing.assert_allclose(mass.sum(axis=0), b, rtol=1e-9)
    q, u = mass / b, (1 / density) / (1 / density).sum()
    reached = alpha / scale * float((mass * distance).sum())
    reached += (1 - alpha) * float((density[:, None] * np.abs(q - u[:, None])).max())
    assert reached == pytest.approx(
        spread_by_linear_program(distance, density, b, alpha, scale), rel=1e-6
    )


def spread_as_published(distance, density, alpha, scale):
    """The published loop: widen the spread a row at a time until the next step costs too much."""
    num_rows, num_targets = distance.shape
    order = np.argsort(distance, axis=0)
    ends = sorted(
        (sum(1 / density[order[: n + 1, j]]), j, n)
        for j in range(num_targets)
        for n in range(num_rows - 1)
    )
    total = np.zeros(num_targets)
    width = ends[0][0]
    for end, j, n in ends:
        width, taken = end, order[: n + 1, j]
        following = distance[order[n + 1, j], j]
        total[j] = sum((following - distance[i, j]) / density[i] for i in taken)
        if alpha / scale * total.sum() >= (1 - alpha) * num_targets:
            break
    probability = np.zeros(num_rows)
    for j in range(num_targets):
        left = 1.0
        for i in order[:, j]:
            share = min(left, 1 / density[i] / width)
            probability[i] += share / num_targets
            left -= share
    return probability


def test_tsds_probabilities_equal_the_published_loop():
    rng = np.random.default_rng(5)
    distance, density = 1.4 * rng.random((200, 6)), 1 + 3 * rng.random(200)
    mass, _ = spread_over_near_rows(distance, density, np.full(6, 1 / 6), 0.5, 1.0)
    expected = spread_as_published(distance, density, 0.5, 1.0)
    np.testing.assert_allclose(mass.sum(axis=1), expected, atol=1e-12)


def test_tsds_draws_without_replacement_in_proportion_to_its_probabilities():
    problem = make_problem(6, num_rows=40)
    cost = cost_matrix(problem)
    density = kernel_density(problem.candidates.gradients, 0.75, 0)
    distance = np.sqrt(2 * cost)
    b = problem.targets.weights
    p = spread_over_near_rows(distance, density, b, TSDS_ALPHA, TSDS_SCALE).mass.sum(axis=1)
    first = [
        int(tsds(problem, Budget(1), seed, EvoSelectSettings()).selected_ids[0][1:])
        for seed in range(1500)
    ]
    observed = np.bincount(first, minlength=40) / 1500
    assert np.abs(observed - p).max() < 4 * np.sqrt(p.max() / 1500)


def test_tsds_depends_on_its_seed_and_takes_rows_without_mass_last():
    problem = make_problem(7, num_rows=400, width=40)
    runs = [rows_of(select(problem, Budget(400), seed, "tsds")) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    with_mass = select(problem, Budget(400), 1, "tsds").diagnostics["num_rows_with_mass"]
    assert with_mass < 400
    cost = cost_matrix(problem).min(axis=1)
    assert cost[runs[0][with_mass:]].tolist() == sorted(cost[runs[0][with_mass:]])


def test_tarot_distance_is_mahalanobis():
    problem = make_problem(8)
    x, v = (s.gradients.astype(np.float64) for s in (problem.candidates, problem.targets))
    centred = x - x.mean(axis=0)
    covariance = centred.T @ centred / len(x)
    ridge = TAROT_RIDGE * np.trace(covariance) / len(covariance)
    inverse = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
    shifted = v - x.mean(axis=0)
    inner = centred @ inverse @ shifted.T
    lengths = [np.sqrt(np.einsum("nd,de,ne->n", z, inverse, z)) for z in (centred, shifted)]
    expected = inner / lengths[0][:, None] / lengths[1]
    found = whitened_cosines(problem.candidates.gradients, problem.targets.gradients, 99, 0.01)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_whitened_candidates_vary_equally_in_every_direction_they_have():
    vectors = make_problem(9, num_rows=10, width=30).candidates.gradients  # wider than many
    mean = vectors.mean(axis=0)
    basis = np.linalg.svd(vectors - mean)[2][:9]
    probes = (basis + mean).astype(np.float32)
    cosines = whitened_cosines(vectors, probes, 256, 1e-9)
    # Each axis is a direction of its own after whitening, so nine squared cosines sum to one.
    np.testing.assert_allclose(np.square(cosines).sum(axis=1), 1.0, atol=1e-3)


def test_tarot_takes_layer_after_layer():
    problem = make_problem(10)
    cosines = whitened_cosines(
        problem.candidates.gradients, problem.targets.gradients, 256, TAROT_RIDGE
    )
    taken = []
    for layer in range(60):
        nearest = [int(np.argsort(-cosines[:, j], kind="stable")[layer]) for j in range(7)]
        best = {}
        for j, i in enumerate(nearest):
            best[i] = max(best.get(i, -9.0), cosines[i, j])
        new = [i for i in best if i not in taken]
        taken += sorted(new, key=lambda i: -best[i])
    assert rows_of(select(problem, Budget(25), 0, "tarot")) == taken[:25]


def test_tarot_is_not_blind_to_whitening():
    problem = make_problem(11)
    plain = np.argsort(cost_matrix(problem).min(axis=1))[:15]
    assert set(rows_of(select(problem, Budget(15), 0, "tarot"))) != set(plain.tolist())


def semi_relaxed_objective(plan, cost, b, epsilon, rho):
    a = np.full(len(cost), 1 / len(cost))
    reference, rows = a[:, None] * b, plan.sum(axis=1)
    kl = np.sum(plan * np.log(plan / reference) - plan + reference)
    return np.sum(plan * cost) + epsilon * kl + rho * np.sum(rows * np.log(rows / a) - rows + a)


@pytest.mark.parametrize("relaxation", [0.1, 1.0])
def test_ot_vote_minimises_the_semi_relaxed_objective(relaxation):
    rng = np.random.default_rng(12)
    cost, b, epsilon = rng.random((6, 3)), np.array([0.5, 0.3, 0.2]), 0.2
    plan = semi_relaxed_mass(cost, b, epsilon, relaxation)
    np.testing.assert_allclose(plan.sum(axis=0), b, rtol=1e-9)

    def value(x):
        trial = b * softmax(x.reshape(6, 3), axis=0)
        return semi_relaxed_objective(trial, cost, b, epsilon, relaxation * epsilon)

    best = minimize(value, np.zeros(18), method="BFGS", options={"gtol": 1e-9})
    assert semi_relaxed_objective(plan, cost, b, epsilon, relaxation * epsilon) == pytest.approx(
        best.fun, abs=1e-8
    )
    np.testing.assert_allclose(plan, b * softmax(best.x.reshape(6, 3), axis=0), atol=1e-4)


def test_free_candidates_give_a_softmax_for_each_target():
    cost = np.random.default_rng(13).random((8, 4))
    plan = semi_relaxed_mass(cost, np.full(4, 0.25), 0.1, 0.0)
    np.testing.assert_allclose(plan, 0.25 * softmax(-cost / 0.1, axis=0), rtol=1e-9)


def test_ot_vote_ranks_by_the_mass_a_row_receives():
    problem = make_problem(14)
    plan = semi_relaxed_mass(cost_matrix(problem), problem.targets.weights, 0.05, 0.1)
    expected = np.argsort(-plan.sum(axis=1), kind="stable")[:20]
    assert rows_of(select(problem, Budget(20), 0, "ot_vote")) == expected.tolist()
