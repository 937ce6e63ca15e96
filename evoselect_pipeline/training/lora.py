"""LoRA fine-tuning of the student on the selected rows.

The loop is transformers' `Trainer`. TRL's trainer would add tokenising, masking and packing, which
must not differ from what the gradients saw and is therefore done by our one encoder; a loop of our
own would have to grow mixed precision, accumulation, multi-GPU and resuming by itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from evoselect_pipeline.core.encoding import Encoded
from evoselect_pipeline.errors import DataError, NumericsError
from evoselect_pipeline.stores.artifacts import write_text_atomic
from evoselect_pipeline.training.memory import memory_bounded_by
from evoselect_pipeline.training.models import load_encoder, load_trainable, with_adapter

if TYPE_CHECKING:
    from peft import PeftModel

    from evoselect_pipeline.config import LoraSettings, ModelSettings, TrainSettings

OnStep = Callable[[int, int], None]  # steps done, steps in all

# What transformers needs to continue as if nothing had happened. It goes on without the last
# three, silently and with a fresh optimizer, or with flipped bits in any of them.
CHECKPOINT_FILES = (
    "trainer_state.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
)
DIGESTS = "sha256.json"


@dataclass(frozen=True)
class TrainingReport:
    """What a training run did: optimizer steps, tokens with loss, and the loss per logged step."""

    num_steps: int
    num_rows: int
    num_trained_tokens: int
    losses: tuple[tuple[int, float], ...]


class FiniteTrainer(Trainer):
    """A Trainer that stops at the first non-finite loss instead of training on to NaN weights."""

    def training_step(self, *args, **kwargs):
        """Run one micro-batch and refuse a loss that is not finite, before the update."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise NumericsError(
                f"the training loss is {loss.item()} at step {self.state.global_step}; lower"
                " train.learning_rate or look for broken rows. The last adapter is untouched."
            )
        return loss


class Reporter(TrainerCallback):
    """Report progress, and refuse gradients that are not finite before the step is taken."""

    def __init__(self, on_step: OnStep | None):
        self.on_step = on_step

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        """Check the gradients of the adapter."""
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise NumericsError(
                    f"the gradient of {name} is not finite at step {state.global_step}; lower"
                    " train.learning_rate. The last adapter is untouched."
                )

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Refuse a gradient whose length overflows: clipping has made all of it zero."""
        if not math.isfinite((logs or {}).get("grad_norm", 0.0)):
            raise NumericsError(
                f"the gradient has no finite length at step {state.global_step}; lower"
                " train.learning_rate. The last adapter is untouched."
            )

    def on_save(self, args, state, control, **kwargs):
        """Seal the checkpoint, which is whole now."""
        seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_step_end(self, args, state, control, **kwargs):
        """Tell the listener how far training is."""
        if self.on_step:
            self.on_step(state.global_step, state.max_steps)


def train_adapter(
    model: ModelSettings,
    adapter: Path | None,
    rows: Sequence[Encoded],
    *,
    lora: LoraSettings,
    train: TrainSettings,
    seed: int,
    adapter_seed: int,
    work_dir: Path,
    out_dir: Path,
    on_step: OnStep | None = None,
) -> TrainingReport:
    """Train an adapter further on the given rows and save it.

    Parameters
    ----------
    adapter : Path or None
        The adapter to start from; None starts a fresh one on the base model.
    seed : int
        Order of the rows and dropout.
    adapter_seed : int
        Start of a fresh adapter; the proxy's, so that training starts where gradients were taken.
    work_dir : Path
        Folder for checkpoints. A complete checkpoint found there is resumed from; the folder is
        removed once the adapter is saved.
    out_dir : Path
        Where the adapter is saved, as safetensors.

    Raises
    ------
    NumericsError
        At the first loss or gradient that is not finite, before the update.
    """
    if not rows:
        raise DataError("there are no rows to train on: the selected subset is empty")
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    set_seed(seed)
    student = with_adapter(load_trainable(model), adapter, lora, adapter_seed, trainable=True)
    tokenizer = load_encoder(model).tokenizer
    trainer = FiniteTrainer(
        model=student,
        args=_arguments(train, seed, work_dir),
        train_dataset=[{"input_ids": list(r.input_ids), "labels": r.labels} for r in rows],  # type: ignore[arg-type]
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        callbacks=[Reporter(on_step)],
    )
    # Its console output would break our progress display; the report carries the same figures.
    trainer.remove_callback(PrinterCallback)
    same_steps = ", double train.accumulation for the same steps,"
    with memory_bounded_by("train.batch_size", train.batch_size, same_steps):
        trainer.train(resume_from_checkpoint=last_checkpoint(work_dir))
    _save(student, out_dir)
    shutil.rmtree(work_dir, ignore_errors=True)
    history = trainer.state.log_history
    return TrainingReport(
        num_steps=trainer.state.global_step,
        num_rows=len(rows),
        num_trained_tokens=sum(row.num_trained for row in rows),
        losses=tuple((int(h["step"]), float(h["loss"])) for h in history if "loss" in h),
    )


def _save(student: PeftModel, out_dir: Path) -> None:
    """Save an adapter; equal adapters give equal files, whichever process writes them."""
    config: Any = student.peft_config["default"]
    if isinstance(config.target_modules, set):
        # The order of a set of strings differs from process to process.
        config.target_modules = sorted(config.target_modules)
    student.save_pretrained(str(out_dir), safe_serialization=True)
    (out_dir / "README.md").unlink(missing_ok=True)  # peft's empty model card


def seal(checkpoint: Path) -> None:
    """Write down what a checkpoint holds, last: it is gone on with only if it still does."""
    write_text_atomic(checkpoint / DIGESTS, json.dumps(_digests(checkpoint)))


def last_checkpoint(work_dir: Path) -> str | None:
    """The newest checkpoint that is what was sealed."""
    found = sorted(
        work_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True
    )
    return next((str(path) for path in found if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        sealed = json.loads((checkpoint / DIGESTS).read_text(encoding="utf-8"))
        return sealed == _digests(checkpoint)
    except (OSError, ValueError):
        return False


def _digests(checkpoint: Path) -> dict[str, str]:
    digests = {}
    for name in CHECKPOINT_FILES:
        with (checkpoint / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _arguments(train: TrainSettings, seed: int, work_dir: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work_dir),
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        max_steps=train.steps if train.epochs is None else -1,
        num_train_epochs=train.epochs or 1.0,
        learning_rate=train.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=train.warmup,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=train.bf16,
        seed=seed,
        data_seed=seed,
        # Every step: an average since the last entry would start over when training is resumed.
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=train.checkpoint_steps,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
