"""Each row's mean answer loss under a model: one forward pass, nothing kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from evoselect_pipeline.core.encoding import Encoded, token_batches
from evoselect_pipeline.core.forward import CausalPass

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def answer_losses(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    pad_id: int,
    *,
    batch_tokens: int,
    on_rows: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Mean cross-entropy per answer token, in nats, float64 [n] in the order of `rows`."""
    causal = CausalPass(model, pad_id)
    loss_of: dict[str, float] = {}
    done = 0
    for batch in token_batches(rows, batch_tokens):
        ids_BS = causal.pad(batch)
        losses_B = causal.losses(causal.hidden(ids_BS), causal.tokens(batch, ids_BS))
        loss_of |= zip((row.sample_id for row in batch), losses_B.tolist(), strict=True)
        done += len(batch)
        if on_rows:
            on_rows(done, len(rows))
    return np.array([loss_of[row.sample_id] for row in rows], dtype=np.float64)
