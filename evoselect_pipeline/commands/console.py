"""Reports on stdout, progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from evoselect_pipeline.progress import listening

stdout = Console(soft_wrap=True)
stderr = Console(stderr=True)


def print_json(value: Any) -> None:
    """Write JSON, and nothing else, to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table to stdout."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        numeric = bool(rows) and all(
            isinstance(row[len(table.columns)], (int, float)) for row in rows
        )
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    stdout.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    # Samples are the user's data, not our markup.
    return str(value).replace("[", "\\[")


@contextmanager
def live_progress() -> Iterator[None]:
    """Show a bar for each kind of work in progress; one line each where stderr is no terminal."""
    if not stderr.is_terminal:
        with listening(_line_when_done):
            yield
        return
    columns = (
        TextColumn("  {task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as bars:
        shown: dict[str, Any] = {}

        def listen(what: str, done: int, total: int) -> None:
            if what not in shown:
                shown[what] = bars.add_task(what, total=total)
            bars.update(shown[what], completed=done, total=total)
            if done >= total:
                bars.remove_task(shown.pop(what))

        with listening(listen):
            yield


def _line_when_done(what: str, done: int, total: int) -> None:
    if done >= total:
        stderr.print(f"  {what}: {total}")
