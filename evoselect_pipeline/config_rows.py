"""Where rows come from: the task's own, and the generator's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from evoselect_pipeline.addresses import is_in_the_clear, is_metadata_service
from evoselect_pipeline.core.private_text import secret_in

SPLITS = ("targets", "validation", "test")
VARIABLE = re.compile("[A-Z_][A-Z0-9_]*")
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Settings(BaseModel):
    """Base of the tree: frozen, its numbers finite, and a key nobody reads is an error."""

    # What is refused may hold a key: Dagster would print all of it.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


def spelled_out(value: Any) -> Any:
    """`engine: ray` is short for its kind, and stays so when further keys are set."""
    return {"kind": value} if isinstance(value, str) else value


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what could not be written down: dates, NaN, half a character, a loop."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"expected what JSON can hold: {error}") from None
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_as_json)]


def _refuse_secret(name: str, value: Any) -> None:
    """Settings are written into artifacts and into MLflow, where a key has no place."""
    if kind := secret_in(str(value)):
        raise ValueError(
            f"{name} holds what looks like {kind}, and settings are written down; put it into the"
            " environment instead"
        )


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
            except (re.error, RecursionError, OverflowError) as error:
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
    options: JsonObject = Field(
        default_factory=dict, description="Keyword arguments of the function."
    )
    num_candidates: int = Field(
        default=2000, ge=1, description="Most rows to take from it in a round."
    )

    @model_validator(mode="after")
    def _check(self) -> FunctionSource:
        if not FUNCTION.fullmatch(self.function):
            raise ValueError(f"function {self.function!r}: expected package.module:name")
        _refuse_secret("options", self.options)
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
    rows_per_request: int = Field(
        default=4, ge=1, description="Rows to ask for at a time; of `format: completion` 1."
    )
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

    @model_validator(mode="before")
    @classmethod
    def _ask_for_one_completion(cls, given: Any) -> Any:
        is_one = isinstance(given, dict) and given.get("format") == "completion"
        return {"rows_per_request": 1} | given if is_one else given

    @model_validator(mode="after")
    def _check_format(self) -> LLMSource:
        if self.format == "completion" and self.rows_per_request != 1:
            raise ValueError(
                "format: completion makes one row a request; leave rows_per_request out"
            )
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
    deadline_s: float = Field(
        default=600.0,
        gt=0,
        description="Longest time to get one answer, over all retries and the waits between them.",
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
    extra_body: JsonObject = Field(
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
        if "@" in self.base_url or address.query or address.fragment:
            raise ValueError(
                "base_url holds a password or a query; put the key into the environment instead,"
                " and its name into api_key_variable"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"base_url {self.base_url!r}: expected http(s)://HOST[:PORT]/v1")
        if is_metadata_service(address.hostname):
            raise ValueError(
                f"base_url {self.base_url!r}: this is where a cloud hands out its machines'"
                " credentials, or link-local; name the address of an LLM's server"
            )
        if not VARIABLE.fullmatch(self.api_key_variable):  # it may be the key itself: not repeated
            raise ValueError(
                "api_key_variable is the name of an environment variable, in capitals, and not the"
                " key itself"
            )
        _refuse_secret("extra_body", self.extra_body)
        if is_in_the_clear(address) and not self.allow_insecure:
            raise ValueError(
                f"base_url {self.base_url!r}: rows and key would travel in the clear; use https, or"
                " set allow_insecure for a network you trust"
            )
        if self.deadline_s < self.timeout_s:
            raise ValueError(
                f"deadline_s {self.deadline_s:g} ends before the first try may, after timeout_s"
                f" {self.timeout_s:g}; raise deadline_s"
            )
        if self.max_cost is not None and not (self.price_prompt or self.price_completion):
            raise ValueError("max_cost limits nothing without price_prompt and price_completion")
        return self
