"""A task in the user's own rows: each purpose's from its own file, or drawn from labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from evoselect_pipeline.config_rows import SPLITS, FileTask, Rows
from evoselect_pipeline.core.records import Sample
from evoselect_pipeline.core.splitting import deal, groups_of
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.playground.tasks import TaskRows
from evoselect_pipeline.stores.rows import UserRow, read_user_rows, rows_in_words

LEAST_OF_SHARE = 0.5  # of an even share that nobody has put a number to


@dataclass(frozen=True)
class FileTaskRows(TaskRows):
    """A task's rows, and how many distinct ones its files hold: some may be in no split."""

    num_distinct: int


def file_task_rows(task: FileTask) -> FileTaskRows:
    """Read a task's rows, and draw what has no rows of its own from the labelled ones.

    Near-copies of each other are drawn for one purpose, and near-copies of rows that have a purpose
    already for none.

    Raises
    ------
    DataError
        If rows cannot be read, or there are too few of them.
    """
    own = {
        split: _distinct(read_user_rows(rows, task.columns))
        for split in SPLITS
        if (rows := getattr(task, split)) is not None
    }
    _refuse_shared_groups(own)
    found = {split: _some(task, split, rows) for split, rows in own.items()}
    pool: list[UserRow] = []
    if task.rows is not None:
        pool = _distinct(read_user_rows(task.rows, task.columns))
        found |= _drawn(task, task.rows, pool, own)
    held = {row.sample.sample_id for rows in (pool, *own.values()) for row in rows}
    splits = ([row.sample for row in found[split]] for split in SPLITS)
    return FileTaskRows(*splits, num_distinct=len(held))


def _refuse_shared_groups(own: dict[str, list[UserRow]]) -> None:
    groups = {split: {row.group for row in rows if row.group} for split, rows in own.items()}
    for one, other in combinations(groups, 2):
        if shared := groups[one] & groups[other]:
            raise DataError(
                f"{one} and {other} share {len(shared)} groups, such as {min(shared)!r}; the rows"
                " of a group may serve one purpose only"
            )


def _distinct(rows: Sequence[UserRow]) -> list[UserRow]:
    """Each row once: what is there twice would count twice."""
    return list({row.sample.sample_id: row for row in reversed(rows)}.values())[::-1]


def _some(task: FileTask, split: str, rows: list[UserRow]) -> list[UserRow]:
    """As many rows of a file as its number says; subtasks keep their shares."""
    number = getattr(task, f"num_{split}")
    if number is None:
        return rows
    if number > len(rows):
        where = rows_in_words(getattr(task, split))
        raise DataError(f"task.num_{split} is {number}, but {where} holds {len(rows)} rows")
    samples = [row.sample for row in rows]
    [places] = deal(samples, groups_of(samples, near_text=1.0), [number])
    return [rows[place] for place in sorted(places)]


def _drawn(
    task: FileTask, labelled: Rows, pool: list[UserRow], own: dict[str, list[UserRow]]
) -> dict[str, list[UserRow]]:
    """Rows of the pool, which `labelled` names, for each purpose that has none of its own."""
    missing = [split for split in SPLITS if split not in own]
    taken = [row for rows in own.values() for row in rows]
    rows = [*pool, *taken]
    samples: list[Sample] = [row.sample for row in rows]
    groups = groups_of(samples, task.near_text, [row.group for row in rows])
    barred = set(groups[len(pool) :].tolist())
    places = [place for place in range(len(pool)) if groups[place] not in barred]
    numbers = {split: getattr(task, f"num_{split}") for split in missing}
    rest = len(places) - sum(number or 0 for number in numbers.values())
    share = max(1, rest // max(1, sum(number is None for number in numbers.values())))
    dealt = deal(
        [samples[place] for place in places],
        groups[places],
        [number or share for number in numbers.values()],
    )
    for (split, number), found in zip(numbers.items(), dealt, strict=True):
        if len(found) < (number or max(1, LEAST_OF_SHARE * share)):
            num_groups = len(set(groups[places].tolist()))
            raise DataError(
                f"{rows_in_words(labelled)}: {len(found)} rows for {split}, where"
                f" {number or share} are wanted. Of {len(pool)} distinct rows"
                f" {len(pool) - len(places)} nearly copy rows that have a file of their own, and"
                f" the others form {num_groups} groups of near-copies, which are not split. Lower"
                " the numbers, add rows, or raise task.near_text if rows that differ in little"
                " are different rows here"
            )
    return {
        split: [pool[places[number]] for number in sorted(found)]
        for split, found in zip(missing, dealt, strict=True)
    }
