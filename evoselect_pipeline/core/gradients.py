"""Gradient features of rows: long vectors, measured batch by batch and sketched as they appear.

Notation: B rows of a batch, P numbers of one named piece of the rows' long vectors, W the width of
the wide sketch, D that of the stored one, M targets, n rows in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evoselect_pipeline.core.encoding import Encoded, token_batches
from evoselect_pipeline.core.forward import CausalPass
from evoselect_pipeline.core.sketch import WIDE, PermutedFold, fold
from evoselect_pipeline.core.target_span import TargetSpan

Add = Callable[[str, torch.Tensor], None]  # takes a named piece [B, P] of the rows' long vectors
# Puts rows through the model, hands over the pieces of their vectors, returns their losses [B].
Measure = Callable[[CausalPass, Sequence[Encoded], Add], torch.Tensor]


@dataclass(frozen=True)
class GradientBatch:
    """Gradient features of some rows.

    Attributes
    ----------
    sample_ids : tuple of str
        The rows, n of them.
    vectors : ndarray [n, D], float32
        Sketched gradients of unit length; a row of zeros where the gradient vanishes.
    norms : ndarray [n], float32
        Length of the exact gradient, before sketching.
    losses : ndarray [n], float32
        Mean cross-entropy per answer token, in nats.
    num_tokens : ndarray [n], int32
        Tokens that carry loss.
    coordinates : ndarray [n, M], float32
        The unit gradients in the span of the targets', see `target_span`; no columns without.
    """

    sample_ids: tuple[str, ...]
    vectors: np.ndarray
    norms: np.ndarray
    losses: np.ndarray
    num_tokens: np.ndarray
    coordinates: np.ndarray

    def take(self, places: Sequence[int] | np.ndarray) -> GradientBatch:
        """The rows at the given places."""
        return GradientBatch(
            sample_ids=tuple(self.sample_ids[place] for place in places),
            vectors=self.vectors[places],
            norms=self.norms[places],
            losses=self.losses[places],
            num_tokens=self.num_tokens[places],
            coordinates=self.coordinates[places],
        )


def concatenate(batches: Sequence[GradientBatch]) -> GradientBatch:
    """Put batches one behind the other."""
    return GradientBatch(
        sample_ids=tuple(sample_id for batch in batches for sample_id in batch.sample_ids),
        vectors=np.concatenate([batch.vectors for batch in batches]),
        norms=np.concatenate([batch.norms for batch in batches]),
        losses=np.concatenate([batch.losses for batch in batches]),
        num_tokens=np.concatenate([batch.num_tokens for batch in batches]),
        coordinates=np.concatenate([batch.coordinates for batch in batches]),
    )


class GradientExtractor:
    """Measure rows, sketch their vectors on the fly, and place them among the targets' own.

    Parameters
    ----------
    causal : CausalPass
        The frozen proxy. Its adapter, if any, is merged into its weights.
    measure : callable
        What represents a row, see `representations`.
    dim : int
        Width D of the stored sketch.
    seed : int
        Seed of the sketch.

    Notes
    -----
    The paper says "proxy gradients" compressed by a sparse Johnson-Lindenstrauss transform, not
    which parameters; the representations are this project's reconstruction.
    """

    def __init__(self, causal: CausalPass, measure: Measure, dim: int, seed: int):
        self.causal = causal
        self.measure = measure
        self.dim = dim
        self.sketch = PermutedFold(seed, max(WIDE, dim))

    def __call__(self, rows: Sequence[Encoded], span: TargetSpan | None = None) -> GradientBatch:
        """Extract the features of one batch; with a span, the rows' coordinates in it, too."""
        wide_BW, norms_B, losses_B = self.wide(rows)
        coordinates_BM = span.coordinates(wide_BW) if span else wide_BW.new_zeros(len(rows), 0)
        narrow_BD = torch.nn.functional.normalize(fold(wide_BW, self.dim), dim=1, eps=1e-30)
        return GradientBatch(
            sample_ids=tuple(row.sample_id for row in rows),
            vectors=narrow_BD.cpu().numpy(),
            norms=norms_B.cpu().numpy(),
            losses=losses_B.cpu().numpy(),
            num_tokens=np.array([row.num_trained for row in rows], dtype=np.int32),
            coordinates=coordinates_BM.cpu().numpy(),
        )

    def wide(self, rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Wide sketches [B, W], exact lengths [B] and losses [B] of one batch."""
        wide_BW = torch.zeros(len(rows), self.sketch.width, device=self.causal.device)
        squares_B = torch.zeros(len(rows), device=self.causal.device)

        def add(name: str, block_BP: torch.Tensor) -> None:
            block_BP = block_BP.float()
            self.sketch.add(name, block_BP, wide_BW)
            squares_B.add_(block_BP.square().sum(1))

        losses_B = self.measure(self.causal, rows, add)
        return wide_BW, squares_B.sqrt(), losses_B


def find_target_span(
    extractor: GradientExtractor, targets: Sequence[Encoded], *, batch_tokens: int = 8192
) -> TargetSpan:
    """Measure the targets, and span their vectors."""
    wide_of: dict[str, torch.Tensor] = {}
    for batch in token_batches(targets, batch_tokens):
        wide_BW = extractor.wide(batch)[0]
        wide_of |= zip((row.sample_id for row in batch), wide_BW, strict=True)
    in_order = [wide_of[sample_id] for sample_id in sorted(wide_of)]
    return TargetSpan.of(torch.stack(in_order), extractor.dim)


def extract_gradients(
    extractor: GradientExtractor,
    rows: Sequence[Encoded],
    *,
    span: TargetSpan | None = None,
    batch_tokens: int = 8192,
    present: frozenset[str] = frozenset(),
) -> Iterator[GradientBatch]:
    """Stream gradient features of many rows, in batches of like length.

    Batches are cut from all the rows given, present ones included, and only batches that miss a
    row are computed. So an interrupted extraction, when resumed with the rows it began with,
    computes every row in the same company as an uninterrupted one and gets the same bits.
    """
    for batch in token_batches(rows, batch_tokens):
        if not all(row.sample_id in present for row in batch):
            yield extractor(batch, span)
