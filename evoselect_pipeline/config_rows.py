"""Where rows come from: the task's own, and the generator's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evoselect_pipeline.addresses import is_in_the_clear


class Settings(BaseModel):
    """Base of the tree: frozen, and a key nobody reads is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PlaygroundTask(Settings):
    """A task of the built-in world."""

    kind: Literal["playground"] = "playground"
    name: str = Field(default="stories", description="One of the built-in tasks.")
    num_targets: int = Field(
        default=64, ge=1, description="Target rows, which selection aligns with."
    )
    num_validation: int = Field(default=200, ge=1, description="Rows that decide about promotion.")
    num_test: int = Field(default=600, ge=1, description="Rows that are only reported.")


class FileTask(Settings):
    """A task in the user's own JSONL files, one row a line."""

    kind: Literal["files"]
    targets: Path = Field(description="Target rows, which selection aligns with.")
    validation: Path = Field(description="Rows that decide about promotion.")
    test: Path = Field(description="Rows that are only reported.")


class PlaygroundSource(Settings):
    """The built-in generator, which errs on purpose."""

    kind: Literal["playground"] = "playground"
    world: Literal["weak", "strong"] = "weak"
    num_candidates: int = Field(default=6000, ge=1)


class FileSource(Settings):
    """Candidates that somebody else wrote: a JSONL file for each round."""

    kind: Literal["files"]
    pattern: str = Field(
        description="Path of a round's file, with {round} for the round's four digits."
    )


class ServerSource(Settings):
    """An LLM behind an OpenAI-compatible server: vLLM, Ollama, SGLang, a cloud's own.

    The limits are hard, and of one round: what comes after is not asked for.
    """

    kind: Literal["server"]
    base_url: str = Field(description="Address up to the version, as http://127.0.0.1:8000/v1.")
    model: str = Field(min_length=1, description="The model's name on the server.")
    api_key_variable: str = Field(
        default="OPENAI_API_KEY", description="Environment variable that holds the key, if any."
    )
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
    constrain: bool = Field(
        default=True, description="Have the server keep its JSON to our schema."
    )
    num_candidates: int = Field(default=2000, ge=1, description="Rows to ask for in a round.")
    rows_per_request: int = Field(default=4, ge=1, description="Rows to ask for at a time.")
    num_examples: int = Field(default=4, ge=1, description="Target rows shown in a request.")
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=2048, ge=1, description="Tokens of one answer.")
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
    max_requests: int | None = Field(default=None, ge=1)
    max_total_tokens: int | None = Field(default=None, ge=1)
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
    def num_requests(self) -> int:
        """Requests that ask for all rows."""
        return -(-self.num_candidates // self.rows_per_request)

    @property
    def sampling(self) -> list[Any]:
        """What decides an answer besides its request's words."""
        return [
            *(self.temperature, self.top_p, self.max_tokens),
            *(self.format, self.constrain, self.extra_body),
        ]

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
        if self.format == "completion" and self.rows_per_request != 1:
            raise ValueError("format: completion makes one row a request; set rows_per_request: 1")
        if self.max_cost is not None and not (self.price_prompt or self.price_completion):
            raise ValueError("max_cost limits nothing without price_prompt and price_completion")
        return self
