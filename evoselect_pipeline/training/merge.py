"""An adapter merged into its base model, saved, and held against what it was merged from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.training.models import load_base, with_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from evoselect_pipeline.config import LoraSettings, ModelSettings

# Shares of the largest logit. Merging rounds every weight once more, and a bfloat16 has 8 bits: on
# the playground that moves single logits by up to 6 %, a forgotten layer by 11 % and more.
MOST_MOVED = {"float32": 1e-4, "bfloat16": 0.1}
# Which of two tokens is greedy may change only where they are as good as equal.
TIED = {"float32": 1e-4, "bfloat16": 0.02}


class Agreement(NamedTuple):
    """How near a merged model is to base and adapter, at every token of some rows' answers."""

    difference: float  # of any logit, the largest
    tolerance: float
    num_tokens: int
    num_same: int  # of the greedy tokens; the others tie


def save_merged(
    settings: ModelSettings,
    adapter: Path,
    lora: LoraSettings,
    rows: Sequence[Encoded],
    folder: Path,
) -> Agreement:
    """Save a model with an adapter merged into its weights, load it again and compare.

    Parameters
    ----------
    rows : sequence of Encoded
        Rows to compare on.
    folder : Path
        Where weights, `config.json` and `generation_config.json` go.

    Raises
    ------
    ArtifactError
        If what was saved does not answer as base and adapter do.
    """
    wanted = _merge_into(folder, with_adapter(load_base(settings), adapter, lora, seed=0), rows)
    saved = load_base(settings.model_copy(update={"name": str(folder), "revision": None}))
    return agreement(wanted, answer_logits(saved, rows), settings.dtype)


@torch.inference_mode()
def answer_logits(model: PreTrainedModel | PeftModel, rows: Sequence[Encoded]) -> torch.Tensor:
    """The logits [tokens, vocabulary] from which the tokens of the rows' answers are predicted."""
    model.eval()
    # One row at a time: without padding there is nothing but the weights to differ by.
    return torch.cat([_logits(model, row)[row.num_prompt - 1 : -1].float().cpu() for row in rows])


def agreement(wanted: torch.Tensor, found: torch.Tensor, dtype: str) -> Agreement:
    """Compare logits [tokens, vocabulary] with those that are wanted.

    Raises
    ------
    ArtifactError
        If one differs by more than `MOST_MOVED`, or another token is greedy than is wanted where
        the two do not tie, or anything is not finite.
    """
    scale = float(wanted.abs().max())
    difference, tolerance = float((wanted - found).abs().max()), MOST_MOVED[dtype] * scale
    greedy = found.argmax(dim=1, keepdim=True)
    behind = wanted.max(dim=1, keepdim=True).values - wanted.gather(1, greedy)
    # Written so that what is not a number does not pass.
    if not (difference <= tolerance and float(behind.max()) <= TIED[dtype] * scale):
        raise ArtifactError(
            f"the merged model does not answer as base and adapter do: a logit differs by"
            f" {difference:.3g}, {tolerance:.3g} are tolerated, and a token is greedy that base"
            f" and adapter put {float(behind.max()):.3g} behind. Export the adapter without"
            " --merged instead."
        )
    num_same = int((wanted.argmax(dim=1, keepdim=True) == greedy).sum())
    return Agreement(difference, tolerance, len(wanted), num_same)


def _merge_into(folder: Path, adapted: PeftModel, rows: Sequence[Encoded]) -> torch.Tensor:
    """Save the merged model; the logits of base and adapter come back."""
    wanted = answer_logits(adapted, rows)
    adapted.merge_and_unload().save_pretrained(str(folder))
    return wanted


def _logits(model: PreTrainedModel | PeftModel, row: Encoded) -> torch.Tensor:
    return model(input_ids=torch.tensor([row.input_ids], device=model.device)).logits[0]
