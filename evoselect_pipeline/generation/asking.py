"""One question to an OpenAI-compatible server, and the one answer that is written down of it.

What comes is bounded in bytes and in seconds. Whatever may have been paid for is an answer, though
no row may be in it; only what the server refused, or did not take, is none.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from evoselect_pipeline.config_rows import ServerSource
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.generation.answers import schema
from evoselect_pipeline.generation.questions import Question
from evoselect_pipeline.stores.answer_log import Answer

if TYPE_CHECKING:
    from openai import AsyncOpenAI

BYTES_PER_TOKEN = 4  # where the server does not count
CUT_AT = 300  # characters of a server's own words in our messages
CONNECT_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0


class NoAnswer(Exception):
    """The server gave no answer that could be written down, and will not soon."""


class Rejected(NoAnswer):
    """Nor will it ever, to this request."""


class _Busy(Exception):
    """The server may answer later; `wait_s` says when, if it has told."""

    def __init__(self, words: str, wait_s: float | None = None):
        super().__init__(words)
        self.wait_s = wait_s


def open_client(source: ServerSource) -> AsyncOpenAI:
    """A client that leaves waiting and asking again to `ask`.

    Raises
    ------
    ConfigError
        If the key cannot be one; it is not repeated.
    """
    import openai

    key = os.environ.get(source.api_key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"${source.api_key_variable} holds characters that no key has; set it anew"
        )
    return openai.AsyncOpenAI(
        base_url=source.base_url,
        api_key=key or "none",  # local servers want none
        # Each whole call has its time in `ask`, which also counts what is asked again.
        timeout=openai.Timeout(None, connect=CONNECT_S),
        max_retries=0,
        # A redirection could lead to where the configured address may not.
        http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
    )


async def ask(client: AsyncOpenAI, source: ServerSource, question: Question) -> Answer:
    """Put a question, again while the server is busy; an answer that takes too long is one, too."""
    wait_s = FIRST_WAIT_S
    for again in range(source.retries + 1):
        try:
            async with asyncio.timeout(source.timeout_s):
                return await _ask_once(client, source, question)
        except TimeoutError:
            return _as_answer(b"", "too_slow", source, question)
        except _Busy as busy:
            if again == source.retries:
                raise NoAnswer(str(busy)) from None
            told = busy.wait_s if busy.wait_s is not None else wait_s * random.uniform(0.75, 1.25)
            await asyncio.sleep(min(told, LONGEST_WAIT_S))
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
        raise _Busy(_said(error, client)) from None
    return _as_answer(body, ended, source, question)


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
        told = error.response.headers.get("retry-after", "")
        return _Busy(said, float(told) if told.replace(".", "", 1).isdigit() else None)
    if source.format == "json" and source.constrain:
        said += ". If it cannot be held to a JSON schema, set generator.constrain to false"
    return Rejected(said)


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
    """A server's own words, short and without the key, which some servers repeat."""
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    words = " ".join(f"{error}{cause}".split())
    return (words if client.api_key == "none" else words.replace(client.api_key, "***"))[:CUT_AT]
