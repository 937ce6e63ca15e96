"""A round's requests and the answers to them: what they came to, and what to ask next.

An answer is written to the log before it is read, and what the log holds is not asked for again.
What is asked next follows from the log alone, so that a killed round goes on as it would have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from evoselect_pipeline.config_rows import LLMSource
from evoselect_pipeline.core.records import Sample, digest
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.generation.answers import CUT, ReadAnswer, read_answer
from evoselect_pipeline.generation.base import Assignment, Generated
from evoselect_pipeline.generation.requests import Request, requests_for
from evoselect_pipeline.stores.answer_log import Answer, AnswerLog

TRIES = 3  # answers without a row after which a request is given up
REFUSALS = 2  # the same of a model that will not
REFUSED = ("content_filter", "refused")
SHOWN = 2_000  # characters of an answer that its model is shown again

# What a model is told of an answer that it can mend.
MENDABLE = {
    "not_json": "No JSON could be read from your answer.",
    "wrong_form": 'Your JSON has not the form {"rows": [{"prompt": "...", "completion": "..."}]}.',
    "empty": "Your answer holds nothing.",
    "malformed_row": "Your rows lack a text, of the prompt or of the completion.",
    "length": "Your answer was cut off: write fewer or shorter rows.",
}
AGAIN = "Answer the request anew, in the form that it asks for."


@dataclass(frozen=True)
class Question:
    """One attempt at a request, as a conversation that waits for its answer."""

    request: str
    attempt: int
    messages: tuple[dict[str, str], ...]

    @property
    def seed(self) -> int:
        """One for every attempt: the same seed could get the same answer."""
        return int(digest(self.request, self.attempt)[:7], 16)

    @property
    def num_characters(self) -> int:
        """Of all its words."""
        return sum(len(message["content"]) for message in self.messages)


class Questions:
    """All requests of a round, and how far they are answered.

    Parameters
    ----------
    model : str
        What identifies the model: its name, or a hash of it.

    Raises
    ------
    ConfigError
        If the assignment names no file to keep answers in.
    """

    def __init__(self, source: LLMSource, assignment: Assignment, model: str):
        if assignment.log_file is None:
            raise ConfigError(
                "generator: an LLM's answers are paid for, with money or with time, and there is no"
                " place to keep them here; write the rows to files first (generator.kind: files)"
            )
        self.source = source
        self.log = AnswerLog(assignment.log_file)
        self._requests = {r.key: r for r in requests_for(source, assignment, model)}
        self._read: dict[str, list[ReadAnswer]] = {key: [] for key in self._requests}
        # Settled before anything is asked: a limit must not hide what is paid for.
        for key in self._requests:
            for answer in self.log.answers_to(key):
                # What was cut earlier counts as no try: the cause may be gone.
                if answer.ended not in CUT:
                    self._read[key].append(self._rows_of(answer))

    def __len__(self) -> int:
        return len(self._requests)

    def open_requests(self) -> list[Request]:
        """Requests that are worth another question."""
        return [request for request in self._requests.values() if self.is_open(request)]

    def is_open(self, request: Request) -> bool:
        """Whether a request has no rows yet, and tries left."""
        read = self._read[request.key]
        refusals = sum(why in REFUSED for found in read for why in found.refused)
        has_rows = any(found.samples for found in read)
        return not has_rows and len(read) < TRIES and refusals < REFUSALS

    def next_question(self, request: Request) -> Question:
        """The next attempt at a request; it tells what was wrong with the last answer."""
        messages = [{"role": "user", "content": request.words}]
        if answered := self.log.answers_to(request.key):
            last = answered[-1]
            [why, *_] = self._rows_of(last).refused
            if why in MENDABLE:
                messages += [
                    {"role": "assistant", "content": _shown(last.text)},
                    {"role": "user", "content": f"{MENDABLE[why]} {AGAIN}"},
                ]
        return Question(request.key, self.log.next_attempt(request.key), tuple(messages))

    def take(self, answers: Sequence[Answer]) -> None:
        """Write answers down together, then read them."""
        self.log.append(answers)
        for answer in answers:
            self._read[answer.request].append(self._rows_of(answer))

    def generated(self, num_unanswered: int = 0, stopped_by: str | None = None) -> Generated:
        """The rows, in the order of the requests, and what writing them took."""
        read = [found for answers in self._read.values() for found in answers]
        refused = Counter(why for found in read for why in found.refused)
        if num_unanswered:
            refused["no_answer"] = num_unanswered
        samples: list[Sample] = [sample for found in read for sample in found.samples]
        spent = self.log.spent
        return Generated(
            samples,
            facts={
                "refused_answers": dict(sorted(refused.items())),
                "num_requests": spent.num_requests,
                "num_tokens": spent.num_tokens,
                "cost": round(spent.cost, 6),
                "stopped_by": stopped_by,
            },
        )

    def _rows_of(self, answer: Answer) -> ReadAnswer:
        as_json = self.source.format == "json"
        request = self._requests[answer.request]
        return read_answer(answer, request, as_json, f"llm:{self.source.model}")


def _shown(text: str) -> str:
    """The start of an answer, as its model is shown it."""
    if not text.strip():
        return "(nothing)"  # not every server takes a turn without words
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
