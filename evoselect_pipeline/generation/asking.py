"""One question to an OpenAI-compatible server, and the one answer that is written down of it.

What comes is bounded in bytes and in seconds. Whatever may have been paid for is an answer, though
no row may be in it; only what the server refused, or did not take, is none.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from evoselect_pipeline.config_rows import ServerSource
from evoselect_pipeline.core.private_text import without_key
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.generation.answers import schema
from evoselect_pipeline.generation.questions import Question
from evoselect_pipeline.stores.answer_log import Answer

if TYPE_CHECKING:
    import openai
    from openai import AsyncOpenAI

BYTES_PER_TOKEN = 4  # where the server does not count
LEAST_KEY = 16  # characters; a shorter one, such as `EMPTY`, may be a word of an honest answer
CUT_AT = 300  # characters of a server's own words in our messages
CONNECT_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
PROBE_S = 10.0


class NoAnswer(Exception):
    """The server gave no answer that could be written down, and will not soon."""


class Rejected(NoAnswer):
    """Nor will it ever, to this request."""


class Busy(Exception):
    """The server may answer later; `wait_s` says when, if it has told.

    `status` is that of its answer, None where nobody was there to give one.
    """

    def __init__(self, words: str, status: int | None = None, wait_s: float | None = None):
        super().__init__(words)
        self.status = status
        self.wait_s = wait_s


def read_key(source: ServerSource) -> str:
    """The server's key, from the environment; empty if it is not set, as local servers want none.

    Raises
    ------
    ConfigError
        If a variable that the user has named is not set, or holds no key; it is not repeated.
    """
    variable = source.api_key_variable
    key = os.environ.get(variable, "").strip()
    if not key and variable != ServerSource.model_fields["api_key_variable"].default:
        raise ConfigError(
            f"generator.api_key_variable: ${variable} is not set; export it where the round runs,"
            " or leave the setting out if the server wants no key"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"${variable} holds characters that no key has; set it anew")
    return key


def open_client(source: ServerSource) -> AsyncOpenAI:
    """A client that leaves waiting and asking again to `ask`; see `read_key`."""
    import openai

    return openai.AsyncOpenAI(
        base_url=source.base_url,
        api_key=read_key(source) or "none",
        # Each whole call has its time in `ask`, which also counts what is asked again.
        timeout=openai.Timeout(None, connect=CONNECT_S),
        max_retries=0,
        # A redirection could lead to where the configured address may not.
        http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
    )


async def probe(source: ServerSource) -> None:
    """Ask for the names of the models, which costs nothing; not every server has to know them.

    Raises
    ------
    ConfigError
        If nobody answers at the address, or the key is refused.
    """
    import openai

    async with open_client(source) as client:
        try:
            async with asyncio.timeout(PROBE_S), client.models.with_streaming_response.list():
                pass
        except TimeoutError:
            raise _unreachable(source, f"no answer in {PROBE_S:g} s") from None
        except openai.APIConnectionError as error:
            raise _unreachable(source, _said(error, client)) from None
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise _classified(error, client, source) from None


def _unreachable(source: ServerSource, why: str) -> ConfigError:
    return ConfigError(
        f"{source.base_url} cannot be reached: {why}. Start the server, or correct"
        " generator.base_url"
    )


async def ask(
    client: AsyncOpenAI, source: ServerSource, question: Question, on_busy: Callable[[Busy], None]
) -> Answer:
    """Put a question, again while the server is busy; an answer that takes too long is one, too.

    `on_busy` hears of every wait before it begins.
    """
    clock, wait_s = asyncio.get_running_loop(), FIRST_WAIT_S
    deadline = clock.time() + source.deadline_s
    for again in range(source.retries + 1):
        try:
            async with asyncio.timeout_at(min(deadline, clock.time() + source.timeout_s)):
                return await _ask_once(client, source, question)
        except TimeoutError:
            return _as_answer(b"", "too_slow", source, question)
        except Busy as busy:
            if again == source.retries:
                raise NoAnswer(str(busy)) from None
            told = busy.wait_s if busy.wait_s is not None else wait_s * random.uniform(0.75, 1.25)
            told = min(told, LONGEST_WAIT_S)
            if clock.time() + told >= deadline:
                raise NoAnswer(
                    f"{busy}; to wait {told:.1f} s more would pass generator.deadline_s ="
                    f" {source.deadline_s:g}"
                ) from None
            on_busy(busy)
            await asyncio.sleep(told)
            wait_s *= 2
    raise AssertionError("unreachable: the last try returns or raises")


async def _ask_once(client: AsyncOpenAI, source: ServerSource, question: Question) -> Answer:
    """Put a question once."""
    import openai

    call = client.chat.completions.with_streaming_response.create(
        model=source.model,
        messages=list(question.messages),  # type: ignore[arg-type]
        extra_body=_body(source, question.seed),
    )
    try:
        async with call as response:
            body, ended = await _bounded(response, source)
    except openai.APIStatusError as error:
        raise _classified(error, client, source) from None
    except openai.APIError as error:
        raise Busy(_said(error, client)) from None
    answer = _as_answer(body, ended, source, question)
    if len(client.api_key) < LEAST_KEY:
        return answer
    return replace(answer, text=without_key(answer.text, client.api_key))


def _classified(error: Any, client: AsyncOpenAI, source: ServerSource) -> Exception:
    """What a refusal means: wrong for all requests, for this one, or only for now."""
    status, said = error.status_code, _said(error, client)
    if status in (401, 402, 403) or error.code == "insufficient_quota":
        return ConfigError(
            f"{source.base_url} refuses the key in ${source.api_key_variable}, or its account:"
            f" {said}"
        )
    if status == 404:
        return ConfigError(
            f"{source.base_url} knows no model {source.model!r}, or no chat completions: {said}"
        )
    if status in (408, 409, 429) or status >= 500:
        return Busy(said, status, told_wait_s(error.response.headers.get("retry-after", "")))
    if source.format == "json" and source.constrain:
        said += ". If it cannot be held to a JSON schema, set generator.constrain to false"
    return Rejected(said)


def told_wait_s(retry_after: str) -> float | None:
    """Seconds that `Retry-After` asks for, as a number or a date; None if it makes no sense."""
    if retry_after.replace(".", "", 1).isdecimal():
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # dates of HTTP are in it
    return max(0.0, moment.timestamp() - time.time())


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
        async for chunk in response.iter_bytes():
            body += chunk
            if len(body) > source.max_answer_bytes:
                return bytes(body), "too_long"
    except Exception:  # whatever the HTTP library calls a connection that broke
        return bytes(body), "broken_off"
    return bytes(body), None


def _as_answer(body: bytes, ended: str | None, source: ServerSource, question: Question) -> Answer:
    """What is written down: the words and the count of tokens, or why there are none."""
    text, usage = "", _Usage()
    if ended is None:
        try:
            told = _Told.model_validate_json(body)
        except ValidationError:
            text, ended = body.decode("utf-8", "replace"), "malformed"
        else:
            message, usage = told.choices[0].message, told.usage or usage
            text = message.content or ""
            ended = "refused" if message.refusal else told.choices[0].finish_reason or ""
    prompt_tokens, completion_tokens = usage.prompt_tokens, usage.completion_tokens
    if prompt_tokens is None:
        prompt_tokens = _estimate("".join(m["content"] for m in question.messages).encode())
    if completion_tokens is None:
        # Of an answer that did not come in time nobody knows how long it would have been.
        is_unknown = ended in ("too_slow", "broken_off")
        completion_tokens = source.max_tokens if is_unknown else _estimate(text.encode() or body)
    cost = prompt_tokens * source.price_prompt + completion_tokens * source.price_completion
    return Answer(
        request=question.request,
        attempt=question.attempt,
        text=text,
        ended=ended,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        estimated=None in (usage.prompt_tokens, usage.completion_tokens),
        cost=cost / 1e6,
    )


def _estimate(content: bytes) -> int:
    return -(-len(content) // BYTES_PER_TOKEN)


class _Usage(BaseModel):
    prompt_tokens: int | None = Field(default=None, ge=0)
    completion_tokens: int | None = Field(default=None, ge=0)


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
    """A server's own words: short, nothing that steers a terminal, no key that it repeats."""
    import openai

    told = _own_words(error) if isinstance(error, openai.APIStatusError) else str(error)
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    words = "".join(c for c in " ".join(f"{told}{cause}".split()) if c.isprintable())
    return (words if client.api_key == "none" else without_key(words, client.api_key))[:CUT_AT]


def _own_words(error: openai.APIStatusError) -> str:
    """What a server says of its refusal, in whatever form: the library knows OpenAI's alone."""
    told: Any = error.body
    if isinstance(told, dict):
        told = told.get("message") or told.get("detail") or told
    status = f"Error code: {error.status_code}"
    return f"{status} - {told}" if told else status
