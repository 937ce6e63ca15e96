"""Transport streamed over mapped vectors, against the choice in memory and POT's exact solver."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ot.lp import emd2

from evoselect_pipeline.bench.scale import ScaleRequest, write_problem
from evoselect_pipeline.bench.scale_worker import MappedRows
from evoselect_pipeline.core.capped import integer_quotas
from evoselect_pipeline.core.evolve_weights import cost_matrix
from evoselect_pipeline.core.rounding import capped_quota
from evoselect_pipeline.core.selection import Candidates, SelectionProblem, Targets
from evoselect_pipeline.core.settings import Budget
from evoselect_pipeline.core.streaming import (
    capped_quota_streamed,
    choose_streamed,
    cost_blocks,
    reserve_quotas,
    stream_reserve,
)
from evoselect_pipeline.errors import ConfigError, DataError

NUM_TARGETS, DIM = 7, 16


def unit_rows(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def some_targets(rng: np.random.Generator) -> Targets:
    names = tuple(f"t{j}" for j in range(NUM_TARGETS))
    weights = rng.dirichlet(np.full(NUM_TARGETS, 2.0))
    vectors = unit_rows(rng, NUM_TARGETS, DIM)
    return Targets(names, vectors, np.zeros(NUM_TARGETS), ("",) * NUM_TARGETS, weights)


def problem_over(vectors: np.ndarray, targets: Targets, rows: np.ndarray) -> SelectionProblem:
    ids, ones = tuple(f"{row:06d}" for row in rows), np.ones(len(rows))
    sources = tuple(f"source {row % 3}" for row in rows)
    candidates = Candidates(ids, vectors[rows], ones, ones, ones, sources, ids)
    return SelectionProblem(candidates, targets)


def with_copies(rng: np.random.Generator, num_rows: int, share: float) -> np.ndarray:
    """Unit rows, a share of which nearly repeat the first tenth."""
    vectors = unit_rows(rng, num_rows, DIM)
    copies = np.flatnonzero(rng.random(num_rows) < share)
    origins = rng.integers(max(1, num_rows // 10), size=len(copies))
    vectors[copies] = vectors[origins] + 0.02 * unit_rows(rng, len(copies), DIM)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("chunk_rows", [1, 37, 500, 5000])
def test_streamed_choice_costs_what_pots_exact_solver_finds(chunk_rows):
    rng = np.random.default_rng(0)
    vectors, targets = unit_rows(rng, 1500, DIM), some_targets(rng)
    quotas = integer_quotas(targets.weights, 90)
    plan = choose_streamed(vectors, targets, 90, chunk_rows=chunk_rows)
    assert len(np.unique(plan.rows)) == 90
    np.testing.assert_array_equal(np.bincount(plan.targets, minlength=NUM_TARGETS), quotas)
    cost = np.zeros((1500, NUM_TARGETS + 1))  # the spare target takes unused rows
    cost[:, :-1] = 1.0 - vectors @ targets.gradients.T
    best = emd2(np.ones(1500), np.append(quotas, 1410).astype(float), cost)
    assert plan.total_cost == pytest.approx(best, rel=1e-6)


def test_a_mapped_half_precision_file_gives_the_choice_of_the_same_numbers_in_memory(tmp_path):
    rng = np.random.default_rng(1)
    vectors, targets = unit_rows(rng, 3000, DIM).astype(np.float16), some_targets(rng)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = choose_streamed(MappedRows(str(tmp_path / "vectors.npy")), targets, 60)
    held = choose_streamed(vectors.astype(np.float32), targets, 60, chunk_rows=3000)
    np.testing.assert_array_equal(mapped.rows, held.rows)
    np.testing.assert_array_equal(mapped.targets, held.targets)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(60, 900),
    share=st.sampled_from([0.0, 0.3, 0.9]),
    reach=st.sampled_from([0.7, 1.0, np.inf]),
    source_share=st.sampled_from([None, 0.5]),
    weighted=st.booleans(),
    chunk_rows=st.integers(10, 1000),
)
def test_streamed_stages_make_the_choice_of_the_stages_in_memory(
    seed, num_rows, share, reach, source_share, weighted, chunk_rows
):
    rng = np.random.default_rng(seed)
    vectors, targets = with_copies(rng, num_rows, share), some_targets(rng)
    row_cost = rng.exponential(0.2, num_rows) if weighted else np.zeros(num_rows)
    if weighted:
        row_cost[rng.random(num_rows) < 0.2] = np.inf
    budget = Budget(rows=40, source_share=source_share)
    limits = {"reach": reach, "dedup_cosine": 0.98}
    whole = problem_over(vectors, targets, np.arange(num_rows))
    cost = cost_matrix(whole)
    score = -cost - row_cost[:, None]
    expected = capped_quota(whole, budget, score, targets.weights, cost=cost, **limits)
    found = capped_quota_streamed(
        vectors,
        lambda rows: problem_over(vectors, targets, rows),
        targets,
        budget,
        row_cost=row_cost,
        chunk_rows=chunk_rows,
        **limits,
    )
    if len(expected.rows) < 40:  # then the stages' quotas depend on how many rows are looked at
        assert 0 < len(found.rows) < 40
        return
    assert set(zip(found.rows, found.choice.targets, strict=True)) == set(
        zip(expected.rows, expected.targets, strict=True)
    )


def test_a_reserve_full_of_copies_is_doubled_until_it_proves_the_choice():
    rng = np.random.default_rng(2)
    vectors, targets = unit_rows(rng, 4000, DIM), some_targets(rng)
    nearest = np.argsort(-(vectors @ targets.gradients.T).max(axis=1))[:5]
    vectors[500:3000] = vectors[nearest[rng.integers(5, size=2500)]]
    whole = problem_over(vectors, targets, np.arange(4000))
    cost = cost_matrix(whole)
    limits = {"reach": 2.0, "dedup_cosine": 0.99}
    expected = capped_quota(whole, Budget(rows=50), -cost, targets.weights, cost=cost, **limits)
    found = capped_quota_streamed(
        vectors,
        lambda rows: problem_over(vectors, targets, rows),
        targets,
        Budget(rows=50),
        **limits,
    )
    assert found.num_passes > 1
    paid = found.cost[found.choice.rows, found.choice.targets].sum()
    assert len(found.rows) == len(expected.rows) == 50
    assert paid == pytest.approx(cost[expected.rows, expected.targets].sum(), rel=1e-6)


def test_no_row_outside_the_reserve_undercuts_its_duals():
    rng = np.random.default_rng(3)
    vectors, targets = unit_rows(rng, 2000, DIM), some_targets(rng)
    reserve = stream_reserve(vectors, targets, reserve_quotas(targets, 50, 3.0), chunk_rows=128)
    cost = 1.0 - vectors @ targets.gradients.T
    outside = np.setdiff1d(np.arange(2000), reserve.rows)
    assert len(reserve.rows) == np.ceil(150 * targets.weights).sum()
    assert (cost[outside] >= reserve.duals - 1e-6).all()
    np.testing.assert_array_equal(reserve.nearest_target, cost.argmin(axis=1))
    np.testing.assert_allclose(reserve.nearest_cosine, 1.0 - cost.min(axis=1), atol=1e-6)


def test_memory_does_not_grow_with_the_rows_beyond_bytes_each(tmp_path):
    peaks = []
    for num_rows in (20_000, 80_000):
        request = ScaleRequest((num_rows,), NUM_TARGETS, 64, 50)
        folder = tmp_path / str(num_rows)
        folder.mkdir()
        path, target_path = write_problem(request, num_rows, folder)
        names = tuple(f"t{j}" for j in range(NUM_TARGETS))
        targets = Targets(names, np.load(target_path), np.zeros(NUM_TARGETS), ("",) * NUM_TARGETS)
        vectors = MappedRows(path)
        choose_streamed(vectors, targets, 50)  # imports come first
        tracemalloc.start()
        stream_reserve(vectors, targets, reserve_quotas(targets, 50, 2.0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 16 * 60_000


def test_a_budget_of_tokens_and_rows_of_another_width_are_refused():
    rng = np.random.default_rng(4)
    vectors, targets = unit_rows(rng, 100, DIM), some_targets(rng)
    with pytest.raises(ConfigError, match="budget of rows alone"):
        capped_quota_streamed(
            vectors,
            lambda rows: problem_over(vectors, targets, rows),
            targets,
            Budget(rows=5, tokens=100),
        )
    with pytest.raises(DataError, match="same sketch"):
        list(cost_blocks(vectors[:, :8], targets.gradients))
    with pytest.raises(DataError, match="chunk_rows"):
        list(cost_blocks(vectors, targets.gradients, 0))
