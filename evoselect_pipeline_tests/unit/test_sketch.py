"""Law: a sketch preserves inner products on average, loads buckets evenly, and is reproducible."""

import numpy as np
import pytest
import torch

from evoselect_pipeline.core.sketch import PermutedFold
from evoselect_pipeline.errors import ConfigError


@pytest.mark.parametrize("size", [7, 64, 65, 1000])
def test_every_bucket_gets_an_equal_load(size):
    fold = PermutedFold(64, seed=1)
    # One place at a time: each lands in exactly one bucket, with a sign.
    spread = fold("block", torch.eye(size))
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
        fold = PermutedFold(32, seed)
        found.append(float((fold("block", x) * fold("block", y)).sum()))
    standard_error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 4 * standard_error
    assert standard_error < 0.05 * exact


def test_same_seed_and_name_give_the_same_sketch_and_others_do_not():
    x = torch.randn(3, 200)
    first = PermutedFold(16, seed=5)("layer.up", x)
    assert torch.equal(first, PermutedFold(16, seed=5)("layer.up", x))
    assert not torch.equal(first, PermutedFold(16, seed=6)("layer.up", x))
    assert not torch.equal(first, PermutedFold(16, seed=5)("layer.down", x))


def test_a_sketch_needs_a_dimension():
    with pytest.raises(ConfigError, match="at least one dimension"):
        PermutedFold(0, seed=0)
