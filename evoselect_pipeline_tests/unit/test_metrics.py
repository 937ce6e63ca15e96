"""Metrics against brute force and known values."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.core import metrics
from evoselect_pipeline.core.metrics import (
    bootstrap_interval,
    near_duplicate_share,
    ot_distance,
    paired_bootstrap,
    target_coverage,
    vendi_score,
)
from evoselect_pipeline.errors import DataError


def unit_rows(num_rows, width, seed=0):
    rows = np.random.default_rng(seed).normal(size=(num_rows, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_interval_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [
        low <= 0.4 <= high
        for _, low, high in (
            bootstrap_interval((rng.random(200) < 0.4).astype(float), seed, num_resamples=500)
            for seed in range(200)
        )
    ]
    assert 0.90 <= np.mean(held) <= 0.99


def test_interval_is_seeded_and_narrows_with_more_rows():
    values = np.arange(10) % 2
    assert bootstrap_interval(values, 1) == bootstrap_interval(values, 1)
    wide, narrow = bootstrap_interval(values, 1), bootstrap_interval(np.tile(values, 50), 1)
    assert wide.mean == narrow.mean == 0.5
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap_interval(np.full(5, 0.25), 0) == (0.25, 0.25, 0.25)


def test_resampling_in_blocks_stays_within_memory(monkeypatch):
    monkeypatch.setattr(metrics, "MAX_DRAWS", 150)
    blocked = bootstrap_interval(np.arange(100.0), 3, num_resamples=1001)
    monkeypatch.undo()
    whole = bootstrap_interval(np.arange(100.0), 3, num_resamples=1001)
    assert blocked == whole


def test_pairing_takes_out_how_hard_the_questions_are():
    hardness = np.random.default_rng(0).normal(size=100) * 10
    difference = paired_bootstrap(hardness, hardness + 1.0, seed=0)
    assert difference == pytest.approx((1.0, 1.0, 1.0))
    assert paired_bootstrap(hardness, hardness, seed=0) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("values", [[], [np.nan, 1.0], [[1.0], [2.0]]])
def test_unusable_values_raise(values):
    with pytest.raises(DataError, match="bootstrap"):
        bootstrap_interval(np.array(values), 0)


def test_unpaired_rows_raise():
    with pytest.raises(DataError, match="same rows"):
        paired_bootstrap(np.ones(3), np.ones(4), 0)


@pytest.mark.parametrize(("num_rows", "width"), [(12, 5), (5, 12)])
def test_vendi_score_equals_the_entropy_of_the_kernel(num_rows, width):
    rows = unit_rows(num_rows, width).astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T / num_rows)
    eigenvalues = eigenvalues[eigenvalues > 1e-9]
    expected = np.exp(-(eigenvalues * np.log(eigenvalues)).sum())
    assert vendi_score(rows) == pytest.approx(expected, rel=1e-6)


def test_vendi_score_counts_distinct_rows():
    assert vendi_score(np.repeat(np.eye(4, 9), 5, axis=0)) == pytest.approx(4)
    assert vendi_score(np.repeat(np.eye(1, 9), 5, axis=0)) == pytest.approx(1)


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_ot_distance_equals_the_best_assignment(seed):
    rows, targets = unit_rows(5, 4, seed), unit_rows(5, 4, seed + 1)
    cost = 1 - rows.astype(float) @ targets.T.astype(float)
    best = min(
        np.mean([cost[i, j] for i, j in enumerate(order)])
        for order in itertools.permutations(range(5))
    )
    assert ot_distance(rows, targets) == pytest.approx(best, abs=1e-6)


def test_ot_distance_uses_the_target_weights():
    targets = np.eye(2, dtype=np.float32)
    assert ot_distance(targets[:1], targets, np.array([1.0, 0.0])) == pytest.approx(0.0)
    assert ot_distance(targets[:1], targets, np.array([0.25, 0.75])) == pytest.approx(0.75)


@given(st.integers(0, 2**31), st.integers(1, 30), st.floats(0.0, 0.9))
@settings(max_examples=30, deadline=None)
def test_near_duplicate_share_equals_brute_force(seed, num_rows, threshold):
    rows = unit_rows(num_rows, 3, seed)
    expected = np.mean(
        [
            any(rows[i] @ rows[j] > threshold for j in range(num_rows) if j != i)
            for i in range(num_rows)
        ]
    )
    assert near_duplicate_share(rows, threshold) == pytest.approx(expected)


def test_coverage_counts_targets_with_a_row_in_reach():
    targets = np.eye(4, dtype=np.float32)
    assert target_coverage(targets[:3], targets, reach=0.1) == 0.75
    assert target_coverage(targets[:0], targets, reach=0.1) == 0.0
    assert near_duplicate_share(targets[:0], 0.9) == 0.0


@pytest.mark.parametrize("rows", [np.zeros((0, 3)), np.full((2, 3), np.nan), np.ones((2, 3))])
def test_rows_that_are_not_unit_vectors_raise(rows):
    with pytest.raises(DataError):
        vendi_score(rows)
