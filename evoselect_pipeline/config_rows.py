"""Where rows come from: the task's own, and the generator's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from evoselect_pipeline.addresses import is_in_the_clear

SPLITS = ("targets", "validation", "test")
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Settings(BaseModel):
    """Base of the tree: frozen, and a key nobody reads is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def spelled_out(value: Any) -> Any:
    """`engine: ray` is short for its kind, and stays so when further keys are set."""
    return {"kind": value} if isinstance(value, str) else value


class HubRows(Settings):
    """Rows of a Hugging Face dataset: its name on the hub, or a folder."""

    dataset: str = Field(min_length=1, description="Hub name as openai/gsm8k, or a folder.")
    config: str | None = Field(default=None, description="The dataset's configuration, if several.")
    split: str = Field(default="train", description="A split, or a slice as train[:2000].")
    revision: str | None = Field(
        default=None, description="Commit on the hub; pin it for real work."
    )


Rows = Path | HubRows


class Columns(Settings):
    """Where a row keeps what: a column's name, or a Jinja template over all of them.

    What is not named is looked for under its own name; `subtask` also under `task`.
    """

    messages: str | None = Field(default=None, description="Turns with `role` and `content`.")
    system: str | None = Field(default=None, description="What the system turn says.")
    prompt: str | None = Field(default=None, description="What the user says.")
    completion: str | None = Field(default=None, description="The answer to be learned.")
    subtask: str | None = Field(default=None, description="The part of the task a row is of.")
    source: str | None = Field(default=None, description="Who wrote the row.")
    group: str | None = Field(
        default=None, description="Rows of one group are never split between purposes."
    )

    @model_validator(mode="after")
    def _check(self) -> Columns:
        if self.messages and (self.prompt or self.completion or self.system):
            raise ValueError("name messages, or prompt and completion, not both")
        return self


MetricKind = Literal["exact", "numeric", "choice", "regex", "function"]


class MetricSettings(Settings):
    """When an answer counts as right."""

    kind: MetricKind = Field(
        default="exact",
        description="`exact`: the very text; `numeric`: the number after ####, else the last one;"
        " `choice`: the option's letter; `regex`: what `pattern` finds last; `function`: your own.",
    )
    pattern: str | None = Field(
        default=None, description="Regular expression; its first group counts, if it has one."
    )
    function: str | None = Field(
        default=None,
        description="As package.module:name, called with the answer and the row; returns 0 to 1.",
    )

    @model_validator(mode="after")
    def _check(self) -> MetricSettings:
        for kind, key in (("regex", "pattern"), ("function", "function")):
            if (self.kind == kind) != (getattr(self, key) is not None):
                raise ValueError(f"metric.{key} belongs to kind: {kind}; give both or neither")
        if self.pattern is not None:
            try:
                matches_nothing = re.compile(self.pattern).search("")
            except re.error as error:
                raise ValueError(f"metric.pattern {self.pattern!r}: {error}") from None
            if matches_nothing:
                raise ValueError(f"metric.pattern {self.pattern!r} finds itself in an empty answer")
        if self.function is not None and not FUNCTION.fullmatch(self.function):
            raise ValueError(f"metric.function {self.function!r}: expected package.module:name")
        return self


class PlaygroundTask(Settings):
    """A task of the built-in world."""

    kind: Literal["playground"] = "playground"
    name: str = Field(default="stories", description="One of the built-in tasks.")
    num_targets: int = Field(
        default=64, ge=1, description="Target rows, which selection aligns with."
    )
    num_validation: int = Field(default=200, ge=1, description="Rows that decide about promotion.")
    num_test: int = Field(default=600, ge=1, description="Rows that are only reported.")

    @property
    def metric(self) -> MetricSettings:
        """The world knows one right answer to everything."""
        return MetricSettings()


class FileTask(Settings):
    """A task in the user's own rows: JSON lines, JSON, CSV, Parquet or a Hugging Face dataset.

    What has no rows of its own is drawn from `rows`, so that near-copies stay together.
    """

    kind: Literal["files"]
    rows: Rows | None = Field(
        default=None, description="Labelled rows, of which the splits without rows are drawn."
    )
    targets: Rows | None = Field(
        default=None, description="Target rows, which selection aligns with."
    )
    validation: Rows | None = Field(default=None, description="Rows that decide about promotion.")
    test: Rows | None = Field(default=None, description="Rows that are only reported.")
    num_targets: int | None = Field(
        default=None, ge=1, description="How many to take; an even share, or all, if not given."
    )
    num_validation: int | None = Field(default=None, ge=1, description="Likewise.")
    num_test: int | None = Field(default=None, ge=1, description="Likewise.")
    near_text: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="Rows of `rows` whose prompts share this much of their word triples serve one"
        " purpose; 1: only equal prompts do.",
    )
    columns: Columns = Columns()
    metric: Annotated[
        MetricSettings,
        BeforeValidator(spelled_out, json_schema_input_type=MetricSettings | MetricKind),
    ] = MetricSettings()

    @model_validator(mode="after")
    def _check(self) -> FileTask:
        missing = [split for split in SPLITS if getattr(self, split) is None]
        if missing and self.rows is None:
            raise ValueError(
                f"no rows for {' and '.join(missing)}: name them, or name `rows` to draw them from"
            )
        if not missing and self.rows is not None:
            raise ValueError("targets, validation and test are all named: `rows` would be unused")
        return self


