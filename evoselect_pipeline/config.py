"""The configuration of one evolution line: one frozen tree, unknown keys refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from evoselect_pipeline.config_rows import (
    FileSource,
    FileTask,
    FunctionSource,
    ModelSource,
    PlaygroundSource,
    PlaygroundTask,
    Rows,
    ServerSource,
    Settings,
    spelled_out,
)
from evoselect_pipeline.core.settings import Budget, EvoSelectSettings, GateSettings
from evoselect_pipeline.stores.home import line_name

Method = Literal[
    "evoselect", "all", "random", "attribution", "round_robin", "diversity", "attr_div", "tsds",
    "tarot", "ot_vote", "k_center", "facility_location", "dpp",
]  # fmt: skip
EngineKind = Literal["local", "ray"]


class ModelSettings(Settings):
    """A causal LM of transformers."""

    name: str = Field(
        default="playground", description="Hub name, folder, or the shipped `playground`."
    )
    revision: str | None = Field(
        default=None, description="Commit on the hub; pin it for real work."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Number format of the weights; bfloat16 takes half the memory.",
    )
    max_length: int = Field(
        default=1024, ge=8, description="Longest row in tokens; longer ones are out."
    )
    chat_template: Path | None = Field(
        default=None,
        description="Jinja file in place of the tokenizer's own chat template, for models that have"
        " none, or one whose prompt is not the start of the whole conversation.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run code that the model brings along. Read it first: only a folder here, which"
        " nobody else changes, or a commit on the hub, named in `revision`, stays what you read.",
    )
    quantization: Literal["none", "nf4"] = Field(
        default="none",
        description="`nf4`: train the adapter on the base in 4 bits (the extra `qlora`); gradients"
        " and evaluation stay in `dtype`, where the adapter is merged.",
    )

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        is_commit = re.fullmatch("[0-9a-f]{40}", self.revision or "")
        if self.trust_remote_code and not (is_commit or os.path.isdir(self.name)):
            raise ValueError(
                "trust_remote_code needs a folder as name, or the commit that you have read as"
                f" revision, all 40 digits of it; revision is {self.revision!r}"
            )
        return self


class LoraSettings(Settings):
    """The adapter's shape."""

    rank: int = Field(
        default=8, ge=1, description="Width of its factors: more can learn more, and costs more."
    )
    alpha: float = Field(default=16.0, gt=0, description="Its scale: it counts alpha / rank times.")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of its inputs that training drops."
    )
    targets: str | tuple[str, ...] = Field(
        default="all-linear", description="Layers, as peft names them."
    )


class GradientSettings(Settings):
    """How rows are represented."""

    representation: Literal["lora", "two_sided", "lm_head", "hidden"] = Field(
        default="lora",
        description="What stands for a row: its gradient of the LoRA factors, of the layers'"
        " weights seen from two sides, of the output embedding, or its mean hidden state.",
    )
    top_layers: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the decoder blocks, the top ones, that count.",
    )
    target_span: bool = Field(
        default=True, description="Keep each row's exact coordinates among the targets, too."
    )
    dim: int = Field(default=2048, ge=1, description="Width of the sketch.")
    batch_tokens: int = Field(default=8192, ge=1, description="Padded tokens in one batch.")
    prompt_weight: float = Field(
        default=1.0, ge=0, description="Weight of the prompt's loss beside the answer's."
    )
    centre: bool = Field(
        default=True, description="Take the pool's mean gradient out of every row."
    )


class QualitySettings(Settings):
    """How the plausibility of answers is judged; `evoselect` alone heeds it."""

    prior: Literal["none", "loss"] = Field(
        default="loss",
        description="`loss`: rows whose answers the proxy finds less likely than the targets' own"
        " start with less weight.",
    )
    warm_up_steps: int = Field(
        default=100,
        ge=0,
        description="Steps that teach the judge, on half of the rows that selection would choose,"
        " before it judges the other half; 0: it judges as it is.",
    )
    passes: int = Field(
        default=2, ge=1, description="How often choosing rows and teaching the judge alternate."
    )


