"""Laws of budgets: rows, tokens and sources are never exceeded, by any selector."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from evoselect_pipeline.core.evolve_weights import cost_matrix
from evoselect_pipeline.core.evoselect import align, restore_alignment
from evoselect_pipeline.core.ledger import Ledger
from evoselect_pipeline.core.rounding import plan_quota, take_in_order
from evoselect_pipeline.core.selection import Candidates, SelectionProblem, Targets
from evoselect_pipeline.core.selectors import SELECTORS, select
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings
from evoselect_pipeline.errors import ConfigError, DataError

NUM_ROWS = 120
WITHIN_BUDGET = sorted(set(SELECTORS) - {"all"})
SETTINGS = EvoSelectSettings(reach=2.0, dedup_cosine=1.0)
BUDGETS = {
    "tokens": Budget(tokens=700),
    "both, rows bind": Budget(rows=10, tokens=100_000),
    "both, tokens bind": Budget(rows=100, tokens=500),
    "rows by source": Budget(rows=40, source_share=0.3),
    "tokens by source": Budget(tokens=900, source_share=0.25),
    "all three": Budget(rows=40, tokens=1200, source_share=0.3),
}


def unit(matrix):
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def problem():
    """Ragged, interleaved subtasks; sources in the shares 60, 30 and 10 %; rows of 5-60 tokens."""
    rng = np.random.default_rng(0)
    ids = tuple(f"c{i:03d}" for i in range(NUM_ROWS))
    candidates = Candidates(
        sample_ids=ids,
        gradients=unit(rng.normal(size=(NUM_ROWS, 24))),
        norms=np.ones(NUM_ROWS),
        losses=np.ones(NUM_ROWS),
        num_tokens=rng.integers(5, 61, size=NUM_ROWS),
        sources=tuple(rng.choice(["a", "b", "c"], size=NUM_ROWS, p=(0.6, 0.3, 0.1)).tolist()),
        text_keys=ids,
    )
    targets = Targets(
        tuple(f"t{j}" for j in range(5)), unit(rng.normal(size=(5, 24))), np.ones(5), tuple("abaca")
    )
    return SelectionProblem(candidates, targets)


def sums_of(selection, problem):
    """Rows, tokens, and the rows and tokens of each source that are selected."""
    row_of = {name: i for i, name in enumerate(problem.candidates.sample_ids)}
    rows = [row_of[i] for i in selection.selected_ids]
    by_rows, by_tokens = Counter(), Counter()
    for i in rows:
        by_rows[problem.candidates.sources[i]] += 1
        by_tokens[problem.candidates.sources[i]] += int(problem.candidates.num_tokens[i])
    return rows, sum(by_tokens.values()), by_rows, by_tokens


def fits(row, selection, problem, budget):
    """Whether one more row would still be inside the budget."""
    rows, tokens, by_rows, by_tokens = sums_of(selection, problem)
    source, size = problem.candidates.sources[row], int(problem.candidates.num_tokens[row])
    inside = [
        budget.rows is None or len(rows) + 1 <= budget.rows,
        budget.tokens is None or tokens + size <= budget.tokens,
    ]
    if budget.source_share is not None and budget.rows is not None:
        inside.append(by_rows[source] + 1 <= budget.source_share * budget.rows)
    elif budget.source_share is not None:
        inside.append(by_tokens[source] + size <= budget.source_share * budget.tokens)
    return all(inside)


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("method", WITHIN_BUDGET)
def test_no_selector_exceeds_its_budget_or_leaves_room_in_it(problem, method, budget):
    selection = select(problem, budget, 3, method, SETTINGS)
    rows, tokens, by_rows, by_tokens = sums_of(selection, problem)
    assert len(rows) <= (budget.rows or NUM_ROWS)
    assert tokens <= (budget.tokens or np.inf)
    assert selection.diagnostics["num_selected_tokens"] == tokens
    if budget.source_share is not None and budget.rows is not None:
        assert max(by_rows.values()) <= budget.source_share * budget.rows
    elif budget.source_share is not None:
        assert max(by_tokens.values()) <= budget.source_share * budget.tokens
    left = set(range(NUM_ROWS)) - set(rows)
    assert not any(fits(i, selection, problem, budget) for i in left)


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("method", WITHIN_BUDGET)
def test_every_row_left_by_a_budget_is_left_for_a_stated_reason(problem, method, budget):
    selection = select(problem, budget, 3, method, SETTINGS)
    decided = Counter(selection.selected_ids) + Counter(r.sample_id for r in selection.rejections)
    assert decided == Counter(problem.candidates.sample_ids)
    stages = Counter(r.stage for r in selection.rejections)
    assert set(stages) <= {"over_source_cap", "over_token_budget", "not_needed"}
    assert budget.tokens is not None or stages["over_token_budget"] == 0
    assert budget.source_share is not None or stages["over_source_cap"] == 0
    assert all(r.reason for r in selection.rejections)


@pytest.mark.parametrize("method", WITHIN_BUDGET)
def test_a_budget_that_binds_nothing_changes_nothing(problem, method):
    plain = select(problem, Budget(30), 3, method, SETTINGS)
    wide = Budget(rows=30, tokens=10**9, source_share=1.0)
    assert select(problem, wide, 3, method, SETTINGS).picks == plain.picks


def test_all_ignores_the_budget(problem):
    for budget in (Budget(tokens=5), Budget(rows=1), Budget(rows=4, source_share=0.25)):
        assert len(select(problem, budget, 0, "all").picks) == NUM_ROWS


def test_a_walk_passes_over_what_does_not_fit_and_goes_on_to_smaller_rows(problem):
    candidates = replace(problem.candidates, num_tokens=np.array([60, 50, 30, 8] + [99] * 116))
    problem = problem.with_candidates(candidates)
    choice = take_in_order(problem, Budget(tokens=100), range(NUM_ROWS), np.zeros(NUM_ROWS, int))
    assert choice.rows.tolist() == [0, 2, 3]
    assert choice.refusals[1] == (
        "over_token_budget",
        "its 50 tokens did not fit any more: 98 of 100 are taken",
    )


def test_a_source_at_its_cap_is_named(problem):
    candidates = replace(problem.candidates, sources=("a",) * 100 + ("b",) * 20)
    choice = take_in_order(
        problem.with_candidates(candidates),
        Budget(rows=10, source_share=0.5),
        range(NUM_ROWS),
        np.zeros(NUM_ROWS, int),
    )
    assert choice.rows.tolist() == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    assert choice.refusals[7] == ("over_source_cap", "source a has 5 of its 5 rows")
    assert 110 not in choice.refusals  # its source was not full before the budget was


def test_quotas_go_on_around_a_full_source(problem):
    cost = cost_matrix(problem)
    choice = plan_quota(
        problem,
        Budget(rows=30, source_share=0.4),
        -cost,
        problem.targets.weights,
        cost=cost,
        reach=2.0,
        dedup_cosine=1.0,
    )
    sources = Counter(problem.candidates.sources[i] for i in choice.rows)
    assert len(choice.rows) == len(set(choice.rows)) and sources["a"] == sources["b"] == 12


def test_a_share_of_rows_below_one_row_still_lets_every_source_give_one(problem):
    selection = select(problem, Budget(rows=4, source_share=0.01), 0, "random")
    assert set(sums_of(selection, problem)[2].values()) == {1}
    assert selection.diagnostics["num_short"] == 1


def test_the_ledger_refuses_repetitions_only_where_it_is_asked_to(problem):
    gradients = problem.candidates.gradients.copy()
    gradients[1] = gradients[0]
    keys = ("c000", "c001", "c000", *problem.candidates.text_keys[3:])
    candidates = replace(problem.candidates, gradients=gradients, text_keys=keys)
    copies = replace(
        problem.with_candidates(candidates), history=gradients[3:4], history_ids=("c004",)
    )
    admitted = {}
    for dedup_cosine in (None, 1.0, 0.99):
        ledger = Ledger(copies, Budget(NUM_ROWS), dedup_cosine)
        ledger.take(0)
        admitted[dedup_cosine] = [ledger.admits(i) for i in range(6)]
    assert admitted[None] == [False, True, True, True, True, True]
    assert admitted[1.0] == [False, True, False, True, False, True]
    assert admitted[0.99] == [False, False, False, False, False, True]


def test_expected_rows_follow_rows_or_mean_tokens_whichever_is_less():
    num_tokens = np.array([10, 20, 30])
    assert Budget(2).num_rows(num_tokens) == 2
    assert Budget(rows=9).num_rows(num_tokens) == 3
    assert Budget(tokens=45).num_rows(num_tokens) == 2
    assert Budget(rows=1, tokens=45).num_rows(num_tokens) == 1
    assert Budget(tokens=10**6).num_rows(num_tokens) == 3
    assert Budget(tokens=3).num_rows(num_tokens) == 1


def test_a_token_budget_is_held_against_usable_rows_only(problem):
    num_tokens, norms = np.full(NUM_ROWS, 50), np.ones(NUM_ROWS)
    num_tokens[0], norms[0] = 1, np.nan
    candidates = replace(problem.candidates, num_tokens=num_tokens, norms=norms)
    with pytest.raises(DataError, match="119 usable candidates has 50"):
        select(problem.with_candidates(candidates), Budget(tokens=20), 0, "attribution")


def test_a_token_budget_restores_the_alignment_it_made(problem):
    budget = Budget(tokens=700)
    found = align(problem, budget, SETTINGS).evolution
    kept = (found.weights, (found.transport.f, found.transport.g))
    assert found.ess_floor == 0.5 * budget.num_rows(problem.candidates.num_tokens)
    assert restore_alignment(problem, budget, SETTINGS, *kept).evolution.ess_floor == (
        found.ess_floor
    )


def test_budgets_that_mean_nothing_raise(problem):
    narrow = Budget(tokens=20, source_share=0.2)
    cases = [
        (lambda: Budget(), ConfigError, "got neither"),
        (lambda: Budget(tokens=0), ConfigError, "at least 1 token"),
        (lambda: Budget(rows=0, tokens=9), ConfigError, "at least 1 row"),
        (lambda: Budget(rows=5, source_share=0.0), ConfigError, "source_share"),
        (lambda: Budget(rows=5, source_share=1.1), ConfigError, "source_share"),
        (
            lambda: select(problem, Budget(tokens=4), 0, "random"),
            DataError,
            "has 5; raise selection.max",
        ),
        (lambda: select(problem, narrow, 0, "random"), DataError, "may give 4 tokens.*share"),
    ]
    for build, error, words in cases:
        with pytest.raises(error, match=words):
            build()
