"""Per-sample LoRA gradients, exact and batched, from one forward and one backward pass.

Notation: B rows of a batch, S tokens, i and o the width of a linear layer's input and output, r
the LoRA rank, D the width of the sketch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from evoselect_pipeline.core.encoding import Encoded, token_batches
from evoselect_pipeline.core.sketch import PermutedFold
from evoselect_pipeline.errors import ConfigError


@dataclass(frozen=True)
class LoraFactors:
    """The LoRA factors of one linear layer: `down` A [r, i], `up` B [o, r], and the scale."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float


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
        Length of the exact LoRA gradient, before sketching.
    losses : ndarray [n], float32
        Mean cross-entropy per answer token, in nats.
    num_tokens : ndarray [n], int32
        Tokens that carry loss.
    """

    sample_ids: tuple[str, ...]
    vectors: np.ndarray
    norms: np.ndarray
    losses: np.ndarray
    num_tokens: np.ndarray

    def take(self, places: Sequence[int] | np.ndarray) -> GradientBatch:
        """The rows at the given places."""
        return GradientBatch(
            sample_ids=tuple(self.sample_ids[place] for place in places),
            vectors=self.vectors[places],
            norms=self.norms[places],
            losses=self.losses[places],
            num_tokens=self.num_tokens[places],
        )


def concatenate(batches: Sequence[GradientBatch]) -> GradientBatch:
    """Put batches one behind the other."""
    return GradientBatch(
        sample_ids=tuple(sample_id for batch in batches for sample_id in batch.sample_ids),
        vectors=np.concatenate([batch.vectors for batch in batches]),
        norms=np.concatenate([batch.norms for batch in batches]),
        losses=np.concatenate([batch.losses for batch in batches]),
        num_tokens=np.concatenate([batch.num_tokens for batch in batches]),
    )


class GradientExtractor:
    r"""Exact per-row gradients of the LoRA parameters of a frozen model, sketched on the fly.

    With a layer's input X [B, S, i] and the gradient of its output Y' [B, S, o], the gradients of
    row n's loss are

    .. math::
        \partial B_n = \alpha \sum_s y'_{ns} (A x_{ns})^T \in R^{o \times r}, \qquad
        \partial A_n = \alpha \sum_s (B^T y'_{ns}) x_{ns}^T \in R^{r \times i}

    so no tensor of o * i numbers is formed. The row losses are summed before the backward pass:
    each row's output gradient is then its own, whatever it is batched with. The model's own
    parameters get no gradients, and the pass stops below the lowest adapted layer.

    Parameters
    ----------
    model : nn.Module
        A causal LM of transformers with eager attention. The adapter, if any, is merged into its
        weights; the model is put in evaluation mode and frozen.
    factors : mapping of str to LoraFactors
        For each adapted linear layer, by module name, the adapter to differentiate. Layers whose
        `up` factor is zero (a fresh adapter) have no gradient in A, and A is left out.
    sketch : PermutedFold
        Projection of the concatenated gradients.
    pad_id : int
        Token id that fills up shorter rows.
    prompt_weight : float
        Weight of the prompt tokens' mean loss beside the answer tokens'. With 0 a row is the
        gradient it is trained with; above 0 the representation also says what a row is about,
        which short answers ("(B)") hardly do.

    Notes
    -----
    The representation is this project's reconstruction: the paper says "proxy gradients" compressed
    by a sparse Johnson-Lindenstrauss transform, not which parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        factors: Mapping[str, LoraFactors],
        sketch: PermutedFold,
        pad_id: int,
        prompt_weight: float = 0.0,
    ):
        if not factors:
            raise ConfigError("no adapted layers: the gradient would be empty; check lora.targets")
        self.model = model.eval().requires_grad_(False)
        self.sketch = sketch
        self.pad_id = pad_id
        self.prompt_weight = prompt_weight
        self.device = next(model.parameters()).device
        self._sketched: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None
        for name, factor in factors.items():
            layer = model.get_submodule(name)
            if not isinstance(layer, nn.Linear):
                raise ConfigError(
                    f"{name} is a {type(layer).__name__}; gradient features need nn.Linear layers"
                )
            layer.register_forward_hook(self._watch(name, factor))

    def __call__(self, rows: Sequence[Encoded]) -> GradientBatch:
        """Extract the gradient features of one batch."""
        self._sketched = torch.zeros(len(rows), self.sketch.dim, device=self.device)
        self._squares = torch.zeros(len(rows), device=self.device)
        with torch.enable_grad():
            losses_B, represented_B = self._losses(rows)
            represented_B.sum().backward()
        vectors_BD = nn.functional.normalize(self._sketched, dim=1, eps=1e-30)
        batch = GradientBatch(
            sample_ids=tuple(row.sample_id for row in rows),
            vectors=vectors_BD.cpu().numpy(),
            norms=self._squares.sqrt().cpu().numpy(),
            losses=losses_B.detach().float().cpu().numpy(),
            num_tokens=np.array([row.num_trained for row in rows], dtype=np.int32),
        )
        self._sketched = self._squares = None
        return batch

    def _losses(self, rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's mean answer loss [B], and the loss that represents it [B]."""
        length = max(len(row.input_ids) for row in rows)
        num_answer = max(row.num_trained for row in rows)
        # Padding goes on the left, so that all answers end together and, unless prompts count too,
        # only the logits of the last `num_answer` predictions are computed.
        num_predicted = length - 1 if self.prompt_weight else num_answer
        pads = [length - len(row.input_ids) for row in rows]
        input_ids_BS = self._tensor(
            [self.pad_id] * pad + list(row.input_ids) for pad, row in zip(pads, rows, strict=True)
        )
        mask_BS = (torch.arange(length, device=self.device) >= self._tensor(pads)[:, None]).long()
        logits = self.model(
            input_ids=input_ids_BS,
            attention_mask=mask_BS,
            position_ids=(mask_BS.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=num_predicted + 1,
            use_cache=False,
        ).logits[:, :-1]
        token_losses = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), input_ids_BS[:, -num_predicted:], reduction="none"
        )
        from_end = torch.arange(num_predicted, 0, -1, device=self.device)  # the last token is 1
        is_answer = from_end <= self._tensor([row.num_trained for row in rows])[:, None]
        answer_B = _masked_mean(token_losses, is_answer)
        if not self.prompt_weight:
            return answer_B, answer_B
        # A row's first token is given, not predicted.
        is_row = from_end < self._tensor([len(row.input_ids) for row in rows])[:, None]
        prompt_B = _masked_mean(token_losses, is_row & ~is_answer)
        return answer_B, answer_B + self.prompt_weight * prompt_B

    def _tensor(self, values: Iterable) -> torch.Tensor:
        return torch.tensor(list(values), device=self.device)

    def _watch(self, name: str, factor: LoraFactors):
        differentiate_down = bool(factor.up.any())

        def after_forward(_module, inputs, output_BSo):
            if self._sketched is None:  # somebody else's forward pass
                return
            if not output_BSo.requires_grad:
                output_BSo.requires_grad_(True)  # nothing below here needs the backward pass
            input_BSi = inputs[0].detach()
            output_BSo.register_hook(lambda grad_BSo: collect(input_BSi, grad_BSo))

        def collect(input_BSi: torch.Tensor, grad_BSo: torch.Tensor) -> None:
            reduced_BSr = input_BSi @ factor.down.T
            self._add(f"{name}.up", factor.scale * grad_BSo.transpose(1, 2) @ reduced_BSr)
            if differentiate_down:
                back_BSr = grad_BSo @ factor.up
                self._add(f"{name}.down", factor.scale * back_BSr.transpose(1, 2) @ input_BSi)

        return after_forward

    def _add(self, name: str, grads: torch.Tensor) -> None:
        flat_BP = grads.flatten(1).float()
        assert self._sketched is not None and self._squares is not None
        self._sketched += self.sketch(name, flat_BP)
        self._squares += flat_BP.square().sum(1)


def _masked_mean(values_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    return (values_BS * mask_BS).sum(1) / mask_BS.sum(1).clamp(min=1)


def extract_gradients(
    extractor: GradientExtractor,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int = 8192,
    present: frozenset[str] = frozenset(),
) -> Iterator[GradientBatch]:
    """Stream gradient features of many rows, in batches of like length.

    Batches are cut from all wanted rows, present ones included, and only batches that miss a row
    are computed. So an interrupted extraction, when resumed, computes every row in the same
    company as an uninterrupted one and gets the same bits.
    """
    for batch in token_batches(rows, batch_tokens):
        if not all(row.sample_id in present for row in batch):
            yield extractor(batch)
