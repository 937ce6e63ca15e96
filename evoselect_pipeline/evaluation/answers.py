"""A model's greedily decoded answers, and how right they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evoselect_pipeline.core.encoding import Encoder


@dataclass(frozen=True)
class Prediction:
    """What the model answered to one row, and how right that is, from 0 to 1."""

    sample_id: str
    answer: str
    score: float


def scored_answers(
    model: PreTrainedModel,
    encoder: Encoder,
    samples: Sequence[Sample],
    score: Callable[[str, Sample], float],
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    on_rows: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Decode greedily and score each answer by the row that it is to.

    Rows are decoded in batches of like length, and come back in the order given.
    """
    if not samples:
        raise DataError("there are no rows to evaluate on")
    prompts = encoder.encode_prompts(samples)
    order = sorted(range(len(samples)), key=lambda i: (len(prompts[i]), samples[i].sample_id))
    answers: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        texts = _decode(model, encoder, [prompts[i] for i in batch], max_new_tokens)
        answers.update(zip(batch, texts, strict=True))
        if on_rows:
            on_rows(len(answers), len(samples))
    return [
        Prediction(sample.sample_id, answers[i], score(answers[i], sample))
        for i, sample in enumerate(samples)
    ]


@torch.inference_mode()
def _decode(
    model: PreTrainedModel, encoder: Encoder, prompts: list[list[int]], max_new_tokens: int
) -> list[str]:
    length = max(map(len, prompts))
    ids = torch.tensor([[encoder.pad_id] * (length - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(  # type: ignore[operator]
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=encoder.stop_ids,
        pad_token_id=encoder.pad_id,
    )
    return encoder.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)  # type: ignore[index]