class SelectionSettings(Settings):
    """Which rows train the student."""

    method: Method = Field(
        default="evoselect", description="The selector; `all` and `random` are controls."
    )
    ratio: float = Field(default=0.2, gt=0, le=1, description="Share of the candidates to choose.")
    max_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens with loss that the chosen rows may have."
    )
    source_share: float | None = Field(
        default=None, gt=0, le=1, description="Largest share of the budget for one source."
    )
    near_text: float = Field(
        default=0.7,
        gt=0,
        le=2,
        description="Rows that share this much of their word triples are copies of each other; at 1"
        " those of equal text are, above 1 none.",
    )
    subtask_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="How much the targets' subtasks count, by name; 1 for one that is not named.",
    )
    memory_rounds: int = Field(
        default=2, ge=0, description="Earlier rounds whose rows repel new ones."
    )
    evoselect: EvoSelectSettings = Field(default_factory=EvoSelectSettings)

    def budget(self, num_candidates: int) -> Budget:
        """What may be chosen from so many candidates: one row at least."""
        rows = max(1, round(self.ratio * num_candidates))
        return Budget(rows, self.max_tokens, self.source_share)


class TrainSettings(Settings):
    """The optimizer's work in one round."""

    steps: int = Field(
        default=200, ge=1, description="Optimizer steps; ignored when `epochs` is given."
    )
    epochs: float | None = Field(
        default=None, gt=0, description="Passes over the chosen rows, instead of `steps`."
    )
    batch_size: int = Field(
        default=16, ge=1, description="Rows in a micro-batch; halve it if memory runs out."
    )
    accumulation: int = Field(default=1, ge=1, description="Micro-batches in one optimizer step.")
    learning_rate: float = Field(
        default=4e-3,
        gt=0,
        description="Its peak; 4e-3 suits the playground, 1e-4 to 2e-4 most models.",
    )
    warmup: int = Field(
        default=10, ge=0, description="Steps of linear warm-up before the cosine decay."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Pull of the adapter's weights towards zero."
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Longer gradients are scaled down to this."
    )
    bf16: bool = Field(default=False, description="Compute in bfloat16; for GPUs.")
    checkpoint_steps: int = Field(
        default=100,
        ge=1,
        description="Steps between checkpoints, from which a killed run goes on.",
    )


class EvaluationSettings(Settings):
    """How answers are decoded."""

    max_new_tokens: int = Field(
        default=32,
        ge=1,
        description="Longest answer in tokens; a longer one is cut, and mostly wrong.",
    )
    batch_size: int = Field(default=128, ge=1, description="Questions answered together.")
    canaries: Rows | None = Field(
        default=None,
        description="Rows that are asked before and after each round, in the columns of the task: a"
        " check tells how many are answered otherwise. They need no answers.",
    )


class PromotionSettings(Settings):
    """When a trained adapter becomes the champion."""

    tolerance: float = Field(
        default=0.02,
        ge=0,
        description="Loss of validation accuracy that the interval may reach down to.",
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="Of the bootstrap interval of the difference."
    )


class EngineSettings(Settings):
    """Who computes the gradients; nothing of it shows in the results."""

    kind: EngineKind = Field(
        default="local",
        description="This process, or the workers of a Ray cluster (the extra `ray`).",
    )
    address: str | None = Field(
        default=None,
        description="Cluster to join, host:port; if not given, the one that runs on this machine,"
        " or one that is started here.",
    )
    num_workers: int | None = Field(
        default=None,
        ge=1,
        description="Workers, each with its own copy of the model; if not given, as many as fit.",
    )
    cpus_per_worker: int | None = Field(
        default=None,
        ge=1,
        description="Cores of a worker; if not given, one beside a GPU, else as many threads as"
        " torch has here, which keeps results equal to the last bit.",
    )
    gpus_per_worker: float = Field(
        default=0.0, ge=0, le=1, description="GPU of a worker: 0 none, 0.5 half of one, 1 a whole."
    )
    rows_per_shard: int = Field(
        default=1000, ge=1, description="Rows handed to a worker at a time; lost if it dies."
    )


