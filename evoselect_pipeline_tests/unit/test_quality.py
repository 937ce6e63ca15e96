"""Laws of plausibility: falls with the surprise, finds bad answers, spares hard good ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc
from scipy.stats import norm

from evoselect_pipeline.core.quality import plausibility, relative_surprise
from evoselect_pipeline.errors import DataError

some_surprises = st.lists(st.floats(0, 1), min_size=1, max_size=40).map(np.array)


def rising_fit(values):
    """Isotonic regression of equally weighted values by pooling adjacent violators."""
    blocks = []  # of [mean, size]
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            total = blocks[-1][1] + size
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / total, total]
    return np.repeat([mean for mean, _ in blocks], [size for _, size in blocks])


def plausibility_by_definition(surprise, targets, reference):
    mean = min(max(np.mean(targets), 0.01), 0.99)
    spread = min(max(np.var(targets), 1e-3), 0.99 * mean * (1 - mean))
    size = mean * (1 - mean) / spread - 1
    placed = betainc(mean * size, (1 - mean) * size, reference)
    bins = int(min(max(np.sqrt(len(reference)), 2), 50))
    counts = [
        sum(min(int(place * bins), bins - 1) == number for place in placed)
        for number in range(bins)
    ]
    density = rising_fit([bins * (c + 0.5) / (len(reference) + 0.5 * bins) for c in counts])
    middles = (np.arange(bins) + 0.5) / bins
    density = np.interp(betainc(mean * size, (1 - mean) * size, surprise), middles, density)
    good_share = min(1.0, 2 * np.mean(placed <= 0.5))
    return np.clip(good_share / density, 1e-3, 1.0)


@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_plausibility_equals_an_independent_local_false_discovery_rate(seed, num_targets, num_rows):
    rng = np.random.default_rng(seed)
    reference = np.append(rng.uniform(size=num_rows), rng.beta(5, 1, size=num_rows // 2))
    targets = rng.uniform(size=num_targets)
    np.testing.assert_allclose(
        plausibility(reference, targets, reference),
        plausibility_by_definition(reference, targets, reference),
        rtol=1e-9,
    )


@given(some_surprises, some_surprises, some_surprises)
@settings(max_examples=100, deadline=None)
def test_plausibility_never_rises_with_the_surprise_and_stays_in_its_range(rows, targets, others):
    quality = plausibility(np.sort(rows), targets, others)
    assert (np.diff(quality) <= 1e-12).all()
    assert ((quality > 0) & (quality <= 1)).all()


@pytest.mark.parametrize("good_share", [0.9, 0.6, 0.3])
def test_plausibility_is_calibrated_where_answers_separate(good_share):
    """Good rows are uniform, bad ones surprise more than nearly all targets."""
    rng = np.random.default_rng(0)
    is_good = rng.uniform(size=2000) < good_share
    rows = np.where(is_good, rng.uniform(size=2000), rng.uniform(0.98, 1.0, size=2000))
    quality = plausibility(rows, rng.uniform(size=400), rows)
    assert quality.mean() == pytest.approx(good_share, abs=0.12)
    assert np.median(quality[is_good]) > 0.8
    assert quality[~is_good].max() < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_where_no_answer_is_bad_few_rows_are_doubted(seed):
    rng = np.random.default_rng(seed)
    rows = rng.uniform(size=2000)
    quality = plausibility(rows, rng.uniform(size=64), rows[:800])
    assert np.mean(quality < 0.5) < 0.1


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
def test_a_single_target_gives_an_answer(target):
    quality = plausibility(np.array([0.0, 0.5, 1.0]), np.array([target]), np.array([0.2, 0.5]))
    assert ((quality > 0) & (quality <= 1)).all()


def test_plausibility_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    rows, targets = rng.uniform(size=80), rng.uniform(size=20)
    order = rng.permutation(80)
    np.testing.assert_allclose(
        plausibility(rows, targets, rows)[order],
        plausibility(rows[order], targets[::-1], rows[order]),
        rtol=1e-12,
    )


@pytest.mark.parametrize("broken", [[], [np.nan, 1.0], [np.inf], [[1.0]]])
@pytest.mark.parametrize("place", range(3))
def test_broken_losses_raise_which_side_they_are_on(broken, place):
    sides = [np.ones(3), np.ones(3), np.ones(3)]
    sides[place] = np.array(broken)
    with pytest.raises(DataError, match=("candidate", "target", "reference")[place]):
        plausibility(*sides)


def test_a_hard_kind_is_judged_by_its_own_targets():
    """A surprise that is usual for one kind of target is suspect beside another."""
    target_surprise = np.array([0.1, 0.2, 0.3, 4.0, 5.0, 6.0])
    kind = np.array([0, 0, 0, 1, 1, 1])
    target_cosines = np.where(kind[:, None] == kind, 0.9, 0.0)
    cosines = np.array([[0.9] * 3 + [0.0] * 3, [0.0] * 3 + [0.9] * 3])
    rows, _ = relative_surprise(np.array([5.0, 5.0]), target_surprise, cosines, target_cosines)
    assert rows[0] > 0.8
    assert rows[1] < 0.65


def test_relative_surprise_equals_a_loop_over_rows_and_targets():
    rng = np.random.default_rng(5)
    surprise, target_surprise = rng.exponential(2.0, 7), rng.exponential(1.0, 4)
    cosines, target_cosines = rng.uniform(-1, 1, (7, 4)), rng.uniform(-1, 1, (4, 4))

    def share_below(own, cosine_of, others):
        nearest = max(cosine_of[j] for j in others)
        weights = [np.exp((cosine_of[j] - nearest) / 0.1) + 2.0 / 4 for j in others]
        logs = [np.log(target_surprise[j] + 0.05) - np.log(own + 0.05) for j in others]
        above = sum(w * norm.cdf(x / 0.3) for w, x in zip(weights, logs, strict=True))
        return 1.0 - above / sum(weights)

    rows, targets = relative_surprise(surprise, target_surprise, cosines, target_cosines)
    for i in range(7):
        assert rows[i] == pytest.approx(share_below(surprise[i], cosines[i], range(4)))
    for j in range(4):
        others = [other for other in range(4) if other != j]
        expected = share_below(target_surprise[j], target_cosines[j], others)
        assert targets[j] == pytest.approx(expected)


@given(seed=st.integers(0, 1000))
def test_relative_surprise_rises_with_the_surprise(seed):
    rng = np.random.default_rng(seed)
    cosines = np.repeat(rng.uniform(-1, 1, (1, 5)), 9, axis=0)
    surprise = np.sort(rng.exponential(1.0, 9))
    rows, _ = relative_surprise(surprise, rng.exponential(1.0, 5), cosines, np.eye(5))
    assert (np.diff(rows) >= -1e-12).all()
    assert ((rows >= 0) & (rows <= 1)).all()


def test_a_single_target_is_compared_with_itself():
    rows, targets = relative_surprise(
        np.array([0.1, 9.0]), np.array([1.0]), np.array([[0.5], [0.5]]), np.ones((1, 1))
    )
    assert rows[0] < 0.01 < 0.99 < rows[1]
    assert targets[0] == pytest.approx(0.5)
