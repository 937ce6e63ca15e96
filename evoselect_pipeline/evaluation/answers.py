"""A model's greedily decoded answers, how long they are, and how right."""

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
    """What the model answered to one row, and how right that is, from 0 to 1.

    `num_tokens` counts the token that ends the answer; one that is `truncated` has none.
    """

    sample_id: str
    answer: str
    score: float
    num_tokens: int
    truncated: bool


@dataclass(frozen=True)
class Answer:
    """A decoded text, the number of its tokens, and whether it ran into the limit of them."""

    text: str
    num_tokens: int
    truncated: bool


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
    """Decode greedily and score each answer by the row that it is to."""
    answers = greedy_answers(
        model,
        encoder,
        samples,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        on_rows=on_rows,
    )
    return [
        Prediction(row.sample_id, a.text, score(a.text, row), a.num_tokens, a.truncated)
        for row, a in zip(samples, answers, strict=True)
    ]


def greedy_answers(
    model: PreTrainedModel,
    encoder: Encoder,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    on_rows: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Decode greedily, in batches of like length; answers come back in the order of the rows."""
    if not samples:
        raise DataError("there are no rows to evaluate on")
    prompts = encoder.encode_prompts(samples)
    order = sorted(range(len(samples)), key=lambda i: (len(prompts[i]), samples[i].sample_id))
    answers: dict[int, Answer] = {}
    if on_rows:
        on_rows(0, len(samples))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        found = _decode(model, encoder, [prompts[i] for i in batch], max_new_tokens)
        answers.update(zip(batch, found, strict=True))
        if on_rows:
            on_rows(len(answers), len(samples))
    return [answers[i] for i in range(len(samples))]


@torch.inference_mode()
def _decode(
    model: PreTrainedModel, encoder: Encoder, prompts: list[list[int]], max_new_tokens: int
) -> list[Answer]:
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
    new = output[:, length:]  # type: ignore[index]
    texts = encoder.tokenizer.batch_decode(new, skip_special_tokens=True)
    stops = [_first_stop(row, encoder.stop_ids) for row in new.tolist()]
    return [
        Answer(text, max_new_tokens if stop is None else stop + 1, truncated=stop is None)
        for text, stop in zip(texts, stops, strict=True)
    ]


def _first_stop(tokens: Sequence[int], stop_ids: Sequence[int]) -> int | None:
    """Where an answer ends; what stands after it pads the batch."""
    return next((place for place, token in enumerate(tokens) if token in stop_ids), None)
