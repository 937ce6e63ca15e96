"""LESS as a peer of `bench gradients`: a row at a time, and a dense projection.

References
----------
Xia, Malladi, Gururangan, Arora and Chen, "LESS: Selecting Influential Data for Targeted
Instruction Tuning", ICML 2024, https://arxiv.org/abs/2402.04333
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from evoselect_pipeline.bench.reference import forward_backward
from evoselect_pipeline.core.encoding import Encoded

if TYPE_CHECKING:
    from evoselect_pipeline.bench.gradients import Subject


class BatchOne:
    """The peer: autograd row by row through the unmerged adapter, then a dense projection.

    As LESS does it (Xia et al. 2024), without its CUDA kernel: a matrix of Rademacher signs, which
    is drawn beforehand and not counted as memory of the pass.
    """

    def __init__(self, subject: Subject, dim: int):
        self.subject = subject
        self.model = subject.for_peers()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        size = sum(parameter.numel() for parameter in self.parameters)
        draw = torch.Generator().manual_seed(subject.seed)
        signs_PD = torch.randint(0, 2, (size, dim), generator=draw, dtype=torch.float32)
        self.signs_PD = signs_PD.mul_(2).sub_(1).to(self.parameters[0].device)

    def __call__(self) -> None:
        """Represent every row."""
        for row in self.subject.rows:
            self.vectors([row])

    def vectors(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """The projected gradients [B, D] of the rows' answer losses."""
        return torch.stack([self.gradient(row) @ self.signs_PD for row in rows])

    def gradient(self, row: Encoded) -> torch.Tensor:
        """The exact gradient [P]."""
        forward_backward(self.model, [row], self.subject.encoder.pad_id)
        flat = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
        self.model.zero_grad(set_to_none=True)
        return flat
