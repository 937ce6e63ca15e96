"""What is worth knowing of a line's rows before a round, though none of it is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from typing import TYPE_CHECKING

from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_rows import (
    SPLITS,
    FileSource,
    FileTask,
    FunctionSource,
    LLMSource,
    PlaygroundSource,
    ServerSource,
)
from evoselect_pipeline.core.near_text import near_pairs
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.core.text_keys import asked_text
from evoselect_pipeline.generation.base import DroppedFiles
from evoselect_pipeline.playground.tasks import TaskRows
from evoselect_pipeline.report.reasons import in_words
from evoselect_pipeline.report.text import UNSEEN, one_line
from evoselect_pipeline.rounds.file_task import FileTaskRows
from evoselect_pipeline.rounds.line import Line

if TYPE_CHECKING:
    from evoselect_pipeline.core.encoding import Encoder

FEW_TARGETS, GOOD_TARGETS = 16, 64
FEW_ANSWERED, GOOD_ANSWERED = 50, 200  # validation or test rows
MOST_CHARS = 60  # of a row that is named
Placed = tuple[str, Sample]  # what a row is for, and the row


def notes_on(line: Line, rows: TaskRows, encoder: Encoder) -> list[str]:
    """Tell of the rows of a line's task and of its next round: how many there are, which are odd.

    Parameters
    ----------
    line : Line
    rows : TaskRows
    encoder : Encoder
        The student's.
    """
    return [*_of_task(line.config, rows, encoder), *_of_candidates(line)]


def _of_task(config: LineConfig, rows: TaskRows, encoder: Encoder) -> Iterator[str]:
    yield "rows: " + ", ".join(f"{len(getattr(rows, split))} {split}" for split in SPLITS)
    yield from _few(rows)
    if isinstance(rows, FileTaskRows):
        yield from _unused(rows)
    if isinstance(config.task, FileTask):
        placed = [(split, row) for split in SPLITS for row in getattr(rows, split)]
        yield from _near_copies(placed, config.task.near_text)
        yield from _unseen(placed)
    answered = [*rows.validation, *rows.test]
    yield from _long_answers(answered, encoder, config.evaluation.max_new_tokens)


def _few(rows: TaskRows) -> Iterator[str]:
    """Splits that are too small to say much."""
    if len(rows.targets) < FEW_TARGETS:
        yield (
            f"few targets: {len(rows.targets)} rows hardly say what the task asks, and selection"
            f" follows them alone; {GOOD_TARGETS} are a good start"
        )
    for split in ("validation", "test"):
        number = len(getattr(rows, split))
        if number < FEW_ANSWERED:
            yield (
                f"few {split} rows: with {number} a gain of less than {_least_gain(number):.0f}"
                " percentage points cannot be told from chance; with"
                f" {GOOD_ANSWERED}, a good start, {_least_gain(GOOD_ANSWERED):.0f} points can"
            )


def _least_gain(num_rows: int) -> float:
    """Percentage points that two accuracies near one half must differ by, at 95 % confidence.

    The normal approximation of an unpaired difference, 1.96 * sqrt(2 * 0.25 / n), and 100 at most.
    Pairing helps where models mostly give equal answers, which nobody knows beforehand.
    """
    return min(100.0, 196.0 * sqrt(0.5 / num_rows))


def _unused(rows: FileTaskRows) -> Iterator[str]:
    """Rows that the files hold and no split has."""
    used = {row.sample_id for split in SPLITS for row in getattr(rows, split)}
    if num_unused := rows.num_distinct - len(used):
        yield (
            f"{num_unused} of {rows.num_distinct} distinct rows are not used: the numbers of task"
            " ask for fewer, an even share leaves a rest, or they nearly copy rows of another split"
        )


def _of_candidates(line: Line) -> Iterator[str]:
    source, number = line.config.generator, line.next_round()
    if not isinstance(source, FileSource):
        yield f"candidates: {_author(source)}"
        return
    files = DroppedFiles(source)
    path = files.path(number)
    if not path.exists():
        yield f"the next round has no file yet: round {number} reads {path}"
        return
    read = files.read(number)
    yield f"candidates: round {number} reads {len(read.samples)} rows of {path}"
    if read.refused:
        counts = read.refused.most_common()
        reasons = ", ".join(f"{in_words(reason)}: {count}" for reason, count in counts)
        yield (
            f"{read.refused.total()} further candidates are left out ({reasons}); the first:"
            f" {one_line(read.first_refused)}"
        )
    yield from _unseen(("candidate", row) for row in read.samples)


def _author(source: PlaygroundSource | FunctionSource | LLMSource) -> str:
    """Who writes a round's candidates, and how many."""
    if isinstance(source, PlaygroundSource):
        return f"the playground's {source.world} world writes {source.num_candidates} a round"
    if isinstance(source, FunctionSource):
        return f"{source.function} writes {source.num_candidates} a round at most"
    where = f"at {source.base_url}" if isinstance(source, ServerSource) else "on this machine"
    return f"{source.model} {where} is asked for {source.num_candidates} a round"


def _near_copies(placed: Sequence[Placed], near_text: float) -> Iterator[str]:
    """Rows of files of their own, which nobody keeps apart."""
    if near_text == 1:
        return
    copies: set[int] = set()
    first = (len(placed), len(placed))
    for one, other in near_pairs([asked_text(row) for _, row in placed], near_text):
        if placed[one][0] != placed[other][0]:
            copies.add(other)
            first = min(first, (one, other))
    if copies:
        one, other = (_named(placed[number]) for number in first)
        yield (
            f"{len(copies)} rows nearly ask what a row of another split asks, as {one} and {other};"
            f" they share {near_text:.0%} of their word triples and more. Scores flatter if these"
            " are copies: take them out, or have the splits drawn from task.rows"
        )


def _long_answers(rows: Sequence[Sample], encoder: Encoder, most: int) -> Iterator[str]:
    """Reference answers that cannot be given in full; the token that ends one is none of them."""
    encoded, _ = encoder.encode(rows)
    num_tokens = [row.num_trained - 1 for row in encoded]
    num_long = sum(number > most for number in num_tokens)
    if num_long:
        yield (
            f"{num_long} of {len(rows)} reference answers are longer than evaluation.max_new_tokens"
            f" = {most}, so that no model can give them in full; the longest has"
            f" {max(num_tokens)} tokens: set evaluation.max_new_tokens to {max(num_tokens) + 1}"
        )


def _unseen(placed: Iterable[Placed]) -> Iterator[str]:
    """Rows with characters that cannot be seen but steer what is shown, or end it."""
    found = [(one, mark) for one in placed if (mark := _unseen_in(one[1]))]
    if found:
        one, mark = found[0]
        yield (
            f"{len(found)} rows hold characters that cannot be seen, and keep them; the first is"
            f" {_named(one)} with U+{ord(mark):04X}"
        )


def _unseen_in(row: Sample) -> str:
    text = "".join(message.content for message in row.messages)
    return next((mark[0] for mark in UNSEEN.finditer(text) if mark[0] not in "\n\t\r"), "")


def _named(placed: Placed) -> str:
    split, row = placed
    return f"{split} row {row.sample_id[:8]} ({one_line(row.prompt, MOST_CHARS)!r})"
