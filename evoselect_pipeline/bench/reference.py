"""Models and rows that `bench gradients` measures on, where the user names no model of his own.

No model can be downloaded where the bench may run, and a model of random weights has gradients
like no trained one. So a Llama of a stated size is trained for a moment on the playground's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evoselect_pipeline.config import LoraSettings, ModelSettings, TrainSettings
from evoselect_pipeline.core.encoding import IGNORED_LABEL, Encoded, Encoder, token_batches
from evoselect_pipeline.core.forward import padded
from evoselect_pipeline.core.records import Message, make_sample
from evoselect_pipeline.generation.playground import PlaygroundGenerator
from evoselect_pipeline.playground.tasks import TASKS, task_rows
from evoselect_pipeline.progress import progress

SIZES = {"small": (256, 6), "big": (512, 8)}  # hidden width, layers
VOCABULARY = 4096
SHORTEST, LONGEST = 20, 250  # tokens of a row
PRETRAINING_STEPS = 60
PRETRAINING_TOKENS = 1024
ADAPTER_STEPS, ADAPTER_ROWS = 20, 4


def reference_rows(encoder: Encoder, num_rows: int, seed: int) -> list[Encoded]:
    """Rows of 20 to 250 tokens: talks about questions of the playground, the last answer trained.

    Deterministic in the seed; every row is another one.
    """
    turns = [
        sample.messages
        for number, task in enumerate(TASKS)
        for sample in PlaygroundGenerator(task, "strong").generate(
            task_rows(task, num_targets=8, num_validation=1, num_test=1).targets,
            1500,
            seed + number,
        )
    ]
    draw = np.random.default_rng(seed)
    rows: dict[str, Encoded] = {}
    while len(rows) < num_rows:
        length = int(draw.integers(SHORTEST, LONGEST))
        talk: list[Message] = []
        row: Encoded | None = None
        while row is None or len(row.input_ids) < length:
            talk += turns[int(draw.integers(len(turns)))]
            row = encoder.encode([make_sample(talk)])[0][0]
        if len(row.input_ids) <= LONGEST:
            rows[row.sample_id] = row
    return list(rows.values())


def reference_model(size: str, tokenizer, rows: Sequence[Encoded], folder: Path) -> ModelSettings:
    """Make a Llama of a size in `SIZES`, train all its weights for a moment, save it."""
    width, num_layers = SIZES[size]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=num_layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = token_batches(rows, PRETRAINING_TOKENS)
    order = np.random.default_rng(0).integers(len(batches), size=PRETRAINING_STEPS)
    for step, number in enumerate(order):
        forward_backward(model, batches[number], tokenizer.pad_token_id, whole_rows=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress("steps of the reference model", step + 1, PRETRAINING_STEPS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSettings(name=str(folder))


def reference_adapter(
    model: ModelSettings, lora: LoraSettings, rows: Sequence[Encoded], folder: Path, seed: int
) -> Path:
    """An adapter trained for a moment, so that both of its factors have gradients."""
    from evoselect_pipeline.training.lora import train_adapter

    train_adapter(
        model,
        None,
        rows,
        lora=lora,
        train=TrainSettings(steps=ADAPTER_STEPS, batch_size=ADAPTER_ROWS, learning_rate=1e-3),
        seed=seed,
        adapter_seed=seed,
        work_dir=folder / "checkpoints",
        out_dir=folder / "adapter",
    )
    return folder / "adapter"


def forward_backward(
    model, batch: Sequence[Encoded], pad_id: int, *, whole_rows: bool = False
) -> None:
    """One plain training pass, as transformers does it, without the optimizer's step."""
    device = next(model.parameters()).device
    ids = padded([row.input_ids for row in batch], pad_id, device)
    mask = padded([[1] * len(row.input_ids) for row in batch], 0, device)
    trained = [row.input_ids if whole_rows else row.labels for row in batch]
    labels = padded(trained, IGNORED_LABEL, device)
    model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
