"""Laws of rounding: quotas, dedup, reach, ties, and a true reason for every row."""

from collections import Counter
from dataclasses import replace
from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.core import rounding
from evoselect_pipeline.core.capped import capped_transport
from evoselect_pipeline.core.evolve_weights import cost_matrix
from evoselect_pipeline.core.explain import explain_rejections, make_picks, nearest_targets
from evoselect_pipeline.core.ledger import nearest_rows
from evoselect_pipeline.core.rounding import capped_quota, plan_quota, reach_cap, topk
from evoselect_pipeline.core.selection import Candidates, SelectionProblem, Targets
from evoselect_pipeline.core.settings import Budget


def nearest(problem):
    return nearest_targets(cost_matrix(problem))


def unit(matrix):
    matrix = np.asarray(matrix, dtype=np.float64)
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def make_problem(gradients, targets, weights=(), text_keys=None, history=None):
    num_rows, num_targets = len(gradients), len(targets)
    ids = tuple(f"c{i:02d}" for i in range(num_rows))
    ones = np.ones(num_rows)
    history = np.zeros((0, 0), np.float32) if history is None else unit(history)
    return SelectionProblem(
        Candidates(ids, unit(gradients), *[ones] * 3, ("g",) * num_rows, tuple(text_keys or ids)),
        Targets(
            tuple(f"t{j}" for j in range(num_targets)),
            *(unit(targets), np.ones(num_targets), ("s",) * num_targets),
            weights=np.array(weights, dtype=float),
        ),
        history,
        tuple(f"h{i}" for i in range(len(history))),
    )


def choose(
    problem, budget, reach=2.0, dedup_cosine=0.95, rule=plan_quota, quality_floor=0.0, score=None
):
    cost = cost_matrix(problem)
    return rule(
        problem,
        Budget(budget) if isinstance(budget, int) else budget,
        -cost if score is None else score,
        problem.targets.weights,
        cost=cost,
        reach=reach,
        dedup_cosine=dedup_cosine,
        quality_floor=quality_floor,
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
    rejection = explain_rejections(problem, choice, nearest(problem), 2.0, 0.95)[0]
    assert (rejection.stage, rejection.related_id) == ("near_duplicate", "h0")


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
    found = explain_rejections(problem, choice, nearest(problem), 0.9, 0.95)
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
        patch.setattr("evoselect_pipeline.core.ledger.MAX_BLOCK_ENTRIES", block_entries)
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


def test_derived_reach_is_where_nine_in_ten_targets_have_their_nearest_fellow():
    targets = unit(np.random.default_rng(0).normal(size=(12, 3)))
    problem = make_problem([[1, 0, 0]], targets)
    nearest = [max(targets[j] @ targets[k] for k in range(12) if k != j) for j in range(12)]
    assert reach_cap(problem, None) == pytest.approx(1 - np.quantile(nearest, 0.1), abs=1e-6)
    assert reach_cap(problem, 0.3) == 0.3


def test_a_target_is_not_its_own_neighbour_even_where_its_length_is_off():
    problem = make_problem([[1, 0]], [[1, 0], [0.6, 0.8]])
    targets = replace(problem.targets, gradients=0.9985 * problem.targets.gradients)
    short = replace(problem, targets=targets)
    assert reach_cap(short, None) == pytest.approx(1 - 0.6, abs=5e-3)


@pytest.mark.parametrize("targets", [[[1, 0]], [[1, 0], [1, 0]], [[1, 0], [-1, 0]]])
def test_reach_falls_back_to_any_positive_similarity(targets):
    assert reach_cap(make_problem([[1, 0]], targets), None) == 1.0


RULES = pytest.mark.parametrize("rule", [plan_quota, capped_quota])


def apportioned(weights, k):
    """Whole quotas by largest remainders, ties to the lower index."""
    quotas = [int(np.floor(k * w + 1e-9)) for w in weights]
    order = sorted(range(len(weights)), key=lambda j: (-round(k * weights[j] - quotas[j], 6), j))
    for j in order[: k - sum(quotas)]:
        quotas[j] += 1
    return quotas


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_capped_quota_is_the_best_of_all_choices(seed, num_rows, num_targets):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(num_targets))
    problem = random_problem(seed, num_rows=6, num_targets=num_targets, width=5, weights=weights)
    score = rng.normal(size=(6, num_targets))
    quotas = apportioned(weights, num_rows)
    best = max(
        sum(score[i, j] for i, j in enumerate(served) if j >= 0)
        for served in product(range(-1, num_targets), repeat=6)
        if [served.count(j) for j in range(num_targets)] == quotas
    )
    choice = choose(problem, num_rows, dedup_cosine=1.0, rule=capped_quota, score=score)
    assert np.bincount(choice.targets, minlength=num_targets).tolist() == quotas
    assert score[choice.rows, choice.targets].sum() == pytest.approx(best)


