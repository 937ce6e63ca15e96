"""Rows placed exactly among the targets: coordinates in the span of the targets' own vectors.

A sketch of 2,048 numbers follows the cosines of rows and targets roughly; a row's projections on
the targets' span, M numbers from the same pass, follow them as exactly as the wide sketch does.

Notation: n rows, M targets, W the width of the wide sketch, D that of the stored one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evoselect_pipeline.core.sketch import fold


@dataclass(frozen=True)
class TargetSpan:
    """An orthonormal basis of the span of the targets' wide sketches.

    Attributes
    ----------
    basis_MW : tensor [M, W]
    folded : ndarray [M, D], float32
        The basis, sketched as the rows are.
    """

    basis_MW: torch.Tensor
    folded: np.ndarray

    @classmethod
    def of(cls, targets_MW: torch.Tensor, dim: int) -> TargetSpan:
        """Span the wide sketches of some targets.

        Equal targets leave directions over, which are arbitrary but orthonormal all the same.
        """
        basis_WM = torch.linalg.qr(targets_MW.double().T)[0]
        basis_MW = basis_WM.T.to(targets_MW.dtype).contiguous()
        return cls(basis_MW, fold(basis_MW, dim).cpu().numpy())

    def coordinates(self, wide_BW: torch.Tensor) -> torch.Tensor:
        """Coordinates [B, M] of rows, their vectors taken at unit length."""
        lengths_B1 = wide_BW.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return wide_BW @ self.basis_MW.T / lengths_B1