class RetentionSettings(Settings):
    """What a home lets go of; what a round was made of and came to is kept for good."""

    table_days: float = Field(
        default=30.0,
        gt=0,
        description="Days for which earlier versions of the LanceDB tables can be looked at;"
        " cleared away when the oldest is twice as old.",
    )


class ScheduleSettings(Settings):
    """The nightly round."""

    cron: str = Field(default="0 2 * * *", description="When, in five fields: minute hour ...")
    timezone: str = Field(default="UTC", description="Name of the zone, such as Europe/Berlin.")
    fresh_hours: float | None = Field(
        default=None,
        gt=0,
        description="Hours after a round's promotion test, whatever it decided, at which Dagster"
        " calls the champion overdue for the next one; never, if not given.",
    )
    max_hours: float = Field(
        default=24.0,
        gt=0,
        description="A run that the daemon started is ended for good after so many hours.",
    )


class ChainSettings(Settings):
    """When the sensor `<line>_chain` stops asking for one round after the other."""

    max_rounds: int = Field(default=10, ge=1, description="Rounds the line may come to.")
    target: float | None = Field(
        default=None, gt=0, le=1, description="Validation accuracy of the champion that is enough."
    )
    patience: int | None = Field(
        default=3, ge=1, description="Rounds in a row that promoted no adapter; null: any number."
    )
    max_hours: float | None = Field(
        default=None, gt=0, description="Hours of work that all rounds together may take."
    )


def kind_of(value: Any) -> str | None:
    """Which kind of task or generator is meant: the playground's, where none is named."""
    return (
        value.get("kind", "playground") if isinstance(value, dict) else getattr(value, "kind", None)
    )


def kinds_apart(task: Any, generator: Any) -> str:
    """What is wrong with two kinds that do not go together; nothing if they do."""
    if (task == "playground") == (generator == "playground"):
        return ""
    return (
        "task.kind and generator.kind must both be playground, or neither; the task's is"
        f" {task}, the generator's {generator}, and one that is left out is playground"
    )


class LineConfig(Settings):
    """One evolution line: one task evolving under one configuration."""

    line: str = Field(
        default="playground", description="Name: lower-case letters, digits, underscores."
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Fixes all that is drawn; the same seed gives the same round.",
    )
    task: Annotated[
        Annotated[PlaygroundTask, Tag("playground")] | Annotated[FileTask, Tag("files")],
        Discriminator(kind_of),
    ] = PlaygroundTask()
    generator: Annotated[
        Annotated[PlaygroundSource, Tag("playground")]
        | Annotated[FileSource, Tag("files")]
        | Annotated[FunctionSource, Tag("function")]
        | Annotated[ModelSource, Tag("model")]
        | Annotated[ServerSource, Tag("server")],
        Discriminator(kind_of),
    ] = PlaygroundSource()
    gates: GateSettings = GateSettings()
    min_candidates: int = Field(
        default=16, ge=1, description="Fewer usable candidates end the round."
    )
    model: ModelSettings = ModelSettings()
    proxy: ModelSettings | None = Field(
        default=None,
        description="Model whose gradients represent rows; the student itself if not given.",
    )
    refresh_proxy: bool = Field(
        default=False,
        description="Take gradients with the incoming adapter, if the proxy is the student's model;"
        " else with the bare proxy in every round.",
    )
    lora: LoraSettings = LoraSettings()
    gradients: GradientSettings = GradientSettings()
    quality: QualitySettings = QualitySettings()
    selection: SelectionSettings = SelectionSettings()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    promotion: PromotionSettings = PromotionSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    chain: ChainSettings = ChainSettings()
    retention: RetentionSettings = RetentionSettings()
    engine: Annotated[
        EngineSettings,
        BeforeValidator(spelled_out, json_schema_input_type=EngineSettings | EngineKind),
    ] = EngineSettings()

    @property
    def wears_adapter(self) -> bool:
        """Whether the proxy is the student itself, and follows it from round to round."""
        return self.proxy is None and self.refresh_proxy

    @model_validator(mode="after")
    def _check(self) -> LineConfig:
        line_name(self.line)
        if complaint := kinds_apart(self.task.kind, self.generator.kind):
            raise ValueError(complaint)
        return self
