"""Each row's mean answer loss under a model: one forward pass, nothing kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from evoselect_pipeline.core.encoding import Encoded, token_batches


@torch.inference_mode()
def answer_losses(
    model: nn.Module,
    rows: Sequence[Encoded],
    pad_id: int,
    *,
    batch_tokens: int,
    on_rows: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Mean cross-entropy per answer token, in nats, float64 [n] in the order of `rows`.

    Rows are padded on the right: under a causal mask no token of a row sees the padding.
    """
    model.eval()
    device = next(model.parameters()).device
    loss_of: dict[str, float] = {}
    done = 0
    for batch in token_batches(rows, batch_tokens):
        length = max(len(row.input_ids) for row in batch)
        ids, labels = (
            torch.tensor([list(v) + [fill] * (length - len(v)) for v in values], device=device)
            for values, fill in (
                ([row.input_ids for row in batch], pad_id),
                ([row.labels for row in batch], -100),
            )
        )
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        token_losses = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels[:, 1:], reduction="none"
        )
        means = token_losses.sum(1).double() / (labels[:, 1:] != -100).sum(1)
        loss_of |= zip((row.sample_id for row in batch), means.tolist(), strict=True)
        done += len(batch)
        if on_rows:
            on_rows(done, len(rows))
    return np.array([loss_of[row.sample_id] for row in rows], dtype=np.float64)
