"""Law: a sketch preserves inner products on average, loads buckets evenly, and is reproducible."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evoselect_pipeline.core.sketch import PermutedFold, fold
from evoselect_pipeline.errors import ConfigError


@pytest.mark.parametrize("size", [7, 64, 65, 1000])
def test_every_bucket_gets_an_equal_load(size):
    sketch = PermutedFold(seed=1, width=64)
    # One place at a time: each lands in exactly one bucket, with a sign.
    spread = sketch("block", torch.eye(size))
    assert torch.equal(spread.abs().sum(1), torch.ones(size))
    load = spread.abs().sum(0)
    assert load.max() - load.min() <= 1


def test_inner_products_are_unbiased_over_seeds():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 500, generator=draw)
    y = x + torch.randn(1, 500, generator=draw)
    exact = float((x * y).sum())
    found = []
    for seed in range(400):
        wide = PermutedFold(seed, width=100)
        sketches = [fold(wide("block", part), 32) for part in (x, y)]
        found.append(float((sketches[0] * sketches[1]).sum()))
    standard_error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 4 * standard_error
    assert standard_error < 0.05 * exact


def test_same_seed_and_name_give_the_same_sketch_and_others_do_not():
    x = torch.randn(3, 200)
    first = PermutedFold(seed=5, width=16)("layer.up", x)
    assert torch.equal(first, PermutedFold(seed=5, width=16)("layer.up", x))
    assert not torch.equal(first, PermutedFold(seed=6, width=16)("layer.up", x))
    assert not torch.equal(first, PermutedFold(seed=5, width=16)("layer.down", x))


def test_a_sketch_needs_a_dimension():
    with pytest.raises(ConfigError, match="at least one dimension"):
        PermutedFold(seed=0, width=0)


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_fold_adds_up_every_so_many_buckets(width, narrow):
    rows = torch.arange(3.0 * width).reshape(3, width)
    if narrow > width:
        with pytest.raises(ConfigError, match="cannot fold"):
            fold(rows, narrow)
        return
    folded = fold(rows, narrow)
    expected = torch.zeros(3, narrow)
    for bucket in range(width):
        expected[:, bucket % narrow] += rows[:, bucket]
    assert torch.equal(folded, expected)


def test_blocks_add_up_in_any_order():
    sketch, pieces = (
        PermutedFold(seed=2, width=50),
        {"a": torch.randn(2, 70), "b": torch.ones(2, 9)},
    )
    sums = [torch.zeros(2, 50) for _ in range(2)]
    for total, names in zip(sums, ("ab", "ba"), strict=True):
        for name in names:
            sketch.add(name, pieces[name], total)
    torch.testing.assert_close(sums[0], sums[1])
    torch.testing.assert_close(sums[0], sketch("a", pieces["a"]) + sketch("b", pieces["b"]))
