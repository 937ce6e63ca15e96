"""Rows from an LLM behind an OpenAI-compatible server: asked for in parallel, paid for once."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from evoselect_pipeline.config_rows import ServerSource
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.generation.asking import (
    Busy,
    NoAnswer,
    Rejected,
    ask,
    open_client,
    probe,
)
from evoselect_pipeline.generation.base import Assignment, Generated
from evoselect_pipeline.generation.questions import Questions
from evoselect_pipeline.generation.requests import Request, checked_template
from evoselect_pipeline.progress import progress

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MOST_SILENT = 5  # requests in a row without an answer: the server is down
FEW = 0.1  # share of requests without an answer that a round can do without

# How answers are fetched is no part of what they are; a template's words count, not its path.
TRANSPORT = {
    *("base_url", "api_key_variable", "concurrency", "retries", "deadline_s", "allow_insecure"),
    *("template", "price_prompt", "price_completion"),
}
_log = logging.getLogger("evoselect_pipeline")


@dataclass(frozen=True)
class Server:
    """A generator whose rows an LLM behind a server writes."""

    heeds_weights: ClassVar[bool] = True
    source: ServerSource

    def generate(self, assignment: Assignment) -> Generated:
        """Ask for a round's rows; what the log file holds already is not asked for again.

        Raises
        ------
        ConfigError
            If the server refuses the key, the model or the form of the requests.
        ConnectionError
            If it does not answer, or leaves too many requests without an answer; what it answered
            is kept.
        """
        questions = Questions(self.source, assignment, self.source.model)
        round_ = _Round(self.source, questions)
        _finish_beside(round_.ask_all())
        return questions.generated(len(round_.unanswered), round_.limit)

    def fingerprint(self, round_number: int) -> str:
        """Hash of what is asked, and of how much of it may be; a bad template is refused."""
        settings = self.source.model_dump(mode="json", exclude=TRANSPORT)
        return digest(settings, checked_template(self.source))

    def probe(self) -> None:
        """Refuse a server that is not there, or does not take the key; nothing is paid for."""
        asyncio.run(probe(self.source))


@dataclass
class _Round:
    """The asking of one round; all state is touched from one event loop alone."""

    source: ServerSource
    questions: Questions
    limit: str | None = None  # the spending limit that ended the asking
    unanswered: list[NoAnswer] = field(default_factory=list)  # a request each
    _refusal: ConfigError | None = None  # what the server would say to every request
    _silent: int = 0  # requests in a row without an answer
    _told: set[int | None] = field(default_factory=set)  # why answers are waited for
    _done: int = 0

    async def ask_all(self) -> None:
        """Put what is open, a few at a time, until all is answered or a limit is reached."""
        still_open = self.questions.open_requests()
        self._done = len(self.questions) - len(still_open)
        waiting = iter(still_open)
        async with open_client(self.source) as client, asyncio.TaskGroup() as group:
            for _ in range(self.source.concurrency):
                group.create_task(self._work(client, waiting))
        if self._refusal:
            raise self._refusal
        missing = len(self.unanswered)
        if missing > FEW * len(self.questions) or self._silent >= MOST_SILENT:
            # What is refused would be refused again; what is silent may speak later.
            is_for_good = all(isinstance(error, Rejected) for error in self.unanswered)
            raise (ConfigError if is_for_good else ConnectionError)(
                f"{self.source.base_url}: {missing} of {len(self.questions)} requests got no"
                f" answer, the last because: {self.unanswered[-1]}. What was answered is kept;"
                " materialize candidates again when the server is well"
            )

    async def _work(self, client: AsyncOpenAI, waiting: Iterator[Request]) -> None:
        for request in waiting:
            await self._settle(client, request)
            # Workers stop between answers: those under way are paid for, and come to be kept.
            if self.limit or self._refusal or self._silent >= MOST_SILENT:
                return
            self._done += 1
            progress("requests to the generator", self._done, len(self.questions))

    async def _settle(self, client: AsyncOpenAI, request: Request) -> None:
        """Have one request answered, asking again where an answer holds no row."""
        while self.questions.is_open(request):
            self.limit = self.limit or self._limit_reached()
            if self.limit:
                return
            try:
                question = self.questions.next_question(request)
                answer = await ask(client, self.source, question, self._tell)
            except NoAnswer as error:
                self.unanswered.append(error)
                self._silent += 1
                return
            except ConfigError as error:
                self._refusal = error
                return
            self._silent = 0
            self.questions.take([answer])

    def _tell(self, busy: Busy) -> None:
        """Say once why answers are waited for: nothing else would be heard for minutes."""
        if busy.status not in self._told:
            self._told.add(busy.status)
            _log.warning(
                "%s: %s; each request is put again, up to %d times in %g s",
                *(self.source.base_url, busy, self.source.retries, self.source.deadline_s),
            )

    def _limit_reached(self) -> str | None:
        spent = self.questions.log.spent
        limits = {
            "max_requests": (spent.num_requests, self.source.max_requests),
            "max_total_tokens": (spent.num_tokens, self.source.max_total_tokens),
            "max_cost": (spent.cost, self.source.max_cost),
        }
        for name, (used, allowed) in limits.items():
            if allowed is not None and used >= allowed:
                return name
        return None


def _finish_beside(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end in a thread of its own; an interrupt of this one cancels it.

    Inside an event loop an interrupt may be logged and forgotten, and the paying go on.
    """
    began, ended = threading.Event(), Future[None]()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = []

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        began.set()
        await work

    def run() -> None:
        try:
            ended.set_result(asyncio.run(main()))
        except BaseException as error:
            ended.set_exception(error)

    thread = threading.Thread(target=run, name="generator", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)  # short, so that signals are heeded
    except BaseException:
        began.wait()
        [(loop, task)] = running
        if not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    error = ended.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error:
        raise error
