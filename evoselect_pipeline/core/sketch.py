"""Sparse Johnson-Lindenstrauss sketches of long vectors, a piece at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from evoselect_pipeline.errors import ConfigError

WIDE = 65_536


class PermutedFold:
    r"""Random signs, a random permutation, and a fold into buckets.

    A named block of P numbers, with signs s in {-1, +1}^P and a permutation p, lies along the
    buckets from a random one on, and begins again after the last:

    .. math::
        y_b = \sum_{i : (o + p(i)) \bmod W = b} s_i x_i, \qquad
        E \langle y, y' \rangle = \langle x, x' \rangle

    The sketch of a vector made of blocks is the sum of its blocks' sketches, so nothing longer
    than a block is ever held. Signs and places are drawn from (seed, block name): no matrix is
    stored, and another process or device gets the same ones. A wide sketch is folded further by
    `fold`, which is the same sketch at a smaller width.

    Parameters
    ----------
    seed : int
        Seed of the run.
    width : int
        Number of buckets W.

    References
    ----------
    Kane and Nelson, "Sparser Johnson-Lindenstrauss Transforms", JACM 2014 (sparsity 1; the equal
    load is this project's choice).
    """

    def __init__(self, seed: int, width: int = WIDE):
        if width < 1:
            raise ConfigError(f"the sketch needs at least one dimension, got {width}")
        self.seed = seed
        self.width = width
        self._blocks: dict[tuple[str, int, torch.device], _Block] = {}

    def add(self, name: str, block_BP: torch.Tensor, into_BW: torch.Tensor) -> None:
        """Add the sketch of one named block to a sketch [B, W]."""
        block = self._block(name, block_BP.shape[1], block_BP.device)
        # Indexing by a tensor does the same at five times the cost on a CPU.
        spread_BP = block_BP.index_select(1, block.source) * block.signs.to(block_BP.dtype)
        for inside, outside in _turns(block.first, block_BP.shape[1], self.width):
            into_BW[:, outside] += spread_BP[:, inside]

    def __call__(self, name: str, block_BP: torch.Tensor) -> torch.Tensor:
        """Sketch one named block, [B, P] to [B, W]."""
        sketch_BW = block_BP.new_zeros(len(block_BP), self.width)
        self.add(name, block_BP, sketch_BW)
        return sketch_BW

    def _block(self, name: str, size: int, device: torch.device) -> _Block:
        key = (name, size, device)
        if key not in self._blocks:
            self._blocks[key] = _Block(self.seed, name, size, self.width, device)
        return self._blocks[key]


class _Block:
    """Where a block of P numbers begins, in which order it is laid out, and with which signs."""

    def __init__(self, seed: int, name: str, size: int, width: int, device: torch.device):
        drawn = hashlib.sha256(f"{seed}/{name}/{size}".encode()).digest()
        draw = np.random.Generator(np.random.Philox(int.from_bytes(drawn[:16], "big")))
        self.first = int(draw.integers(width))
        self.source = torch.from_numpy(draw.permutation(size).astype(np.int32)).to(device)
        signs = draw.integers(0, 2, size, dtype=np.int8) * 2 - 1
        self.signs = torch.from_numpy(signs.astype(np.float32)).to(device)


def fold(sketch_BW: torch.Tensor, width: int) -> torch.Tensor:
    """Sketch [B, W] at a smaller width, [B, D]: bucket b goes to bucket b mod D."""
    if width > sketch_BW.shape[1]:
        raise ConfigError(f"cannot fold a sketch of width {sketch_BW.shape[1]} to {width}")
    spare = -sketch_BW.shape[1] % width
    return torch.nn.functional.pad(sketch_BW, (0, spare)).unflatten(1, (-1, width)).sum(1)


def _turns(first: int, size: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Pieces of a block of P numbers, and the buckets they fall into."""
    done = 0
    while done < size:
        start = (first + done) % width
        length = min(size - done, width - start)
        yield slice(done, done + length), slice(start, start + length)
        done += length
