"""Law: what the greedy selectors take is within their proven bound of the best there is."""

from itertools import combinations
from math import comb, e

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.core.greedy import cover_landmarks
from evoselect_pipeline.core.ledger import Ledger
from evoselect_pipeline.core.settings import Budget
from evoselect_pipeline_tests.unit.test_diversity_selectors import facility_value, random_problem


@pytest.mark.parametrize("num_chosen", [1, 3, 5])
@given(st.integers(0, 9_999))
@settings(max_examples=20, deadline=None)
def test_d13_greedy_coverage_is_at_least_the_bound_of_the_best_coverage(num_chosen, seed):
    problem = random_problem(seed, num_rows=8)
    g = problem.candidates.gradients.astype(np.float64)
    similarity = g @ g.T
    ledger = Ledger(problem, Budget(num_chosen))
    cover_landmarks(similarity, ledger)
    assert len(ledger.rows) == num_chosen
    values = [facility_value(similarity, list(rows)) for rows in combinations(range(8), num_chosen)]
    assert len(values) == comb(8, num_chosen)
    assert facility_value(similarity, ledger.rows) >= (1 - 1 / e) * max(values) - 1e-9
