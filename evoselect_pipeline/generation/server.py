"""Rows from an LLM behind an OpenAI-compatible server: asked for in parallel, paid for once.

An answer is written to the log before it is read, and what the log holds is not asked for again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evoselect_pipeline.config_rows import ServerSource
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.generation.answers import CUT, read_answer
from evoselect_pipeline.generation.asking import NoAnswer, Rejected, ask, open_client
from evoselect_pipeline.generation.base import Assignment, Generated
from evoselect_pipeline.generation.requests import Request, checked_template, requests_for
from evoselect_pipeline.progress import progress
from evoselect_pipeline.stores.answer_log import Answer, AnswerLog

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TRIES = 3  # how often a request is put whose answers cannot be read
MOST_SILENT = 5  # requests in a row without an answer: the server is down
FEW = 0.1  # share of requests without an answer that a round can do without

# How answers are fetched is no part of what they are; a template's words count, not its path.
TRANSPORT = {
    *("base_url", "api_key_variable", "concurrency", "retries", "allow_insecure", "template"),
    *("price_prompt", "price_completion"),
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
            If it does not answer, or leaves too many requests without an answer; what it answered
            is kept.
        """
        if assignment.log_file is None:
            raise ConfigError(
                "generator.kind server: its answers are paid for, and there is no place to keep"
                " them here; write the rows to files first (generator.kind: files)"
            )
        log = AnswerLog(assignment.log_file)
        round_ = _Round(self.source, requests_for(self.source, assignment), log)
        round_.read_log()
        _finish_beside(round_.ask_all())
        return Generated(
            round_.samples,
            facts={
                "refused_answers": dict(sorted(Counter(round_.refused).items())),
                "num_requests": log.spent.num_requests,
                "num_tokens": log.spent.num_tokens,
                "cost": round(log.spent.cost, 6),
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
    _refusal: ConfigError | None = None  # what the server would say to every request
    _unanswered: list[NoAnswer] = field(default_factory=list)  # a request each
    _rows: dict[str, list[Sample]] = field(default_factory=dict)
    _refused: dict[str, list[str]] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)
    _silent: int = 0  # requests in a row without an answer
    _done: int = 0

    @property
    def samples(self) -> list[Sample]:
        """The rows, in the order of the requests, however the answers came."""
        return [row for request in self.requests for row in self._rows.get(request.key, [])]

    @property
    def refused(self) -> list[str]:
        """Why parts of answers, or whole ones, were no rows."""
        told = [why for request in self.requests for why in self._refused.get(request.key, [])]
        return told + ["no_answer"] * len(self._unanswered)

    def read_log(self) -> None:
        """Settle first what was answered before: a limit must not hide what is paid for."""
        for request in self.requests:
            for answer in self.log.answers_to(request.key):
                self._heed(request, answer, is_new=False)

    async def ask_all(self) -> None:
        """Put what is open, a few at a time, until all is answered or a limit is reached."""
        still_open = [request for request in self.requests if self._is_open(request)]
        self._done = len(self.requests) - len(still_open)
        waiting = iter(still_open)
        async with open_client(self.source) as client, asyncio.TaskGroup() as group:
            for _ in range(self.source.concurrency):
                group.create_task(self._work(client, waiting))
        if self._refusal:
            raise self._refusal
        missing = len(self._unanswered)
        if missing > FEW * len(self.requests) or self._silent >= MOST_SILENT:
            # What is refused would be refused again; what is silent may speak later.
            is_for_good = all(isinstance(error, Rejected) for error in self._unanswered)
            raise (ConfigError if is_for_good else ConnectionError)(
                f"{self.source.base_url}: {missing} of {len(self.requests)} requests got no answer,"
                f" the last because: {self._unanswered[-1]}. What was answered is kept; materialize"
                " candidates again when the server is well"
            )

    async def _work(self, client: AsyncOpenAI, waiting: Iterator[Request]) -> None:
        for request in waiting:
            await self._settle(client, request)
            # Workers stop between answers: those under way are paid for, and come to be kept.
            if self.limit or self._refusal or self._silent >= MOST_SILENT:
                return
            self._done += 1
            progress("requests to the generator", self._done, len(self.requests))

    async def _settle(self, client: AsyncOpenAI, request: Request) -> None:
        """Have one request answered, asking again where an answer holds no row."""
        while self._is_open(request):
            self.limit = self.limit or self._limit_reached()
            if self.limit:
                return
            try:
                answer = await ask(client, self.source, request, self.log.next_attempt(request.key))
            except NoAnswer as error:
                self._unanswered.append(error)
                self._silent += 1
                return
            except ConfigError as error:
                self._refusal = error
                return
            self._silent = 0
            self.log.append(answer)
            self._heed(request, answer, is_new=True)

    def _is_open(self, request: Request) -> bool:
        return request.key not in self._rows and self._tries.get(request.key, 0) < TRIES

    def _heed(self, request: Request, answer: Answer, is_new: bool) -> None:
        """Take an answer's rows. What was cut earlier counts as no try: the cause may be gone."""
        if answer.ended in CUT and not is_new:
            return
        as_json = self.source.format == "json"
        found = read_answer(answer, request, as_json, f"llm:{self.source.model}")
        self._tries[request.key] = self._tries.get(request.key, 0) + 1
        self._refused.setdefault(request.key, []).extend(found.refused)
        if found.samples:
            self._rows[request.key] = found.samples

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
