"""Laws of plausibility: falls with the loss, finds bad answers, spares hard good ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoselect_pipeline.core.quality import plausibility
from evoselect_pipeline.errors import DataError

# Few distinct values, so that ties within and between the sides are common.
some_losses = st.lists(st.integers(0, 12).map(lambda n: n / 4), min_size=1, max_size=25).map(
    np.array
)


def falling_fit(x, y, weight):
    """Weighted isotonic regression by pooling adjacent violators: (knots, fitted values)."""
    knots = np.unique(x)
    blocks = []  # of [mean, weight, number of knots]
    for knot in knots:
        here = x == knot
        blocks.append([np.average(y[here], weights=weight[here]), weight[here].sum(), 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            mean, mass, count = blocks.pop()
            total = blocks[-1][1] + mass
            blocks[-1][0] = (blocks[-1][0] * blocks[-1][1] + mean * mass) / total
            blocks[-1][1:] = [total, blocks[-1][2] + count]
    return knots, np.repeat([b[0] for b in blocks], [b[2] for b in blocks])


def plausibility_by_definition(losses, targets, reference):
    edge = 0.5 / (1 + min(len(targets), len(reference)))
    x = np.append(targets, reference)
    y = np.append(np.ones(len(targets)), np.zeros(len(reference)))
    weight = np.append(
        np.full(len(targets), 1 / len(targets)), np.full(len(reference), 1 / len(reference))
    )
    knots, fitted = falling_fit(x, y, weight)
    share = np.interp(losses, knots, np.clip(fitted, edge, 1 - edge))
    middle = np.median(targets)
    good = sum(reference <= middle) / len(reference) / (sum(targets <= middle) / len(targets))
    return np.clip(min(1.0, good) * share / (1 - share), edge, 1.0)


@given(some_losses, some_losses, some_losses)
@settings(max_examples=200, deadline=None)
def test_plausibility_equals_an_independent_density_ratio(losses, targets, reference):
    np.testing.assert_allclose(
        plausibility(losses, targets, reference),
        plausibility_by_definition(losses, targets, reference),
        rtol=1e-9,
    )


@given(some_losses, some_losses, some_losses)
@settings(max_examples=100, deadline=None)
def test_plausibility_never_rises_with_the_loss_and_stays_in_its_range(losses, targets, reference):
    quality = plausibility(np.sort(losses), targets, reference)
    assert (np.diff(quality) <= 1e-12).all()
    assert ((quality > 0) & (quality <= 1)).all()


def mixture(rng, num_good, num_bad):
    return np.append(rng.gamma(4.0, 0.1, num_good), 3.0 + rng.gamma(4.0, 0.1, num_bad))


@pytest.mark.parametrize("bad_share", [0.1, 0.4, 0.8])
def test_bad_answers_are_told_from_good_ones_where_losses_separate(bad_share):
    rng = np.random.default_rng(0)
    num_bad = round(1000 * bad_share)
    losses = mixture(rng, 1000 - num_bad, num_bad)
    quality = plausibility(losses, mixture(rng, 400, 0), rng.permutation(losses))
    good, bad = quality[: 1000 - num_bad], quality[1000 - num_bad :]
    assert np.median(good) > 0.85 and good.mean() > 0.8
    assert bad.max() < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_where_no_answer_is_bad_few_rows_are_doubted(seed):
    rng = np.random.default_rng(seed)
    losses = mixture(rng, 2000, 0)
    quality = plausibility(losses, mixture(rng, 200, 0), losses[:800])
    assert np.mean(quality < 0.5) < 0.1
    assert quality[losses <= np.median(losses)].min() > 0.75


def test_hard_good_rows_keep_their_share():
    """Half of the good rows are hard; bad rows sit among them, one to one."""
    rng = np.random.default_rng(0)
    targets = np.append(rng.uniform(0, 1, 400), rng.uniform(2, 3, 400))
    reference = np.append(rng.uniform(0, 1, 1000), rng.uniform(2, 3, 2000))
    quality = plausibility(np.array([0.5, 2.5]), targets, reference)
    np.testing.assert_allclose(quality, [1.0, 0.5], atol=0.1)


@pytest.mark.parametrize("target", [0.1, 1.0, 9.0])
def test_a_single_target_decides_nothing_for_certain(target):
    quality = plausibility(np.array([0.0, 1.0, 5.0]), np.array([target]), np.array([0.5, 1.0, 2.0]))
    assert ((quality >= 0.25) & (quality <= 1)).all()


def test_plausibility_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    losses, targets = mixture(rng, 50, 30), mixture(rng, 20, 0)
    order = rng.permutation(80)
    np.testing.assert_array_equal(
        plausibility(losses, targets, losses)[order],
        plausibility(losses[order], targets[::-1], losses[order]),
    )


@pytest.mark.parametrize("broken", [[], [np.nan, 1.0], [np.inf], [[1.0]]])
@pytest.mark.parametrize("place", range(3))
def test_broken_losses_raise_which_side_they_are_on(broken, place):
    sides = [np.ones(3), np.ones(3), np.ones(3)]
    sides[place] = np.array(broken)
    with pytest.raises(DataError, match=("candidate", "target", "reference")[place]):
        plausibility(*sides)
