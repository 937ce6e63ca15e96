"""The target tasks: rows the base model does poorly, in three splits that never share a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evoselect_pipeline.core.records import Sample, sample_from_pair
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.playground.compose import NEW_COMPOSE
from evoselect_pipeline.playground.kinds import Kind, is_reserved, normalised, seeded
from evoselect_pipeline.playground.lookup import NEW_LOOKUP
from evoselect_pipeline.playground.stories import NEW_STORIES

BASE_MODEL_DIR = Path(__file__).parent / "base_model"

KINDS: dict[str, tuple[Kind, ...]] = {
    "stories": NEW_STORIES,
    "compose": NEW_COMPOSE,
    "lookup": NEW_LOOKUP,
}
TASKS: tuple[str, ...] = tuple(KINDS)


@dataclass(frozen=True)
class TaskRows:
    """A task's trusted rows: what to aim at, what to tune on, what to report."""

    targets: list[Sample]
    validation: list[Sample]
    test: list[Sample]


def task_kinds(task: str) -> tuple[Kind, ...]:
    """Look up a task's kinds.

    Raises
    ------
    ConfigError
        If there is no such task.
    """
    if task not in KINDS:
        raise ConfigError(
            f"playground: unknown task {task!r}; expected one of {', '.join(TASKS)}."
            " Correct the task's name."
        )
    return KINDS[task]


def task_rows(
    task: str,
    *,
    num_targets: int = 64,
    num_validation: int = 200,
    num_test: int = 600,
    seed: int = 0,
) -> TaskRows:
    """Draw a task's rows: disjoint splits, every kind in turn, the same for the same seed.

    Raises
    ------
    ConfigError
        If there is no such task.
    """
    rows = _evaluation_rows(task, seed)
    splits = [[next(rows) for _ in range(n)] for n in (num_targets, num_validation, num_test)]
    return TaskRows(*splits)


def _evaluation_rows(task: str, seed: int) -> Iterator[Sample]:
    kinds = task_kinds(task)
    rng = seeded("task rows", task, seed)
    seen: set[str] = set()
    while True:
        for kind in kinds:
            draft = kind.draw(rng)
            while not is_reserved(draft.prompt) or normalised(draft.prompt) in seen:
                draft = kind.draw(rng)
            seen.add(normalised(draft.prompt))
            yield sample_from_pair(
                draft.prompt, draft.answer, subtask=kind.name, source=f"playground-{task}"
            )