class PlaygroundSource(Settings):
    """The built-in generator, which errs on purpose."""

    kind: Literal["playground"] = "playground"
    world: Literal["weak", "strong"] = Field(
        default="weak", description="How often it errs: `weak` more, `strong` less."
    )
    num_candidates: int = Field(default=6000, ge=1, description="Rows to write in a round.")


class FileSource(Settings):
    """Candidates that somebody else wrote: a file for each round."""

    kind: Literal["files"]
    pattern: str = Field(
        description="Path of a round's file, with {round} for the round's four digits."
    )
    columns: Columns = Columns()


class FunctionSource(Settings):
    """The user's own Python, which writes a round's rows."""

    kind: Literal["function"]
    function: str = Field(
        description="As package.module:name, called with the target rows, the round, its seed and"
        " the targets' weights; returns rows as they stand in files."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the function."
    )
    num_candidates: int = Field(
        default=2000, ge=1, description="Most rows to take from it in a round."
    )

    @model_validator(mode="after")
    def _check(self) -> FunctionSource:
        if not FUNCTION.fullmatch(self.function):
            raise ValueError(f"function {self.function!r}: expected package.module:name")
        return self


class LLMSource(Settings):
    """An LLM that is asked for rows in words, whoever runs it."""

    model: str
    template: Path | None = Field(
        default=None,
        description="Jinja file with the words of a request, over `examples`, `num_rows`, `number`"
        " and `round`; one that suits most tasks, if not given.",
    )
    format: Literal["json", "completion"] = Field(
        default="json",
        description="`json`: an answer holds `rows` of prompt and completion; `completion`: the"
        " template writes a row's prompt, and the answer is its completion.",
    )
    num_candidates: int = Field(default=2000, ge=1, description="Rows to ask for in a round.")
    rows_per_request: int = Field(default=4, ge=1, description="Rows to ask for at a time.")
    num_examples: int = Field(default=4, ge=1, description="Target rows shown in a request.")
    temperature: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="How freely the LLM chooses words; 0: always the likeliest.",
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Share of the likeliest words it chooses among."
    )
    max_tokens: int = Field(default=2048, ge=1, description="Most tokens of one answer.")

    @property
    def num_requests(self) -> int:
        """Requests that ask for all rows."""
        return -(-self.num_candidates // self.rows_per_request)

    @property
    def sampling(self) -> list[Any]:
        """What decides an answer besides its request's words and the model."""
        return [self.temperature, self.top_p, self.max_tokens, self.format]

    @model_validator(mode="after")
    def _check_format(self) -> LLMSource:
        if self.format == "completion" and self.rows_per_request != 1:
            raise ValueError("format: completion makes one row a request; set rows_per_request: 1")
        return self


class ModelSource(LLMSource):
    """A causal LM of transformers on this machine."""

    kind: Literal["model"]
    model: str = Field(min_length=1, description="Hub name, folder, or the shipped `playground`.")
    revision: str | None = Field(
        default=None, description="Commit on the hub; pin it for real work."
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = Field(default=8, ge=1, description="Requests that are answered together.")


class ServerSource(LLMSource):
    """An LLM behind an OpenAI-compatible server: vLLM, Ollama, SGLang, a cloud's own.

    The limits are hard, and of one round: what comes after is not asked for.
    """

    kind: Literal["server"]
    base_url: str = Field(description="Address up to the version, as http://127.0.0.1:8000/v1.")
    model: str = Field(min_length=1, description="The model's name on the server.")
    api_key_variable: str = Field(
        default="OPENAI_API_KEY", description="Environment variable that holds the key, if any."
    )
    constrain: bool = Field(
        default=True, description="Have the server keep its JSON to our schema."
    )
    concurrency: int = Field(default=8, ge=1, description="Requests at a time.")
    timeout_s: float = Field(default=120.0, gt=0, description="Longest wait for one answer.")
    retries: int = Field(
        default=5, ge=0, description="How often a busy server is asked again, ever more slowly."
    )
    max_answer_bytes: int = Field(default=1_000_000, ge=1_000, description="Longer ones are cut.")
    price_prompt: float = Field(default=0.0, ge=0, description="Price of 10^6 prompt tokens.")
    price_completion: float = Field(
        default=0.0, ge=0, description="Price of 10^6 tokens of answers."
    )
    max_requests: int | None = Field(default=None, ge=1, description="Most requests of a round.")
    max_total_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens of a round, prompts and answers together."
    )
    max_cost: float | None = Field(default=None, gt=0, description="In the prices' currency.")
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of every request, as the server takes them; null takes away one"
        " that is sent otherwise, such as `seed`.",
    )
    allow_insecure: bool = Field(
        default=False, description="Allow http:// to other machines than this one."
    )

    @property
    def sampling(self) -> list[Any]:
        """What decides an answer besides its request's words and the model."""
        return [*super().sampling, self.constrain, self.extra_body]

    @model_validator(mode="after")
    def _check(self) -> ServerSource:
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"base_url {self.base_url!r}: expected http(s)://HOST[:PORT]/v1")
        if address.username or address.password or address.query or address.fragment:
            raise ValueError(
                "base_url holds a password or a query; put the key into the environment instead,"
                " and its name into api_key_variable"
            )
        if is_in_the_clear(address) and not self.allow_insecure:
            raise ValueError(
                f"base_url {self.base_url!r}: rows and key would travel in the clear; use https, or"
                " set allow_insecure for a network you trust"
            )
        if self.max_cost is not None and not (self.price_prompt or self.price_completion):
            raise ValueError("max_cost limits nothing without price_prompt and price_completion")
        return self