def tangled_problem(seed, num_rows=30):
    """Copies by text and by gradient, an earlier round, bad answers, lengths and sources."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(4))
    weights[0] = 0.0
    problem = make_problem(
        rng.normal(size=(num_rows, 5)),
        rng.normal(size=(4, 5)),
        weights=weights / weights.sum(),
        text_keys=[f"k{n}" for n in rng.integers(num_rows, size=num_rows)],
        history=rng.normal(size=(2, 5)),
    )
    candidates = replace(
        problem.candidates,
        quality=rng.uniform(0.2, 1.0, num_rows),
        num_tokens=rng.integers(1, 20, num_rows),
        sources=tuple(rng.choice(["a", "b"], size=num_rows).tolist()),
    )
    return replace(problem, candidates=candidates, history_text_keys=frozenset({"k1", "k2"}))


def fits(problem, rows, budget):
    """Whether rows stay within the budget, as it is worded."""
    tokens = problem.candidates.num_tokens[rows]
    if len(rows) > (budget.rows or np.inf) or tokens.sum() > (budget.tokens or np.inf):
        return False
    if budget.source_share is None:
        return True
    sizes = np.ones(len(rows)) if budget.rows else tokens
    by_source = Counter()
    for row, size in zip(rows, sizes, strict=True):
        by_source[problem.candidates.sources[row]] += size
    cap = np.floor(budget.source_share * (budget.rows or budget.tokens) + 1e-9)
    return max(by_source.values(), default=0) <= (max(1, cap) if budget.rows else cap)


def repeats(problem, row, chosen, dedup_cosine):
    candidates = problem.candidates
    others = np.vstack([candidates.gradients[chosen], problem.history])
    texts = {candidates.text_keys[i] for i in chosen} | problem.history_text_keys
    return bool(
        candidates.text_keys[row] in texts
        or (others @ candidates.gradients[row]).max() > dedup_cosine
    )


budgets = st.one_of(
    st.builds(Budget, st.integers(1, 30)),
    st.builds(Budget, st.none(), st.integers(20, 300)),
    st.builds(Budget, st.integers(1, 30), st.integers(20, 300), st.floats(0.2, 1.0)),
    st.builds(Budget, st.none(), st.integers(40, 300), st.floats(0.5, 1.0)),
)


@RULES
@given(st.integers(0, 2**31), budgets, st.floats(0.3, 2.0), st.floats(0.5, 0.9))
@settings(max_examples=150, deadline=None)
def test_every_chosen_row_is_admissible_and_no_admissible_row_is_left(
    rule, seed, budget, reach, dedup_cosine
):
    problem = tangled_problem(seed)
    quality, cost = problem.candidates.quality, cost_matrix(problem)
    choice = choose(problem, budget, reach, dedup_cosine, rule, quality_floor=0.5)
    rows = choice.rows.tolist()
    assert len(set(rows)) == len(rows) and fits(problem, rows, budget)
    assert (cost[choice.rows, choice.targets] <= reach).all()
    assert (quality[choice.rows] >= 0.5).all() and 0 not in choice.targets
    for place, row in enumerate(rows):
        assert not repeats(problem, row, rows[:place], dedup_cosine)
    for row in set(range(len(quality))) - set(rows):
        assert (
            quality[row] < 0.5
            or (cost[row, 1:] > reach).all()
            or repeats(problem, row, rows, dedup_cosine)
            or not fits(problem, [*rows, row], budget)
        )


@RULES
@given(st.integers(0, 2**31), st.integers(1, 30), st.floats(0.3, 1.2))
@settings(max_examples=60, deadline=None)
def test_targets_without_rows_are_those_that_no_admissible_row_reaches(rule, seed, k, reach):
    problem = tangled_problem(seed)
    choice = choose(problem, k, reach, rule=rule)
    cost, rows = cost_matrix(problem), choice.rows.tolist()
    free = [i for i in range(30) if i not in rows and not repeats(problem, i, rows, 0.95)]
    for j in choice.unreached + choice.exhausted:
        assert (cost[free, j] > reach).all()
        assert (j in choice.targets) == (j in choice.exhausted)
    if len(rows) < k:
        assert set(choice.unreached + choice.exhausted) == {1, 2, 3}


@RULES
def test_unreached_targets_are_reported_and_their_quota_is_shared_out(rule):
    rows = np.abs(np.random.default_rng(1).normal(size=(30, 8)))
    rows[:, 7] = 0
    problem = make_problem(rows, np.eye(8)[[0, 1, 7]])
    choice = choose(problem, 12, reach=0.9, dedup_cosine=1.0, rule=rule)
    assert choice.unreached == (2,) and choice.exhausted == ()
    assert np.bincount(choice.targets).tolist() == [6, 6]


@RULES
def test_a_budget_above_what_is_left_of_the_pool_takes_what_is_left(rule):
    problem = random_problem(0, num_rows=10, num_targets=3)
    later = replace(problem, history=problem.candidates.gradients[:6], history_ids=tuple("abcdef"))
    assert sorted(choose(later, 8, rule=rule).rows) == [6, 7, 8, 9]


def test_implausible_answers_are_refused_with_a_sentence():
    problem = random_problem(0, num_rows=6)
    candidates = replace(problem.candidates, quality=np.array([1, 0.2, 0.9, 0.49, 0.5, 1]))
    problem = problem.with_candidates(candidates)
    for rule in (plan_quota, capped_quota):
        choice = choose(problem, 6, rule=rule, quality_floor=0.5)
        assert sorted(choice.rows) == [0, 2, 4, 5]
        assert choice.refusals[1] == (
            "implausible_answer",
            "its answer surprises beside those of like targets: plausible at 20%",
        )
        left = explain_rejections(problem, choice, nearest(problem), 2.0, 0.95)
        assert [(r.sample_id, r.stage) for r in left] == [
            ("c01", "implausible_answer"),
            ("c03", "implausible_answer"),
        ]


def test_a_crowd_of_copies_costs_few_stages(monkeypatch):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 32))
    copies = base + 1e-3 * rng.normal(size=(200, 32))
    problem = make_problem(np.vstack([copies, rng.normal(size=(20, 32))]), base)
    solver = Mock(side_effect=capped_transport)
    monkeypatch.setattr(rounding, "capped_transport", solver)
    assert len(choose(problem, 2, rule=capped_quota).rows) == 2
    assert solver.call_count == 2
