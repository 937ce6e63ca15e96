"""Rows from an LLM behind an OpenAI-compatible server: asked for in parallel, paid for once.

The client library waits and asks again where a server is busy or out of reach. What it hands over
is bounded here in bytes and in seconds, written to the answer log, and only then read.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from evoselect_pipeline.config_rows import ServerSource
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.generation.answers import read_answer, schema
from evoselect_pipeline.generation.base import Assignment, Generated
from evoselect_pipeline.generation.requests import Request, checked_template, requests_for
from evoselect_pipeline.progress import progress
from evoselect_pipeline.stores.answer_log import Answer, AnswerLog

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TRIES = 3  # how often a request is put whose answers cannot be read
BYTES_PER_TOKEN = 4  # where the server does not count
CUT_AT = 300  # characters of a server's own words in our messages


# How answers are fetched is no part of what they are; a template's words count, not its path.
TRANSPORT = {
    *("base_url", "api_key_variable", "concurrency", "timeout_s", "retries", "allow_insecure"),
    *("price_prompt", "price_completion", "template", "max_answer_bytes"),
}


@dataclass(frozen=True)
class Server:
    """A generator whose rows an LLM writes."""

    source: ServerSource

    def generate(self, assignment: Assignment) -> Generated:
        """Ask for a round's rows; what the log file holds already is not asked for again.

        Raises
        ------
        ConfigError
            If the server refuses the key, the model or the form of the requests.
        ConnectionError
            If it does not answer, or not all requests; what it answered is kept.
        """
        if assignment.log_file is None:
            raise ConfigError(
                "generator.kind server: its answers are paid for, and there is no place to keep"
                " them here; write the rows to files first (generator.kind: files)"
            )
        requests = requests_for(self.source, assignment)
        log = AnswerLog(assignment.log_file)
        round_ = _Round(self.source, requests, log)
        asyncio.run(round_.ask_all())
        spent = log.spent
        return Generated(
            round_.samples,
            facts={
                "refused_answers": dict(sorted(Counter(round_.refused).items())),
                "num_requests": spent.num_requests,
                "num_tokens": spent.num_tokens,
                "cost": round(spent.cost, 6),
                "stopped_by": round_.limit,
            },
        )

    def fingerprint(self, round_number: int) -> str:
        """Hash of what is asked, and of how much of it may be; a bad template is refused."""
        settings = self.source.model_dump(mode="json", exclude=TRANSPORT)
        return digest(settings, checked_template(self.source))


@dataclass
class _Round:
    """One round of questions and answers; all state is touched from one event loop alone."""

    source: ServerSource
    requests: list[Request]
    log: AnswerLog
    limit: str | None = None  # the spending limit that ended the asking
    failures: list[str] = field(default_factory=list)
    _rows: dict[str, list[Sample]] = field(default_factory=dict)
    _refused: dict[str, list[str]] = field(default_factory=dict)
    _silent: int = 0  # requests in a row that got no answer at all
    _done: int = 0

    @property
    def samples(self) -> list[Sample]:
        """The rows, in the order of the requests, however the answers came."""
        return [row for request in self.requests for row in self._rows.get(request.key, [])]

    @property
    def refused(self) -> list[str]:
        """Why parts of answers, or whole ones, were no rows."""
        return [why for request in self.requests for why in self._refused.get(request.key, [])]

    async def ask_all(self) -> None:
        """Put every request, a few at a time, until all are answered or a limit is reached."""
        waiting = iter(self.requests)
        try:
            async with _client(self.source) as client, asyncio.TaskGroup() as group:
                for _ in range(self.source.concurrency):
                    group.create_task(self._work(client, waiting))
        except BaseExceptionGroup as failed:  # the first to fail has ended the others
            raise failed.exceptions[0] from None
        if self.failures:
            raise ConnectionError(
                f"{self.source.base_url}: {len(self.failures)} of {len(self.requests)} requests got"
                f" no answer, the last because: {self.failures[-1]}. What was answered is kept;"
                " materialize candidates again when the server is well"
            )

    async def _work(self, client: AsyncOpenAI, waiting: Any) -> None:
        for request in waiting:
            # A server that is down would be asked for every request in vain.
            if self.limit or self._silent >= self.source.concurrency:
                return
            await self._settle(client, request)
            self._done += 1
            progress("requests to the generator", self._done, len(self.requests))

    async def _settle(self, client: AsyncOpenAI, request: Request) -> None:
        """Have one request answered, asking again where an answer holds no row."""
        refused = self._refused.setdefault(request.key, [])
        for attempt in range(TRIES):
            answer = self.log.get(request.key, attempt)
            if answer is None:
                self.limit = self.limit or self._limit_reached()
                if self.limit:
                    return
                try:
                    answer = await _ask(client, self.source, request, attempt)
                except _NoAnswer as error:
                    self.failures.append(str(error))
                    self._silent += 1
                    return
                self._silent = 0
                self.log.append(answer)
            found = read_answer(
                answer, request, self.source.format == "json", f"llm:{self.source.model}"
            )
            refused += found.refused
            if found.samples:
                self._rows[request.key] = found.samples
                return

    def _limit_reached(self) -> str | None:
        spent = self.log.spent
        limits = {
            "max_requests": (spent.num_requests, self.source.max_requests),
            "max_total_tokens": (spent.num_tokens, self.source.max_total_tokens),
            "max_cost": (spent.cost, self.source.max_cost),
        }
        for name, (used, allowed) in limits.items():
            if allowed is not None and used >= allowed:
                return name
        return None


class _NoAnswer(Exception):
    """The server said nothing that could be written down."""


def _client(source: ServerSource) -> AsyncOpenAI:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    return AsyncOpenAI(
        base_url=source.base_url,
        api_key=os.environ.get(source.api_key_variable) or "none",  # local servers want none
        timeout=source.timeout_s,
        max_retries=source.retries,
        # A redirection could lead to where the configured address may not.
        http_client=DefaultAsyncHttpxClient(follow_redirects=False),
    )


async def _ask(client: AsyncOpenAI, source: ServerSource, request: Request, attempt: int) -> Answer:
    """Put a request once (the client library again, where the server is busy)."""
    import httpx
    import openai

    call = client.chat.completions.with_streaming_response.create(
        model=source.model,
        messages=[{"role": "user", "content": request.words}],
        extra_body=_body(source, seed=int(digest(request.key, attempt)[:7], 16)),
    )
    try:
        async with call as response:
            body, ended = await _bounded(response, source)
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise ConfigError(
            f"{source.base_url} refuses the key in ${source.api_key_variable}:"
            f" {_said(error, client)}"
        ) from None
    except openai.NotFoundError as error:
        raise ConfigError(
            f"{source.base_url} knows no model {source.model!r}, or no chat completions:"
            f" {_said(error, client)}"
        ) from None
    except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
        raise ConfigError(
            f"{source.base_url} does not take the request: {_said(error, client)}. If it cannot be"
            " held to a JSON schema, set generator.constrain to false"
        ) from None
    except (openai.APIError, httpx.HTTPError) as error:
        raise _NoAnswer(_said(error, client)) from None
    return _as_answer(body, ended, source, request, attempt)


def _body(source: ServerSource, seed: int) -> dict[str, Any]:
    """How the model is to answer; the user's own fields come last, and null takes one away."""
    body: dict[str, Any] = {
        "seed": seed,
        "max_tokens": source.max_tokens,
        "temperature": source.temperature,
        "top_p": source.top_p,
    }
    if source.format == "json" and source.constrain:
        json_schema = {"name": "rows", "schema": schema(), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    body |= source.extra_body
    return {name: value for name, value in body.items() if value is not None}


async def _bounded(response: Any, source: ServerSource) -> tuple[bytes, str | None]:
    """The answer's bytes, and why they are not all of them."""
    body = bytearray()
    try:
        async with asyncio.timeout(source.timeout_s):
            async for chunk in response.iter_bytes():
                body += chunk
                if len(body) > source.max_answer_bytes:
                    return bytes(body), "too_long"
    except TimeoutError:
        return bytes(body), "too_slow"
    return bytes(body), None


def _as_answer(
    body: bytes, ended: str | None, source: ServerSource, request: Request, attempt: int
) -> Answer:
    """What is written down: the words and the count of tokens, or why there are none."""
    text, usage = "", None
    if ended is None:
        try:
            told = _Told.model_validate_json(body)
        except ValidationError:
            text, ended = body.decode("utf-8", "replace"), "malformed"
        else:
            message, usage = told.choices[0].message, told.usage
            text = message.content or ""
            ended = "refused" if message.refusal else told.choices[0].finish_reason or ""
    used = usage or _Usage(
        prompt_tokens=-(-len(request.words.encode()) // BYTES_PER_TOKEN),
        completion_tokens=-(-len(text.encode() or body) // BYTES_PER_TOKEN),
    )
    cost = (
        used.prompt_tokens * source.price_prompt + used.completion_tokens * source.price_completion
    )
    return Answer(
        request=request.key,
        attempt=attempt,
        text=text,
        ended=ended,
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        estimated=usage is None,
        cost=cost / 1e6,
    )


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Told(BaseModel):
    """The part of a chat completion that counts here; the rest differs from server to server."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def _said(error: Exception, client: AsyncOpenAI) -> str:
    """A server's own words, short and without the key, which some servers repeat."""
    words = " ".join(str(error).split()).replace(client.api_key, "***")
    cause = error.__cause__
    return (words if cause is None else f"{words} ({cause})")[:CUT_AT]
