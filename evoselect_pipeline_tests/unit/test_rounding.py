"""Laws of rounding: quotas, dedup, reach, ties, and a true reason for every row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.core.evolve_weights import cost_matrix
from evoselect_pipeline.core.explain import explain_rejections, make_picks
from evoselect_pipeline.core.rounding import (
    nearest_rows,
    plan_quota,
    reach_cap,
    topk,
)
from evoselect_pipeline.core.selection import Budget, Candidates, SelectionProblem, Targets


def unit(matrix):
    matrix = np.asarray(matrix, dtype=np.float64)
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def make_problem(gradients, targets, weights=(), text_keys=None, history=None):
    num_rows, num_targets = len(gradients), len(targets)
    ids = tuple(f"c{i:02d}" for i in range(num_rows))
    ones = np.ones(num_rows)
    history = np.zeros((0, 0), np.float32) if history is None else unit(history)
    return SelectionProblem(
        Candidates(
            ids, unit(gradients), ones, ones, ones, ("g",) * num_rows, tuple(text_keys or ids)
        ),
        Targets(
            tuple(f"t{j}" for j in range(num_targets)),
            unit(targets),
            np.ones(num_targets),
            ("s",) * num_targets,
            np.array(weights, dtype=float),
        ),
        history,
        tuple(f"h{i}" for i in range(len(history))),
    )


def choose(problem, num_rows, reach=2.0, dedup_cosine=0.95, shares=None):
    cost = cost_matrix(problem)
    shares = problem.targets.weights if shares is None else shares
    return plan_quota(
        problem, Budget(num_rows), -cost, shares, cost=cost, reach=reach, dedup_cosine=dedup_cosine
    )


def random_problem(seed, num_rows=60, num_targets=5, width=16, **more):
    rng = np.random.default_rng(seed)
    return make_problem(
        rng.normal(size=(num_rows, width)), rng.normal(size=(num_targets, width)), **more
    )


def plan_quota_by_definition(problem, num_rows, reach, dedup_cosine):
    """The rule as it is written, without any of the shortcuts."""
    gradients, keys = problem.candidates.gradients, problem.candidates.text_keys
    cost, b = cost_matrix(problem), problem.targets.weights
    rows, targets = [], []
    active = [j for j in range(len(b)) if b[j] > 0]
    while active and len(rows) < num_rows:
        j = min(active, key=lambda t: (targets.count(t) / b[t], t))
        admissible = [
            i
            for i in range(len(gradients))
            if i not in rows
            and cost[i, j] <= reach
            and keys[i] not in {keys[c] for c in rows}
            and all(gradients[i] @ gradients[c] <= dedup_cosine for c in rows)
            and all(gradients[i] @ earlier <= dedup_cosine for earlier in problem.history)
        ]
        if not admissible:
            active.remove(j)
            continue
        rows.append(min(admissible, key=lambda i: (cost[i, j], i)))
        targets.append(j)
    return rows, targets


@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0.5, 2.0), st.floats(0.2, 0.9))
@settings(max_examples=60, deadline=None)
def test_plan_quota_equals_its_definition(seed, num_rows, reach, dedup_cosine):
    rng = np.random.default_rng(seed)
    weights = rng.random(4)
    weights[0] = 0.0
    keys = [f"k{n}" for n in rng.integers(25, size=40)]
    problem = make_problem(
        rng.normal(size=(40, 6)),
        rng.normal(size=(4, 6)),
        weights=weights / weights.sum(),
        text_keys=keys,
        history=rng.normal(size=(2, 6)),
    )
    choice = choose(problem, num_rows, reach, dedup_cosine)
    rows, targets = plan_quota_by_definition(problem, num_rows, reach, dedup_cosine)
    assert choice.rows.tolist() == rows and choice.targets.tolist() == targets


def test_quotas_follow_the_target_weights():
    problem = random_problem(0, num_rows=200, num_targets=3, weights=(0.6, 0.3, 0.1))
    choice = choose(problem, 50)
    assert np.bincount(choice.targets).tolist() == [30, 15, 5]


def test_no_two_chosen_rows_are_near_duplicates():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 32))
    copies = rows + 0.05 * rng.normal(size=rows.shape)
    problem = make_problem(np.vstack([rows, copies]), rng.normal(size=(4, 32)))
    choice = choose(problem, 60)
    chosen = problem.candidates.gradients[choice.rows]
    assert len(choice.rows) == 40
    assert (chosen @ chosen.T - np.eye(40)).max() <= 0.95


def test_rows_run_out_rather_than_repeat():
    problem = make_problem([[1, 0], [1, 0.01], [1, 0.02]], [[1, 0]])
    choice = choose(problem, 3)
    assert choice.rows.tolist() == [0] and choice.exhausted == (0,)


def test_rows_near_earlier_rounds_are_not_chosen():
    problem = make_problem([[1, 0.01], [0, 1]], [[1, 0]], history=[[1, 0]])
    choice = choose(problem, 2)
    assert choice.rows.tolist() == [1]
    rejection = explain_rejections(problem, choice, cost_matrix(problem), 2.0, 0.95)[0]
    assert (rejection.stage, rejection.related_id) == ("near_duplicate", "h0")


def test_unreached_targets_are_reported_and_their_quota_is_shared_out():
    rng = np.random.default_rng(1)
    rows = np.abs(rng.normal(size=(30, 8)))
    rows[:, 7] = 0
    targets = np.eye(8)[[0, 1, 7]]
    problem = make_problem(rows, targets)
    choice = choose(problem, 12, reach=0.9, dedup_cosine=1.0)
    assert choice.unreached == (2,) and choice.exhausted == ()
    assert np.bincount(choice.targets).tolist() == [6, 6]


def test_ties_go_to_the_earlier_row():
    problem = make_problem(np.ones((6, 3)), np.ones((2, 3)))
    assert choose(problem, 4, dedup_cosine=1.0).rows.tolist() == [0, 1, 2, 3]
    assert topk(problem, Budget(3), np.ones(6), np.zeros(6, int)).rows.tolist() == [0, 1, 2]


def test_every_stage_of_rejection_names_its_cause():
    problem = make_problem(
        [[1, 0, 0], [1, 0.02, 0], [0.8, 0.6, 0], [-1, 0, 0], [0.6, 0.8, 0]],
        [[1, 0, 0]],
        text_keys=["a", "b", "a", "d", "e"],
    )
    choice = choose(problem, 1, reach=0.9)
    found = explain_rejections(problem, choice, cost_matrix(problem), 0.9, 0.95)
    assert [(r.sample_id, r.stage, r.related_id) for r in found] == [
        ("c01", "near_duplicate", "c00"),
        ("c02", "same_text", "c00"),
        ("c03", "beyond_reach", "t0"),
        ("c04", "not_needed", "t0"),
    ]
    assert "cosine 1.000" in found[0].reason and "-1.00" in found[2].reason


def test_picks_name_the_nearest_other_chosen_row():
    problem = random_problem(3, num_rows=20)
    choice = choose(problem, 8)
    picks = make_picks(problem, choice, cost_matrix(problem), ["because"] * 8)
    chosen = problem.candidates.gradients[choice.rows]
    cosines = chosen @ chosen.T - 9 * np.eye(8)
    for position, pick in enumerate(picks):
        assert pick.rank == position + 1
        assert (
            pick.nearest_id
            == problem.candidates.sample_ids[choice.rows[cosines[position].argmax()]]
        )
        assert pick.nearest_cosine == pytest.approx(cosines[position].max(), abs=1e-6)
        assert f"nearest chosen row {pick.nearest_id} at {pick.nearest_cosine:.2f}" in pick.reason


def test_a_lone_pick_has_no_neighbour():
    problem = random_problem(3)
    pick = make_picks(problem, choose(problem, 1), cost_matrix(problem), ["because"])[0]
    assert (pick.nearest_id, pick.nearest_cosine, pick.reason) == (None, None, "because")


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(0, 30), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_blocked_nearest_rows_equal_the_full_matrix(seed, num_rows, num_others, block_entries):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(num_rows, 5)))
    others = unit(rng.normal(size=(num_others, 5))) if num_others else np.zeros((0, 5), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evoselect_pipeline.core.rounding.MAX_BLOCK_ENTRIES", block_entries)
        index, cosine = nearest_rows(vectors, others)
        own_index, own_cosine = nearest_rows(vectors, vectors, same=True)
    if num_others == 0:
        assert (index == -1).all() and (cosine == -np.inf).all()
    else:
        np.testing.assert_allclose(cosine, (vectors @ others.T).max(axis=1), atol=1e-6)
        np.testing.assert_allclose((vectors * others[index]).sum(axis=1), cosine, atol=1e-6)
    if num_rows > 1:
        full = vectors @ vectors.T - 9 * np.eye(num_rows)
        np.testing.assert_allclose(own_cosine, full.max(axis=1), atol=1e-6)
    else:
        assert own_index.tolist() == [-1]


def test_derived_reach_is_half_the_similarity_of_neighbouring_targets():
    problem = make_problem([[1, 0]], [[1, 0], [0.8, 0.6], [0.8, -0.6]])
    assert reach_cap(problem, None) == pytest.approx(1 - 0.5 * 0.8, abs=1e-6)
    assert reach_cap(problem, 0.3) == 0.3


@pytest.mark.parametrize("targets", [[[1, 0]], [[1, 0], [1, 0]], [[1, 0], [-1, 0]]])
def test_reach_falls_back_to_any_positive_similarity(targets):
    assert reach_cap(make_problem([[1, 0]], targets), None) == 1.0
