"""What a generator's LLM answered: written down as it came, before anybody makes sense of it.

An answer is paid for, with money or with time. Whatever happens after it came, a kill included, it
is not asked for again.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, get_type_hints

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores.artifacts import make_folder, sync
from evoselect_pipeline.stores.faults import fault


@dataclass(frozen=True)
class Answer:
    """One answer, and what it took.

    Attributes
    ----------
    request, attempt : str, int
        What was asked, and for the how manieth time.
    text : str
        The model's words, empty where there are none.
    ended : str
        The finish reason (`stop`, `length`, ...), or ours where the answer was no answer.
    prompt_tokens, completion_tokens : int
        As the LLM's side counted them, unless `estimated`.
    cost : float
        In the currency of the configured prices, at the time.
    """

    request: str
    attempt: int
    text: str
    ended: str
    prompt_tokens: int
    completion_tokens: int
    estimated: bool
    cost: float


KINDS = get_type_hints(Answer)


class Spent(NamedTuple):
    """What all answers took together."""

    num_requests: int
    num_tokens: int
    cost: float


class AnswerLog:
    """Answers in a file, one a line; `spent` is what they took together.

    Raises
    ------
    ArtifactError
        If the file holds anything else. A last line that a kill cut off counts as not written.
    """

    def __init__(self, file: Path):
        self.file = file
        self.spent = Spent(0, 0, 0.0)
        self._answers: dict[str, dict[int, Answer]] = defaultdict(dict)  # by request and attempt
        self._cut_off: int | None = None  # where a last line begins that a kill cut off
        self._line_end = b""  # what the last line lacks
        if file.is_file():
            whole = file.read_bytes()
            end = whole.rfind(b"\n") + 1
            for number, line in enumerate(whole[:end].splitlines(), start=1):
                self._keep(_read(line, f"{file}:{number}"))
            if end < len(whole):
                self._take_up(whole, end)

    def answers_to(self, request: str) -> list[Answer]:
        """What was answered to a request, attempt by attempt."""
        return [answer for _, answer in sorted(self._answers[request].items())]

    def next_attempt(self, request: str) -> int:
        """The number of an attempt that nothing was answered to, nor to a later one."""
        return max(self._answers[request], default=-1) + 1

    def append(self, answers: Sequence[Answer]) -> None:
        """Write answers down together; they are on the disk when this returns."""
        make_folder(self.file.parent)
        is_new = not self.file.exists()
        fault("answers:before")
        if self._cut_off is not None:
            os.truncate(self.file, self._cut_off)
            self._cut_off = None
        with self.file.open("ab") as file:
            lines = [json.dumps(asdict(answer), ensure_ascii=True) + "\n" for answer in answers]
            file.write(self._line_end + "".join(lines).encode())
            self._line_end = b""
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(self.file.parent)
        fault("answers:after")
        for answer in answers:
            self._keep(answer)

    def _take_up(self, whole: bytes, end: int) -> None:
        """Heed a last line without an end: whole, as editors leave it, or cut off by a kill."""
        try:
            last = _read(whole[end:], str(self.file))
        except ArtifactError:
            self._cut_off = end
        else:
            self._keep(last)
            self._line_end = b"\n"

    def _keep(self, answer: Answer) -> None:
        attempts = self._answers[answer.request]
        if answer.attempt in attempts:
            raise ArtifactError(
                f"{self.file}: attempt {answer.attempt} of request {answer.request} is there twice"
            )
        attempts[answer.attempt] = answer
        self.spent = Spent(
            self.spent.num_requests + 1,
            self.spent.num_tokens + answer.prompt_tokens + answer.completion_tokens,
            self.spent.cost + answer.cost,
        )


def _read(line: bytes, where: str) -> Answer:
    try:
        row = json.loads(line)
        answer = Answer(**{name: row[name] for name in KINDS})
        for name, kind in KINDS.items():
            if not _is(kind, row[name]):
                raise TypeError(f"{name} is {row[name]!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{where}: expected one answer of the generator's LLM, got {error!r}; the file was"
            " changed from outside. Remove the line: its answer is asked for again"
        ) from None
    return answer


def _is(kind: type, value: object) -> bool:
    if kind in (int, float):
        return type(value) in (int, kind) and 0 <= value < math.inf  # type: ignore[operator]
    return type(value) is kind
