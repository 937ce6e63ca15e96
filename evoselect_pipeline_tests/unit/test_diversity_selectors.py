"""Laws of the selectors that spread: each equals its greedy rule, written out plainly."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.core import diversity_selectors
from evoselect_pipeline.core.clustering import spherical_kmeans
from evoselect_pipeline.core.diversity_selectors import DPP_RIDGE, DPP_SHARPNESS
from evoselect_pipeline.core.evolve_weights import cost_matrix
from evoselect_pipeline.core.greedy import cover_landmarks, farthest_first, most_volume
from evoselect_pipeline.core.ledger import Ledger
from evoselect_pipeline.core.selection import Candidates, SelectionProblem, Targets
from evoselect_pipeline.core.selectors import select
from evoselect_pipeline.core.settings import Budget

METHODS = ["diversity", "attr_div", "k_center", "facility_location", "dpp"]
RAGGED = ("a", "b", "a", "c", "a")


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def make_problem(gradients, targets=None, seed=0):
    num_rows, width = gradients.shape
    ids, ones = tuple(f"c{i:03d}" for i in range(num_rows)), np.ones(num_rows)
    if targets is None:
        targets = np.random.default_rng(seed + 1000).normal(size=(len(RAGGED), width))
    return SelectionProblem(
        Candidates(ids, unit(gradients), ones, ones, ones, ("g",) * num_rows, ids),
        Targets(
            tuple(f"t{j}" for j in range(len(targets))),
            unit(targets),
            np.ones(len(targets)),
            RAGGED[: len(targets)],
        ),
    )


def random_problem(seed, num_rows=40, width=10):
    return make_problem(np.random.default_rng(seed).normal(size=(num_rows, width)), seed=seed)


def rows_of(selection):
    return [int(name[1:]) for name in selection.selected_ids]


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_rows_whatever_the_order_of_arrival(method):
    problem = random_problem(0)
    order = np.random.default_rng(1).permutation(40)
    moved = problem.with_candidates(problem.candidates.take(order))
    moved = replace(moved, targets=moved.targets.take(np.array([3, 1, 0, 2, 4])))
    first, again, other = (select(p, Budget(15), 4, method) for p in (problem, problem, moved))
    assert first.picks == again.picks == other.picks
    assert first.rejections == other.rejections


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_rows", [1, 2, 9])
def test_tiny_pools_are_selected_whole_and_every_row_has_a_reason(method, num_rows):
    problem = random_problem(2, num_rows)
    selection = select(problem, Budget(num_rows), 0, method)
    assert Counter(selection.selected_ids) == Counter(problem.candidates.sample_ids)
    assert all(pick.reason for pick in selection.picks)


@pytest.mark.parametrize("method", METHODS)
def test_copies_fill_a_budget_that_nothing_else_can(method):
    problem = make_problem(np.repeat(np.eye(3), 5, axis=0))
    selection = select(problem, Budget(11), 0, method)
    assert len(selection.picks) == 11 and len(selection.rejections) == 4


def blobs(sizes, seed=0, width=30):
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(width, len(sizes))))[0].T
    kinds = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return centres[kinds] + 0.02 * rng.normal(size=(sum(sizes), width)), kinds


def test_clusters_are_the_blobs_the_rows_come_from():
    gradients, kinds = blobs((40, 25, 10, 5))
    labels = spherical_kmeans(unit(gradients), 4, 0)
    assert len(set(zip(labels.tolist(), kinds.tolist(), strict=True))) == 4


def test_a_row_belongs_to_the_centre_of_its_cluster():
    vectors = unit(np.random.default_rng(1).normal(size=(80, 6)))
    labels = spherical_kmeans(vectors, 5, 3)
    means = np.stack([vectors[labels == c].sum(axis=0) for c in range(5)])
    np.testing.assert_array_equal((vectors @ unit(means).T).argmax(axis=1), labels)


def test_fewer_directions_than_clusters_give_a_cluster_each():
    labels = spherical_kmeans(unit(np.repeat(np.eye(3), 4, axis=0)), 7, 0)
    assert len(set(labels.tolist())) == 3


def test_diversity_fills_from_the_smallest_cluster_in_id_order():
    problem = make_problem(blobs((3, 4, 9, 20))[0])  # 36 rows: 6 clusters are asked for
    labels = spherical_kmeans(problem.candidates.gradients, 6, 5)
    sizes = Counter(labels.tolist())
    first = {c: int(np.flatnonzero(labels == c)[0]) for c in sizes}
    expected = [
        int(i)
        for c in sorted(sizes, key=lambda c: (sizes[c], first[c]))
        for i in np.flatnonzero(labels == c)
    ]
    assert rows_of(select(problem, Budget(17), 5, "diversity")) == expected[:17]


def test_attr_div_leaves_the_lowest_quarter_by_attribution_to_the_end():
    problem = random_problem(3)
    ranked = rows_of(select(problem, Budget(40), 0, "attribution"))
    assert set(rows_of(select(problem, Budget(30), 0, "attr_div"))) == set(ranked[:30])
    assert rows_of(select(problem, Budget(40), 0, "attr_div"))[30:] == ranked[30:]


def test_k_center_equals_the_naive_rule_and_starts_at_the_targets():
    problem = random_problem(4)
    g, b = problem.candidates.gradients.astype(np.float64), problem.targets.weights
    taken = [int((g @ (b @ problem.targets.gradients)).argmax())]
    while len(taken) < 12:
        taken.append(int(np.argmin([max(x @ g[c] for c in taken) for x in g])))
    assert rows_of(select(problem, Budget(12), 0, "k_center")) == taken


def test_k_center_is_within_twice_the_best_radius():
    gradients, _ = blobs((12, 8, 5, 5))
    problem = make_problem(gradients)
    ledger = Ledger(problem, Budget(4))
    _, nearest = farthest_first(problem.candidates.gradients, ledger, np.arange(30))
    assert nearest.min() > 0.9  # four centres for four blobs


def facility_value(similarity, rows):
    return float(np.maximum(similarity[rows].max(axis=0), 0).sum()) if rows else 0.0


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_facility_location_equals_the_naive_greedy(seed):
    problem = random_problem(seed % 10_000, num_rows=25)
    g = problem.candidates.gradients.astype(np.float64)
    similarity, taken = g @ g.T, []
    for _ in range(10):
        values = [
            facility_value(similarity, [*taken, i]) if i not in taken else -1 for i in range(25)
        ]
        taken.append(int(np.argmax(values)))
    ledger = Ledger(problem, Budget(10))
    gains, left, covered = cover_landmarks(similarity, ledger)
    assert ledger.rows == taken
    assert gains.sum() == pytest.approx(facility_value(similarity, taken))
    assert covered.sum() == pytest.approx(gains.sum())
    expected = [facility_value(similarity, [*taken, i]) - gains.sum() for i in range(25)]
    np.testing.assert_allclose(left, expected, atol=1e-9)
    # Two rows that cover only each other tie; float32 may take either, and then other rows.
    selected = rows_of(select(problem, Budget(10), 0, "facility_location"))
    assert facility_value(similarity, selected) == pytest.approx(gains.sum(), rel=1e-2)


def test_facility_location_with_landmarks_is_close_to_the_exact_one(monkeypatch):
    gradients, _ = blobs((60, 40, 20, 10, 5))
    problem = make_problem(gradients)
    similarity = problem.candidates.gradients @ problem.candidates.gradients.T
    exact = facility_value(similarity, rows_of(select(problem, Budget(5), 0, "facility_location")))
    monkeypatch.setattr(diversity_selectors, "MAX_LANDMARKS", 60)
    near = select(problem, Budget(5), 0, "facility_location")
    assert near.diagnostics["num_landmarks"] == 60
    assert facility_value(similarity, rows_of(near)) > 0.9 * exact
    monkeypatch.setattr(diversity_selectors, "MAX_SIMILARITIES", 135 * 20)
    bounded = select(problem, Budget(5), 0, "facility_location")
    assert bounded.diagnostics["num_landmarks"] == 20


def greedy_log_det(gradients, quality, num_rows, ridge):
    """Take the row that makes the determinant largest, computed anew each time."""
    kernel = quality[:, None] * (gradients @ gradients.T + ridge * np.eye(len(gradients))) * quality
    taken, values = [], []
    for _ in range(num_rows):
        trial = [
            np.linalg.slogdet(kernel[np.ix_([*taken, i], [*taken, i])])[1]
            if i not in taken
            else -np.inf
            for i in range(len(gradients))
        ]
        taken.append(int(np.argmax(trial)))
        values.append(max(trial))
    return taken, values


@given(st.integers(0, 2**31), st.sampled_from([4, 10, 30]))
@settings(max_examples=20, deadline=None)
def test_dpp_equals_the_naive_log_determinant_greedy(seed, width):
    problem = random_problem(seed % 10_000, num_rows=25, width=width)
    g = problem.candidates.gradients.astype(np.float64)
    quality = np.exp(DPP_SHARPNESS * (1.0 - cost_matrix(problem).min(axis=1)))
    num_rows = min(12, width + 2)  # past the rank where the width is 4: the ridge decides
    taken, values = greedy_log_det(g, quality, num_rows, DPP_RIDGE)
    ledger = Ledger(problem, Budget(num_rows))
    variances, _ = most_volume(g, np.log(quality), ledger, DPP_RIDGE)
    assert ledger.rows == taken
    gains = 2 * np.log(quality[taken]) + np.log(variances)
    np.testing.assert_allclose(np.cumsum(gains), values, atol=1e-6)


def test_dpp_selects_what_its_greedy_rule_takes():
    problem = random_problem(6, num_rows=60, width=40)
    g = problem.candidates.gradients.astype(np.float64)
    quality = np.exp(DPP_SHARPNESS * (1.0 - cost_matrix(problem).min(axis=1)))
    taken, values = greedy_log_det(g, quality, 20, DPP_RIDGE)
    selection = select(problem, Budget(20), 0, "dpp")
    assert rows_of(selection) == taken
    assert selection.diagnostics["log_volume"] == pytest.approx(values[-1], abs=1e-3)


def test_spreading_selectors_take_no_copy_while_another_direction_is_left():
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(20, 30))
    problem = make_problem(np.vstack([rows, rows + 1e-3 * rng.normal(size=rows.shape)]))
    for method in ("k_center", "facility_location", "dpp"):
        chosen = rows_of(select(problem, Budget(20), 0, method))
        assert len({i % 20 for i in chosen}) == 20, method
