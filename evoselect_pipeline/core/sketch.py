"""Sparse Johnson-Lindenstrauss sketches of long vectors, a piece at a time."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from evoselect_pipeline.errors import ConfigError


class PermutedFold:
    r"""Random signs, a random permutation, and a fold into `dim` buckets of equal load.

    For a block of P numbers, with signs s in {-1, +1}^P and a bucket h(p) for each place, where
    every bucket receives floor(P / dim) or ceil(P / dim) places:

    .. math::
        y_b = \sum_{p : h(p) = b} s_p x_p, \qquad
        E \langle y, y' \rangle = \langle x, x' \rangle

    The sketch of a vector made of blocks is the sum of its blocks' sketches, so nothing longer
    than a block is ever held. Signs and places are drawn from (seed, block name): no matrix is
    stored, and another process or device gets the same ones.

    Parameters
    ----------
    dim : int
        Width d of the sketch.
    seed : int
        Seed of the run.

    References
    ----------
    Kane and Nelson, "Sparser Johnson-Lindenstrauss Transforms", JACM 2014 (sparsity 1; the equal
    load is this project's choice).
    """

    def __init__(self, dim: int, seed: int):
        if dim < 1:
            raise ConfigError(f"the sketch needs at least one dimension, got {dim}")
        self.dim = dim
        self.seed = seed
        self._blocks: dict[tuple[str, int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, name: str, block_BP: torch.Tensor) -> torch.Tensor:
        """Sketch one named block, [B, P] to [B, dim]."""
        source, signs = self._block(name, block_BP.shape[1], block_BP.device)
        spread = block_BP[:, source] * signs.to(block_BP.dtype)
        return spread.view(len(block_BP), -1, self.dim).sum(dim=1)

    def _block(self, name: str, size: int, device: torch.device):
        key = (name, size, device)
        if key not in self._blocks:
            seed = hashlib.sha256(f"{self.seed}/{name}/{size}".encode()).digest()
            draw = np.random.Generator(np.random.Philox(int.from_bytes(seed[:16], "big")))
            num_slots = -(-size // self.dim) * self.dim
            # Slot s belongs to bucket s % dim. All full turns are used, and of the last turn as
            # many random buckets as there are places left; unused slots read place 0 with sign 0.
            num_left = size % self.dim
            slots = np.arange(size)
            if num_left:
                last_turn = num_slots - self.dim
                slots[-num_left:] = last_turn + draw.permutation(self.dim)[:num_left]
            source = np.zeros(num_slots, dtype=np.int64)
            signs = np.zeros(num_slots, dtype=np.float32)
            source[slots] = draw.permutation(size)
            signs[slots] = draw.integers(0, 2, size) * 2 - 1
            self._blocks[key] = (
                torch.from_numpy(source).to(device),
                torch.from_numpy(signs).to(device),
            )
        return self._blocks[key]
